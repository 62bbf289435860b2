"""Variance of documents and seeds: against mean squares by hand, clusters, equal answers, parts of tasks."""

import numpy as np
import pytest
from scipy import stats

from distill_lit.analysis.crossed_variance import (
    NOT_KNOWN,
    Component,
    CrossedEstimate,
    TaskValues,
    crossed_estimate,
    mean_inside,
)
from distill_lit.analysis.significance import clustered_standard_error, rule_of_three


def block(documents: int = 40, seeds: int = 3, of_seed: float = 0.5) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.normal(size=(documents, 1)) + of_seed * rng.normal(size=seeds) + rng.normal(size=(documents, seeds))


def mean_squares(x: np.ndarray) -> tuple[float, float, float]:
    """Of documents, seeds and their interaction in a two-way table."""
    (documents, seeds), all_mean = x.shape, x.mean()
    rows, columns = x.mean(axis=1), x.mean(axis=0)
    rest = x - rows[:, None] - columns + all_mean
    return (
        seeds * ((rows - all_mean) ** 2).sum() / (documents - 1),
        documents * ((columns - all_mean) ** 2).sum() / (seeds - 1),
        (rest**2).sum() / (documents - 1) / (seeds - 1),
    )


def test_variance_is_that_of_mean_squares() -> None:
    x = block()
    of_documents, of_seeds, rest = mean_squares(x)
    estimate = crossed_estimate([TaskValues((x,), np.arange(40))])
    assert estimate.value == pytest.approx(x.mean())
    assert estimate.variance == pytest.approx((of_documents + of_seeds - rest) / 120)
    assert (estimate.documents.df, estimate.seeds.df, estimate.interaction.df) == pytest.approx((39, 2, 78))
    # the bounds of an interval are the values that a test at its level just allows
    low, high = estimate.interval()[1:]
    assert (estimate.p(low), estimate.p(high)) == pytest.approx((0.05, 0.05), rel=1e-4)


NOTHING = Component(0.0, np.inf)


@pytest.mark.parametrize("seeds", [2, 3, 8])
def test_seeds_alone_are_students_t(seeds: int) -> None:
    estimate = CrossedEstimate(1.3, NOTHING, Component(1.0, seeds - 1), NOTHING, seeds)
    for p in (0.8, 0.975, 0.9995):
        assert estimate.critical(p) == pytest.approx(stats.t.ppf(p, seeds - 1), rel=1e-4)
    assert estimate.p() == pytest.approx(2 * stats.t.sf(1.3, seeds - 1), rel=1e-5)
    documents = CrossedEstimate(1.3, Component(1.0, 30), NOT_KNOWN, NOT_KNOWN, 1)
    assert (documents.p(), documents.critical(0.9)) == pytest.approx((2 * stats.t.sf(1.3, 30), stats.t.ppf(0.9, 30)))


@pytest.mark.parametrize("seeds", [2, 3])
def test_documents_and_seeds_have_the_distribution_of_behrens_and_fisher(seeds: int) -> None:
    # the sum of two independent t's, drawn
    rng = np.random.default_rng(0)
    drawn = 1.5 * rng.standard_t(20, 400_000) + 0.7 * rng.standard_t(seeds - 1, 400_000)
    estimate = CrossedEstimate(4.0, Component(1.5**2, 20), Component(0.7**2, seeds - 1), NOTHING, seeds)
    assert estimate.p() == pytest.approx(np.mean(np.abs(drawn) > 4.0), rel=0.05)
    assert estimate.critical(0.95) * estimate.standard_error == pytest.approx(np.quantile(drawn, 0.95), rel=0.02)


@pytest.mark.parametrize(("seeds", "of_seed"), [(2, 0.0), (2, 0.3), (2, 2.0), (3, 0.3), (3, 2.0)])
def test_equal_models_are_rarely_called_different(seeds: int, of_seed: float) -> None:
    rng, p = np.random.default_rng(seeds), []
    for _ in range(1500):
        x = rng.normal(size=(50, 1)) + of_seed * rng.normal(size=seeds) + rng.normal(size=(50, seeds))
        p.append(crossed_estimate([TaskValues((x,), np.arange(50))]).p())
    assert np.mean(np.array(p) <= 0.05) < 0.065
    assert np.mean(np.array(p) <= 0.001) < 0.004  # Satterthwaite's degrees of freedom: up to 0.03


def test_more_of_the_same_tells_more() -> None:
    estimate = CrossedEstimate(1.0, Component(2.0, 99), Component(3.0, 1), Component(1.0, 99), 2)
    doubled = estimate.repeated(2.0)
    assert (doubled.documents, doubled.seeds, doubled.interaction) == (
        Component(1.0, 199),
        Component(1.5, 3),
        Component(0.5, 198),
    )
    assert doubled.detectable() < estimate.detectable() / 2**0.5  # the seeds' spread is better known too


def test_one_seed_has_the_error_of_documents_in_clusters() -> None:
    x, clusters = block(seeds=1), np.repeat(np.arange(10), 4)
    estimate = crossed_estimate([TaskValues((x,), clusters)])
    assert estimate.standard_error == pytest.approx(clustered_standard_error(x[:, 0], clusters))
    assert not estimate.covers_seeds
    assert np.isnan(crossed_estimate([TaskValues((x,), np.zeros(40, int))]).interval().low)  # a single passage


def test_tasks_share_their_seeds_and_not_their_documents() -> None:
    x, y = block(), block(60)[:, ::-1]
    both = crossed_estimate([TaskValues((x,), np.arange(40), 0.5), TaskValues((y,), np.arange(60), 0.5)])
    alone = [crossed_estimate([TaskValues((one,), np.arange(len(one)))]) for one in (x, y)]
    assert both.documents.variance == pytest.approx(sum(one.documents.variance for one in alone) / 4)
    by_seed = (x.mean(axis=0) + y.mean(axis=0)) / 2
    assert both.seeds.variance == pytest.approx(by_seed.var(ddof=1) / 3)


def test_seeds_that_are_not_paired_add_their_variances() -> None:
    x, y = block(), block(seeds=2)
    found = crossed_estimate([TaskValues((x, -y), np.arange(40))])
    expected = x.mean(axis=0).var(ddof=1) / 3 + y.mean(axis=0).var(ddof=1) / 2
    assert found.seeds.variance == pytest.approx(expected)
    assert found.documents.variance == pytest.approx((x.mean(axis=1) - y.mean(axis=1)).var(ddof=1) / 40)


def test_answers_that_never_differ_are_not_certain_to() -> None:
    nothing = crossed_estimate([TaskValues((np.zeros((300, 1)),), np.arange(300), unit=1.0)])
    assert nothing.interval().high == pytest.approx(rule_of_three(300), rel=0.01)
    assert nothing.p() == 1
    graded = crossed_estimate([TaskValues((np.zeros((300, 1)),), np.arange(300))])
    assert graded.interval()[1:] == (0, 0)


def test_mean_inside_a_stratum_and_its_error() -> None:
    rng = np.random.default_rng(2)
    x, inside = rng.normal(size=(2000, 1)), rng.random(2000) < 0.3
    found = crossed_estimate([TaskValues((mean_inside(x, inside),), np.arange(2000))])
    assert found.value == pytest.approx(x[inside].mean())
    assert found.standard_error == pytest.approx(x[inside].std(ddof=1) / inside.sum() ** 0.5, rel=0.02)
    assert np.isnan(mean_inside(x, np.zeros(2000, bool))).all()


def test_missing_values_give_no_estimate() -> None:
    x = block()
    x[3, 1] = np.nan
    assert np.isnan(crossed_estimate([TaskValues((x,), np.arange(40))]).value)
    assert np.isnan(crossed_estimate([]).p())
