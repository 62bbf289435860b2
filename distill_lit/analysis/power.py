"""What documents and seeds can decide, before a run: from the variances that records of other runs show, which
`task_variances` takes from them."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from distill_lit.analysis.crossed_variance import NOT_KNOWN, Component, CrossedEstimate, sum_components
from distill_lit.analysis.pooled_seeds import POOLED_SEEDS

NOTHING_BELOW = 0.10  # differences above chance that teachers make at equal tokens are smaller: 0.1 is decided by nothing


@dataclass(frozen=True)
class TaskVariances:
    """Of the paired difference of two students on one task, above chance. documents: of one document (what all seeds have
    of it, passages taken into account); interaction: of one document and seed; seeds: of one seed, NaN where records have
    one each."""

    documents: float
    interaction: float
    seeds: float
    n_total: int = 0  # documents that the task has, 0 where unknown
    is_averaged: bool = True  # whether the teacher of these records is above chance on it


@dataclass(frozen=True)
class Power:
    """difference: the smallest that is found with `power` (of averages above chance, as a share). covers_seeds: whether
    other seeds are in it, or other documents alone. unknown: tasks without records, for which the average of the others
    stands.
    documents_only: what infinitely many seeds would still leave; seeds_only: what infinitely many documents would leave."""

    difference: float
    documents_only: float
    seeds_only: float
    covers_seeds: bool
    unknown: tuple[str, ...]
    power: float
    alpha: float

    @property
    def decides_nothing(self) -> bool:
        """Whether only differences are found that are larger than those a teacher makes."""
        return not self.difference <= NOTHING_BELOW


def variances_to_json(variances: Mapping[str, TaskVariances]) -> dict[str, dict[str, Any]]:
    """For summary.json; NaN is null."""
    return {task: {name: None if value != value else value for name, value in asdict(one).items()}
            for task, one in variances.items()}  # fmt: skip


def variances_from_json(values: dict[str, dict[str, Any]]) -> dict[str, TaskVariances]:
    """What `variances_to_json` wrote. Raises TypeError for what it did not."""
    known: dict[str, dict[str, Any]] = {
        task: {name: float("nan") if value is None else value for name, value in one.items()}
        for task, one in values.items()
    }
    return {task: TaskVariances(**one) for task, one in known.items()}


def detectable_difference(
    variances: Mapping[str, TaskVariances],
    documents: Mapping[str, int],
    num_seeds: int,
    comparisons: int = 1,
    students: int = 2,
    alpha: float = 0.05,
    power: float = 0.8,
) -> Power:
    """The smallest difference of two students that an experiment can be expected to find.

    Args:
        variances: `task_variances` of earlier records, at least one task.
        documents: {task: documents} of the tasks to be averaged.
        num_seeds: of each student, the two compared seed by seed.
        comparisons: declared ones, over which Holm corrects.
        students: trained with these seeds, of all of which two seeds have the spread.
    """
    known = [variances[task] for task in documents if task in variances] or list(variances.values())
    typical = _mean_variances(known)
    weight, seed_variance, mixed, parts, lasting = 1 / len(documents), 0.0, 0.0, [], 0.0
    for task, n in documents.items():
        own = variances.get(task, typical)
        mixed += weight**2 * own.interaction / n / num_seeds
        parts.append(Component(weight**2 * (own.documents + own.interaction / num_seeds) / n, max(n - 1, 1)))
        lasting += weight**2 * own.documents / n
        seed_variance += weight**2 * (own.seeds if np.isfinite(own.seeds) else typical.seeds) / num_seeds
    documents_part, nothing = sum_components(parts), Component(0.0, float("inf"))
    covers_seeds = num_seeds > 1 and bool(np.isfinite(seed_variance))
    seeds_part, rest, seeds_only = NOT_KNOWN, NOT_KNOWN, float("nan")
    level = alpha / max(comparisons, 1)
    if covers_seeds:
        seed_df = (num_seeds - 1) * (students - 1 if num_seeds == POOLED_SEEDS else 1)
        seeds_part, rest = Component(seed_variance + mixed, seed_df), Component(mixed, float("inf"))
        alone = CrossedEstimate(0.0, nothing, Component(seed_variance, seed_df), nothing, num_seeds)
        seeds_only = alone.detectable(level, power)
    whole = CrossedEstimate(0.0, documents_part, seeds_part, rest, num_seeds)
    many = CrossedEstimate(0.0, Component(lasting, float("inf")), NOT_KNOWN, NOT_KNOWN, num_seeds)
    return Power(
        whole.detectable(level, power), many.detectable(level, power), seeds_only, covers_seeds,
        tuple(task for task in documents if task not in variances), power, alpha,
    )  # fmt: skip


def _mean_variances(known: list[TaskVariances]) -> TaskVariances:
    table = np.array([(one.documents, one.interaction, one.seeds) for one in known])
    seeds = table[np.isfinite(table[:, 2]), 2]
    of_seeds = float(seeds.mean()) if len(seeds) else float("nan")
    return TaskVariances(float(table[:, 0].mean()), float(table[:, 1].mean()), of_seeds)
