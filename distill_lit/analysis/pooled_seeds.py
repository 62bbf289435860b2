"""Two seeds tell next to nothing of how much others would differ: their spread is taken from all trained students together.

Means of G students by seed, y[student, seed] = student + seed + rest, the same seeds for all: a two-way table. A sum of
students with weights w varies by seed as (Σw)² · seed + Σw² · rest. Its variance is a sum of the mean squares of seeds and
of the rest, with their degrees of freedom. The rest is taken to vary alike in all students. With three seeds or more,
students stand for themselves and nothing is assumed.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from distill_lit.analysis.array_types import FloatArray
from distill_lit.analysis.crossed_variance import Component, sum_components
from distill_lit.config.roles import Role

if TYPE_CHECKING:
    from distill_lit.analysis.scores import Contrast, Scores

POOLED_SEEDS = 2  # seeds of a student that tell too little by themselves
TRAINED_ROLES = (Role.DISTILLED, Role.CE_ONLY)


def pooled_seeds(scores: "Scores", contrast: "Contrast", model_means: Callable[[], FloatArray]) -> Component | None:
    """The variance between seeds of Σ weight · group, from all trained students with the same two seeds; None where the
    groups have other seeds, more of them, or are no trained students.

    model_means: gives (models,) the mean of each model over documents and tasks, NaN for models that lack one.
    """
    seeded = {g: weight for g, weight in contrast.items() if len(scores.groups[g].models) > 1}
    seeds = {tuple(sorted(scores.groups[g].seeds)) for g in seeded}
    if len(seeds) != 1 or len(shared := seeds.pop()) != POOLED_SEEDS:
        return None
    means = model_means()
    family = [
        g
        for g, group in enumerate(scores.groups)
        if group.role in TRAINED_ROLES and tuple(sorted(group.seeds)) == shared
        and np.isfinite(means[scores.model_columns(g)]).all()
    ]  # fmt: skip
    if not set(seeded) <= set(family):
        return None
    table = np.array([means[scores.columns_by_seed(g)] for g in family])
    return _component(table, np.array([seeded.get(g, 0.0) for g in family]))


def _component(table: FloatArray, weights: FloatArray) -> Component:
    """table: (G, seeds); weights: (G,)."""
    count, seeds = table.shape
    of_seeds = count * float(table.mean(axis=0).var(ddof=1))
    share_of_seeds = weights.sum() ** 2 / count
    parts = [Component(share_of_seeds * of_seeds / seeds, seeds - 1)]
    if count > 1:
        rest = table - table.mean(axis=1, keepdims=True) - table.mean(axis=0) + table.mean()
        df = (count - 1) * (seeds - 1)
        share_of_rest = max(float((weights**2).sum() - share_of_seeds), 0.0)
        parts.append(Component(share_of_rest * float((rest**2).sum()) / df / seeds, df))
    return sum_components(parts)
