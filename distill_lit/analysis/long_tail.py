"""The long tail: scores and flips by stratum, and whether the tail lost more than the head.

Scores are above chance, strata are taken within a task and pooled with equal task weight, and only tasks on which
the teacher is above chance are pooled. Sources: Hooker 1911.05248, Tropeano 2503.21714, Dutta 2407.09141.
"""

from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from distill_lit.analysis import significance as st
from distill_lit.analysis.calibration import confidence_table
from distill_lit.analysis.document_axes import MISSING, SECONDARY, Axis, axis_values, stratify
from distill_lit.analysis.flips import document_flips, flip_counts
from distill_lit.analysis.score_table import RETENTION_FLOOR, opponents
from distill_lit.analysis.scores import Scores
from distill_lit.analysis.slices import find_slices
from distill_lit.analysis.strata import Pooled, pool

Floats = NDArray[np.floating]
TESTABLE_DOCUMENTS = 100
TESTABLE_DISCORDANT = 10
SHOWN_DOCUMENTS = 30  # from which a stratum gets an interval: below it redrawn documents understate chance
FAR_OUT = 0.001  # quantile of the teacher's draws from which a share of it can be taken in every draw
AT_CHANCE = "teacher at chance"
INSUFFICIENT = "insufficient"


@dataclass
class LongTail:
    """All tables of the report. Frames have a column `model`, the label of a distilled group."""

    axes: list[Axis] = field(default_factory=list)
    values: pd.DataFrame = field(default_factory=pd.DataFrame)  # axis values per document
    codes: pd.DataFrame = field(default_factory=pd.DataFrame)  # strata per document
    flips: dict[str, pd.DataFrame] = field(default_factory=dict)  # model: document_flips
    tasks: pd.DataFrame = field(default_factory=pd.DataFrame)  # flips per task
    strata: pd.DataFrame = field(default_factory=pd.DataFrame)  # per axis and stratum
    contrasts: pd.DataFrame = field(default_factory=pd.DataFrame)  # tail less head per axis
    worst: pd.DataFrame = field(default_factory=pd.DataFrame)  # the stratum with the lowest retention
    slices: dict[str, pd.DataFrame] = field(default_factory=dict)  # model: find_slices
    confidence: pd.DataFrame = field(
        default_factory=pd.DataFrame
    )  # calibration, worst tenth, coverage; also those without teacher

    def title(self, axis: str) -> str:
        """The name of an axis in words."""
        return next((a.title for a in self.axes if a.name == axis), axis)


def long_tail(scores: Scores) -> LongTail:
    """The report of every distilled group; empty without a teacher or without a distilled group."""
    students = [g for g, group in enumerate(scores.groups) if group.role == "distilled" and group.models]
    if scores.teacher is None or not students or not scores.panel.tasks:
        return LongTail()
    values = axis_values(scores.results)
    axes, codes = stratify(scores.results, values, scores.analysis.strata)
    if not axes:
        return LongTail()
    report = LongTail(axes, values, codes)
    pooled = pool(scores, axes, codes)
    primary = [axis for axis in axes if axis.name not in SECONDARY]
    tasks, strata, contrasts, worst = [], [], [], []
    for g in students:
        label = scores.groups[g].label
        flips = report.flips[label] = document_flips(scores, g)
        counts = flip_counts(flips, flips.index.get_level_values("task"))
        tasks.append(counts.rename_axis("task").reset_index().assign(model=label))
        for axis in axes:
            strata.append(_stratum_rows(scores, axis, pooled[axis.name], g, flips, codes[axis.name]))
            if axis.kind != "category":
                contrasts.append(_contrast(scores, axis, pooled[axis.name], g))
        worst.append(_worst(scores, primary, pooled, g))
        report.slices[label] = _slices(scores, primary, codes, flips)
    report.tasks, report.strata = pd.concat(tasks, ignore_index=True), pd.concat(strata, ignore_index=True)
    report.contrasts, report.worst = pd.DataFrame(contrasts), pd.DataFrame(worst)
    report.confidence = confidence_table(scores, codes)
    _correct(scores, report)
    return report


def averaged_flips(scores: Scores, flips: pd.DataFrame) -> pd.DataFrame:
    """Those of the tasks in the average."""
    return flips[flips.index.get_level_values("task").isin([scores.tasks[t] for t in scores.averaged])]


def _slices(scores: Scores, axes: list[Axis], codes: pd.DataFrame, flips: pd.DataFrame) -> pd.DataFrame:
    used = averaged_flips(scores, flips)
    clusters = scores.results.documents.loc[used.index, "cluster"].astype(str)
    analysis = scores.analysis
    return find_slices(axes, codes.loc[used.index], used, clusters, analysis.strata, analysis.false_discovery)


def _stratum_rows(
    scores: Scores, axis: Axis, pooled: Pooled, g: int, flips: pd.DataFrame, codes: pd.Series
) -> pd.DataFrame:
    """Per stratum of one axis: n, scores of teacher, student and itself alone, Δ with bounds, retention, flips."""
    teacher, without = scores.teacher, opponents(scores, g).get("ce_only")
    used = averaged_flips(scores, flips)
    counts = flip_counts(used, codes.loc[used.index]) if len(used) else pd.DataFrame()
    rows = []
    for i, s in enumerate(pooled.numbers):
        delta = _delta(scores, pooled, i, g, teacher)
        row = {
            "model": scores.groups[g].label,
            "axis": axis.name,
            "stratum": s,
            "label": axis.label(s, scores.analysis.strata),
            "teacher": pooled.point[i, teacher],
            "student": pooled.point[i, g],
            "delta": delta.value,
            "low": delta.low,
            "high": delta.high,
        }
        if without is not None:
            other = _delta(scores, pooled, i, without, teacher)
            row |= {
                "ce_only": pooled.point[i, without],
                "ce_only_delta": other.value,
                "ce_only_low": other.low,
                "ce_only_high": other.high,
            }
        floor = st.percentile_interval(
            float(pooled.point[i, teacher]), pooled.draws[:, i, teacher], scores.analysis.confidence
        )
        above = floor.low > RETENTION_FLOOR
        row["retention"] = row["student"] / row["teacher"] if above else np.nan
        row["note"] = "" if above else AT_CHANCE
        rows.append(row | (counts.loc[s].to_dict() if s in counts.index else {"n": 0, "lost": 0, "gained": 0}))
    return pd.DataFrame(rows)


def _delta(scores: Scores, pooled: Pooled, i: int, g: int, teacher: int | None) -> st.Interval:
    value = float(pooled.point[i, g] - pooled.point[i, teacher])
    if pooled.size[i] < SHOWN_DOCUMENTS:
        return st.Interval(value, np.nan, np.nan)
    draws = pooled.draws[:, i, g] - pooled.draws[:, i, teacher]
    return st.percentile_interval(value, draws, scores.analysis.confidence)


def _contrast(scores: Scores, axis: Axis, pooled: Pooled, g: int) -> dict[str, object]:
    """Δ_tail − Δ_head of the student, of the same without teacher, and the excess of the first, with bounds and p."""
    teacher, without = scores.teacher, opponents(scores, g).get("ce_only")
    row: dict[str, object] = {"model": scores.groups[g].label, "axis": axis.name, "n": pooled.ends_size}
    if pooled.ends_size < SHOWN_DOCUMENTS:
        return row | {"note": INSUFFICIENT}

    def between(values: Floats, group: int) -> Floats:
        gap = values[..., group] - values[..., teacher]
        return np.asarray(gap[..., 1] - gap[..., 0])

    pairs = {"tail_loss": (between(pooled.ends, g), between(pooled.ends_draws, g))}
    if without is not None:
        pairs["ce_only_tail_loss"] = (between(pooled.ends, without), between(pooled.ends_draws, without))
        own, other = pairs["tail_loss"], pairs["ce_only_tail_loss"]
        pairs["excess"] = (own[0] - other[0], own[1] - other[1])
    for name, (value, draws) in pairs.items():
        found = st.percentile_interval(float(value), draws, scores.analysis.confidence)
        row |= {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
        row[f"{name}_p"] = st.bootstrap_p(draws) if np.isfinite(found.value) else np.nan
    return row | {"note": ""}


def _worst(scores: Scores, axes: list[Axis], pooled: dict[str, Pooled], g: int) -> dict[str, object]:
    """The stratum with the lowest retention, with bounds that hold for all strata at once."""
    names, values, draws = [], [], []
    for axis in axes:
        mine = pooled[axis.name]
        for i, s in enumerate(mine.numbers):
            base = mine.draws[:, i, scores.teacher]
            if s == MISSING or mine.size[i] < SHOWN_DOCUMENTS or np.isnan(mine.point[i, g]):
                continue
            # further out than an interval: a single ratio to almost nothing would make all bounds endless
            if np.isfinite(base).any() and np.nanquantile(base, FAR_OUT) > RETENTION_FLOOR:
                names.append((axis.name, axis.label(s, scores.analysis.strata)))
                values.append(mine.point[i, g] / mine.point[i, scores.teacher])
                draws.append(mine.draws[:, i, g] / base)
    row: dict[str, object] = {"model": scores.groups[g].label}
    if not names:
        return row | {"axis": "", "label": "", "retention": np.nan, "low": np.nan, "high": np.nan}
    low, high = st.simultaneous_intervals(np.array(values), np.stack(draws, axis=1), scores.analysis.confidence)
    i = int(np.nanargmin(values))
    return row | {"axis": names[i][0], "label": names[i][1], "retention": values[i], "low": low[i], "high": high[i]}


def _correct(scores: Scores, report: LongTail) -> None:
    """Benjamini–Hochberg over the testable strata and tasks of each model; the rest reads "insufficient"."""
    report.strata = report.strata.reindex(columns=list(dict.fromkeys([*report.strata, *report.tasks.drop(columns="task")])))
    for frame in (report.tasks, report.strata):
        discordant = frame["lost"] + frame["gained"]
        frame["testable"] = (frame["n"] >= TESTABLE_DOCUMENTS) & (discordant >= TESTABLE_DISCORDANT)
        frame["adjusted"] = np.nan
    at_chance = report.tasks["task"].isin(scores.left_out)
    report.tasks["testable"] &= ~at_chance
    for label in report.flips:
        parts = [frame.index[(frame["model"] == label) & frame["testable"]] for frame in (report.tasks, report.strata)]
        p = [*report.tasks.loc[parts[0], "p"], *report.strata.loc[parts[1], "p"]]
        adjusted = st.benjamini_hochberg(p)
        report.tasks.loc[parts[0], "adjusted"] = adjusted[: len(parts[0])]
        report.strata.loc[parts[1], "adjusted"] = adjusted[len(parts[0]) :]
    for frame in (report.tasks, report.strata):
        significant = frame["adjusted"] <= scores.analysis.false_discovery
        frame["verdict"] = np.select([~frame["testable"], significant], [INSUFFICIENT, "significant"], "not significant")
    report.tasks.loc[at_chance, "verdict"] = AT_CHANCE
