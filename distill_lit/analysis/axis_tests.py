"""Does an axis of the grid matter? One test of all its values at once, then every pair, and what could have been seen.

The highest of eight equal values is always some way above the lowest: no value is named the best where the test of all does
not say that they differ.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np
from scipy import special

from distill_lit.analysis.array_types import FloatArray
from distill_lit.analysis.crossed_variance import (
    Component,
    CrossedEstimate,
    SeedSpread,
    cluster_sums,
    crossed_variance,
    satterthwaite,
)
from distill_lit.analysis.model_groups import ModelGroup, describe_grid_value, grid_key_label, grid_value_label
from distill_lit.analysis.scores import Scores
from distill_lit.analysis.significance import Interval, holm
from distill_lit.config.grid_points import shortest_names


@dataclass(frozen=True)
class PairTest:
    """Two values of an axis: macro average of `first` less `second`; p_adjusted after Holm over the pairs of the axis."""

    first: str
    second: str
    difference: Interval
    p: float
    p_adjusted: float


@dataclass(frozen=True)
class AxisTest:
    """All values of one axis, everything else the same. Scores are averages above chance, as shares.

    df: of the statistic's numerator. p: that all are equal, documents and seeds together (documents alone with one seed:
    `covers_seeds`). detectable: the smallest difference of two values that is found with 80% power after Holm's first step.
    spread_ratio: standard deviation between the values over that between seeds of one value. best: the values that no other
    one surpasses significantly, where some value is significantly surpassed; else none. left_out: labels of groups without
    the seeds that the others have.
    """

    axis: str
    student: str
    at: str  # the other axes, in words
    values: tuple[str, ...]
    labels: tuple[str, ...]
    scores: tuple[float, ...]
    statistic: float
    df: float
    p: float
    covers_seeds: bool
    pairs: tuple[PairTest, ...]
    detectable: float
    spread_ratio: float
    best: tuple[str, ...]
    left_out: tuple[str, ...]


@dataclass(frozen=True)
class _Variances:
    """Of the deviations of M groups from their mean: `documents` (M, M), and the other two as sums over the groups."""

    documents: FloatArray
    document_df: float
    seeds: Component
    interaction: Component


def axis_tests(scores: Scores) -> list[AxisTest]:
    """One test per axis of the grid, distilled student and point of the other axes; none without an average."""
    keys, display = [key for group in scores.groups for key, _ in group.grid_point], scores.results.display
    known = dict.fromkeys(key.removeprefix("grid.") for key in keys)
    short = {f"grid.{key}": name for key, name in shortest_names(list(known)).items()}
    found = []
    for axis in dict.fromkeys(keys):
        families: dict[tuple, list[int]] = {}
        for g, group in enumerate(scores.groups):
            point = dict(group.grid_point)
            if group.role == "distilled" and axis in point and np.isfinite(scores.macro(g)):
                rest = tuple((key, value) for key, value in group.grid_point if key != axis)
                families.setdefault((group.student, rest), []).append(g)
        for (student, _), members in families.items():
            shown = [(key, value) for key, value in scores.groups[members[0]].varied_point if key != axis]
            at = ", ".join(describe_grid_value(display, short[key], key, value) for key, value in shown)
            kept = _same_seeds(scores, members)
            if len(kept) > 1:
                left_out = tuple(scores.groups[g].label for g in members if g not in kept)
                name = grid_key_label(display, short[axis], axis) or short[axis]
                found.append(_axis_test(scores, name, axis, display.label(student), at, kept, left_out))
    return found


def _same_seeds(scores: Scores, members: list[int]) -> list[int]:
    """Those with the seeds that most have."""
    seeds = {g: (tuple(sorted(scores.groups[g].seeds)), len(scores.groups[g].models)) for g in members}
    (usual, _), *_ = Counter(seeds.values()).most_common(1)
    return [g for g in members if seeds[g] == usual]


def _axis_test(
    scores: Scores, name: str, axis: str, student: str, at: str, groups: list[int], left_out: tuple[str, ...]
) -> AxisTest:
    known: list[ModelGroup] = [scores.groups[g] for g in groups]
    means = np.array([scores.macro(g) for g in groups])
    variances = _variances(scores, groups)
    statistic, df, p = _wald(means, variances)
    values = tuple(grid_value_label(scores.results.display, axis, dict(group.grid_point)[axis]) for group in known)
    pairs, estimates = _pairs(scores, groups, values, variances)
    seed_variance = variances.seeds.variance * len(known[0].models) / (len(groups) - 1)
    level = scores.analysis.alpha / max(len(pairs), 1)
    return AxisTest(
        name, student, at, values, tuple(group.label for group in known), tuple(float(m) for m in means),
        statistic, df, p, bool(np.isfinite(variances.seeds.variance)), pairs,
        float(np.max([estimate.detectable(level) for estimate in estimates])),
        float(means.std(ddof=1) / seed_variance**0.5) if seed_variance > 0 else float("nan"),
        _best(values, means, pairs, scores.analysis.alpha) if p <= scores.analysis.alpha else (), left_out,
    )  # fmt: skip


def _variances(scores: Scores, groups: list[int]) -> _Variances:
    """Variances of the groups' deviations from their common mean, of documents, seeds and what is left."""
    many, columns = len(groups), np.array([scores.columns_by_seed(g) for g in groups])
    seeds, weight = columns.shape[1], 1 / len(scores.averaged)
    documents, document_parts, rests = np.zeros((many, many)), [], []
    by_seed = np.zeros((seeds, many))
    for t in scores.averaged:
        task = scores.responses.tasks[t]
        block = task.centered[:, columns].transpose(0, 2, 1)  # (documents, seeds, groups)
        block = block - block.mean(axis=2, keepdims=True)
        by_seed += weight * block.mean(axis=0)
        mean = block.mean(axis=1)
        sums = cluster_sums(mean - mean.mean(axis=0), task.clusters)
        scale = (weight / task.n) ** 2 * len(sums) / max(len(sums) - 1, 1)
        documents += scale * sums.T @ sums
        document_parts.append(Component(scale * float((sums**2).sum()), len(sums) - 1))
        rest = block - mean[:, None] - block.mean(axis=0) + mean.mean(axis=0)
        rests.append((scale * float((cluster_sums(rest, task.clusters) ** 2).sum()), len(sums) - 1))
    document_df = satterthwaite(document_parts, float(np.trace(documents)))
    if seeds < 2:
        unknown = Component(float("nan"), float("nan"))
        return _Variances(documents, document_df, unknown, unknown)
    df = (seeds - 1) * (many - 1)
    deviation = by_seed - by_seed.mean(axis=0)
    own = Component(float((deviation**2).sum()) / (seeds - 1) / seeds, df)
    pair = scores.macro_estimate(groups[0], groups[1]).seeds
    if pair.df > df:  # two seeds, whose spread is known from students beside these
        own = Component((many - 1) / 2 * pair.variance, pair.df)
    parts = [Component(value / (seeds - 1) / seeds, count * df) for value, count in rests]
    total = sum(part.variance for part in parts)
    return _Variances(documents, document_df, own, Component(total, satterthwaite(parts, total)))


def _wald(means: FloatArray, variances: _Variances) -> tuple[float, float, float]:
    """Sum of squared deviations over its expectation when all are equal, Box's degrees of freedom, and p, averaged over all
    variances that the seeds may have.

    The ANOVA-type statistic of Brunner, Dette & Munk 1997; with documents and seeds as random effects it is the quasi-F of
    Clark 1973, without the assumption that all pairs of values are alike over documents.
    """
    many, documents = len(means), Component(float(np.trace(variances.documents)), variances.document_df)
    total = crossed_variance(documents.variance, variances.seeds.variance, variances.interaction.variance)
    if not total > 0:
        return float("nan"), float("nan"), float("nan")
    even = (np.eye(many) - 1 / many) * (total - documents.variance) / (many - 1)
    df = total**2 / float(((variances.documents + even) ** 2).sum())
    squares = float(((means - means.mean()) ** 2).sum())
    spread = SeedSpread.of(documents, (variances.seeds,), variances.interaction)
    return squares / total, df, spread.average(lambda variance, of_it: special.fdtrc(df, of_it, squares / variance))


def _pairs(
    scores: Scores, groups: list[int], values: tuple[str, ...], variances: _Variances
) -> tuple[tuple[PairTest, ...], list[CrossedEstimate]]:
    """All pairs; the seeds' variance is that of all values together, of which there is more to go by."""
    many = len(groups)
    numbers = [(i, j) for i in range(many) for j in range(i)]
    estimates = []
    for i, j in numbers:
        own = scores.macro_estimate(groups[i], groups[j])
        pooled = Component(2 * variances.seeds.variance / (many - 1), variances.seeds.df)
        shared = Component(2 * variances.interaction.variance / (many - 1), variances.interaction.df)
        estimates.append(CrossedEstimate(own.value, own.documents, pooled, shared, own.num_seeds))
    p = [estimate.p() for estimate in estimates]
    confidence = scores.analysis.confidence_level
    tests = [PairTest(values[i], values[j], estimate.interval(confidence), one, float(adjusted))
             for (i, j), estimate, one, adjusted in zip(numbers, estimates, p, holm(p), strict=True)]  # fmt: skip
    return tuple(tests), estimates


def _best(values: tuple[str, ...], means: FloatArray, pairs: tuple[PairTest, ...], alpha: float) -> tuple[str, ...]:
    worse = {pair.second if pair.difference.value > 0 else pair.first for pair in pairs if pair.p_adjusted <= alpha}
    return tuple(value for value in values if value not in worse) if worse else ()
