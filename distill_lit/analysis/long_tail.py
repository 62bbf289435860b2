"""The long tail: scores and flips by stratum, and whether the tail lost more than the head.

Scores are above chance, strata are taken within a task and pooled with equal task weight, and only tasks on which
the teacher is above chance are pooled. Sources: Hooker 1911.05248, Tropeano 2503.21714, Dutta 2407.09141.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from distill_lit.analysis import significance as st
from distill_lit.analysis.calibration import calibration_frame
from distill_lit.analysis.document_axes import MISSING_STRATUM, SECONDARY_AXES, DocumentAxis, axis_values, stratify
from distill_lit.analysis.flips import document_flips, flip_counts
from distill_lit.analysis.score_table import find_baselines
from distill_lit.analysis.scores import Scores
from distill_lit.analysis.slices import find_slices
from distill_lit.analysis.strata import (
    AxisStrata,
    against_baseline,
    axis_strata,
    tail_less_head,
    trend_weights,
    with_bounds,
)
from distill_lit.analysis.worst_group import Group, worst_group

TESTABLE_DOCUMENTS = 100
TESTABLE_DISCORDANT = 10
MIN_INTERVAL_DOCUMENTS = 30  # from which a stratum gets an interval: below it redrawn documents understate chance
WORST_NUMBERS = ("excess", "excess_low", "excess_high", "retention", "low", "high", "p_adjusted", "expected")
NOTE_AT_CHANCE = "teacher at chance"
NOTE_EMPTY = "too few documents"
INSUFFICIENT = "insufficient"


@dataclass
class LongTail:
    """All tables of the report. Frames have a column `model`, the label of a distilled group."""

    axes: list[DocumentAxis] = field(default_factory=list)
    axis_values: pd.DataFrame = field(default_factory=pd.DataFrame)  # axis values per document
    stratum_codes: pd.DataFrame = field(default_factory=pd.DataFrame)  # strata per document
    flips: dict[str, pd.DataFrame] = field(default_factory=dict)  # model: document_flips
    task_flips: pd.DataFrame = field(default_factory=pd.DataFrame)  # flips per task
    stratum_scores: pd.DataFrame = field(default_factory=pd.DataFrame)  # per axis and stratum
    tail_contrasts: pd.DataFrame = field(default_factory=pd.DataFrame)  # tail less head per axis
    worst_strata: pd.DataFrame = field(default_factory=pd.DataFrame)  # the stratum that loses most beyond its tasks
    slices: dict[str, pd.DataFrame] = field(default_factory=dict)  # model: find_slices
    calibration: pd.DataFrame = field(
        default_factory=pd.DataFrame
    )  # calibration, worst tenth, coverage; also those without teacher

    def axis_title(self, axis: str) -> str:
        """The name of an axis in words."""
        return next((a.title for a in self.axes if a.name == axis), axis)


def analyze_long_tail(scores: Scores) -> LongTail:
    """The report of every distilled group; empty without a teacher or without a distilled group."""
    students = [g for g, group in enumerate(scores.groups) if group.role == "distilled" and group.models]
    if scores.teacher is None or not students or not scores.responses.tasks:
        return LongTail()
    values = axis_values(scores.results)
    axes, codes = stratify(scores.results, values, scores.analysis.num_strata)
    if not axes:
        return LongTail()
    report = LongTail(axes, values, codes)
    strata_of = {axis.name: axis_strata(scores, axis, codes[axis.name]) for axis in axes}
    primary = [axis for axis in axes if axis.name not in SECONDARY_AXES]
    groups = _stratum_groups(scores, primary, codes)
    tasks, strata, contrasts, worst = [], [], [], []
    for g in students:
        label = scores.groups[g].label
        flips = report.flips[label] = document_flips(scores, g)
        counts = flip_counts(flips, flips.index.get_level_values("task"))
        tasks.append(counts.rename_axis("task").reset_index().assign(model=label))
        used = averaged_flips(scores, flips)
        used_codes = codes.take(codes.index.get_indexer(used.index))
        for axis in axes:
            counts = flip_counts(used, used_codes[axis.name]) if len(used) else pd.DataFrame()
            strata.append(_stratum_rows(scores, axis, strata_of[axis.name], g, counts))
            if axis.kind != "category":
                contrasts.append(_contrast(scores, axis, strata_of[axis.name], g))
        worst.append(_worst(scores, groups, g))
        report.slices[label] = _slices(scores, primary, used_codes, used)
    report.task_flips, report.stratum_scores = pd.concat(tasks, ignore_index=True), pd.concat(strata, ignore_index=True)
    report.tail_contrasts, report.worst_strata = pd.DataFrame(contrasts), pd.DataFrame(worst)
    report.calibration = calibration_frame(scores, codes)
    _adjust_p_values(scores, report)
    return report


def averaged_flips(scores: Scores, flips: pd.DataFrame) -> pd.DataFrame:
    """Those of the tasks in the average."""
    return flips[flips.index.get_level_values("task").isin([scores.tasks[t] for t in scores.averaged])]


def _slices(scores: Scores, axes: list[DocumentAxis], codes: pd.DataFrame, flips: pd.DataFrame) -> pd.DataFrame:
    documents, analysis = scores.results.documents, scores.analysis
    clusters = documents["cluster"].take(documents.index.get_indexer(flips.index)).astype(str)
    return find_slices(axes, codes, flips, clusters, analysis.num_strata, analysis.false_discovery_rate)


def _stratum_rows(scores: Scores, axis: DocumentAxis, strata: AxisStrata, g: int, counts: pd.DataFrame) -> pd.DataFrame:
    """Per stratum of one axis: n, scores of teacher, student and itself alone, Δ with bounds, retention, flips.

    counts: `flip_counts` by stratum.
    """
    teacher, ce_only = scores.teacher, find_baselines(scores, g).get("ce_only")
    assert teacher is not None
    rows = []
    for s in strata.numbers:
        row: dict[str, Any] = {
            "model": scores.groups[g].label,
            "axis": axis.name,
            "stratum": s,
            "label": axis.stratum_label(s, scores.analysis.num_strata),
            "teacher": strata.estimate({s: 1.0}, teacher).value,
            "student": strata.estimate({s: 1.0}, g).value,
            **_stratum_delta("delta", strata, s, g),
            **_stratum_delta("ce_only_delta", strata, s, ce_only),
        }
        if ce_only is not None:
            row["ce_only"] = strata.estimate({s: 1.0}, ce_only).value
        row["retention"] = strata.retention(s, g)
        row["note"] = _stratum_note(row["teacher"], row["retention"])
        rows.append(row | (counts.loc[s].to_dict() if s in counts.index else {"n": 0, "lost": 0, "gained": 0}))
    return pd.DataFrame(rows).rename(columns={"delta_low": "low", "delta_high": "high"})


def _stratum_note(teacher: float, retention: float) -> str:
    """Why there is no share of the teacher's score, or nothing."""
    if np.isnan(teacher):
        return NOTE_EMPTY
    return NOTE_AT_CHANCE if np.isnan(retention) else ""


def _stratum_delta(name: str, strata: AxisStrata, s: int, g: int | None) -> dict[str, float]:
    """A group's score less the teacher's in a stratum, with bounds where it has documents enough."""
    if g is None:
        return {}
    found = strata.estimate({s: 1.0}, g, strata.scores.teacher)
    n = strata.n_documents([s])
    low, high = found.interval(strata.scores.analysis.confidence_level)[1:]
    if n < MIN_INTERVAL_DOCUMENTS:
        low = high = np.nan
    elif low == high:  # no answer differs
        chance = [strata.scores.responses.tasks[t].chance.mean() for t in strata.tasks_with([s])]
        above_chance = float(np.mean([1 / (1 - share) for share in chance]))  # points that one right answer is worth
        reach = above_chance * st.rule_of_three(n, strata.scores.analysis.confidence_level)
        low, high = low - reach, high + reach
    return {name: found.value, f"{name}_low": low, f"{name}_high": high}


def _contrast(scores: Scores, axis: DocumentAxis, strata: AxisStrata, g: int) -> dict[str, object]:
    """What tail and head differ by, of the student less its teacher, of the same without teacher, and the excess of the
    first.

    tail_loss, ce_only_tail_loss, excess: in points above chance, tail less head; trend, ce_only_trend, trend_excess: the
    same from the first to the last stratum on the line through all of them; retention_change, ce_only_retention_change,
    retention_excess: of the share of the teacher's score that is retained, which does not mix a worse student with a
    teacher that is better there; student_change, teacher_change: of their own scores. Each with bounds _low, _high and _p.
    """
    ends = tail_less_head(strata.last)
    n = strata.n_documents(ends)
    row: dict[str, object] = {"model": scores.groups[g].label, "axis": axis.name, "n": n}
    if n < MIN_INTERVAL_DOCUMENTS:
        return row | {"note": INSUFFICIENT}
    teacher, ce_only = scores.teacher, find_baselines(scores, g).get("ce_only")
    assert teacher is not None
    found = against_baseline(("tail_loss", "excess"), ends, strata.estimate, g, ce_only, teacher)
    if strata.last > 2 and strata.n_documents(trend := trend_weights(strata.last)) >= MIN_INTERVAL_DOCUMENTS:
        found |= against_baseline(("trend", "trend_excess"), trend, strata.estimate, g, ce_only, teacher)
    shares = ("retention_change", "retention_excess")
    found |= against_baseline(shares, ends, strata.retention_estimate, g, ce_only, None)
    found |= {"student_change": strata.estimate(ends, g), "teacher_change": strata.estimate(ends, teacher)}
    return row | with_bounds(found, scores.analysis.confidence_level) | {"note": ""}


def _stratum_groups(scores: Scores, axes: list[DocumentAxis], codes: pd.DataFrame) -> dict[Group, NDArray[np.bool_]]:
    """{(axis, label): which documents are inside} of all strata."""
    return {(axis.name, axis.stratum_label(s, scores.analysis.num_strata)): (codes[axis.name] == s).to_numpy()
            for axis in axes for s in sorted(codes[axis.name].unique()) if s != MISSING_STRATUM}  # fmt: skip


def _worst(scores: Scores, groups: dict[Group, NDArray[np.bool_]], g: int) -> dict[str, object]:
    """The stratum that loses most beyond its tasks, with bounds and p that hold for all strata at once; see
    `worst_group`."""
    found = worst_group(scores, groups, g)
    row: dict[str, object] = {
        "model": scores.groups[g].label,
        "axis": "",
        "label": "",
        "num_groups": 0,
        "stands_out": False,
    }
    if found is None:
        return row | dict.fromkeys(WORST_NUMBERS, np.nan)
    numbers = (*found.excess, *found.retention, found.p_adjusted, found.expected)
    row |= {"axis": found.axis, "label": found.label, "num_groups": found.num_groups, "stands_out": found.stands_out}
    return row | dict(zip(WORST_NUMBERS, numbers, strict=True))


def _adjust_p_values(scores: Scores, report: LongTail) -> None:
    """Benjamini–Hochberg over the testable strata and tasks of each model; the rest reads "insufficient"."""
    report.stratum_scores = report.stratum_scores.reindex(
        columns=list(dict.fromkeys([*report.stratum_scores, *report.task_flips.drop(columns="task")]))
    )
    for frame in (report.task_flips, report.stratum_scores):
        discordant = frame["lost"] + frame["gained"]
        frame["testable"] = (frame["n"] >= TESTABLE_DOCUMENTS) & (discordant >= TESTABLE_DISCORDANT)
        frame["p_adjusted"] = np.nan
    at_chance = report.task_flips["task"].isin(scores.excluded_tasks)
    report.task_flips["testable"] &= ~at_chance
    for label in report.flips:
        parts = [
            frame.index[(frame["model"] == label) & frame["testable"]]
            for frame in (report.task_flips, report.stratum_scores)
        ]
        p = [*report.task_flips.loc[parts[0], "p"], *report.stratum_scores.loc[parts[1], "p"]]
        adjusted = st.benjamini_hochberg(p)
        report.task_flips.loc[parts[0], "p_adjusted"] = adjusted[: len(parts[0])]
        report.stratum_scores.loc[parts[1], "p_adjusted"] = adjusted[len(parts[0]) :]
    for frame in (report.task_flips, report.stratum_scores):
        significant = frame["p_adjusted"] <= scores.analysis.false_discovery_rate
        frame["verdict"] = np.select([~frame["testable"], significant], [INSUFFICIENT, "significant"], "not significant")
    report.task_flips.loc[at_chance, "verdict"] = NOTE_AT_CHANCE
