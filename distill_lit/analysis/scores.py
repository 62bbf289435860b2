"""Scores of model groups per task and on the macro average, their differences, and how certain they are.

Several seeds: crossed variance of documents and seeds. Single models: Wilson's and Newcombe's intervals and
exact sign flips, over documents alone. Documents that share a passage are one cluster in all of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from types import EllipsisType

import numpy as np
from numpy.typing import NDArray

from distill_lit.analysis import significance as st
from distill_lit.analysis.array_types import FloatArray
from distill_lit.analysis.bootstrap import multiplier_draws
from distill_lit.analysis.crossed_variance import NONE, CrossedEstimate, TaskValues, cluster_sums, crossed_estimate
from distill_lit.analysis.model_groups import ModelGroup, groups_of
from distill_lit.analysis.pooled_seeds import lone_seeds, pooled_seeds
from distill_lit.analysis.response_matrix import ResponseMatrices, TaskResponses, build_response_matrices
from distill_lit.analysis.results import Results
from distill_lit.analysis.significance import Interval
from distill_lit.config.evaluation import AnalysisConfig

EXCLUDED_AT_CHANCE = "the teacher is at chance"
EXCLUDED_NO_TEACHER = "the teacher has no result"
EXCLUDED_NO_ANSWERS = "it has no right or wrong answers"
EXCLUDED_GRADED = "its answers are graded, not right or wrong"
EXCLUDED_LESS_IS_BETTER = "less is better by its metric"


Contrast = Mapping[int, float]  # {group number: weight}


@dataclass(frozen=True)
class Scores:
    """Means over documents and seeds (task, group); `raw` is the metric, `centered` above chance."""

    results: Results
    analysis: AnalysisConfig
    responses: ResponseMatrices
    groups: list[ModelGroup]
    raw: FloatArray
    centered: FloatArray
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

    def quality(self, group: int, t: int | None = None) -> float:
        """Score on a task, or (None) the macro average, negative where less is better: of two groups the higher is
        better."""
        if t is None:
            return self.macro(group)
        return float(self.raw[t, group]) if self.responses.tasks[t].higher_is_better else -float(self.raw[t, group])

    def group_index(self, label: str) -> int:
        """The number of the group with this label."""
        return next(i for i, group in enumerate(self.groups) if group.label == label)

    def model_columns(self, group: int) -> list[int]:
        """Columns of the group's models in the response matrices."""
        return self.responses.model_columns(self.groups[group].models)

    def columns_by_seed(self, group: int) -> list[int]:
        """`model_columns` in the order of their seeds, where they have some."""
        columns, seeds = self.model_columns(group), self.groups[group].seeds
        return [column for _, column in sorted(zip(seeds, columns, strict=True))] if seeds else columns

    def macro(self, group: int) -> float:
        """Equal-weight mean of centered scores over `averaged`; NaN when there is none or the group lacks one."""
        return float(self.centered[self.averaged, group].mean()) if len(self.averaged) else float("nan")

    def blocks(self, values: FloatArray, contrast: Contrast) -> tuple[FloatArray, ...]:
        """Blocks of `TaskValues` for Σ weight · group; values: (documents, models).

        Students of the same seeds are paired, seed by seed; a model that is alone is compared with each of them; groups of
        other seeds make blocks of their own.
        """
        found: dict[tuple[int | str, ...], FloatArray] = {}
        alone = np.zeros((len(values), 1))
        for g, weight in contrast.items():
            group, columns = self.groups[g], self.columns_by_seed(g)
            part = weight * values[:, columns]
            if len(columns) == 1:
                alone = alone + part
            else:
                key = tuple(sorted(group.seeds)) or (group.label,)
                found[key] = found[key] + part if key in found else part
        if not found:
            return (alone,)
        first, *others = found.values()
        return (first + alone, *others)

    def contrast_estimate(self, contrast: Contrast, tasks: Sequence[int] | None = None) -> CrossedEstimate:
        """Σ weight · macro average of a group; tasks: to average instead of `averaged`."""
        numbers = self.averaged if tasks is None else tasks
        parts = []
        for t in numbers:
            task = self.responses.tasks[t]
            unit = float(1 / (1 - task.chance.mean())) if task.is_binary else 0.0
            parts.append(TaskValues(self.blocks(task.centered, contrast), task.clusters, 1 / len(numbers), unit))

        if not parts:
            return NONE
        seeds = pooled_seeds(self, contrast, lambda: self.model_means(dict.fromkeys(numbers, ...)))
        return crossed_estimate(parts, seeds, lone_seeds(self, contrast))

    def model_means(self, inside: Mapping[int, NDArray[np.bool_] | EllipsisType]) -> FloatArray:
        """(models,) centered score of each model, mean over tasks. inside: {task: which of its documents, or all}."""
        return np.asarray(
            np.mean([self.responses.tasks[t].centered[rows].mean(axis=0) for t, rows in inside.items()], axis=0)
        )

    def macro_estimate(
        self, first: int, second: int | None = None, share: float = 1.0, tasks: Sequence[int] | None = None
    ) -> CrossedEstimate:
        """Macro average of group `first`, less `share` times that of `second`; tasks: as of `contrast_estimate`."""
        return self.contrast_estimate(difference_of(first, second, share), tasks)

    def task_estimate(self, t: int, first: int, second: int | None = None) -> CrossedEstimate:
        """A task's metric of group `first`, less that of `second`."""
        task, contrast = self.responses.tasks[t], difference_of(first, second)
        values = TaskValues(self.blocks(task.correct, contrast), task.clusters, unit=float(task.is_binary))
        seeds = pooled_seeds(self, contrast, lambda: task.correct.mean(axis=0))
        return crossed_estimate([values], seeds, lone_seeds(self, contrast))

    def is_single_pair(self, first: int, second: int) -> bool:
        """Whether two groups are single models, of which only documents can be drawn again."""
        return len(self.groups[first].models) == len(self.groups[second].models) == 1

    @cached_property
    def macro_draws(self) -> FloatArray:
        """(draws, groups) macro averages as other documents and seeds might have given them; all groups in one draw have
        the same documents, and those with the same seeds the same seeds. Their spread is that of `macro_estimate`."""
        count = len(self.groups)
        draws = np.tile([self.macro(g) for g in range(count)], (self.analysis.n_resamples, 1))
        for t in self.averaged:
            task = self.responses.tasks[t]
            mean = np.stack([task.centered[:, self.model_columns(g)].mean(axis=1) if self.groups[g].models
                             else np.full(task.n, np.nan) for g in range(count)], axis=1)  # fmt: skip
            sums = cluster_sums(mean - mean.mean(axis=0), task.clusters) / task.n / len(self.averaged)
            draws += multiplier_draws(sums, self.analysis.n_resamples, task.task)
        for g, group in enumerate(self.groups):
            seeds, estimate = len(group.models), self.macro_estimate(g)
            if estimate.covers_seeds:
                own = self.seed_averages(g) - self.macro(g)
                if np.ptp(own) < st.REPLICATE_TOLERANCE:  # a spread that is known from other students
                    own = np.linspace(-1.0, 1.0, seeds)
                beside_documents = max(estimate.variance - estimate.documents.variance, 0.0)
                own = own * (beside_documents / own.var(ddof=1) / seeds) ** 0.5
                draws[:, g] += multiplier_draws(own[:, None], self.analysis.n_resamples, str(group.seeds or group.label))[
                    :, 0
                ]
        return draws

    def seed_averages(self, group: int) -> FloatArray:
        """Macro average of each seed of a group."""
        columns = self.model_columns(group)
        per_task = [self.responses.tasks[t].centered[:, columns].mean(axis=0) for t in self.averaged]
        return np.asarray(np.mean(per_task, axis=0) if per_task else np.full(len(columns), np.nan), float)


def difference_of(first: int, second: int | None = None, share: float = 1.0) -> Contrast:
    """The contrast of group `first`, less `share` times group `second`, of which there may be none."""
    contrast = {first: 1.0}
    return contrast if second is None else contrast | {second: contrast.get(second, 0.0) - share}


def compute_scores(results: Results, analysis: AnalysisConfig) -> Scores:
    """All scores of an experiment by the metrics of its tasks."""
    responses, groups = build_response_matrices(results), groups_of(results)
    teacher = next((group for group in groups if group.role == "teacher" and group.models), None)
    reasons = {task.task: _exclusion_reason(task, responses, teacher, analysis) for task in responses.tasks}
    return scores_of(results, analysis, responses, groups, {task: why for task, why in reasons.items() if why})


def endpoint_scores(
    scores: Scores, values: Mapping[str, FloatArray], name: str | Mapping[str, str], above_chance: bool = False
) -> Scores:
    """The same models and documents by another endpoint, for every test and table that takes `Scores`.

    Args:
        scores: by the metrics of the tasks; tasks that these do not average are not averaged here.
        values: {task: (documents, models)}, models in the order of `scores.responses.models`, NaN where there is no value:
            a document without a value of every model that has the task is left out, a task without documents too.
        name: of the endpoint, as margin_norm; where it differs, {task: name}.
        above_chance: whether values are right (1) or wrong (0) answers, averaged above chance; else they are averaged as
            they are.
    """
    tasks = []
    for task in scores.responses.tasks:
        found = np.asarray(values.get(task.task, np.full(task.correct.shape, np.nan)), float)
        known = np.isfinite(found[:, np.isfinite(found).any(axis=0)]).all(axis=1) & np.isfinite(found).any(axis=1)
        if known.any():
            chance = task.chance[known] if above_chance else np.zeros(int(known.sum()))
            changes = {"index": task.index[known], "clusters": task.clusters[known], "choice": task.choice[known]}
            metric = name if isinstance(name, str) else name[task.task]
            tasks.append(replace(task, metric=metric, chance=chance, correct=found[known], **changes))
    responses = replace(scores.responses, tasks=tasks)
    kept = {task.task for task in tasks}
    excluded = {task: why for task, why in scores.excluded_tasks.items() if task in kept}
    return scores_of(scores.results, scores.analysis, responses, scores.groups, excluded)


def scores_of(
    results: Results,
    analysis: AnalysisConfig,
    responses: ResponseMatrices,
    groups: list[ModelGroup],
    excluded: dict[str, str],
) -> Scores:
    """Scores of matrices that are given. excluded: {task: why it is not averaged}."""
    raw = np.full((len(responses.tasks), len(groups)), np.nan)
    centered = raw.copy()
    for t, task in enumerate(responses.tasks):
        for g, group in enumerate(groups):
            if group.models:
                columns = responses.model_columns(group.models)
                raw[t, g], centered[t, g] = task.correct[:, columns].mean(), task.centered[:, columns].mean()
    return Scores(results, analysis, responses, groups, raw, centered, excluded)


def _exclusion_reason(
    task: TaskResponses, responses: ResponseMatrices, teacher: ModelGroup | None, analysis: AnalysisConfig
) -> str:
    """Why a task is not averaged, or an empty text."""
    if np.isnan(task.correct).all():
        return EXCLUDED_NO_ANSWERS
    if not task.higher_is_better:
        return EXCLUDED_LESS_IS_BETTER
    if not task.is_binary:
        return EXCLUDED_GRADED
    if teacher is None:
        return ""
    right = task.correct[:, responses.model_columns(teacher.models)[0]]
    if np.isnan(right).any():
        return EXCLUDED_NO_TEACHER
    n = st.effective_documents(right, task.clusters)
    return EXCLUDED_AT_CHANCE if st.wilson(right.mean() * n, n, analysis.confidence_level).low <= task.chance.mean() else ""


def task_score(scores: Scores, t: int, g: int) -> Interval:
    """A group's metric on a task. Right or wrong answers: Wilson's interval, with as many documents as would alone have the
    variance of documents and seeds; a graded metric: crossed variance."""
    task, confidence, value = scores.responses.tasks[t], scores.analysis.confidence_level, float(scores.raw[t, g])
    if not np.isfinite(value):
        return Interval(value, np.nan, np.nan)
    estimate = scores.task_estimate(t, g)
    if not task.is_binary:
        return estimate.interval(confidence)
    mean = task.correct[:, scores.model_columns(g)].mean(axis=1)
    if not estimate.covers_seeds or np.ptp(mean) < st.REPLICATE_TOLERANCE:
        n = st.effective_documents(mean, task.clusters)
        return st.wilson(value * n, n, confidence)
    if not estimate.variance > 0:  # a single passage
        return Interval(value, np.nan, np.nan)
    n = value * (1 - value) / estimate.variance
    return st.wilson(value * n, n, confidence, estimate.critical(1 - (1 - confidence) / 2))


def macro_score(scores: Scores, g: int) -> Interval:
    """A group's macro average of centered scores, its interval cut off where no right and wrong answers could lead."""
    found, tasks = _interval(scores.macro(g), scores.macro_estimate(g), scores), scores.responses.tasks
    if not len(scores.averaged) or not all(tasks[t].is_binary for t in scores.averaged):
        return found
    chance = np.array([tasks[t].chance.mean() for t in scores.averaged])
    return Interval(found.value, max(found.low, -float((chance / (1 - chance)).mean())), min(found.high, 1.0))


def task_difference(scores: Scores, t: int, first: int, second: int) -> tuple[Interval, float]:
    """Metric of `first` less `second` on a task, paired, and its p.

    Two single models: Newcombe's interval of right or wrong answers, and exact sign flips; else crossed variance.
    """
    task, estimate = scores.responses.tasks[t], scores.task_estimate(t, first, second)
    value = float(scores.raw[t, first] - scores.raw[t, second])
    if not np.isfinite(value) or not scores.is_single_pair(first, second):
        return _interval(value, estimate, scores), estimate.p()
    one, two = (task.correct[:, scores.model_columns(g)[0]] for g in (first, second))
    p = st.sign_flip_p(one - two, task.clusters)
    if not task.is_binary:
        return _interval(value, estimate, scores), p
    return st.newcombe_paired_interval(one, two, scores.analysis.confidence_level, task.clusters), p


def macro_difference(scores: Scores, first: int, second: int, tasks: Sequence[int] | None = None) -> tuple[Interval, float]:
    """Macro average of `first` less `second`, paired, and its p: of two single models by exact sign flips, else by crossed
    variance. tasks: to average instead of `scores.averaged`."""
    estimate = scores.macro_estimate(first, second, tasks=tasks)
    found = _interval(estimate.value, estimate, scores)
    if not np.isfinite(estimate.value) or not scores.is_single_pair(first, second):
        return found, estimate.p()
    sums = []
    for t in scores.averaged if tasks is None else tasks:
        task = scores.responses.tasks[t]
        sums.append(
            cluster_sums(scores.blocks(task.centered, difference_of(first, second))[0][:, 0], task.clusters) / task.n
        )
    return found, st.sign_flip_p(np.concatenate(sums))


def _interval(value: float, estimate: CrossedEstimate, scores: Scores) -> Interval:
    found = estimate.interval(scores.analysis.confidence_level)
    return Interval(value, found.low, found.high)


def seed_std(scores: Scores, g: int, t: int | None = None) -> float:
    """Standard deviation over the group's seeds, of a task's metric or (t None) of the macro average; NaN for one."""
    members = scores.model_columns(g)
    if len(members) < 2:
        return float("nan")
    if t is not None:
        return float(scores.responses.tasks[t].correct[:, members].mean(axis=0).std(ddof=1))
    return float(scores.seed_averages(g).std(ddof=1))


def document_standard_error(scores: Scores, g: int, t: int) -> float:
    """Standard error of a task's metric from the documents alone, mean over seeds, clusters respected."""
    task, members = scores.responses.tasks[t], scores.model_columns(g)
    return st.clustered_standard_error(task.correct[:, members].mean(axis=1), task.clusters) if members else float("nan")
