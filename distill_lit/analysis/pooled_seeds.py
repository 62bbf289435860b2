"""Two seeds tell next to nothing of how much others would differ: their spread is taken from all trained students together.

Means of G students by seed, y[student, seed] = student + seed + rest, the same seeds for all: a two-way table. A sum of
students with weights w varies by seed as (Σw)² · seed + Σw² · rest. Its variance is a sum of the mean squares of seeds and
of the rest, each with its degrees of freedom. The rest is taken to vary alike in all students; one whose seeds differ
significantly more stands for itself. With three seeds or more all do, and nothing is assumed.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from scipy import special

from distill_lit.analysis.array_types import FloatArray
from distill_lit.analysis.crossed_variance import Component
from distill_lit.config.roles import Role

if TYPE_CHECKING:
    from distill_lit.analysis.scores import Contrast, Scores

STANDS_OUT = 0.05  # p below which a student's seeds are no longer taken to differ as the others' do
POOLED_SEEDS = 2  # seeds of a student that tell too little by themselves
TRAINED_ROLES = (Role.DISTILLED, Role.CE_ONLY)  # models that are made on the way are of other sizes, and trained otherwise


def pooled_seeds(scores: "Scores", contrast: "Contrast", model_means: Callable[[], FloatArray]) -> tuple[Component, ...]:
    """The parts of the variance between seeds of Σ weight · group, from all trained students with the same two seeds; none
    where the groups have other seeds, more of them, are no trained students, or one of them stands out of the family.

    model_means: gives (models,) the mean of each model over documents and tasks, NaN for models that lack one.
    """
    seeded = {g: weight for g, weight in contrast.items() if len(scores.groups[g].models) > 1}
    seeds = {tuple(sorted(scores.groups[g].seeds)) for g in seeded}
    if len(seeds) != 1 or len(shared := seeds.pop()) != POOLED_SEEDS:
        return ()
    means = model_means()
    family = [
        g
        for g, group in enumerate(scores.groups)
        if group.role in TRAINED_ROLES and tuple(sorted(group.seeds)) == shared
        and np.isfinite(means[scores.model_columns(g)]).all()
    ]  # fmt: skip
    if not set(seeded) <= set(family):
        return ()
    table = np.array([means[scores.columns_by_seed(g)] for g in family])
    if any(_stands_out(table, family.index(g)) for g in seeded):
        return ()
    return _parts(table, np.array([seeded.get(g, 0.0) for g in family]))


def lone_seeds(scores: "Scores", contrast: "Contrast") -> float:
    """By how much the variance between seeds of Σ weight · group grows by its trained students that have one seed, where
    others have several: theirs is not seen, and taken to be that of the others."""
    groups = [(scores.groups[g], weight**2) for g, weight in contrast.items()]
    several = sum(square / len(group.models) for group, square in groups if len(group.models) > 1)
    lone = sum(square for group, square in groups if len(group.models) == 1 and group.role in TRAINED_ROLES)
    return 1 + lone / several if several else 1.0


def _stands_out(table: FloatArray, number: int) -> bool:
    """Whether the seeds of a student differ more, beside what all have in common, than chance lets them. table: (G, 2)."""
    change = table[:, 1] - table[:, 0]
    others = np.delete(change, number)
    if len(others) < 2 or not np.ptp(others):
        return False
    ratio = (change[number] - others.mean()) ** 2 / others.var(ddof=1) / (1 + 1 / len(others))
    return bool(special.fdtrc(1, len(others) - 1, ratio) < STANDS_OUT)


def _parts(table: FloatArray, weights: FloatArray) -> tuple[Component, ...]:
    """table: (G, seeds); weights: (G,). The part of what all share is nothing in a difference of students."""
    count, seeds = table.shape
    of_seeds = count * float(table.mean(axis=0).var(ddof=1))
    share_of_seeds = weights.sum() ** 2 / count
    parts = [Component(share_of_seeds * of_seeds / seeds, seeds - 1)] if share_of_seeds > 1e-12 or count == 1 else []
    if count > 1:
        rest = table - table.mean(axis=1, keepdims=True) - table.mean(axis=0) + table.mean()
        df = (count - 1) * (seeds - 1)
        share_of_rest = max(float((weights**2).sum() - share_of_seeds), 0.0)
        parts.append(Component(share_of_rest * float((rest**2).sum()) / df / seeds, df))
    return tuple(parts)
