"""Tests, intervals and corrections for paired right-or-wrong answers. Proportions are in [0, 1]."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from distill_lit.analysis.array_types import FloatArray

REPLICATE_TOLERANCE = (
    1e-6  # equal replicates differ by less, different ones by more: they are means of thousands of answers
)


class Interval(NamedTuple):
    """An estimate with its confidence bounds."""

    value: float
    low: float
    high: float


def wilson(successes: float, n: int, confidence: float = 0.95) -> Interval:
    """A proportion with Wilson's score interval, which holds at any n. Wilson 1927; Brown, Cai & DasGupta 2001."""
    if n == 0:
        return Interval(np.nan, np.nan, np.nan)
    low, high = proportion_confint(successes, n, alpha=1 - confidence, method="wilson")
    return Interval(successes / n, float(low), float(high))


def newcombe_paired_interval(first: ArrayLike, second: ArrayLike, confidence: float = 0.95) -> Interval:
    """mean(first) − mean(second) of paired 0/1 answers with Newcombe's score interval (1998, method 10).

    Unlike a normal approximation or a bootstrap it is not [0, 0] when no pair differs.
    """
    one, two = np.asarray(first, float), np.asarray(second, float)
    n = len(one)
    if n == 0:
        return Interval(np.nan, np.nan, np.nan)
    both, only_one, only_two = (one * two).sum(), (one * (1 - two)).sum(), ((1 - one) * two).sum()
    p1, l1, u1 = wilson(both + only_one, n, confidence)
    p2, l2, u2 = wilson(both + only_two, n, confidence)
    phi = _phi(both, only_one, only_two, n - both - only_one - only_two)
    down = (p1 - l1) ** 2 - 2 * phi * (p1 - l1) * (u2 - p2) + (u2 - p2) ** 2
    up = (u1 - p1) ** 2 - 2 * phi * (u1 - p1) * (p2 - l2) + (p2 - l2) ** 2
    return Interval(p1 - p2, p1 - p2 - max(down, 0.0) ** 0.5, p1 - p2 + max(up, 0.0) ** 0.5)


def _phi(a: float, b: float, c: float, d: float) -> float:
    """Correlation of a 2×2 table, with Newcombe's continuity correction when it is positive."""
    margins = (a + b) * (c + d) * (a + c) * (b + d)
    if margins == 0:
        return 0.0
    cross = a * d - b * c
    if cross > 0:
        cross = max(cross - (a + b + c + d) / 2, 0.0)
    return float(cross / margins**0.5)


def mcnemar(lost: ArrayLike, gained: ArrayLike) -> FloatArray:
    """Exact two-sided p of McNemar's test from the two discordant counts; 1 when there are none. McNemar 1947."""
    b, c = np.asarray(lost, float), np.asarray(gained, float)
    return np.asarray(np.minimum(1.0, 2 * stats.binom.cdf(np.minimum(b, c), b + c, 0.5)))


def clustered_mcnemar(differences: ArrayLike, clusters: ArrayLike) -> float:
    """Two-sided p of McNemar's test where documents share clusters: (Σ d)² / Σ d² over the clusters' sums of differences
    is χ² with one degree of freedom. Obuchowski 1998. differences: 1 gained, −1 lost, 0 neither."""
    codes = np.unique(np.asarray(clusters), return_inverse=True)[1]
    sums = np.bincount(codes, weights=np.asarray(differences, float))
    spread = float((sums**2).sum())
    return float(stats.chi2.sf(sums.sum() ** 2 / spread, 1)) if spread else 1.0


def fisher_greater(inside: tuple[int, int], outside: tuple[int, int]) -> float:
    """One-sided Fisher p that (events, non-events) are more often events inside than outside."""
    return float(stats.fisher_exact([list(inside), list(outside)], alternative="greater").pvalue)


def holm(p: Sequence[float]) -> FloatArray:
    """Holm-adjusted p values, NaN kept as NaN and not counted. Holm 1979."""

    def step_down(values: FloatArray) -> FloatArray:
        # statsmodels has this too, but collects garbage at every call, which takes a thousand times longer
        order = np.argsort(values, kind="stable")
        raised = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
        adjusted = np.empty(len(values))
        adjusted[order] = np.minimum(raised, 1.0)
        return adjusted

    return _adjusted(p, step_down)


def benjamini_hochberg(p: Sequence[float]) -> FloatArray:
    """Benjamini–Hochberg adjusted p values, NaN kept as NaN and not counted. Benjamini & Hochberg 1995."""
    return _adjusted(p, stats.false_discovery_control)


def _adjusted(p: Sequence[float], adjust: Callable[[FloatArray], FloatArray]) -> FloatArray:
    values = np.asarray(p, float)
    known = np.isfinite(values)
    adjusted = np.full(values.shape, np.nan)
    if known.any():
        adjusted[known] = adjust(values[known])
    return adjusted


def minimum_detectable_effect(n: float, discordance: float, alpha: float = 0.05, power: float = 0.8) -> float:
    """The smallest difference of two paired proportions found with `power` on n documents (Miller 2411.00640 §5).

    discordance: share of documents on which exactly one of the two is right; at least 3/n, which is what
    no discordant pair among n still allows at 95%.
    """
    if n == 0:
        return float("nan")
    spread = stats.norm.ppf(1 - alpha / 2) + stats.norm.ppf(power)
    return float(spread * (max(discordance, 3 / n) / n) ** 0.5)


def clustered_standard_error(values: ArrayLike, clusters: ArrayLike) -> float:
    """Standard error of a mean whose documents come in clusters (Liang & Zeger 1986; Miller 2411.00640 eq. 4)."""
    x = np.asarray(values, float)
    if len(x) < 2:
        return float("nan")
    codes = np.unique(np.asarray(clusters), return_inverse=True)[1]
    sums = np.bincount(codes, weights=x - x.mean())
    count = len(sums)
    return float(np.sqrt((sums**2).sum() * (count / (count - 1) if count > 1 else np.nan)) / len(x))


def percentile_interval(value: float, replicates: ArrayLike, confidence: float = 0.95) -> Interval:
    """`value` with the percentile bounds of its bootstrap replicates; NaN bounds when no replicate is defined."""
    known = np.asarray(replicates, float)
    known = known[np.isfinite(known)]
    if known.size == 0 or not np.isfinite(value):
        return Interval(value, np.nan, np.nan)
    low, high = np.quantile(known, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(value), float(low), float(high))


def bootstrap_p(replicates: ArrayLike) -> float:
    """Two-sided p that the replicated quantity is zero: the level at which the percentile interval first touches 0."""
    known = np.asarray(replicates, float)
    known = known[np.isfinite(known)]
    if known.size == 0:
        return float("nan")
    below, above = (known <= REPLICATE_TOLERANCE).sum(), (known >= -REPLICATE_TOLERANCE).sum()
    return float(min(1.0, 2 * (min(below, above) + 1) / (known.size + 1)))


def simultaneous_intervals(
    values: FloatArray, replicates: FloatArray, confidence: float = 0.95
) -> tuple[FloatArray, FloatArray]:
    """Bounds that hold for all G values at once; values (G,), replicates (B, G). Max-|t|, Romano & Wolf 2005."""
    error = np.nanstd(replicates, axis=0, ddof=1)
    error = np.where(error > 0, error, np.nan)
    known = np.isfinite(replicates).all(axis=1)
    if not np.isfinite(error).any() or not known.any():
        return np.full_like(values, np.nan), np.full_like(values, np.nan)
    furthest = np.nanmax(np.abs((replicates[known] - values) / error), axis=1)
    reach = np.nanquantile(furthest, confidence) * error
    return values - reach, values + reach
