"""Means over documents × seeds, and differences of such means, with the variance of both.

d[document, seed] = mean + document + seed + interaction. The variance of the mean of all is
(MS_documents + MS_seeds − MS_interaction) / (D·K): each of the first two holds the interaction once. Few seeds tell little
of their own variance, so what is said of the mean is averaged over all variances that they may have (the Behrens–Fisher
distribution, see `SeedSpread`): two seeds that lie close together by chance make nothing certain. Documents that share a
passage are one cluster (Liang & Zeger 1986). With one seed the interval covers documents alone.

Student's t with Satterthwaite's degrees of freedom calls one of forty equal pairs of two seeds different at p ≤ .001.
Redrawn documents and stretched seeds are too wide where documents dominate and too narrow where seeds do. See
benchmarks/significance_simulations.md.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import special

from distill_lit.analysis.array_types import FloatArray
from distill_lit.analysis.significance import REPLICATE_TOLERANCE, Interval, rule_of_three, student_quantile

MOST_STANDARD_ERRORS = 1e12  # beyond which no quantile is sought
NODES, FEW_NODES = 96, 48  # values of a variance; of each of several


@dataclass(frozen=True)
class TaskValues:
    """One task's part of a mean or a difference: Σ over `blocks` of their means, times `weight`.

    A block is (documents, seeds): the differences of paired seeds make one, seeds that are not paired make two, the second
    one negative. The same block has the same seeds in every task. `unit`: what one right answer adds to a document's value,
    where answers are right or wrong: documents that all have the same value do not make it certain. 0: values of another
    kind.
    """

    blocks: tuple[FloatArray, ...]
    clusters: NDArray[np.integer]
    weight: float = 1.0
    unit: float = 0.0


@dataclass(frozen=True)
class Component:
    """A part of a variance with its degrees of freedom (NaN: not known, as the seeds' with one seed)."""

    variance: float
    df: float


@dataclass(frozen=True)
class CrossedEstimate:
    """A mean over documents and seeds. `documents` and `seeds` are variances of the mean that hold `interaction` both.

    seed_parts: independent ones whose sum `seeds` is, where there are several: each with its own few degrees of freedom.
    """

    value: float
    documents: Component
    seeds: Component
    interaction: Component
    num_seeds: int  # of the block with the fewest
    seed_parts: tuple[Component, ...] = ()

    @property
    def covers_seeds(self) -> bool:
        """Whether another seed is covered by the interval, and not other documents alone."""
        return bool(np.isfinite(self.seeds.variance))

    @cached_property
    def variance(self) -> float:
        """Of the mean."""
        return crossed_variance(self.documents.variance, self.seeds.variance, self.interaction.variance)

    @cached_property
    def standard_error(self) -> float:
        """Square root of the variance."""
        return float(np.sqrt(self.variance))

    @cached_property
    def spread(self) -> "SeedSpread":
        """The variances that the mean may have."""
        return SeedSpread.of(self.documents, self.seed_parts or (self.seeds,), self.interaction)

    def interval(self, confidence: float = 0.95) -> Interval:
        """Two-sided; NaN bounds where nothing varies that could be measured."""
        reach = self.critical(1 - (1 - confidence) / 2) * self.standard_error
        return Interval(self.value, self.value - reach, self.value + reach)

    def critical(self, probability: float) -> float:
        """The quantile of the mean's distribution, in standard errors; 0 for a variance of 0."""
        if not self.variance > 0:
            return 0.0 * self.variance
        return self.spread.quantile(probability, self.standard_error) / self.standard_error

    def p(self, null: float = 0.0) -> float:
        """Two-sided p that the mean is `null`."""
        return float(np.minimum(1.0, 2 * np.minimum(self.p_greater(null), self.p_less(null))))

    def p_greater(self, null: float = 0.0) -> float:
        """One-sided p: small where the mean is greater than `null`."""
        if not self.standard_error > 0:
            return float("nan") if np.isnan(self.variance) else float(self.value <= null)
        return self.spread.probability_below(null - self.value)

    def p_less(self, null: float = 0.0) -> float:
        """One-sided p: small where the mean is less than `null`."""
        if not self.standard_error > 0:
            return float("nan") if np.isnan(self.variance) else float(self.value >= null)
        return self.spread.probability_below(self.value - null)

    def repeated(self, factor: float) -> "CrossedEstimate":
        """What `factor` times as many documents and seeds would be expected to find, the seeds by themselves."""

        def more(part: Component) -> Component:
            return Component(part.variance / factor, (part.df + 1) * factor - 1)

        drawn = self.num_seeds if self.num_seeds > 1 else self.seeds.df + 1
        seeds = Component(self.seeds.variance / factor, drawn * factor - 1)
        interaction = Component(self.interaction.variance / factor, self.interaction.df * factor)
        return replace(self, documents=more(self.documents), seeds=seeds, interaction=interaction, seed_parts=())

    def detectable(self, alpha: float = 0.05, power: float = 0.8) -> float:
        """The smallest true difference from 0 that a two-sided test at `alpha` finds with `power`, by this variance."""
        return (self.critical(1 - alpha / 2) + self.critical(power)) * self.standard_error


@dataclass(frozen=True)
class SeedSpread:
    """What a mean's variance may be, given the seeds that were seen: each of `variances` with its weight.

    The seeds' mean square of ν degrees of freedom is their true one times χ²_ν / ν; over the true ones that it may come
    from, the mean has the distribution of Behrens (1929) and Fisher (1935), whose tests keep their level for any ratio of
    the variances (Robinson 1976). `document_df`: of each variance, what the documents leave unknown.
    """

    variances: FloatArray
    document_df: FloatArray
    weights: FloatArray

    @classmethod
    def of(cls, documents: Component, seeds: Sequence[Component], interaction: Component) -> "SeedSpread":
        """seeds: independent parts of their variance. Documents alone where nothing is known of them."""
        of_seeds, weights = np.zeros(1), np.ones(1)
        known = [part for part in seeds if part.variance > 0]
        for part in known:
            shares, own = chi_square_nodes(part.df, NODES if len(known) == 1 else FEW_NODES)
            of_seeds = np.add.outer(of_seeds, part.variance / shares).ravel()
            weights = np.multiply.outer(weights, own).ravel()
        total = np.maximum(documents.variance + np.fmax(of_seeds - interaction.variance, 0.0), of_seeds)
        with np.errstate(divide="ignore", over="ignore"):
            df = documents.df * (total / documents.variance) ** 2 if documents.variance else np.full(len(total), np.inf)
        return cls(total, np.asarray(df), weights)

    def probability_below(self, distance: float) -> float:
        """That the mean's error is below `distance`."""
        return self.average(lambda variance, df: special.stdtr(df, distance / variance**0.5))

    def average(self, of_variance: Callable[[FloatArray, FloatArray], FloatArray]) -> float:
        """The mean of a function of the variances and their degrees of freedom."""
        return float(self.weights @ of_variance(self.variances, self.document_df))

    def quantile(self, probability: float, scale: float) -> float:
        """The distance below which the mean's error is with this probability. scale: of the right order of magnitude."""
        if len(self.weights) == 1:
            return float(student_quantile(probability, self.document_df[0]) * np.sqrt(self.variances[0]))
        from scipy import optimize  # a third of a second, which plans of one seed do without

        if probability == 0.5:
            return 0.0
        if probability < 0.5:
            return -self.quantile(1 - probability, scale)
        high = scale
        while self.probability_below(high) < probability and high < MOST_STANDARD_ERRORS * scale:
            high *= 2
        return float(optimize.brentq(lambda x: self.probability_below(x) - probability, 0.0, high, xtol=1e-6 * scale))


@lru_cache
def chi_square_nodes(df: float, count: int) -> tuple[FloatArray, FloatArray]:
    """Values of χ²/df and their weights: trapezoids on its logarithm, from where a billionth of it lies below."""
    if not np.isfinite(df):
        return np.ones(1), np.ones(1)
    low, high = (np.log(special.chdtri(df, p) / df) for p in (1 - 1e-9, 1e-9))
    points = np.linspace(low, high, count)
    density = np.exp(df / 2 * (points - np.exp(points) + 1))
    return np.exp(points), density / density.sum()


NOT_KNOWN = Component(float("nan"), float("nan"))
NONE = CrossedEstimate(float("nan"), NOT_KNOWN, NOT_KNOWN, NOT_KNOWN, 0)


def crossed_variance(documents: float, seeds: float, interaction: float) -> float:
    """Documents + seeds − interaction. Neither of the first two varies by less than nothing, so each bounds the sum from
    below. Documents alone where the seeds' is NaN."""
    return documents if np.isnan(seeds) else max(documents, seeds, documents + seeds - interaction)


def satterthwaite(parts: Sequence[Component], variance: float) -> float:
    """Degrees of freedom of a variance that is a sum (or difference) of independent `parts`. Satterthwaite 1946."""
    spread = sum(part.variance**2 / part.df for part in parts if part.variance > 0 and part.df > 0)
    return variance**2 / spread if spread > 0 else float("inf")


def crossed_estimate(
    tasks: Sequence[TaskValues], pooled_seeds: Sequence[Component] = (), lone_seeds: float = 1.0
) -> CrossedEstimate:
    """The sum over tasks, which have documents of their own and share their seeds. NaN without tasks or with NaN values.

    pooled_seeds: the seeds' parts where they are known from more models than these (`pooled_seeds.pooled_seeds`).
    lone_seeds: how many times that is with the seeds of students that have one (`pooled_seeds.lone_seeds`).
    """
    if not tasks or any(not block.size or np.isnan(block).any() for task in tasks for block in task.blocks):
        return NONE
    value = sum(task.weight * sum(block.mean() for block in task.blocks) for task in tasks)
    documents = sum_components([_document_part(task) for task in tasks])
    seed_parts, interactions = [], []
    for b, first in enumerate(tasks[0].blocks):
        seeds = first.shape[1]
        if seeds < 2:
            continue
        by_seed = np.sum([task.weight * task.blocks[b].mean(axis=0) for task in tasks], axis=0)
        seed_parts.append(Component(float(by_seed.var(ddof=1)) / seeds, seeds - 1))
        interactions += [_interaction_part(task, b) for task in tasks]
    fewest = min(block.shape[1] for block in tasks[0].blocks)
    if not seed_parts:
        return CrossedEstimate(float(value), documents, NOT_KNOWN, NOT_KNOWN, fewest)
    parts = tuple(Component(lone_seeds * part.variance, part.df) for part in pooled_seeds or seed_parts)
    interaction = sum_components(interactions)
    interaction = Component(lone_seeds * interaction.variance, interaction.df)  # which documents hold of lone ones too
    return CrossedEstimate(float(value), documents, sum_components(parts), interaction, fewest, parts)


def sum_components(parts: Sequence[Component]) -> Component:
    """Of a sum of independent parts."""
    variance = float(sum(part.variance for part in parts))
    return Component(variance, satterthwaite(parts, variance))


def _document_part(task: TaskValues) -> Component:
    """Variance of the mean over documents of what a document has on average over seeds."""
    by_document = np.sum([block.mean(axis=1) for block in task.blocks], axis=0)
    sums = cluster_sums(by_document - by_document.mean(), task.clusters)
    count, n = len(sums), len(by_document)
    if count < 2:
        return NOT_KNOWN
    variance = float((sums**2).sum()) * count / (count - 1) / n**2
    if task.unit and np.ptp(by_document) < REPLICATE_TOLERANCE:
        variance = (task.unit * rule_of_three(count) / special.ndtri(0.975)) ** 2
    return Component(task.weight**2 * variance, count - 1)


def _interaction_part(task: TaskValues, b: int) -> Component:
    """What is left after means of documents and of seeds, in a mean over both."""
    block = task.blocks[b]
    n, seeds = block.shape
    rest = block - block.mean(axis=1, keepdims=True) - block.mean(axis=0) + block.mean()
    sums = cluster_sums(rest, task.clusters)
    count = len(sums)
    if count < 2:
        return NOT_KNOWN
    variance = float((sums**2).sum()) * count / (count - 1) / (seeds - 1) / seeds / n**2
    return Component(task.weight**2 * variance, (count - 1) * (seeds - 1))


def cluster_sums(values: FloatArray, clusters: NDArray[np.integer]) -> FloatArray:
    """Sums over the documents (rows) of each cluster."""
    counts = np.bincount(clusters)
    if counts.max(initial=0) < 2:
        return values
    sums = np.zeros((len(counts), *values.shape[1:]))
    np.add.at(sums, clusters, values)
    return sums[counts > 0]


def mean_inside(values: FloatArray, inside: NDArray[np.bool_]) -> FloatArray:
    """A block (documents, seeds) whose mean is that of `values` over the documents `inside`, and whose variance is that
    mean's, the number of documents inside being drawn too (linearized: Cochran 1977, ch. 6). Blocks of strata of one task
    can be subtracted from each other. NaN where nothing is inside."""
    share = inside.mean()
    if share == 0:
        return np.full(values.shape, np.nan)
    mean = values[inside].mean(axis=0)
    return np.asarray(mean + np.where(inside[:, None], (values - mean) / share, 0.0))
