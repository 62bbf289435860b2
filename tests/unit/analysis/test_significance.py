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
    bootstrap_means,
    bootstrap_seed,
    bootstrap_sums,
    cluster_counts,
    seed_resample_weights,
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
def test_mcnemar_equals_statsmodels(lost: int, gained: int) -> None:
    if lost + gained == 0:
        assert st.mcnemar(0, 0) == 1
    else:
        theirs = statsmodels_mcnemar([[10, lost], [gained, 10]], exact=True).pvalue
        assert float(st.mcnemar(lost, gained)) == pytest.approx(theirs)


def test_clustered_mcnemar_is_the_plain_one_without_clusters_and_keeps_its_rate_with_them() -> None:
    rng = np.random.default_rng(0)
    differences = rng.choice([-1, 0, 1], 400, p=[0.15, 0.7, 0.15])
    lost, gained = (differences < 0).sum(), (differences > 0).sum()
    plain = statsmodels_mcnemar([[0, lost], [gained, 0]], exact=False, correction=False).pvalue
    assert st.clustered_mcnemar(differences, np.arange(400)) == pytest.approx(plain)
    assert st.clustered_mcnemar(np.zeros(4), [0, 0, 1, 1]) == 1
    clusters, wrong, naive = np.repeat(np.arange(60), 4), 0, 0
    for _ in range(400):
        tilt = np.repeat(rng.normal(0, 0.25, 60), 4)  # a passage favours one of two equal models
        d = np.where(rng.random(240) < 0.4, np.where(rng.random(240) < 0.5 + tilt, 1, -1), 0)
        wrong += st.clustered_mcnemar(d, clusters) <= 0.05
        naive += st.mcnemar((d < 0).sum(), (d > 0).sum()) <= 0.05
    assert 0.025 <= wrong / 400 <= 0.08
    assert naive > wrong


def test_mcnemar_by_hand() -> None:
    # 5 against 1: 2 (C(6,0) + C(6,1)) / 2^6 = 14/64
    assert float(st.mcnemar(5, 1)) == pytest.approx(14 / 64)
    assert st.mcnemar([5, 0], [1, 6]) == pytest.approx([14 / 64, 2 / 64])


def test_holm_by_hand_and_missing_values_do_not_count() -> None:
    assert st.holm([0.01, 0.04, 0.03, np.nan]) == pytest.approx([0.03, 0.06, 0.06, np.nan], nan_ok=True)


@pytest.mark.parametrize(("ours", "name"), [(st.holm, "holm"), (st.benjamini_hochberg, "fdr_bh")])
def test_corrections_equal_statsmodels(ours: Callable, name: str) -> None:
    p = [0.039, 0.001, 0.2, 0.008, 0.041, 0.9, 0.001]
    assert ours(p) == pytest.approx(multipletests(p, method=name)[1])


def test_nothing_known_is_nothing_adjusted() -> None:
    assert np.isnan(st.benjamini_hochberg([np.nan])).all()


def test_detectable_effect_by_hand() -> None:
    # (1.959964 + 0.841621) √(.25 / 400)
    assert st.minimum_detectable_effect(400, 0.25) == pytest.approx(2.801585 * 0.025, abs=1e-6)
    assert st.minimum_detectable_effect(100, 0.0) == pytest.approx(2.801585 * (0.03 / 100) ** 0.5, abs=1e-6)


def test_cluster_error_by_hand() -> None:
    # clusters {1, 1}, {0, 0}, {1, 0}: deviations from .5 sum to 1, −1, 0; √(2 · 3/2) / 6
    assert st.clustered_standard_error([1, 1, 0, 0, 1, 0], [0, 0, 1, 1, 2, 2]) == pytest.approx(3**0.5 / 6)


def test_cluster_error_of_single_documents_is_the_plain_one() -> None:
    x = np.random.default_rng(2).normal(size=50)
    assert st.clustered_standard_error(x, np.arange(50)) == pytest.approx(x.std(ddof=1) / 50**0.5)


def test_bootstrap_p_by_hand() -> None:
    assert st.bootstrap_p(np.r_[np.full(95, 1.0), np.full(5, -1.0)]) == pytest.approx(2 * 6 / 101)
    assert st.bootstrap_p(np.full(99, 1.0)) == pytest.approx(0.02)
    assert st.bootstrap_p(np.zeros(50)) == 1
    # zeros that rounding in float32 has moved to one side are zeros
    assert st.bootstrap_p(np.r_[np.full(20, 3e-8), np.full(79, 0.1)]) == pytest.approx(2 * 21 / 100)
    assert np.isnan(st.bootstrap_p([np.nan]))


# the bootstrap


def test_cluster_counts_draw_as_many_clusters_as_there_are() -> None:
    counts = np.concatenate(list(cluster_counts(30, 500, 7)))
    assert counts.shape == (500, 30)
    assert (counts.sum(axis=1) == 30).all()
    assert counts.var(axis=0).mean() == pytest.approx(1 - 1 / 30, rel=0.05)  # multinomial


def test_replicates_keep_models_and_calls_paired() -> None:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(40, 1))
    clusters = np.repeat(np.arange(10), 4)
    both = bootstrap_means(np.hstack([x, x]), clusters, 200, bootstrap_seed("piqa"))
    assert (both[:, 0] == both[:, 1]).all()
    again = bootstrap_means(x, clusters, 200, bootstrap_seed("piqa"))
    assert again[:, 0] == pytest.approx(both[:, 0])
    assert not np.allclose(again, bootstrap_means(x, clusters, 200, bootstrap_seed("sciq")))


def test_replicate_sums_by_hand() -> None:
    values = np.array([[1.0, 10.0], [2.0, 20.0], [4.0, 40.0]])
    clusters = np.array([0, 1, 0])
    counts = np.concatenate(list(cluster_counts(2, 50, 5)))
    expected = counts @ np.array([[5.0, 50.0], [2.0, 20.0]])
    assert bootstrap_sums(values, clusters, 50, 5) == pytest.approx(expected)


def test_bootstrap_error_equals_the_formula_for_clusters() -> None:
    rng = np.random.default_rng(4)
    clusters = np.repeat(np.arange(100), 3)
    x = np.repeat(rng.normal(size=100), 3) + 0.3 * rng.normal(size=300)
    draws = bootstrap_means(x[:, None], clusters, 4000, 1)[:, 0]
    assert draws.std() == pytest.approx(st.clustered_standard_error(x, clusters), rel=0.05)


def test_seed_weights_have_the_variance_of_a_mean() -> None:
    scores = np.array([0.1, 0.4, 0.5])
    weights = seed_resample_weights((0, 1, 2), 3, 20_000)
    assert weights.sum(axis=1) == pytest.approx(np.ones(20_000), abs=1e-5)
    assert (weights @ scores).std() == pytest.approx(scores.std(ddof=1) / 3**0.5, rel=0.03)
    assert (seed_resample_weights((0, 1, 2), 3, 50) == seed_resample_weights((0, 1, 2), 3, 50)).all()
    assert (seed_resample_weights((4,), 1, 5) == 1).all()


def test_simultaneous_intervals_hold_together() -> None:
    rng = np.random.default_rng(5)
    truth, hits = np.zeros(8), 0
    for _ in range(300):
        sample = rng.normal(size=(60, 8))
        counts = np.concatenate(list(cluster_counts(60, 300, int(rng.integers(1 << 31)))))
        low, high = st.simultaneous_intervals(sample.mean(axis=0), counts @ sample / 60)
        hits += bool(((low <= truth) & (truth <= high)).all())
    assert hits / 300 == pytest.approx(0.95, abs=near(300, 0.95) + 0.01)


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


def test_seed_and_document_interval_covers(simulation: ModuleType) -> None:
    found = simulation.seed_coverage(np.random.default_rng(0), 300, 3, 0.02)
    assert found == pytest.approx(0.95, abs=near(300, 0.95))


def test_equal_models_are_called_different_five_times_in_a_hundred(simulation: ModuleType) -> None:
    assert simulation.macro_errors(np.random.default_rng(0), 300, 4, 100) <= 0.05 + near(300, 0.05)
    assert simulation.mcnemar_errors(np.random.default_rng(0), 1000, 200) <= 0.05 + near(1000, 0.05)


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
