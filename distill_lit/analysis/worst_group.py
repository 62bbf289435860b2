"""Does a group of documents lose more than its tasks do? The lowest of many groups is low by chance, so it is tested as
such.

A group's loss is taken within each task: the student's score in the group less what it would be if it kept as much of the
teacher's there as on the whole task. That difference has no denominator that could come near 0.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from distill_lit.analysis.array_types import FloatArray
from distill_lit.analysis.bootstrap import decided_share, multiplier_draws
from distill_lit.analysis.crossed_variance import CrossedEstimate, TaskValues, cluster_sums, crossed_estimate, mean_inside
from distill_lit.analysis.pooled_seeds import pooled_seeds
from distill_lit.analysis.retention import MIN_RETENTION_BASELINE, NOTHING, fieller
from distill_lit.analysis.scores import Scores, difference_of
from distill_lit.analysis.significance import Interval

MIN_GROUP_DOCUMENTS = 30  # of all tasks, from which a group is tested
MIN_TASK_DOCUMENTS = 10  # of one task, from which it counts in a group

Group = tuple[str, str]  # axis, label


@dataclass(frozen=True)
class WorstGroup:
    """The group with the most significant loss beyond that of its tasks. Scores above chance, as shares.

    excess: the student's score in the group less what it would have if it kept there what it keeps of each whole task;
    negative: it lost more. Its interval holds for all `num_groups` groups at once, p_adjusted too (the lowest of them all
    by chance).
    expected: what the lowest excess of as many groups is on average where none differs. retention: share of the teacher's
    score in the group, with a simultaneous Fieller interval; NaN where the teacher is near chance there.
    """

    axis: str
    label: str
    excess: Interval
    retention: Interval
    p_adjusted: float
    expected: float
    num_groups: int
    stands_out: bool


@dataclass(frozen=True)
class _Tested:
    group: Group
    excess: CrossedEstimate
    sums: dict[int, FloatArray]  # task: per cluster, its part of the excess


def worst_group(scores: Scores, groups: Mapping[Group, NDArray[np.bool_]], g: int) -> WorstGroup | None:
    """The worst group of student `g`; None where no group can be tested.

    groups: {(axis, label): of each document of `scores.results.documents` whether it is inside}.
    """
    index = scores.results.documents.index
    rows = {t: index.get_indexer(scores.responses.tasks[t].index) for t in scores.averaged}
    tested = []
    for name, inside in groups.items():
        one = _tested(scores, {t: inside[rows[t]] for t in rows}, name, g)
        if one is not None and one.excess.standard_error > 0:
            tested.append(one)
    if not tested:
        return None
    z = np.array([_normal_score(one.excess) for one in tested])
    worst = int(z.argmin())
    drawn = _standardized_draws(scores, tested, 0)
    critical = float(np.quantile(np.abs(drawn).max(axis=1), scores.analysis.confidence_level))
    p = decided_share(
        lambda block: (_standardized_draws(scores, tested, block) if block else drawn).min(axis=1) <= z[worst],
        scores.analysis.alpha,
    )
    errors = np.array([one.excess.standard_error for one in tested])
    one, level = tested[worst], 2 * stats.norm.sf(critical)
    kept = {t: groups[one.group][rows[t]] for t in one.sums}
    return WorstGroup(
        *one.group, one.excess.interval(1 - level), _retention(scores, kept, g, level), p,
        float((drawn * errors).min(axis=1).mean()), len(tested), bool(p <= scores.analysis.alpha),
    )  # fmt: skip


def _normal_score(estimate: CrossedEstimate) -> float:
    """The normal quantile with the same tail as the estimate's t."""
    low = stats.norm.isf(estimate.p_greater()) if estimate.value > 0 else stats.norm.ppf(estimate.p_less())
    return float(np.clip(low, -38.0, 38.0))


def _standardized_draws(scores: Scores, tested: list[_Tested], block: int) -> FloatArray:
    """(draws, groups) as if no group differed, each with variance 1, groups that share documents as correlated as they
    are."""
    total, spread = np.zeros((scores.analysis.n_resamples, len(tested))), np.zeros(len(tested))
    for t in scores.averaged:
        parts = [one.sums.get(t) for one in tested]
        known = [part for part in parts if part is not None]
        if known:
            sums = np.stack([np.zeros_like(known[0]) if part is None else part for part in parts], axis=1)
            total += multiplier_draws(sums, scores.analysis.n_resamples, f"{scores.tasks[t]} groups {block}")
            spread += (sums**2).sum(axis=0) * len(sums) / (len(sums) - 1)
    return np.asarray(total / np.sqrt(spread))


def _tested(scores: Scores, inside: dict[int, NDArray[np.bool_]], group: Group, g: int) -> _Tested | None:
    """The group's excess over the tasks that have enough documents there, of equal weight."""
    blocks = {}
    for t, rows in inside.items():
        block = _excess_block(scores, t, rows, g) if rows.sum() >= MIN_TASK_DOCUMENTS and not rows.all() else None
        if block is not None:
            blocks[t] = block
    if sum(int(inside[t].sum()) for t in blocks) < MIN_GROUP_DOCUMENTS:
        return None
    tasks = {t: scores.responses.tasks[t] for t in blocks}
    weight = 1 / len(blocks)
    parts = [TaskValues((block,), tasks[t].clusters, weight) for t, block in blocks.items()]
    seeds = pooled_seeds(scores, {g: 1.0}, lambda: _excess_means(scores, {t: inside[t] for t in blocks}))
    estimate = crossed_estimate(parts, seeds)
    sums: dict[int, FloatArray] = {}
    for t, block in blocks.items():
        mean = block.mean(axis=1)
        sums[t] = cluster_sums(mean - mean.mean(), tasks[t].clusters) * weight / tasks[t].n
    return _Tested(group, estimate, sums)


def _teacher(scores: Scores) -> int:
    """Its group; a worst group is one beside a teacher."""
    assert scores.teacher is not None
    return scores.teacher


def _excess_block(scores: Scores, t: int, rows: NDArray[np.bool_], g: int) -> FloatArray | None:
    """(documents, seeds) whose mean is g_S − R·g_T in the group, R being what the student retains of the whole task, itself
    an estimate; None where the teacher is near chance on the task."""
    task, teacher = scores.responses.tasks[t], _teacher(scores)
    base = scores.macro_estimate(teacher, tasks=[t])
    if not base.interval(scores.analysis.confidence_level).low > MIN_RETENTION_BASELINE or np.isnan(scores.centered[t, g]):
        return None
    share = float(scores.centered[t, g] / scores.centered[t, teacher])
    (rest,) = scores.blocks(task.centered, difference_of(g, teacher, share))  # its mean over documents and seeds is 0
    level = float(task.centered[rows][:, scores.model_columns(teacher)].mean() / base.value)
    return mean_inside(rest, rows) - level * rest


def _excess_means(scores: Scores, inside: Mapping[int, NDArray[np.bool_]]) -> FloatArray:
    """(models,) of each model, mean over tasks, the excess of `_excess_block`."""
    means = []
    for t, rows in inside.items():
        centered, teacher = scores.responses.tasks[t].centered, scores.model_columns(_teacher(scores))
        own, whole = centered[rows].mean(axis=0), centered.mean(axis=0)
        means.append(own - own[teacher] / whole[teacher] * whole)
    return np.asarray(np.mean(means, axis=0))


def _retention(scores: Scores, inside: dict[int, NDArray[np.bool_]], g: int, alpha: float) -> Interval:
    """Share of the teacher's score inside a group, mean over its tasks, with Fieller's interval at `alpha`."""
    teacher = _teacher(scores)

    def estimate(first: int, second: int | None = None, share: float = 1.0) -> CrossedEstimate:
        contrast, parts = difference_of(first, second, share), []
        for t, rows in inside.items():
            task = scores.responses.tasks[t]
            blocks = tuple(mean_inside(block, rows) for block in scores.blocks(task.centered, contrast))
            parts.append(TaskValues(blocks, task.clusters, 1 / len(inside)))
        return crossed_estimate(parts, pooled_seeds(scores, contrast, lambda: scores.model_means(inside)))

    own, base = estimate(g), estimate(teacher)
    if not base.value - base.critical(1 - alpha / 2) * base.standard_error > MIN_RETENTION_BASELINE:
        return NOTHING
    covariance = (own.variance + base.variance - estimate(g, teacher).variance) / 2
    critical = estimate(g, teacher, own.value / base.value).critical(1 - alpha / 2)
    return fieller(own.value, base.value, own.variance, base.variance, covariance, critical)
