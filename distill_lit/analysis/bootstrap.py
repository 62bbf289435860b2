"""The paired bootstrap, by clusters: documents are redrawn by cluster within a task, all models keep the same documents."""

import zlib
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from distill_lit.analysis.array_types import FloatArray

MAX_COUNTS_IN_MEMORY = 2_000_000  # weights in memory at a time
DECISION_ERRORS = 3.0  # Monte Carlo errors from a threshold at which a p or bound is decided
MAX_REDRAWS = 50


def cluster_counts(n_clusters: int, n_resamples: int, seed: int | list[int]) -> Iterator[FloatArray]:
    """How often each cluster is drawn: blocks of (≤ draws, n_clusters) rows, each summing to n_clusters."""
    rng = np.random.default_rng(seed)
    block = max(1, min(n_resamples, MAX_COUNTS_IN_MEMORY // max(n_clusters, 1)))
    for start in range(0, n_resamples, block):
        rows = min(block, n_resamples - start)
        picks = rng.integers(0, n_clusters, (rows, n_clusters))
        picks += np.arange(rows)[:, None] * n_clusters
        yield np.bincount(picks.ravel(), minlength=rows * n_clusters).reshape(rows, n_clusters).astype(float)


def bootstrap_seed(task: str) -> list[int]:
    """The seed of a task's draws: the same task is redrawn in the same way wherever it is used."""
    return [20260, zlib.crc32(task.encode())]


def multiplier_draws(sums: FloatArray, n_draws: int, stream: str) -> FloatArray:
    """(draws, columns): `sums` (clusters, columns) of centered values, each row times a normal number, added up; its
    variance is Σ sums², times C / (C − 1). Columns stay paired, and so do calls with the same number of rows and `stream`.

    The Gaussian multiplier bootstrap (Chernozhukov, Chetverikov & Kato 2013): for smooth means of many documents it is what
    redrawing them is, without a stretch.
    """
    count = len(sums)
    if count < 2:
        return np.full((n_draws, sums.shape[1]), np.nan)
    rng = np.random.default_rng(bootstrap_seed(stream))
    block = max(1, MAX_COUNTS_IN_MEMORY // count)
    scaled = sums * (count / (count - 1)) ** 0.5
    return np.concatenate(
        [rng.normal(size=(min(block, n_draws - start), count)) @ scaled for start in range(0, n_draws, block)]
    )


def decided_share(draw: Callable[[int], NDArray[np.bool_]], threshold: float) -> float:
    """Share of draws that are true, of so many that another random stream would not put it on the other side of
    `threshold`.

    More draws are made, MAX_REDRAWS times as many at most, while the share lies within DECISION_ERRORS of its own Monte
    Carlo errors of the threshold. draw: number of a block → its draws.
    """
    hits = total = 0
    for block in range(MAX_REDRAWS):
        drawn = draw(block)
        hits, total = hits + int(drawn.sum()), total + len(drawn)
        share = (hits + 1) / (total + 1)
        if abs(share - threshold) > DECISION_ERRORS * (share * (1 - share) / total) ** 0.5:
            break
    return share
