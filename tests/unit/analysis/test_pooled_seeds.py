"""The spread of two seeds from all trained students: by hand, and what it leaves alone."""

from types import ModuleType

import numpy as np
import pytest

from distill_lit.analysis.axis_tests import axis_tests
from distill_lit.analysis.pooled_seeds import pooled_seeds
from distill_lit.analysis.scores import Scores, difference_of


def scores_with(simulation: ModuleType, seeds: int) -> Scores:
    answers = [(np.random.default_rng(4).random((90, 1 + 3 * seeds)) < 0.6).astype(float)]
    return simulation.simulated_scores(
        answers, [("teacher", "", 1), ("ce_only", "a", seeds), ("distilled", "a", seeds), ("distilled", "b", seeds)]
    )


def test_two_seeds_have_the_spread_of_all_trained_students(simulation: ModuleType) -> None:
    scores = scores_with(simulation, 2)
    means = scores.responses.tasks[0].correct.mean(axis=0)
    trained = [g for g, group in enumerate(scores.groups) if len(group.models) == 2]
    table = np.array([means[scores.columns_by_seed(g)] for g in trained])
    rest = table - table.mean(1, keepdims=True) - table.mean(0) + table.mean()
    found = pooled_seeds(scores, difference_of(trained[0], trained[1]), lambda: means)
    # a difference of two: twice the rest's mean square (2 degrees of freedom) over 2 seeds
    assert (found.variance, found.df) == pytest.approx(((rest**2).sum() / 2, 2))
    # one alone: its share of the seeds' mean square and of the rest's, which is the mean of the students' own variances
    alone = pooled_seeds(scores, {trained[0]: 1.0}, lambda: means)
    assert alone.variance == pytest.approx(table.var(axis=1, ddof=1).mean() / 2)
    assert scores.task_estimate(0, trained[0], trained[1]).seeds == found
    teacher = scores.teacher  # has no seeds, and changes nothing
    assert pooled_seeds(scores, difference_of(trained[0], teacher), lambda: means) == alone


def test_three_seeds_stand_for_themselves(simulation: ModuleType) -> None:
    scores = scores_with(simulation, 3)
    means = scores.responses.tasks[0].correct.mean(axis=0)
    assert pooled_seeds(scores, difference_of(1, 2), lambda: means) is None
    assert scores.task_estimate(0, 1, 2).seeds.df == 2


def test_students_whose_values_are_missing_are_left_out(simulation: ModuleType) -> None:
    scores = scores_with(simulation, 2)
    means = scores.responses.tasks[0].correct.mean(axis=0)
    last = scores.groups[-1]
    means[scores.model_columns(len(scores.groups) - 1)] = np.nan
    assert last.role in ("distilled", "ce_only")
    first, second, missing = (g for g, group in enumerate(scores.groups) if len(group.models) == 2)
    assert pooled_seeds(scores, difference_of(first, second), lambda: means).df == 1
    assert pooled_seeds(scores, difference_of(first, missing), lambda: means) is None


def test_an_axis_of_two_seeds_knows_their_spread_from_all_students(simulation: ModuleType) -> None:
    scores = scores_with(simulation, 2)
    first, second = (g for g, group in enumerate(scores.groups) if group.role == "distilled")
    (test,) = axis_tests(scores)
    estimate = scores.macro_estimate(second, first)
    assert test.p == pytest.approx(estimate.p(), rel=1e-6)
    assert test.pairs[0].difference == pytest.approx(estimate.interval())
    assert estimate.seeds.df == 2  # without the labels' student it would be 1


def test_no_task_gives_no_estimate(simulation: ModuleType) -> None:
    assert np.isnan(scores_with(simulation, 2).contrast_estimate(difference_of(1, 2), []).value)
