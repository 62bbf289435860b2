"""Scores of model groups per task and on the macro average, with joint bootstrap replicates of all of them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distill_lit.analysis import significance as st
from distill_lit.analysis.array_types import FloatArray
from distill_lit.analysis.bootstrap import bootstrap_means, bootstrap_seed, seed_resample_weights
from distill_lit.analysis.model_groups import ModelGroup, groups_of
from distill_lit.analysis.response_matrix import ResponseMatrices, TaskResponses, build_response_matrices
from distill_lit.analysis.results import Results
from distill_lit.analysis.significance import Interval
from distill_lit.config.schema import AnalysisConfig

EXCLUDED_AT_CHANCE = "the teacher is at chance"
EXCLUDED_NO_TEACHER = "the teacher has no result"
EXCLUDED_NO_ANSWERS = "it has no right or wrong answers"
EXCLUDED_GRADED = "its answers are graded, not right or wrong"


@dataclass(frozen=True)
class Scores:
    """Point estimates (task, group) and replicates (draw, task, group); `raw` is the metric, `centered` above chance."""

    results: Results
    analysis: AnalysisConfig
    responses: ResponseMatrices
    groups: list[ModelGroup]
    raw: FloatArray
    centered: FloatArray
    raw_replicates: FloatArray
    centered_replicates: FloatArray
    excluded_tasks: dict[str, str]  # task: why it is not in the macro average

    @property
    def tasks(self) -> list[str]:
        """Task names in the order of the arrays."""
        return [task.task for task in self.responses.tasks]

    @property
    def teacher(self) -> int | None:
        """The teacher's group number, or None without its records."""
        return next((i for i, g in enumerate(self.groups) if g.role == "teacher" and g.models), None)

    @property
    def averaged(self) -> NDArray[np.integer]:
        """Task numbers in the macro average: those on which the teacher is above chance."""
        return np.array([t for t, task in enumerate(self.tasks) if task not in self.excluded_tasks], int)

    def group_index(self, label: str) -> int:
        """The number of the group with this label."""
        return next(i for i, group in enumerate(self.groups) if group.label == label)

    def model_columns(self, group: int) -> list[int]:
        """Columns of the group's models in the response matrices."""
        return self.responses.model_columns(self.groups[group].models)

    def macro(self, group: int) -> float:
        """Equal-weight mean of centered scores over `averaged`; NaN when there is none or the group lacks one."""
        return float(self.centered[self.averaged, group].mean()) if len(self.averaged) else float("nan")

    def macro_average_replicates(self, group: int) -> FloatArray:
        """Bootstrap replicates of `macro`."""
        if not len(self.averaged):
            return np.full(len(self.centered_replicates), np.nan)
        return np.asarray(self.centered_replicates[:, self.averaged, group].mean(axis=1), float)


def compute_scores(results: Results, analysis: AnalysisConfig) -> Scores:
    """All scores of an experiment. Documents are redrawn by cluster within tasks, seeds jointly over tasks."""
    responses, groups = build_response_matrices(results), groups_of(results)
    shape = (len(responses.tasks), len(groups))
    raw, centered = np.full(shape, np.nan), np.full(shape, np.nan)
    raw_draws = np.full((analysis.n_resamples, *shape), np.nan)
    centered_draws = raw_draws.copy()
    weights = [seed_resample_weights(g.seeds, len(g.models), analysis.n_resamples) for g in groups]
    for t, task in enumerate(responses.tasks):
        both = np.concatenate([task.correct, task.centered()], axis=1)
        draws = bootstrap_means(both, task.clusters, analysis.n_resamples, bootstrap_seed(task.task))
        if not task.clusters.any():  # a single passage, redrawn, is always itself
            draws[:] = np.nan
        for g, group in enumerate(groups):
            if not group.models:
                continue
            columns = np.asarray(responses.model_columns(group.models))
            raw[t, g] = task.correct[:, columns].mean()
            centered[t, g] = task.centered()[:, columns].mean()
            raw_draws[:, t, g] = (draws[:, columns] * weights[g]).sum(axis=1)
            centered_draws[:, t, g] = (draws[:, columns + len(responses.models)] * weights[g]).sum(axis=1)
    teacher = next((i for i, g in enumerate(groups) if g.role == "teacher" and g.models), None)
    reasons = {
        task.task: _exclusion_reason(
            task, responses, None if teacher is None else groups[teacher], raw_draws[:, t, teacher or 0], analysis
        )
        for t, task in enumerate(responses.tasks)
    }
    excluded = {task: why for task, why in reasons.items() if why}
    return Scores(results, analysis, responses, groups, raw, centered, raw_draws, centered_draws, excluded)


def _exclusion_reason(
    task: TaskResponses,
    responses: ResponseMatrices,
    teacher: ModelGroup | None,
    draws: FloatArray,
    analysis: AnalysisConfig,
) -> str:
    """Why a task is not averaged, or an empty text. draws: of the teacher's metric."""
    if np.isnan(task.correct).all():
        return EXCLUDED_NO_ANSWERS
    if not task.is_binary:
        return EXCLUDED_GRADED
    if teacher is None:
        return ""
    right = task.correct[:, responses.model_columns(teacher.models)[0]]
    if np.isnan(right).any():
        return EXCLUDED_NO_TEACHER
    low = st.wilson(right.sum(), task.n, analysis.confidence_level).low
    if task.has_clusters:
        low = st.percentile_interval(low, draws, analysis.confidence_level).low
    return EXCLUDED_AT_CHANCE if low <= task.chance.mean() else ""


def task_score(scores: Scores, t: int, g: int) -> Interval:
    """A group's metric on a task. One model without shared passages, or one answer throughout: Wilson; else the
    bootstrap."""
    task, confidence, members = scores.responses.tasks[t], scores.analysis.confidence_level, scores.model_columns(g)
    if len(members) == 1 and task.is_binary and not task.has_clusters and np.isfinite(scores.raw[t, g]):
        return st.wilson(task.correct[:, members[0]].sum(), task.n, confidence)
    found = st.percentile_interval(scores.raw[t, g], scores.raw_replicates[:, t, g], confidence)
    if (
        found.high - found.low < st.REPLICATE_TOLERANCE and task.is_binary
    ):  # all seeds right, or all wrong: redrawn answers cannot differ
        return st.wilson(float(found.value) * task.n, task.n, confidence)
    return found


def macro_score(scores: Scores, g: int) -> Interval:
    """A group's macro average of centered scores."""
    return st.percentile_interval(scores.macro(g), scores.macro_average_replicates(g), scores.analysis.confidence_level)


def task_difference(scores: Scores, t: int, first: int, second: int) -> tuple[Interval, float]:
    """Metric of `first` less `second` on a task, paired, and its p.

    Two single models without shared passages: Newcombe's interval and McNemar's exact test; else the bootstrap.
    """
    task, one, two = scores.responses.tasks[t], scores.model_columns(first), scores.model_columns(second)
    value = float(scores.raw[t, first] - scores.raw[t, second])
    if len(one) == len(two) == 1 and task.is_binary and not task.has_clusters and np.isfinite(value):
        a, b = task.correct[:, one[0]], task.correct[:, two[0]]
        p = float(st.mcnemar(((1 - a) * b).sum(), (a * (1 - b)).sum()))
        return st.newcombe_paired_interval(a, b, scores.analysis.confidence_level), p
    draws = scores.raw_replicates[:, t, first] - scores.raw_replicates[:, t, second]
    return st.percentile_interval(value, draws, scores.analysis.confidence_level), _p(value, draws)


def macro_difference(scores: Scores, first: int, second: int) -> tuple[Interval, float]:
    """Macro average of `first` less `second`, paired, and its bootstrap p."""
    value = scores.macro(first) - scores.macro(second)
    draws = scores.macro_average_replicates(first) - scores.macro_average_replicates(second)
    return st.percentile_interval(value, draws, scores.analysis.confidence_level), _p(value, draws)


def _p(value: float, draws: FloatArray) -> float:
    return st.bootstrap_p(draws) if np.isfinite(value) else float("nan")


def macro_retention(scores: Scores, g: int) -> Interval:
    """Share of the teacher's macro average the group retains; NaN without a teacher above chance."""
    if scores.teacher is None:
        return Interval(np.nan, np.nan, np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        draws = scores.macro_average_replicates(g) / scores.macro_average_replicates(scores.teacher)
        value = np.float64(scores.macro(g)) / scores.macro(scores.teacher)
    return st.percentile_interval(float(value), draws, scores.analysis.confidence_level)


def seed_std(scores: Scores, g: int, t: int | None = None) -> float:
    """Standard deviation over the group's seeds, of a task's metric or (t None) of the macro average; NaN for one."""
    members = scores.model_columns(g)
    if len(members) < 2:
        return float("nan")
    if t is not None:
        return float(scores.responses.tasks[t].correct[:, members].mean(axis=0).std(ddof=1))
    if not len(scores.averaged):
        return float("nan")
    per_model = np.mean([scores.responses.tasks[i].centered()[:, members].mean(axis=0) for i in scores.averaged], axis=0)
    return float(per_model.std(ddof=1))


def document_standard_error(scores: Scores, g: int, t: int) -> float:
    """Standard error of a task's metric from the documents alone, mean over seeds, clusters respected."""
    task, members = scores.responses.tasks[t], scores.model_columns(g)
    return st.clustered_standard_error(task.correct[:, members].mean(axis=1), task.clusters) if members else float("nan")


def discordance(scores: Scores, first: int, second: int, t: int) -> float:
    """Share of documents on which exactly one of two models is right, mean over the pairs of their seeds."""
    task = scores.responses.tasks[t]
    one, two = task.correct[:, scores.model_columns(first)], task.correct[:, scores.model_columns(second)]
    return float(np.mean(one[:, :, None] != two[:, None, :])) if one.size and two.size else float("nan")
