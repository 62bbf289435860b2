"""pass@k by enumeration, variance by another implementation, coverage by simulation."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm

from distill_lit.analysis.pass_at_k import answers_interval, pass_at_k, split_variance


@pytest.mark.parametrize(("n", "c", "k"), [(5, 2, 1), (5, 2, 3), (6, 0, 4), (6, 6, 2), (7, 3, 5), (4, 1, 4)])
def test_pass_at_k_is_the_share_of_choices_of_k_answers_that_hold_a_right_one(n: int, c: int, k: int) -> None:
    chosen = list(itertools.combinations([True] * c + [False] * (n - c), k))
    assert float(pass_at_k(n, c, k)) == pytest.approx(sum(map(any, chosen)) / len(chosen), abs=1e-12)


def test_pass_at_k_is_unbiased() -> None:
    """Over what n answers may be, its mean is 1 − (1 − p)^k; the plain 1 − (1 − c/n)^k is too low."""
    n, k, p = 8, 4, 0.15
    c = np.arange(n + 1)
    chance = stats.binom.pmf(c, n, p)
    truth = 1 - (1 - p) ** k
    assert float((chance * pass_at_k(n, c, k)).sum()) == pytest.approx(truth, abs=1e-12)
    assert float((chance * (1 - (1 - c / n) ** k)).sum()) < truth - 0.02


def test_more_answers_than_there_are_have_no_pass_at_k() -> None:
    assert np.isnan(pass_at_k(3, [0, 2], 4)).all()


def test_one_seed_without_passages_has_students_interval() -> None:
    values = np.random.default_rng(0).random((30, 1))
    found = answers_interval(values, np.arange(30))
    low, high = stats.t.interval(0.95, 29, values.mean(), stats.sem(values[:, 0]))
    assert (found.value, found.low, found.high) == pytest.approx((values.mean(), low, high))


def test_a_passage_counts_once() -> None:
    """Ten documents on each of six passages that agree: as sure as six documents, not as sixty."""
    passages = np.random.default_rng(1).random(6)
    spread = np.repeat(passages, 10)[:, None]
    found = answers_interval(spread, np.repeat(np.arange(6), 10))
    expected = answers_interval(passages[:, None], np.arange(6))
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_documents_that_are_all_alike_leave_room_for_three_others() -> None:
    found = answers_interval(np.zeros((50, 2)), np.arange(50))
    assert (found.value, found.high) == pytest.approx((0, 3 / 50), rel=0.01)
    by_passage = answers_interval(np.zeros((50, 2)), np.repeat(np.arange(10), 5))
    assert by_passage.high == pytest.approx(3 / 10, rel=0.01)


def test_a_single_document_has_no_interval() -> None:
    assert np.isnan(answers_interval(np.ones((1, 3)), np.zeros(1, int))[1:]).all()


@pytest.mark.parametrize(("seed_deviation", "document_deviation"), [(0.1, 0.3), (0.0, 0.3), (0.3, 0.1)])
def test_the_interval_covers_other_documents_and_seeds(seed_deviation: float, document_deviation: float) -> None:
    rng = np.random.default_rng(2)
    trials, documents, seeds, covered = 400, 40, 3, 0
    for _ in range(trials):
        cells = rng.normal(0, document_deviation, (documents, 1)) + rng.normal(0, seed_deviation, (1, seeds))
        found = answers_interval(cells + rng.normal(0, 0.2, (documents, seeds)), np.arange(documents))
        covered += found.low <= 0 <= found.high
    assert 0.92 <= covered / trials <= 1.0


def test_mean_squares_are_those_of_an_analysis_of_variance() -> None:
    rng = np.random.default_rng(3)
    scores = rng.normal(0, 1, (7, 1, 1)) + rng.normal(0, 1, (1, 4, 1)) + rng.normal(0, 1, (7, 4, 5))
    cells = [
        {"d": str(d), "s": str(s), "y": scores[d, s, r]} for d, s, r in itertools.product(range(7), range(4), range(5))
    ]
    table = anova_lm(ols("y ~ C(d) * C(s)", pd.DataFrame(cells)).fit())
    within, both, seeds, documents = (float(table["mean_sq"][name]) for name in ("Residual", "C(d):C(s)", "C(s)", "C(d)"))
    found = split_variance(scores)
    assert found.answers == pytest.approx(within)
    assert found.interaction == pytest.approx(max(0.0, (both - within) / 5))
    assert found.seeds == pytest.approx((seeds - both) / (7 * 5))
    assert found.documents == pytest.approx((documents - both) / (4 * 5))


def test_variance_is_split_as_it_was_made() -> None:
    rng = np.random.default_rng(4)
    made = (0.5, 0.2, 0.1, 0.8)  # deviations of documents, seeds, both, answers
    splits = []
    for _ in range(60):
        size = (50, 8, 4)
        parts = ((50, 1, 1), (1, 8, 1), (50, 8, 1), size)
        splits.append(
            split_variance(sum(rng.normal(0, dev, part) for dev, part in zip(made, parts, strict=True)) + np.zeros(size))
        )
    means = [np.mean([getattr(s, name) for s in splits]) for name in ("documents", "seeds", "interaction", "answers")]
    assert means == pytest.approx([deviation**2 for deviation in made], rel=0.12, abs=0.006)
    expected = 0.25 / 50 + 0.04 / 8 + 0.01 / 400 + 0.64 / 1600
    assert np.mean([s.standard_error**2 for s in splits]) == pytest.approx(expected, rel=0.12)


def test_what_a_design_cannot_tell_is_counted_with_documents() -> None:
    scores = np.random.default_rng(5).normal(0, 1, (30, 1, 1))
    found = split_variance(scores)
    assert math.isnan(found.seeds) and math.isnan(found.interaction) and math.isnan(found.answers)
    assert found.standard_error == pytest.approx(float(stats.sem(scores[:, 0, 0])))
    with pytest.raises(ValueError, match="two documents"):
        split_variance(scores[:1])
