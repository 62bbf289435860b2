"""The spread of two seeds from all trained students: by hand, and what it leaves alone."""

from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest

from distill_lit.analysis.axis_tests import axis_tests
from distill_lit.analysis.pooled_seeds import lone_seeds, pooled_seeds
from distill_lit.analysis.scores import Scores, difference_of
from distill_lit.analysis.strata import AxisStrata
from distill_lit.analysis.worst_group import _tested


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
    (found,) = pooled_seeds(scores, difference_of(trained[0], trained[1]), lambda: means)
    # a difference of two: twice the rest's mean square (2 degrees of freedom) over 2 seeds
    assert (found.variance, found.df) == pytest.approx(((rest**2).sum() / 2, 2))
    # one alone: its share of the seeds' mean square and of the rest's, which is the mean of the students' own variances
    alone = pooled_seeds(scores, {trained[0]: 1.0}, lambda: means)
    assert sum(part.variance for part in alone) == pytest.approx(table.var(axis=1, ddof=1).mean() / 2)
    assert [part.df for part in alone] == [1, 2]
    assert scores.task_estimate(0, trained[0], trained[1]).seeds == found
    teacher = scores.teacher  # has no seeds, and changes nothing
    assert pooled_seeds(scores, difference_of(trained[0], teacher), lambda: means) == alone


def test_a_student_of_one_seed_varies_as_those_of_several_do(simulation: ModuleType) -> None:
    """As where its other runs failed: of a difference to one of three seeds, σ²/3 is seen and σ² is not."""
    answers = [(np.random.default_rng(4).random((90, 8)) < 0.6).astype(float)]
    groups = [("teacher", "", 1), ("untrained", "", 1), ("ce_only", "a", 3), ("distilled", "a", 1), ("distilled", "b", 2)]
    scores = simulation.simulated_scores(answers, groups)
    teacher, untrained, three, one, two = (
        next(g for g, group in enumerate(scores.groups) if (group.role, len(group.models)) == (role, seeds))
        for role, _, seeds in groups
    )
    assert lone_seeds(scores, difference_of(three, one)) == pytest.approx(1 + 1 / (1 / 3))
    assert lone_seeds(scores, {three: 0.5, two: 0.5, one: -1.0}) == pytest.approx(1 + 1 / (0.25 / 3 + 0.25 / 2))
    without_seeds = [difference_of(three, teacher), difference_of(three, untrained), difference_of(one, teacher)]
    assert [lone_seeds(scores, contrast) for contrast in (*without_seeds, {three: 1.0})] == [1.0] * 4
    task = scores.responses.tasks[0]
    own = task.correct[:, scores.columns_by_seed(three)].mean(axis=0)
    for found in (scores.task_estimate(0, three, one), scores.task_estimate(0, one, three)):
        assert found.seeds.variance == pytest.approx(4 * own.var(ddof=1) / 3)
        assert found.seeds.df == 2
    alone = scores.task_estimate(0, three)
    assert scores.task_estimate(0, three, one).interaction.variance == pytest.approx(4 * alone.interaction.variance)


def by_seed(scores: Scores, value: Callable[[np.ndarray], float]) -> np.ndarray:
    """(G, seeds) of trained students, `value` of the centered answers of each, less what all seeds and students share."""
    answers = scores.responses.tasks[0].centered
    trained = [g for g, group in enumerate(scores.groups) if len(group.models) == 2]
    table = np.array([[value(answers[:, column]) for column in scores.columns_by_seed(g)] for g in trained])
    return table - table.mean(1, keepdims=True)


def test_shares_in_a_stratum_have_the_spread_of_all_trained_students(simulation: ModuleType) -> None:
    scores = scores_with(simulation, 2)
    tail = np.arange(90) < 40
    strata = AxisStrata(scores, [1, 2], 2, {0: {1: ~tail, 2: tail}})
    teacher = scores.responses.tasks[0].centered[tail, 0].mean()
    table = by_seed(scores, lambda answers: answers[tail].mean() / teacher)
    rest = table - table.mean(0)
    found = strata.retention_estimate({2: 1.0}, 1, 2).seeds
    assert (found.variance, found.df) == pytest.approx(((rest**2).sum() / 2, 2))


def test_excess_of_a_group_has_the_spread_of_all_trained_students(simulation: ModuleType) -> None:
    scores = scores_with(simulation, 2)
    tail = np.arange(90) < 40
    teacher = scores.responses.tasks[0].centered[:, 0]
    level = teacher[tail].mean() / teacher.mean()
    table = by_seed(scores, lambda answers: answers[tail].mean() - level * answers.mean())
    tested = _tested(scores, {0: tail}, ("length", "long"), 1)
    assert tested is not None
    assert tested.excess.seeds.variance == pytest.approx((table**2).sum() / 3 / 2)
    assert [part.df for part in tested.excess.seed_parts] == [1, 2]


def test_three_seeds_stand_for_themselves(simulation: ModuleType) -> None:
    scores = scores_with(simulation, 3)
    means = scores.responses.tasks[0].correct.mean(axis=0)
    assert pooled_seeds(scores, difference_of(1, 2), lambda: means) == ()
    assert scores.task_estimate(0, 1, 2).seeds.df == 2


def test_students_whose_values_are_missing_are_left_out(simulation: ModuleType) -> None:
    scores = scores_with(simulation, 2)
    means = scores.responses.tasks[0].correct.mean(axis=0)
    last = scores.groups[-1]
    means[scores.model_columns(len(scores.groups) - 1)] = np.nan
    assert last.role in ("distilled", "ce_only")
    first, second, missing = (g for g, group in enumerate(scores.groups) if len(group.models) == 2)
    (known,) = pooled_seeds(scores, difference_of(first, second), lambda: means)
    assert known.df == 1
    assert pooled_seeds(scores, difference_of(first, missing), lambda: means) == ()


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


def test_what_all_seeds_share_makes_no_student_certain_to_differ_from_a_teacher(simulation: ModuleType) -> None:
    # with one number of degrees of freedom for both parts it would be eight in a hundred, and one at p ≤ .001
    assert simulation.shared_seed_tails(np.random.default_rng(0), 200, 0.05) <= 0.085
    assert simulation.shared_seed_tails(np.random.default_rng(0), 200, 0.001) <= 0.005


def test_a_student_whose_seeds_differ_far_more_stands_for_itself(simulation: ModuleType) -> None:
    scores = scores_with(simulation, 2)
    first, second, third = (g for g, group in enumerate(scores.groups) if len(group.models) == 2)
    means = np.zeros(len(scores.responses.models))
    for g, values in {first: (0.30, 0.301), second: (0.40, 0.402), third: (0.2, 0.6)}.items():
        means[scores.columns_by_seed(g)] = values
    assert pooled_seeds(scores, difference_of(first, third), lambda: means) == ()
    assert pooled_seeds(scores, difference_of(first, second), lambda: means)  # with the third's, too wide by far
