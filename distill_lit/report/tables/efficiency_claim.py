"""The claim "most of the quality at a fraction of the cost", decided per student and cost axis."""

from distill_lit.analysis.pareto import COST_AXES, cost_axes, efficiency_claims, hypervolume_gains
from distill_lit.analysis.scores import Scores
from distill_lit.report.formats.table import Table, TableCell
from distill_lit.report.number_format import format_number, format_percent, format_with_interval
from distill_lit.report.tables.footnotes import sample_limit_notes


def claim_table(scores: Scores) -> Table:
    """One row per student and one verdict per cost axis; never one over all axes."""
    frame, axes = efficiency_claims(scores), cost_axes(scores)
    quality, share = scores.analysis.claim_min_quality, scores.analysis.claim_max_cost
    rows = []
    for model, claims in frame.groupby("model", sort=False):
        row = claims.iloc[0]
        verdicts = claims.set_index("axis")
        cells = [format_percent(row[name], 1) for name in ("raw_retention", "retention")]
        cells.append(format_with_interval(row["margin"], row["low"], row["high"], signed=True))
        cells += [
            f"{format_number(verdicts.at[a, 'ratio'])}×, {verdicts.at[a, 'verdict']}" if a in verdicts.index else ""
            for a in axes
        ]
        rows.append([TableCell(str(model)), *map(TableCell, cells)])
    notes = [
        "Retained, raw: share of the teacher's plain average; retained: of its average above chance. Margin: the student's "
        f"score above chance less {quality:.0%} of the teacher's. Per cost axis, how many times the student's cost the "
        "teacher's is, and whether the claim holds: yes if the lower bound of the margin is above 0 and that of the "
        f"ratio at least {format_number(1 / share, 0)}; no if an upper bound is below; else undecided."
    ]
    columns = ["model", "retained, raw", "retained", "margin, points", *(COST_AXES[a] for a in axes)]
    title = f"At least {quality:.0%} of the teacher's score at no more than {share:.0%} of its cost?"
    return Table(title, columns, rows, header_notes=sample_limit_notes(scores), footnotes=notes + _volumes(scores))


def _volumes(scores: Scores) -> list[str]:
    """The area under the frontier with and without a teacher, on the first cost axis, per variant."""
    axes = cost_axes(scores)
    found = hypervolume_gains(scores, axes[0]) if axes else None
    if found is None or found.empty:
        return []
    sentences, on = [], " on other data" if any(group.other_data for group in scores.groups) else ""
    for variant, volumes in found.groupby("variant", sort=False):
        distilled, without, gain = (volumes[volumes["series"] == what].iloc[0] for what in ("distilled", "ce_only", "gain"))
        areas = [format_with_interval(row["value"], row["low"], row["high"]) for row in (distilled, without)]
        adds = format_with_interval(gain["value"], gain["low"], gain["high"], signed=True)
        name = f"{variant}: " if variant else ""
        sentences.append(f"{name}distilled {areas[0]}, without teacher{on} {areas[1]}, so that distillation adds {adds}")
    return [
        f"Area under the frontier over {COST_AXES[axes[0]]} (points above chance × decades of cost, up to the "
        f"teacher's cost): {'; '.join(sentences)}."
    ]
