"""Tests, intervals and corrections for paired right-or-wrong answers. Proportions are in [0, 1]."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from distill_lit.analysis.array_types import FloatArray

REPLICATE_TOLERANCE = (
    1e-6  # equal replicates differ by less, different ones by more: they are means of thousands of answers
)
SIGN_FLIP_LEVELS = 2**14  # or 16 for each sum, where they are many


class Interval(NamedTuple):
    """An estimate with its confidence bounds."""

    value: float
    low: float
    high: float


def wilson(successes: float, n: float, confidence: float = 0.95, critical: float | None = None) -> Interval:
    """A proportion with Wilson's score interval, which holds at any n. Wilson 1927; Brown, Cai & DasGupta 2001.

    n may be an effective number of documents, and `critical` the quantile in place of the normal's where it is known from
    few degrees of freedom (Korn & Graubard 1998).
    """
    if not n > 0:
        return Interval(np.nan, np.nan, np.nan)
    share, z = successes / n, special.ndtri(1 - (1 - confidence) / 2) if critical is None else critical
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    reach = z / (1 + z**2 / n) * (max(share * (1 - share), 0.0) / n + z**2 / (4 * n**2)) ** 0.5
    return Interval(share, max(middle - reach, 0.0), min(middle + reach, 1.0))


def student_quantile(probability: float, df: float) -> float:
    """Of Student's t, the normal's for infinite `df`; `stats.t.ppf` checks and broadcasts a hundred times as long."""
    return float(special.stdtrit(df, probability))


def rule_of_three(n: float, confidence: float = 0.95) -> float:
    """The share that an event of which none was seen among n has at most: 1 − (1 − confidence)^(1/n), about 3/n.

    Hanley & Lippman-Hand 1983.
    """
    return float(1 - (1 - confidence) ** (1 / n)) if n > 0 else float("nan")


def effective_documents(values: ArrayLike, clusters: ArrayLike) -> float:
    """Documents that would tell as much of the mean of `values` if none shared a passage: n over the design effect (Kish
    1965), at most n. Where all values are the same, the number of passages."""
    x, codes = np.asarray(values, float), np.unique(np.asarray(clusters), return_inverse=True)[1]
    count = int(codes.max(initial=-1)) + 1
    if count == len(x):
        return float(len(x))
    alone, shared = clustered_standard_error(x, np.arange(len(x))), clustered_standard_error(x, codes)
    return len(x) * min((alone / shared) ** 2, 1.0) if shared > 0 else float(count)


def newcombe_paired_interval(
    first: ArrayLike, second: ArrayLike, confidence: float = 0.95, clusters: ArrayLike | None = None
) -> Interval:
    """mean(first) − mean(second) of paired 0/1 answers with Newcombe's score interval (1998, method 10).

    Unlike a normal approximation or a bootstrap it is not [0, 0] when no pair differs. clusters: passages that documents
    share; the counts are then those of as many documents as would tell the same.
    """
    one, two = np.asarray(first, float), np.asarray(second, float)
    if not len(one):
        return Interval(np.nan, np.nan, np.nan)
    n = float(len(one)) if clusters is None else effective_documents(one - two, clusters)
    both, only_one, only_two = (float(np.mean(x)) * n for x in (one * two, one * (1 - two), (1 - one) * two))
    p1, l1, u1 = wilson(both + only_one, n, confidence)
    p2, l2, u2 = wilson(both + only_two, n, confidence)
    phi = _phi(both, only_one, only_two, n - both - only_one - only_two)
    down = (p1 - l1) ** 2 - 2 * phi * (p1 - l1) * (u2 - p2) + (u2 - p2) ** 2
    up = (u1 - p1) ** 2 - 2 * phi * (u1 - p1) * (p2 - l2) + (p2 - l2) ** 2
    return Interval(p1 - p2, p1 - p2 - max(down, 0.0) ** 0.5, p1 - p2 + max(up, 0.0) ** 0.5)


def _phi(a: float, b: float, c: float, d: float) -> float:
    """Correlation of a 2×2 table, with Newcombe's continuity correction when it is positive."""
    margins = (a + b) * (c + d) * (a + c) * (b + d)
    if margins <= 0:
        return 0.0
    cross = a * d - b * c
    if cross > 0:
        cross = max(cross - (a + b + c + d) / 2, 0.0)
    return float(cross / margins**0.5)


def sign_flip_p(differences: ArrayLike, clusters: ArrayLike | None = None) -> float:
    """Two-sided p that paired differences are as likely this way as the other: the share of all changes of sign of the
    clusters' sums whose total is at least as far from 0. 1 when nothing differs. Fisher 1935; of clusters, Rosenbaum 2002.

    Exact where the sums are multiples of the smallest one; else they are rounded to SIGN_FLIP_LEVELS parts of the sum of
    their sizes. Of right or wrong answers without shared passages it is McNemar's exact test.
    """
    values = np.asarray(differences, float)
    if not np.isfinite(values).all():
        return float("nan")
    if clusters is not None:
        values = np.bincount(np.unique(np.asarray(clusters), return_inverse=True)[1], weights=values)
    sizes = _whole_sizes(values)
    total, observed = int(np.abs(sizes).sum()), int(abs(sizes.sum()))
    if observed == 0:
        return 1.0
    share = _flipped_shares(np.abs(sizes[sizes != 0]), total)
    return float(np.clip(2 * share[: (total - observed) // 2 + 1].sum(), 0.5**1000, 1.0))


def _flipped_shares(sizes: NDArray[np.integer], total: int) -> FloatArray:
    """Share of all changes of sign that flip sizes of 0, 1 … `total` together; `total` is the sum of all `sizes`.

    By their characteristic function, E exp(iω·flipped) = exp(iω·total/2)·Π cos(ω·size/2) over the sizes. All cosines are
    among those of one turn; powers are taken by squaring.
    """
    points = 2 ** int(np.ceil(np.log2(total + 1)))
    steps, cosines = np.arange(points // 2 + 1), np.cos(np.arange(2 * points) * (np.pi / points))
    distinct, times = np.unique(sizes, return_counts=True)
    product, turn, cosine = np.ones(len(steps)), np.empty_like(steps), np.empty(len(steps))
    for bit in reversed(range(int(times.max()).bit_length())):
        product *= product
        for size in distinct[times >> bit & 1 == 1]:
            np.bitwise_and(np.multiply(steps, size, out=turn), 2 * points - 1, out=turn)
            product *= cosines.take(turn, out=cosine, mode="clip")  # no new arrays
    turned = steps * total & (2 * points - 1)
    return np.fft.irfft(product * np.exp(-1j * np.pi / points * turned), points)


def _whole_sizes(sums: FloatArray) -> NDArray[np.integer]:
    """Sums as multiples of a unit: of the smallest one, or where that does not divide the others, of a small one."""
    known = np.abs(sums[np.abs(sums) > REPLICATE_TOLERANCE])
    if not len(known):
        return np.zeros(len(sums), np.int64)
    unit = known.min()
    if np.abs(known / unit - np.round(known / unit)).max() > REPLICATE_TOLERANCE * len(known):
        unit = known.sum() / max(SIGN_FLIP_LEVELS, 16 * len(known))
    return np.asarray(np.round(sums / unit), np.int64)


def fisher_greater(inside: tuple[int, int], outside: tuple[int, int]) -> float:
    """One-sided Fisher p that (events, non-events) are more often events inside than outside."""
    from scipy import stats  # takes a second, and plans need none of it

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


def gated_holm(p: ArrayLike) -> FloatArray:
    """Adjusted p of `p` (chains, steps): in each chain a step is tested only once those before it are significant.

    The level is shared equally by the chains; one that is significant throughout leaves its share to the others. With one
    step it is Holm's procedure, and it keeps its familywise error rate. NaN steps are passed over. Bretz et al. 2009.
    """
    values = np.asarray(p, float)
    adjusted = np.full(values.shape, np.nan)
    chains = [[step for step in range(values.shape[1]) if np.isfinite(row[step])] for row in values]
    raised = 0.0
    while open_chains := [c for c, steps in enumerate(chains) if steps]:
        chain = min(open_chains, key=lambda c: values[c, chains[c][0]])
        step = chains[chain].pop(0)
        raised = max(raised, min(1.0, values[chain, step] * len(open_chains)))
        adjusted[chain, step] = raised
    return adjusted


def benjamini_hochberg(p: Sequence[float]) -> FloatArray:
    """Benjamini–Hochberg adjusted p values, NaN kept as NaN and not counted. Benjamini & Hochberg 1995."""
    from scipy import stats

    return _adjusted(p, stats.false_discovery_control)


def _adjusted(p: Sequence[float], adjust: Callable[[FloatArray], FloatArray]) -> FloatArray:
    values = np.asarray(p, float)
    known = np.isfinite(values)
    adjusted = np.full(values.shape, np.nan)
    if known.any():
        adjusted[known] = adjust(values[known])
    return adjusted


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
