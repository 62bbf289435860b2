"""The long tail: scores and flips by stratum, and whether the tail lost more than the head.

Scores are above chance, strata are taken within a task and pooled with equal task weight, and only tasks on which
the teacher is above chance are pooled. Sources: Hooker 1911.05248, Tropeano 2503.21714, Dutta 2407.09141.
"""

from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from distill_lit.analysis import significance as st
from distill_lit.analysis.array_types import FloatArray
from distill_lit.analysis.calibration import calibration_frame
from distill_lit.analysis.document_axes import MISSING_STRATUM, SECONDARY_AXES, DocumentAxis, axis_values, stratify
from distill_lit.analysis.flips import document_flips, flip_counts
from distill_lit.analysis.retention import MIN_RETENTION_BASELINE
from distill_lit.analysis.score_table import find_baselines
from distill_lit.analysis.scores import Scores
from distill_lit.analysis.slices import find_slices
from distill_lit.analysis.strata import StratumScores, pool_strata
from distill_lit.analysis.worst_group import worst_group

TESTABLE_DOCUMENTS = 100
TESTABLE_DISCORDANT = 10
MIN_INTERVAL_DOCUMENTS = 30  # from which a stratum gets an interval: below it redrawn documents understate chance
WORST_NUMBERS = ("excess", "excess_low", "excess_high", "retention", "low", "high", "p_adjusted", "expected")
NOTE_AT_CHANCE = "teacher at chance"
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
    pooled = pool_strata(scores, axes, codes)
    primary = [axis for axis in axes if axis.name not in SECONDARY_AXES]
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
        worst.append(_worst(scores, primary, codes, g))
        report.slices[label] = _slices(scores, primary, codes, flips)
    report.task_flips, report.stratum_scores = pd.concat(tasks, ignore_index=True), pd.concat(strata, ignore_index=True)
    report.tail_contrasts, report.worst_strata = pd.DataFrame(contrasts), pd.DataFrame(worst)
    report.calibration = calibration_frame(scores, codes)
    _adjust_p_values(scores, report)
    return report


def averaged_flips(scores: Scores, flips: pd.DataFrame) -> pd.DataFrame:
    """Those of the tasks in the average."""
    return flips[flips.index.get_level_values("task").isin([scores.tasks[t] for t in scores.averaged])]


def _slices(scores: Scores, axes: list[DocumentAxis], codes: pd.DataFrame, flips: pd.DataFrame) -> pd.DataFrame:
    used = averaged_flips(scores, flips)
    clusters = scores.results.documents.loc[used.index, "cluster"].astype(str)
    analysis = scores.analysis
    return find_slices(axes, codes.loc[used.index], used, clusters, analysis.num_strata, analysis.false_discovery_rate)


def _stratum_rows(
    scores: Scores, axis: DocumentAxis, pooled: StratumScores, g: int, flips: pd.DataFrame, codes: pd.Series
) -> pd.DataFrame:
    """Per stratum of one axis: n, scores of teacher, student and itself alone, Δ with bounds, retention, flips."""
    teacher, ce_only = scores.teacher, find_baselines(scores, g).get("ce_only")
    used = averaged_flips(scores, flips)
    counts = flip_counts(used, codes.loc[used.index]) if len(used) else pd.DataFrame()
    rows = []
    for i, s in enumerate(pooled.strata):
        delta = _delta(scores, pooled, i, g, teacher)
        row = {
            "model": scores.groups[g].label,
            "axis": axis.name,
            "stratum": s,
            "label": axis.stratum_label(s, scores.analysis.num_strata),
            "teacher": pooled.estimates[i, teacher],
            "student": pooled.estimates[i, g],
            "delta": delta.value,
            "low": delta.low,
            "high": delta.high,
        }
        if ce_only is not None:
            other = _delta(scores, pooled, i, ce_only, teacher)
            row |= {
                "ce_only": pooled.estimates[i, ce_only],
                "ce_only_delta": other.value,
                "ce_only_delta_low": other.low,
                "ce_only_delta_high": other.high,
            }
        floor = st.percentile_interval(
            float(pooled.estimates[i, teacher]), pooled.replicates[:, i, teacher], scores.analysis.confidence_level
        )
        above = floor.low > MIN_RETENTION_BASELINE
        row["retention"] = row["student"] / row["teacher"] if above else np.nan
        row["note"] = "" if above else NOTE_AT_CHANCE
        rows.append(row | (counts.loc[s].to_dict() if s in counts.index else {"n": 0, "lost": 0, "gained": 0}))
    return pd.DataFrame(rows)


def _delta(scores: Scores, pooled: StratumScores, i: int, g: int, teacher: int | None) -> st.Interval:
    value = float(pooled.estimates[i, g] - pooled.estimates[i, teacher])
    if pooled.n_documents[i] < MIN_INTERVAL_DOCUMENTS:
        return st.Interval(value, np.nan, np.nan)
    draws = pooled.replicates[:, i, g] - pooled.replicates[:, i, teacher]
    return st.percentile_interval(value, draws, scores.analysis.confidence_level)


def _contrast(scores: Scores, axis: DocumentAxis, pooled: StratumScores, g: int) -> dict[str, object]:
    """Δ_tail − Δ_head of the student, of the same without teacher, and the excess of the first, with bounds and p."""
    teacher, ce_only = scores.teacher, find_baselines(scores, g).get("ce_only")
    row: dict[str, object] = {"model": scores.groups[g].label, "axis": axis.name, "n": pooled.head_tail_n_documents}
    if pooled.head_tail_n_documents < MIN_INTERVAL_DOCUMENTS:
        return row | {"note": INSUFFICIENT}

    def difference_in_differences(values: FloatArray, group: int) -> FloatArray:
        gap = values[..., group] - values[..., teacher]
        return np.asarray(gap[..., 1] - gap[..., 0])

    pairs = {
        "tail_loss": (
            difference_in_differences(pooled.head_tail_estimates, g),
            difference_in_differences(pooled.head_tail_replicates, g),
        )
    }
    if ce_only is not None:
        pairs["ce_only_tail_loss"] = (
            difference_in_differences(pooled.head_tail_estimates, ce_only),
            difference_in_differences(pooled.head_tail_replicates, ce_only),
        )
        student, other = pairs["tail_loss"], pairs["ce_only_tail_loss"]
        pairs["excess"] = (student[0] - other[0], student[1] - other[1])
    for name, (value, draws) in pairs.items():
        found = st.percentile_interval(float(value), draws, scores.analysis.confidence_level)
        row |= {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
        row[f"{name}_p"] = st.bootstrap_p(draws) if np.isfinite(found.value) else np.nan
    return row | {"note": ""}


def _worst(scores: Scores, axes: list[DocumentAxis], codes: pd.DataFrame, g: int) -> dict[str, object]:
    """The stratum that loses most beyond its tasks, with bounds and p that hold for all strata at once; see
    `worst_group`."""
    groups = {(axis.name, axis.stratum_label(s, scores.analysis.num_strata)): (codes[axis.name] == s).to_numpy()
              for axis in axes for s in sorted(codes[axis.name].unique()) if s != MISSING_STRATUM}  # fmt: skip
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
