"""Made-up experiments whose truth is known: scores of answers, and what is said of documents and seeds together."""

from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import norm

from distill_lit.analysis import significance as st
from distill_lit.analysis.crossed_variance import TaskValues, crossed_estimate
from distill_lit.analysis.model_groups import ModelGroup
from distill_lit.analysis.response_matrix import ResponseMatrices, TaskResponses
from distill_lit.analysis.results import Results
from distill_lit.analysis.scores import Scores, scores_of
from distill_lit.config.evaluation import AnalysisConfig

N_RESAMPLES = 1000
FloatArray = NDArray[np.floating]


def normal_quantile(p: FloatArray | float) -> FloatArray:
    """z with Φ(z) = p."""
    return np.asarray(norm.ppf(p))


def covers(interval: st.Interval, truth: float) -> bool:
    """Whether the interval holds the truth."""
    return interval.low <= truth <= interval.high


def simulated_scores(answers: list[FloatArray], roles: list[tuple[str, str, int]], chance: float = 0.25) -> Scores:
    """Scores of (documents, models) answers per task; roles: (role, grid value, seeds) of each group, in the order of
    columns."""
    tasks, columns, groups = [], 0, []
    for role, value, seeds in roles:
        models = tuple(f"{role}{value}-{seed}" for seed in range(seeds))
        point = (("grid.kind", value),) if value else ()
        groups.append(
            ModelGroup(role, "s", point, models, tuple(range(seeds)) if seeds > 1 else (), seeds, f"{role}{value}")
        )
        columns += seeds
    for t, right in enumerate(answers):
        n = len(right)
        index = pd.MultiIndex.from_arrays([[f"task{t}"] * n, [str(i) for i in range(n)]], names=["task", "key"])
        tasks.append(
            TaskResponses(f"task{t}", "acc", index, np.arange(n), np.full(n, chance), right, right.astype(np.int64))
        )
    documents = pd.DataFrame(index=pd.MultiIndex.from_tuples([row for task in tasks for row in task.index]))
    results = Results(Path(), pd.DataFrame(columns=["model", "role"]), documents, {}, {})
    models = [model for group in groups for model in group.models]
    return scores_of(results, AnalysisConfig(n_resamples=N_RESAMPLES), ResponseMatrices(models, tasks), groups, {})


def seed_answers(rng: np.random.Generator, n: int, seeds: int, deviation: float, of_seed: float = 0.5) -> FloatArray:
    """(n, seeds) answers less the one of a teacher with accuracy .65; the mean of all other documents and seeds is −.15.

    deviation: of the student's accuracy over seeds; of_seed: of what a student answers beside its teacher, the share that
    is a seed's own (the interaction) and not the same for all seeds.
    """
    document, student, teacher = rng.normal(size=(3, n, 1))
    level = np.clip(0.5 + deviation * rng.normal(size=seeds), 0.01, 0.99)
    own = (1 - of_seed) ** 0.5 * student + of_seed**0.5 * rng.normal(size=(n, seeds))
    right = 0.6**0.5 * document + 0.4**0.5 * own < normal_quantile(level)
    return right.astype(float) - (0.6**0.5 * document + 0.4**0.5 * teacher < normal_quantile(0.65))


def seed_coverage(
    rng: np.random.Generator, repeats: int, seeds: int, deviation: float, tasks: int = 1, of_seed: float = 0.5
) -> float:
    """Share of crossed-variance intervals that hold the mean over all documents and seeds; 200 documents a task."""
    found = []
    for _ in range(repeats):
        blocks = [seed_answers(rng, 200, seeds, deviation, of_seed) for _ in range(tasks)]
        parts = [TaskValues((block,), np.arange(200), 1 / tasks, 1.0) for block in blocks]
        found.append(covers(crossed_estimate(parts).interval(), -0.15))
    return float(np.mean(found))


def seed_tails(rng: np.random.Generator, repeats: int, seeds: int, deviation: float, most: float) -> float:
    """Share of crossed-variance tests of the mean over all documents and seeds, which is true, with p of at most `most`."""
    found = []
    for _ in range(repeats):
        estimate = crossed_estimate([TaskValues((seed_answers(rng, 200, seeds, deviation),), np.arange(200), 1.0, 1.0)])
        found.append(estimate.p(-0.15) <= most)
    return float(np.mean(found))


def pooled_seed_tails(
    rng: np.random.Generator, repeats: int, deviation: float, of_all: float, most: float, of_first: float = 1.0
) -> float:
    """Share of differences of two of four equal students of two seeds, whose spread is that of all four, with p of at most
    `most`. deviation: of an accuracy over seeds, `of_first` times as much in one of the two; of_all: of all students'
    accuracies together."""
    found = []
    roles = [("ce_only", "", 2), *(("distilled", kind, 2) for kind in "abc")]
    factors = np.array([of_first, 1, 1, 1])[:, None]
    for _ in range(repeats):
        level = 0.5 + deviation * factors * rng.normal(size=(4, 2)) + of_all * rng.normal(size=2)
        latent = 0.6**0.5 * rng.normal(size=(200, 1)) + 0.4**0.5 * rng.normal(size=(200, 8))
        right = latent < normal_quantile(np.clip(level, 0.01, 0.99)).reshape(-1)
        found.append(simulated_scores([right.astype(float)], roles).macro_estimate(1, 0).p() <= most)
    return float(np.mean(found))


def shared_seed_tails(rng: np.random.Generator, repeats: int, most: float) -> float:
    """Share of differences between one of six students of two seeds and a teacher that is as good, with p of at most
    `most`; seeds make all students better or worse together."""
    found = []
    roles = [("teacher", "", 1), *(("distilled", kind, 2) for kind in "abcdef")]
    for _ in range(repeats):
        seeds = np.tile(0.08 * rng.normal(size=2), 6) + 0.015 * rng.normal(size=12)
        latent = 0.6**0.5 * rng.normal(size=(400, 1)) + 0.4**0.5 * rng.normal(size=(400, 13))
        right = latent < normal_quantile(np.clip(0.5 + np.concatenate([[0.0], seeds]), 0.01, 0.99))
        found.append(simulated_scores([right.astype(float)], roles).macro_estimate(1, 0).p() <= most)
    return float(np.mean(found))


def stretched_bootstrap_coverage(
    rng: np.random.Generator, repeats: int, seeds: int, deviation: float, of_seed: float = 0.5
) -> float:
    """The same for percentiles of documents and seeds drawn again together, the seeds stretched by √(K/(K−1)) (Rao &
    Wu)."""
    found = []
    for _ in range(repeats):
        block = seed_answers(rng, 200, seeds, deviation, of_seed)
        counts = rng.multinomial(200, np.full(200, 1 / 200), size=N_RESAMPLES)
        drawn = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=N_RESAMPLES)
        weights = (1 + (drawn - 1) * (seeds / (seeds - 1)) ** 0.5) / seeds
        draws = ((counts @ block / 200) * weights).sum(axis=1)
        found.append(covers(st.percentile_interval(block.mean(), draws), -0.15))
    return float(np.mean(found))
