"""Statistics against arithmetic done by hand, against scipy and statsmodels, and against simulated truth."""

from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.multitest import multipletests

from distill_lit.analysis import significance as st
from distill_lit.analysis.bootstrap import (
    cluster_counts,
    decided_share,
    multiplier_draws,
)


def near(repeats: int, truth: float, errors: float = 3.5) -> float:
    """How far a simulated share may lie from the truth."""
    return errors * (truth * (1 - truth) / repeats) ** 0.5


# by hand and against other implementations


def test_wilson_by_hand() -> None:
    # 8 of 10, z = 1.959964: centre (8 + z²/2) / (10 + z²), half width z √(10·.8·.2 + z²/4) / (10 + z²)
    z = 1.959964
    centre, half = (8 + z**2 / 2) / (10 + z**2), z * (1.6 + z**2 / 4) ** 0.5 / (10 + z**2)
    assert st.wilson(8, 10) == pytest.approx((0.8, centre - half, centre + half), abs=1e-6)
    assert st.wilson(0, 20).low == pytest.approx(0)
    assert np.isnan(st.wilson(0, 0).value)


def test_wilson_equals_scipy() -> None:
    ours, theirs = st.wilson(37, 150), stats.binomtest(37, 150).proportion_ci(method="wilson")
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high))


def test_paired_difference_by_hand() -> None:
    # Newcombe 1998 method 10 with both 20, only first 12, only second 2, neither 16
    first = np.repeat([1, 1, 0, 0], [20, 12, 2, 16])
    second = np.repeat([1, 0, 1, 0], [20, 12, 2, 16])
    p1, l1, u1 = st.wilson(32, 50)
    p2, l2, u2 = st.wilson(22, 50)
    phi = (20 * 16 - 12 * 2 - 25) / (32 * 18 * 22 * 28) ** 0.5
    low = 0.2 - ((p1 - l1) ** 2 - 2 * phi * (p1 - l1) * (u2 - p2) + (u2 - p2) ** 2) ** 0.5
    high = 0.2 + ((u1 - p1) ** 2 - 2 * phi * (u1 - p1) * (p2 - l2) + (p2 - l2) ** 2) ** 0.5
    assert st.newcombe_paired_interval(first, second) == pytest.approx((0.2, low, high))


def test_paired_difference_of_equal_answers_is_not_certain() -> None:
    same = np.repeat([1, 0], [30, 20])
    found = st.newcombe_paired_interval(same, same)
    assert found.value == 0
    assert found.low < 0 < found.high


def test_paired_difference_turns_with_its_arguments() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.integers(0, 2, (2, 80))
    one, two = st.newcombe_paired_interval(a, b), st.newcombe_paired_interval(b, a)
    assert (one.value, one.low, one.high) == pytest.approx((-two.value, -two.high, -two.low))


@pytest.mark.parametrize(("lost", "gained"), [(0, 0), (1, 0), (5, 1), (12, 12), (30, 14)])
def test_sign_flips_of_answers_are_mcnemars_exact_test(lost: int, gained: int) -> None:
    differences = np.repeat([-1.0, 1.0, 0.0], [lost, gained, 20])
    if lost + gained == 0:
        assert st.sign_flip_p(differences) == 1
    else:
        theirs = statsmodels_mcnemar([[10, lost], [gained, 10]], exact=True).pvalue
        assert st.sign_flip_p(differences) == pytest.approx(theirs)


def test_sign_flips_of_passages_by_hand() -> None:
    # sums 3, −1, 2 and 0: of the eight changes of sign the totals are ±6, ±4, ±2 (3 − 1 … ), ±0; at least 4 away: ±6, ±4
    assert st.sign_flip_p([1, 2, -1, 1, 1, 0], [0, 0, 1, 2, 2, 3]) == pytest.approx(4 / 8)


def test_sign_flips_of_graded_answers_equal_scipys_permutations() -> None:
    x = np.random.default_rng(3).normal(0.4, 1, 12)
    theirs = stats.permutation_test((x,), np.sum, permutation_type="samples", n_resamples=np.inf).pvalue
    assert st.sign_flip_p(x) == pytest.approx(theirs, abs=0.004)  # sums are rounded to 2^-14 of their sizes


def test_sign_flips_keep_their_rate_where_passages_are_shared() -> None:
    rng = np.random.default_rng(0)
    clusters, wrong, naive = np.repeat(np.arange(60), 4), 0, 0
    for _ in range(400):
        tilt = np.repeat(rng.normal(0, 0.25, 60), 4)  # a passage favours one of two equal models
        d = np.where(rng.random(240) < 0.4, np.where(rng.random(240) < 0.5 + tilt, 1, -1), 0)
        wrong += st.sign_flip_p(d, clusters) <= 0.05
        naive += st.sign_flip_p(d) <= 0.05
    assert 0.025 <= wrong / 400 <= 0.08
    assert naive > wrong


def test_one_shared_passage_in_a_hundred_documents_changes_next_to_nothing() -> None:
    rng = np.random.default_rng(7)
    one, two = (rng.random((2, 100)) < np.array([[0.7], [0.55]])).astype(float)
    alone, shared = np.arange(100), np.r_[0, np.arange(99)]
    intervals = [st.newcombe_paired_interval(one, two, clusters=clusters) for clusters in (None, alone, shared)]
    assert intervals[0] == intervals[1]
    assert intervals[2] == pytest.approx(intervals[0], abs=0.005)
    assert st.sign_flip_p(one - two, shared) == pytest.approx(st.sign_flip_p(one - two), abs=0.02)
    assert st.effective_documents(one, shared) == pytest.approx(100, abs=2)


def test_effective_documents_by_hand() -> None:
    # pairs that agree tell half as much: clusters {1, 1}, {0, 0}, …, 20 of each
    assert st.effective_documents(np.repeat([1, 0] * 20, 2), np.repeat(np.arange(40), 2)) == pytest.approx(40, rel=0.02)
    assert st.effective_documents(np.ones(80), np.repeat(np.arange(40), 2)) == 40  # nothing differs: passages count
    assert st.effective_documents([1, 0, 1], [0, 1, 2]) == 3


def test_rule_of_three_by_hand() -> None:
    assert st.rule_of_three(100) == pytest.approx(1 - 0.05**0.01)
    assert 100 * st.rule_of_three(100) == pytest.approx(3, abs=0.05)


def test_sign_flips_by_hand() -> None:
    # 5 against 1: 2 (C(6,0) + C(6,1)) / 2^6 = 14/64
    assert st.sign_flip_p([1, 1, 1, 1, 1, -1, 0, 0]) == pytest.approx(14 / 64)
    assert st.sign_flip_p([-0.5] * 6) == pytest.approx(2 / 64)


def test_holm_by_hand_and_missing_values_do_not_count() -> None:
    assert st.holm([0.01, 0.04, 0.03, np.nan]) == pytest.approx([0.03, 0.06, 0.06, np.nan], nan_ok=True)


@pytest.mark.parametrize(("ours", "name"), [(st.holm, "holm"), (st.benjamini_hochberg, "fdr_bh")])
def test_corrections_equal_statsmodels(ours: Callable, name: str) -> None:
    p = [0.039, 0.001, 0.2, 0.008, 0.041, 0.9, 0.001]
    assert ours(p) == pytest.approx(multipletests(p, method=name)[1])


def test_nothing_known_is_nothing_adjusted() -> None:
    assert np.isnan(st.benjamini_hochberg([np.nan])).all()


def test_gated_holm_by_hand() -> None:
    # steps .01 → .03 → .2 in one chain, .02 → .001 in the other, two chains at a time until one has nothing left
    found = st.gated_holm([[0.01, 0.03, 0.2], [0.02, 0.001, np.nan]])
    assert found == pytest.approx(np.array([[0.02, 0.04, 0.2], [0.04, 0.04, np.nan]]), nan_ok=True)


def test_gated_holm_of_one_step_is_holm() -> None:
    p = [0.039, 0.001, 0.2, 0.008, 0.041, 0.9, 0.001]
    assert st.gated_holm(np.array(p)[:, None])[:, 0] == pytest.approx(st.holm(p))


def test_what_is_certain_does_not_pass_where_the_question_is_open() -> None:
    assert st.gated_holm([[0.4, 1e-9, 1e-9]])[0].tolist() == [0.4, 0.4, 0.4]


def test_gated_holm_keeps_its_familywise_rate(simulation: ModuleType) -> None:
    assert simulation.gated_errors(np.random.default_rng(0), 2000) <= 0.05 + near(2000, 0.05)


def test_cluster_error_by_hand() -> None:
    # clusters {1, 1}, {0, 0}, {1, 0}: deviations from .5 sum to 1, −1, 0; √(2 · 3/2) / 6
    assert st.clustered_standard_error([1, 1, 0, 0, 1, 0], [0, 0, 1, 1, 2, 2]) == pytest.approx(3**0.5 / 6)


def test_cluster_error_of_single_documents_is_the_plain_one() -> None:
    x = np.random.default_rng(2).normal(size=50)
    assert st.clustered_standard_error(x, np.arange(50)) == pytest.approx(x.std(ddof=1) / 50**0.5)


# the bootstrap


def test_cluster_counts_draw_as_many_clusters_as_there_are() -> None:
    counts = np.concatenate(list(cluster_counts(30, 500, 7)))
    assert counts.shape == (500, 30)
    assert (counts.sum(axis=1) == 30).all()
    assert counts.var(axis=0).mean() == pytest.approx(1 - 1 / 30, rel=0.05)  # multinomial


def test_multiplier_draws_have_the_variance_of_the_mean_and_stay_paired() -> None:
    x = np.random.default_rng(4).normal(size=(300, 1))
    sums = np.hstack([x, x]) - x.mean()
    draws = multiplier_draws(sums / 300, 4000, "piqa")
    assert draws[:, 0] == pytest.approx(draws[:, 1])
    assert draws[:, 0].std() == pytest.approx(x.std(ddof=1) / 300**0.5, rel=0.05)
    assert (multiplier_draws(sums, 50, "piqa") == multiplier_draws(sums, 50, "piqa")).all()
    assert not np.allclose(multiplier_draws(sums, 50, "piqa"), multiplier_draws(sums, 50, "sciq"))


def test_a_share_near_its_threshold_is_drawn_until_no_other_stream_would_decide_otherwise() -> None:
    def decide(truth: float, stream: int) -> tuple[float, int]:
        rng, blocks = np.random.default_rng(stream), []
        share = decided_share(lambda block: blocks.append(block) or rng.random(500) < truth, 0.05)
        return share, len(blocks)

    assert decide(0.3, 0)[1] == 1  # far away: one block is enough
    near_by = [decide(0.06, stream) for stream in range(40)]
    assert max(blocks for _, blocks in near_by) > 5
    assert all(share > 0.05 for share, _ in near_by)
    with_one_block = [np.mean(np.random.default_rng(stream).random(500) < 0.06) for stream in range(40)]
    assert any(share <= 0.05 for share in with_one_block)


# simulated truth


@pytest.mark.parametrize("n", [100, 200])
def test_wilson_covers_exactly_computed(n: int) -> None:
    """Coverage at a given accuracy jumps between neighbours, its mean over accuracies does not."""
    intervals = [st.wilson(k, n) for k in range(n + 1)]
    low, high = (np.array([getattr(i, bound) for i in intervals]) for bound in ("low", "high"))
    found = [stats.binom.pmf(np.arange(n + 1), n, p)[(low <= p) & (p <= high)].sum() for p in np.linspace(0.05, 0.95, 91)]
    assert np.mean(found) == pytest.approx(0.95, abs=0.005)
    assert min(found) > 0.92


def test_paired_interval_covers(simulation: ModuleType) -> None:
    found = simulation.newcombe_coverage(np.random.default_rng(0), 800, 150, 0.7, 0.55)
    assert found == pytest.approx(0.95, abs=near(800, 0.95))


def test_cluster_bootstrap_covers_where_the_plain_one_does_not(simulation: ModuleType) -> None:
    by_passage = simulation.cluster_coverage(np.random.default_rng(0), 300, 60, 4, True)
    assert by_passage == pytest.approx(0.95, abs=near(300, 0.95))
    assert simulation.cluster_coverage(np.random.default_rng(0), 300, 60, 4, False) < by_passage - 0.02


@pytest.mark.parametrize(("seeds", "deviation"), [(3, 0.0), (3, 0.03), (3, 0.1), (5, 0.1), (8, 0.05)])
def test_interval_over_documents_and_seeds_covers(simulation: ModuleType, seeds: int, deviation: float) -> None:
    found = simulation.seed_coverage(np.random.default_rng(0), 400, seeds, deviation)
    assert 0.95 - near(400, 0.95, 2.5) <= found <= 0.99


def test_seeds_that_were_drawn_again_and_stretched_cover_too_little(simulation: ModuleType) -> None:
    assert simulation.stretched_bootstrap_coverage(np.random.default_rng(0), 100, 3, 0.1) < 0.95 - near(100, 0.95, 1.5)


def test_equal_models_are_called_different_five_times_in_a_hundred(simulation: ModuleType) -> None:
    assert simulation.macro_errors(np.random.default_rng(0), 300, 4, 100) <= 0.05 + near(300, 0.05)
    assert simulation.sign_flip_errors(np.random.default_rng(0), 1000, 200) <= 0.05 + near(1000, 0.05)


def test_equivalence_is_said_where_it_is_and_not_at_its_margin(simulation: ModuleType) -> None:
    at_margin = simulation.equivalence_errors(np.random.default_rng(0), 600, 1000, 0.05, 0.05)
    assert at_margin <= 0.025 + near(600, 0.025)
    assert simulation.equivalence_errors(np.random.default_rng(0), 200, 1000, 0.05, 0.0) > 0.7


def test_no_value_of_an_axis_is_named_the_best_of_equals(simulation: ModuleType) -> None:
    called, named = simulation.axis_errors(np.random.default_rng(0), 80, 4, 0.0, 0.01)
    assert called <= 0.05 + near(80, 0.05, 2.5)
    assert named <= called
    called, wrong = simulation.axis_errors(np.random.default_rng(0), 15, 4, 0.1, 0.01)
    assert called > 0.9
    assert wrong == 0


def test_the_worst_of_many_equal_groups_does_not_stand_out(simulation: ModuleType) -> None:
    assert simulation.worst_group_calls(np.random.default_rng(0), 25, 0.0) <= 0.05 + near(25, 0.05, 2.5)
    assert simulation.worst_group_calls(np.random.default_rng(0), 8, 0.4) >= 0.8


def test_what_is_retained_is_covered(simulation: ModuleType) -> None:
    found = simulation.retention_coverage(np.random.default_rng(0), 120)
    assert found == pytest.approx(0.95, abs=near(120, 0.95, 3))


def test_tail_contrast_errs_as_often_as_it_says_and_finds_what_is_there(simulation: ModuleType) -> None:
    assert simulation.contrast_errors(np.random.default_rng(0), 300, 500) <= 0.05 + near(300, 0.05) + 0.01
    assert simulation.contrast_errors(np.random.default_rng(0), 60, 600, 0.3) > 0.9


def test_corrections_hold_their_rates(simulation: ModuleType) -> None:
    family, _ = simulation.corrected_errors(np.random.default_rng(0), 150, st.holm, 8, 4)
    _, share = simulation.corrected_errors(np.random.default_rng(0), 150, st.benjamini_hochberg, 8, 4)
    assert family <= 0.05 + near(150, 0.05)
    assert share <= 0.05


def test_smallest_detectable_effect_is_found_four_times_in_five(simulation: ModuleType) -> None:
    # McNemar's exact test gives a little of the power away
    assert 0.70 < simulation.detectable_power(np.random.default_rng(0), 600, 400) < 0.88
