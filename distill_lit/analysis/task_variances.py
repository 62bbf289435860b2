"""How much the paired difference of two students varies, task by task, in the records of an experiment."""

import numpy as np

from distill_lit.analysis.crossed_variance import CrossedEstimate, TaskValues, crossed_estimate
from distill_lit.analysis.power import TaskVariances
from distill_lit.analysis.score_table import declared_comparisons
from distill_lit.analysis.scores import Scores, difference_of


def task_variances(scores: Scores) -> dict[str, TaskVariances]:
    """Per task on average over the declared comparisons; empty where there are none."""
    pairs = [pair for pair in declared_comparisons(scores) if np.isfinite(scores.raw[:, pair]).any()]
    found = {}
    for t, task in enumerate(scores.responses.tasks):
        estimates = [estimate for first, second in pairs for estimate in [_above_chance(scores, t, first, second)]
                     if np.isfinite(estimate.documents.variance)]  # fmt: skip
        if estimates:
            parts = np.array([_parts(estimate, task.n) for estimate in estimates])
            known = np.isfinite(parts[:, 2])
            seeds = max(float(parts[known, 2].mean()), 0.0) if known.any() else float("nan")
            total = int(scores.results.settings(task.task).get("n_total") or task.n)
            is_averaged = task.task not in scores.excluded_tasks
            documents, rest = max(float(parts[:, 0].mean()), 0.0), float(parts[:, 1].mean())
            found[task.task] = TaskVariances(documents, rest, seeds, total, is_averaged)
    return found


def _above_chance(scores: Scores, t: int, first: int, second: int) -> CrossedEstimate:
    task = scores.responses.tasks[t]
    return crossed_estimate([TaskValues(scores.blocks(task.centered, difference_of(first, second)), task.clusters)])


def _parts(estimate: CrossedEstimate, n: int) -> tuple[float, float, float]:
    """σ² of a document, of a document and seed, and of a seed: expected mean squares solved for them, not cut off at 0."""
    if not estimate.covers_seeds:
        return estimate.documents.variance * n, 0.0, float("nan")
    rest, seeds = estimate.interaction.variance, estimate.num_seeds
    return (estimate.documents.variance - rest) * n, rest * n * seeds, (estimate.seeds.variance - rest) * seeds
