"""The paired cluster bootstrap: documents are redrawn by cluster within a task, all models keep the same documents."""

import zlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
CHUNK_VALUES = 4_000_000  # weights in memory at a time


def cluster_counts(n_clusters: int, draws: int, seed: int | list[int]) -> Iterator[Floats]:
    """How often each cluster is drawn: blocks of (≤ draws, n_clusters) rows, each summing to n_clusters."""
    rng = np.random.default_rng(seed)
    block = max(1, min(draws, CHUNK_VALUES // max(n_clusters, 1)))
    for start in range(0, draws, block):
        rows = min(block, draws - start)
        picks = rng.integers(0, n_clusters, (rows, n_clusters))
        picks += np.arange(rows)[:, None] * n_clusters
        yield np.bincount(picks.ravel(), minlength=rows * n_clusters).reshape(rows, n_clusters).astype(np.float32)


def task_seed(task: str) -> list[int]:
    """The seed of a task's draws: the same task is redrawn in the same way wherever it is used."""
    return [20260, zlib.crc32(task.encode())]


def replicate_sums(values: Floats, clusters: NDArray[np.integer], draws: int, seed: int | list[int]) -> Floats:
    """Column sums of `values` (documents, columns) over redrawn documents: (draws, columns) float32.

    clusters: (documents,) codes 0 … n−1. NaN in a column makes that column NaN.
    """
    if not len(values):
        return np.full((draws, values.shape[1]), np.nan, np.float32)
    order = np.argsort(clusters, kind="stable")
    starts = np.flatnonzero(np.diff(clusters[order], prepend=-1))
    totals = np.add.reduceat(values[order], starts, axis=0)
    single = totals.astype(np.float32)
    return np.concatenate([counts @ single for counts in cluster_counts(len(totals), draws, seed)])


def replicate_means(values: Floats, clusters: NDArray[np.integer], draws: int, seed: int | list[int]) -> Floats:
    """Column means of `values` over redrawn documents: (draws, columns)."""
    sums = replicate_sums(np.column_stack([values, np.ones(len(values))]), clusters, draws, seed)
    return np.asarray(sums[:, :-1] / sums[:, -1:])


def seed_weights(seeds: tuple[int, ...], count: int, draws: int) -> Floats:
    """Weights (draws, count) of a group's models, each row summing to 1, that redraw its seeds.

    Groups with the same seeds get the same weights, so a seed's students stay paired. The deviation from equal
    weights is stretched by √(K/(K−1)), without which K redrawn seeds understate the variance by (K−1)/K
    (Rao & Wu 1988). One model: all ones, the interval then covers documents only.
    """
    if count < 2:
        return np.ones((draws, count), np.float32)
    rng = np.random.default_rng([20261, *[seed & 0xFFFFFFFF for seed in (seeds or range(count))]])
    drawn = rng.multinomial(count, np.full(count, 1 / count), size=draws)
    return np.asarray((1 + (drawn - 1) * (count / (count - 1)) ** 0.5) / count, np.float32)
