"""Scores by stratum of an axis: means, and what the strata differ by. Taken within tasks, which have equal weight.

Variances are those of documents and seeds together (`crossed_variance`).
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from distill_lit.analysis.array_types import FloatArray
from distill_lit.analysis.crossed_variance import NONE, CrossedEstimate, TaskValues, crossed_estimate, mean_inside
from distill_lit.analysis.document_axes import DocumentAxis
from distill_lit.analysis.pooled_seeds import lone_seeds, pooled_seeds
from distill_lit.analysis.retention import MIN_RETENTION_BASELINE
from distill_lit.analysis.scores import Scores, difference_of

MIN_STRATUM_DOCUMENTS = 10  # of a task in a stratum, from which its mean has the weight of a task

Weights = Mapping[int, float]  # of strata, in a sum of their means


@dataclass(frozen=True)
class AxisStrata:
    """The strata of one axis.

    numbers: those there are; last: the tail's; inside: {averaged task: {stratum: (D,) which of its documents are in it}},
    without strata that have fewer than MIN_STRATUM_DOCUMENTS of a task.
    """

    scores: Scores
    numbers: list[int]
    last: int
    inside: dict[int, dict[int, NDArray[np.bool_]]]
    # the same baselines stand beside many students
    _known: dict[tuple[Any, ...], CrossedEstimate] = field(default_factory=dict)

    def tasks_with(self, strata: Iterable[int]) -> list[int]:
        """Averaged tasks that have all these strata: so that no tasks are compared where strata are."""
        wanted = set(strata)
        return [t for t, masks in self.inside.items() if wanted <= set(masks)]

    def n_documents(self, strata: Iterable[int]) -> int:
        """Documents in the smallest of these strata, over the tasks that have all of them."""
        wanted = list(strata)
        tasks = self.tasks_with(wanted)
        return min((sum(int(self.inside[t][s].sum()) for t in tasks) for s in wanted), default=0)

    def estimate(self, weights: Weights, first: int, second: int | None = None) -> CrossedEstimate:
        """Σ of the means of the strata times their weights, of group `first`, less that of group `second`. NaN where no
        task has all of them, or a group lacks one of the averaged tasks: it would be compared over others."""
        key = (tuple(weights.items()), first, second)
        if key not in self._known:
            self._known[key] = self._estimate(weights, first, second)
        return self._known[key]

    def _estimate(self, weights: Weights, first: int, second: int | None) -> CrossedEstimate:
        groups = [first] if second is None else [first, second]
        if np.isnan(self.scores.centered[self.scores.averaged][:, groups]).any():
            return NONE
        tasks, contrast, parts = self.tasks_with(weights), difference_of(first, second), []
        for t in tasks:
            task = self.scores.responses.tasks[t]
            blocks = self.scores.blocks(task.centered, contrast)
            mixed = tuple(self._mixed(t, weights, dict.fromkeys(weights, block)) for block in blocks)
            parts.append(TaskValues(mixed, task.clusters, 1 / len(tasks)))
        if not parts:
            return NONE
        means = partial(self._model_means, weights, dict.fromkeys(weights, 1.0))
        return crossed_estimate(parts, pooled_seeds(self.scores, contrast, means), lone_seeds(self.scores, contrast))

    def _model_means(self, weights: Weights, base: Mapping[int, float]) -> FloatArray:
        """(models,) of each model Σ weight · mean of the stratum / base of the stratum, mean over tasks."""
        means = []
        for t in self.tasks_with(weights):
            every = self.scores.responses.tasks[t].centered
            means.append(self._mixed(t, weights, {s: every / base[s] for s in weights}).mean(axis=0))
        return np.asarray(np.mean(means, axis=0))

    def _mixed(self, t: int, weights: Weights, blocks: Mapping[int, FloatArray]) -> FloatArray:
        """The block whose mean is the weighted sum of the means of the strata, each in its own of `blocks`."""
        total = np.zeros(next(iter(blocks.values())).shape)
        for s, weight in weights.items():
            if weight:
                total = total + weight * mean_inside(blocks[s], self.inside[t][s])
        return total

    def retention(self, s: int, g: int) -> float:
        """Share of the teacher's score in a stratum that a group retains; NaN unless the teacher is above chance there."""
        return self._retention([s], s, g)

    def _retention(self, together: Iterable[int], s: int, g: int) -> float:
        """Over the tasks that have all strata of `together`."""
        teacher = self._mean(together, s, self.scores.teacher)
        low = teacher.interval(self.scores.analysis.confidence_level).low
        return self._mean(together, s, g).value / teacher.value if low > MIN_RETENTION_BASELINE else float("nan")

    def _mean(self, together: Iterable[int], s: int, g: int | None) -> CrossedEstimate:
        return NONE if g is None else self.estimate({**dict.fromkeys(together, 0.0), s: 1.0}, g)

    def retention_estimate(self, weights: Weights, first: int, second: int | None = None) -> CrossedEstimate:
        """Σ of the shares that a group retains of the teacher's score in each stratum times its weight, less that of
        another group. NaN unless the teacher is above chance in each. Linearized: R = S/T varies as (S − R·T)/T."""
        teacher = self.scores.teacher
        kept = {g: {s: self._retention(weights, s, g) for s in weights} for g in (first, second) if g is not None}
        base = {s: self._mean(weights, s, teacher).value for s in weights}
        values = [sum(w * shares[s] for s, w in weights.items()) for shares in kept.values()]
        if teacher is None or not np.isfinite(values).all():
            return NONE
        tasks, parts = self.tasks_with(weights), []
        for t in tasks:
            task, by_stratum = self.scores.responses.tasks[t], {}
            teacher_scores = task.centered[:, self.scores.model_columns(teacher)[:1]]
            for s in weights:
                rest = task.centered.copy()
                for g, shares in kept.items():
                    rest[:, self.scores.model_columns(g)] -= shares[s] * teacher_scores
                by_stratum[s] = self.scores.blocks(rest / base[s], difference_of(first, second))
            count = len(by_stratum[next(iter(weights))])
            mixed = tuple(self._mixed(t, weights, {s: by_stratum[s][b] for s in weights}) for b in range(count))
            parts.append(TaskValues(mixed, task.clusters, 1 / len(tasks)))
        contrast = difference_of(first, second)
        seeds = pooled_seeds(self.scores, contrast, partial(self._model_means, weights, base))
        return replace(crossed_estimate(parts, seeds, lone_seeds(self.scores, contrast)), value=values[0] - sum(values[1:]))


def axis_strata(scores: Scores, axis: DocumentAxis, codes: pd.Series) -> AxisStrata:
    """The strata of an axis; codes: of every document, by `stratify`."""
    inside = {}
    for t in scores.averaged:
        own = codes.loc[scores.responses.tasks[t].index].to_numpy()
        masks = {int(s): own == s for s in np.unique(own)}
        inside[int(t)] = {s: mask for s, mask in masks.items() if mask.sum() >= MIN_STRATUM_DOCUMENTS}
    last = 2 if axis.kind == "binary" else scores.analysis.num_strata
    return AxisStrata(scores, sorted(int(s) for s in codes.unique()), last, inside)


def against_baseline(
    names: tuple[str, str],
    weights: Weights,
    estimate: Callable[[Weights, int, int | None], CrossedEstimate],
    g: int,
    ce_only: int | None,
    teacher: int | None,
) -> dict[str, CrossedEstimate]:
    """A contrast of a student, the same without teacher (`ce_only_` before its name), and the excess of the first, which
    has the second of `names`. teacher: whose own contrast is taken off the first two; None: no one's."""
    name, excess = names
    found = {name: estimate(weights, g, teacher)}
    if ce_only is not None:
        found |= {f"ce_only_{name}": estimate(weights, ce_only, teacher), excess: estimate(weights, g, ce_only)}
    return found


def with_bounds(estimates: Mapping[str, CrossedEstimate], confidence_level: float) -> dict[str, float]:
    """{name, name_low, name_high, name_p} of each."""
    row: dict[str, float] = {}
    for name, estimate in estimates.items():
        value, low, high = estimate.interval(confidence_level)
        row |= {name: value, f"{name}_low": low, f"{name}_high": high, f"{name}_p": estimate.p()}
    return row


def tail_less_head(last: int) -> dict[int, float]:
    """Weights of the last stratum less the first."""
    return {1: -1.0, last: 1.0}


def trend_weights(last: int) -> dict[int, float]:
    """Weights of the least-squares line through the means of strata 1 … last, from its first to its last."""
    places = np.arange(1, last + 1) - (last + 1) / 2
    return {s: float((last - 1) * place / (places**2).sum()) for s, place in enumerate(places, start=1)}
