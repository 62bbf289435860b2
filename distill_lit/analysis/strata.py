"""Scores by stratum, pooled over tasks of equal weight, with joint bootstrap replicates of all groups."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from distill_lit.analysis.array_types import FloatArray
from distill_lit.analysis.bootstrap import bootstrap_seed, bootstrap_sums, seed_resample_weights
from distill_lit.analysis.document_axes import DocumentAxis
from distill_lit.analysis.scores import Scores

MIN_STRATUM_DOCUMENTS = 10  # of a task in a stratum, from which its mean has the weight of a task


@dataclass(frozen=True)
class StratumScores:
    """Centered scores of one axis. `head_tail_…`: head and tail over the tasks that have both, so that tasks do
    not differ."""

    strata: list[int]  # strata
    n_documents: NDArray[np.integer]  # (stratum,) documents
    estimates: FloatArray  # (stratum, group)
    replicates: FloatArray  # (draw, stratum, group)
    head_tail_n_documents: int  # documents in the smaller of head and tail
    head_tail_estimates: FloatArray  # (2, group)
    head_tail_replicates: FloatArray  # (draw, 2, group)


def pool_strata(scores: Scores, axes: list[DocumentAxis], codes: pd.DataFrame) -> dict[str, StratumScores]:
    """Centered scores of all groups in every stratum of every axis, averaged over the tasks that have
    MIN_STRATUM_DOCUMENTS there.

    NaN for a group that lacks one of the averaged tasks: it would be compared over others.
    """
    numbers = {axis.name: sorted(codes[axis.name].unique()) for axis in axes}
    slots = [(axis.name, s) for axis in axes for s in numbers[axis.name]]
    ends = [(slots.index((a.name, 1)), slots.index((a.name, last))) if {1, last} <= set(numbers[a.name]) else None
            for a in axes for last in [_last(scores, a)]]  # fmt: skip
    every = _Average(scores.analysis.n_resamples, len(slots), len(scores.groups))
    pairs = _Average(scores.analysis.n_resamples, 2 * len(axes), len(scores.groups))
    for t in scores.averaged:
        task = scores.responses.tasks[t]
        inside = np.stack([(codes.loc[task.index, name] == s).to_numpy() for name, s in slots], axis=1).astype(float)
        mean, draws = _task_strata(scores, task.centered(), task.clusters, inside, task.task)
        size = inside.sum(axis=0)
        few = size < MIN_STRATUM_DOCUMENTS
        mean[few], draws[:, few], size[few] = np.nan, np.nan, 0
        every.add(slice(None), mean, draws, size)
        for a, pair in enumerate(ends):
            if pair is not None and not few[list(pair)].any():
                ours = draws[:, list(pair)]
                # a draw without a tail has no head either
                ours[np.broadcast_to(~np.isfinite(ours).all(axis=1, keepdims=True), ours.shape)] = np.nan
                pairs.add(slice(2 * a, 2 * a + 2), mean[list(pair)], ours, size[list(pair)])
    lacking = np.isnan(scores.centered[scores.averaged]).any(axis=0)
    (point, draws), (ends_point, ends_draws) = every.means(lacking), pairs.means(lacking)
    pooled = {}
    for a, axis in enumerate(axes):
        rows = [i for i, slot in enumerate(slots) if slot[0] == axis.name]
        both = slice(2 * a, 2 * a + 2)
        pooled[axis.name] = StratumScores(
            numbers[axis.name], every.size[rows], point[rows], draws[:, rows],
            int(pairs.size[both].min()), ends_point[both], ends_draws[:, both],
        )  # fmt: skip
    return pooled


class _Average:
    """Running mean over tasks of (slot, group) values and their replicates; NaN values are left out."""

    def __init__(self, draws: int, slots: int, groups: int) -> None:
        self.size = np.zeros(slots, np.int64)
        self.point, self.seen = np.zeros((slots, groups)), np.zeros((slots, groups))
        self.draws = np.zeros((draws, slots, groups))
        self.drawn = np.zeros_like(self.draws)

    def add(self, place: slice, point: FloatArray, draws: FloatArray, size: FloatArray) -> None:
        """One task's values for the slots in `place`."""
        self.size[place] += size.astype(np.int64)
        for total, number, value in ((self.point[place], self.seen[place], point),
                                     (self.draws[:, place], self.drawn[:, place], draws)):  # fmt: skip
            known = np.isfinite(value)
            total += np.where(known, value, 0)
            number += known

    def means(self, lacking: NDArray[np.bool_]) -> tuple[FloatArray, FloatArray]:
        """Point and replicates, NaN where no task had a value and for the groups that are `lacking`."""
        with np.errstate(invalid="ignore", divide="ignore"):
            point, draws = self.point / self.seen, self.draws / self.drawn
        point[..., lacking], draws[..., lacking] = np.nan, np.nan
        return point, draws


def _last(scores: Scores, axis: DocumentAxis) -> int:
    return 2 if axis.kind == "binary" else scores.analysis.num_strata


def _task_strata(
    scores: Scores, centered: FloatArray, clusters: NDArray[np.integer], inside: FloatArray, task: str
) -> tuple[FloatArray, FloatArray]:
    """Mean score (stratum, group) and its replicates (draw, stratum, group) on one task; NaN in empty strata."""
    documents, models = centered.shape
    strata, draws = inside.shape[1], scores.analysis.n_resamples
    parts = inside[:, :, None] * np.concatenate([centered, np.ones((documents, 1))], axis=1)[:, None, :]
    flat = parts.reshape(documents, -1)
    # the observed sample is one more "draw", so that point and replicates go the same way
    sums = np.concatenate([flat.sum(axis=0, keepdims=True), bootstrap_sums(flat, clusters, draws, bootstrap_seed(task))])
    sums = sums.reshape(draws + 1, strata, models + 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = sums[:, :, :-1] / sums[:, :, -1:]
    groups = np.full((draws + 1, strata, len(scores.groups)), np.nan)
    for g, group in enumerate(scores.groups):
        if group.models:
            columns = scores.model_columns(g)
            weights = np.concatenate(
                [np.full((1, len(columns)), 1 / len(columns)), seed_resample_weights(group.seeds, len(columns), draws)]
            )
            groups[:, :, g] = np.einsum("bsk,bk->bs", means[:, :, columns], weights)
    return groups[0].astype(float), groups[1:]
