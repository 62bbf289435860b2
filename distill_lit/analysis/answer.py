"""The answer of an experiment: did the teacher help, by how much, how surely, what is excluded, and on which task it
hangs."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from distill_lit.analysis import scores as sc
from distill_lit.analysis.axis_tests import AxisTest, axis_tests
from distill_lit.analysis.equivalence import Exclusion, exclusion
from distill_lit.analysis.response_matrix import other_metric_matrices
from distill_lit.analysis.score_table import MACRO_AVERAGE, declared_comparisons
from distill_lit.analysis.scores import Scores, endpoint_scores
from distill_lit.analysis.significance import Interval

# outcomes, of one student and of all together
HELPED, HARMED, MIXED, EQUIVALENT, NOT_SHOWN, UNKNOWN = "helped", "harmed", "mixed", "equivalent", "not shown", "unknown"


@dataclass(frozen=True)
class TaskEffect:
    """The difference on one task, in its metric, and the average without it.

    p_adjusted: as in the score frame, after Benjamini–Hochberg. without, without_p: the average above chance over the other
    averaged tasks; NaN for a task that is not averaged or is alone.
    """

    task: str
    in_average: bool
    difference: Interval
    p: float
    p_adjusted: float
    without: Interval
    without_p: float


@dataclass(frozen=True)
class EndpointEffect:
    """The same difference by another endpoint, mean over `tasks`. Not corrected: it is no second chance but a check."""

    endpoint: str
    tasks: tuple[str, ...]
    difference: Interval
    p: float


@dataclass(frozen=True)
class TeacherEffect:
    """A distilled student less the same student without the teacher: macro average above chance, as a share, mean over
    seeds.

    model, baseline: labels of the two groups. covers_seeds: whether p and interval are of documents and seeds, or of
    documents alone. p_adjusted: over all declared comparisons, see `score_frame`. excludes: what the interval does.
    detectable: the smallest difference that is found with 80% power after correction. outcome: HELPED or HARMED where
    p_adjusted is significant, EQUIVALENT where a difference of `excludes.margin` is excluded both ways, else NOT_SHOWN.
    carried_by: the tasks without any one of which a significant difference is no longer one.
    """

    model: str
    baseline: str
    student: str
    variant: str
    on_other_data: bool
    num_seeds: int
    covers_seeds: bool
    difference: Interval
    p: float
    p_adjusted: float
    excludes: Exclusion
    detectable: float
    outcome: str
    tasks: tuple[TaskEffect, ...]
    carried_by: tuple[str, ...]
    other_endpoints: tuple[EndpointEffect, ...]


@dataclass(frozen=True)
class Answer:
    """Of a whole experiment. effects: every declared comparison, in the order of the groups; empty where there is none.
    axes: tests of the axes of its grid. alpha: level of each p_adjusted."""

    effects: tuple[TeacherEffect, ...]
    axes: tuple[AxisTest, ...]
    alpha: float


def overall_outcome(outcomes: Iterable[str]) -> str:
    """Of several students: HELPED or HARMED where some are significant and all of these one way, MIXED where some go each
    way, EQUIVALENT where each is, else NOT_SHOWN; UNKNOWN where nothing is compared."""
    found = set(outcomes) - {UNKNOWN}
    sure = found & {HELPED, HARMED}
    if not found or sure:
        return UNKNOWN if not found else MIXED if len(sure) == 2 else sure.pop()
    return EQUIVALENT if found == {EQUIVALENT} else NOT_SHOWN


def answer(scores: Scores, frame: pd.DataFrame, endpoints: Sequence[Scores] = ()) -> Answer:
    """The answer by the metrics of the tasks.

    Args:
        frame: `score_frame(scores)`, whose adjusted p values are used.
        endpoints: other endpoints of the same models (`endpoint_scores`), beside acc or acc_norm, the one that is not the
            metric.
    """
    others = [other for other in (other_metric_scores(scores), *endpoints) if other is not None]
    by_group = {label: rows.set_index("task") for label, rows in frame.groupby("model", sort=False)}
    pairs = [(g, other) for g, other in declared_comparisons(scores) if np.isfinite(scores.macro(g) - scores.macro(other))]
    effects = [_effect(scores, g, other, by_group[scores.groups[g].label], others) for g, other in pairs]
    return Answer(tuple(effects), tuple(axis_tests(scores)), scores.analysis.alpha)


def _effect(scores: Scores, g: int, other: int, rows: pd.DataFrame, endpoints: list[Scores]) -> TeacherEffect:
    group, baseline, macro = scores.groups[g], scores.groups[other], rows.loc[MACRO_AVERAGE]
    estimate = scores.macro_estimate(g, other)
    difference = Interval(*(float(macro[f"ce_only_delta{bound}"]) for bound in ("", "_low", "_high")))
    p, adjusted = float(macro["ce_only_p"]), float(macro["ce_only_p_adjusted"])
    excludes = exclusion(estimate, scores.analysis.equivalence_margin, scores.analysis.alpha)
    is_sure = adjusted <= scores.analysis.alpha
    corrected = adjusted / p if p > 0 else 1.0  # by how much the correction raised p
    tasks = tuple(_task_effect(scores, g, other, t, rows) for t in range(len(scores.tasks)))
    outcome = EQUIVALENT if excludes.is_equivalent else NOT_SHOWN
    if is_sure:
        outcome = HELPED if difference.value > 0 else HARMED
    return TeacherEffect(
        model=group.label,
        baseline=baseline.label,
        student=group.student,
        variant=group.variant,
        on_other_data=baseline.other_data,
        num_seeds=min(len(group.models), len(baseline.models)),
        covers_seeds=estimate.covers_seeds,
        difference=difference,
        p=p,
        p_adjusted=adjusted,
        excludes=excludes,
        detectable=float(macro["minimum_detectable_effect"]),
        outcome=outcome,
        tasks=tasks,
        carried_by=tuple(t.task for t in tasks if is_sure and t.without_p * corrected > scores.analysis.alpha),
        other_endpoints=tuple(_endpoint_effect(one, group.label, baseline.label) for one in endpoints),
    )


def _task_effect(scores: Scores, g: int, other: int, t: int, rows: pd.DataFrame) -> TaskEffect:
    row, rest = rows.loc[scores.tasks[t]], [u for u in scores.averaged if u != t]
    difference = Interval(*(float(row[f"ce_only_delta{bound}"]) for bound in ("", "_low", "_high")))
    is_averaged = len(rest) < len(scores.averaged)
    without, p = Interval(np.nan, np.nan, np.nan), float("nan")
    if is_averaged and rest:
        without, p = sc.macro_difference(scores, g, other, rest)
    own = float(row["ce_only_p"]), float(row["ce_only_p_adjusted"])
    return TaskEffect(scores.tasks[t], is_averaged, difference, *own, without, p)


def _endpoint_effect(endpoint: Scores, first: str, second: str) -> EndpointEffect:
    """By labels: an endpoint has the same groups."""
    difference, p = sc.macro_difference(endpoint, endpoint.group_index(first), endpoint.group_index(second))
    names = list(dict.fromkeys(endpoint.responses.tasks[t].metric for t in endpoint.averaged))
    return EndpointEffect(" / ".join(names), tuple(endpoint.tasks[t] for t in endpoint.averaged), difference, p)


def other_metric_scores(scores: Scores) -> Scores | None:
    """By acc where a task's metric is acc_norm, and the reverse, over the same tasks; None where no task has another."""
    found = other_metric_matrices(scores.results, scores.responses)
    if not found:
        return None
    names = {"acc": "acc_norm", "acc_norm": "acc"}
    return endpoint_scores(
        scores, found, {t.task: names.get(t.metric, "") for t in scores.responses.tasks}, above_chance=True
    )
