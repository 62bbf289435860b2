"""Confidence, its calibration, when to defer to the teacher: by hand, and on made-up models whose calibration is known."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers.synthetic_results import build, edit_settings, edited_records

from distill_lit.analysis.calibration import (
    _bin_weights,
    calibrated_error_bound,
    calibration_frame,
    conditional_value_at_risk,
    equal_mass_bins,
    expected_calibration_error,
    redrawn_error_deviation,
)
from distill_lit.analysis.choices import choice_logits, fit_temperature
from distill_lit.analysis.deferral import coverage_curve, deferral_threshold
from distill_lit.analysis.results import load_results
from distill_lit.analysis.scores import Scores, compute_scores
from distill_lit.config.evaluation import AnalysisConfig

ANALYSIS = AnalysisConfig(n_resamples=400)


@pytest.fixture(scope="module")
def scores(tmp_path_factory: pytest.TempPathFactory) -> Scores:
    folder = build(tmp_path_factory.mktemp("calibration"), seeds=(0, 1), students={"deep": 0.8}, documents=150)
    return compute_scores(load_results(folder), ANALYSIS)


@pytest.fixture(scope="module")
def frame(scores: Scores) -> pd.DataFrame:
    return calibration_frame(scores, pd.DataFrame(index=scores.results.documents.index)).set_index("model")


# what confidence is of


def test_confidence_is_of_what_the_metric_compares(tmp_path: Path) -> None:
    """Two choices of 2 and 8 characters: acc_norm compares nats per character, acc their sums."""
    folder = build(tmp_path, documents=10, tasks={"piqa": (2, "acc_norm")}, students={"deep": 0.5})
    with edited_records(folder) as content:
        rows = content.records["teacher"]
        for name, cell in (("ll", [-4.0, -8.0]), ("len_chars", [2, 8]), ("len_bytes", [2, 8])):
            rows[name] = [cell] * len(rows)
        del rows["bits_per_byte"]
        content.documents["gold"] = 1
    per_char = choice_logits(compute_scores(load_results(folder), ANALYSIS), "teacher")
    assert per_char.confidence()[0] == pytest.approx(np.exp(-1) / (np.exp(-1) + np.exp(-2)))
    assert per_char.correct[0] == 1
    assert per_char.brier[0] == pytest.approx(2 * (1 - per_char.confidence()[0]) ** 2)
    assert per_char.brier_guessing[0] == 0.5
    assert per_char.gold_bits[0] == pytest.approx(8 / np.log(2) / 8)
    for model in ("teacher", "deep-untrained", "deep-ce_only-0", "deep-distilled-0"):
        edit_settings(folder, model, "piqa", metric="acc")
    summed = choice_logits(compute_scores(load_results(folder), ANALYSIS), "teacher")
    assert summed.confidence()[0] == pytest.approx(1 / (1 + np.exp(-4)))
    assert summed.correct[0] == 0


def test_summed_likelihoods_order_models_backwards_where_answers_are_long(tmp_path: Path) -> None:
    """A student knows less than its teacher and says so per character; a sum over 60 of them makes both sure."""
    folder = build(tmp_path, documents=200, tasks={"hellaswag": (4, "acc_norm")}, students={"deep": 0.5}, seeds=(0,))
    rng = np.random.default_rng(5)
    with edited_records(folder) as content:
        gold = content.documents["gold"].to_numpy()
        for model, knows in (("teacher", 0.05), ("deep-distilled-0", 0.0)):
            rows = content.records[model]
            per_char = rng.normal(-1.5, 0.05, (len(rows), 4))
            per_char[np.arange(len(rows)), gold] += knows
            for name in ("pred_norm", "correct_norm", "correct", "pred", "margin", "margin_norm", "p_gold"):
                del rows[name]
            rows["ll"] = (60 * per_char).tolist()
            rows["len_chars"] = rows["len_bytes"] = [[60] * 4] * len(rows)
    found = compute_scores(load_results(folder), ANALYSIS)
    student = choice_logits(found, "deep-distilled-0")
    sums = student.probabilities({"hellaswag": 1 / 60})  # a temperature of 1/60 makes sums of means
    weight = np.ones(len(sums))
    assert expected_calibration_error(sums.max(axis=1), student.correct, weight) > 0.4
    assert expected_calibration_error(student.confidence(), student.correct, weight) < 0.1


# temperature


def test_the_fitted_temperature_is_that_of_the_answers() -> None:
    """Answers drawn from softmax(logits / 2.5)."""
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 3, (4000, 4))
    logits[:1000, 3] = -np.inf  # of three choices
    weights = np.exp(logits / 2.5)
    p = weights / weights.sum(axis=1, keepdims=True)
    gold = (rng.random((4000, 1)) > p.cumsum(axis=1)).sum(axis=1)
    assert fit_temperature(logits, gold) == pytest.approx(2.5, rel=0.05)
    assert fit_temperature(logits[:0], gold[:0]) == 1.0


def test_scaling_repairs_what_is_only_too_sure(tmp_path: Path) -> None:
    folder = build(tmp_path, documents=400, tasks={"sciq": (4, "acc")}, students={"deep": 0.5}, seeds=(0,))
    with edited_records(folder) as content:
        rows = content.records["deep-distilled-0"]
        rows["ll"] = [(10 * np.asarray(ll)).tolist() for ll in rows["ll"]]
        rows.drop(columns=["margin", "margin_norm", "p_gold"], inplace=True)
    found = compute_scores(load_results(folder), ANALYSIS)
    row = (
        calibration_frame(found, pd.DataFrame(index=found.results.documents.index)).set_index("model").loc["deep distilled"]
    )
    assert row["ece_all"] > 0.2
    assert row["ece_scaled"] < 0.5 * row["ece_all"]
    assert row["ece_low"] < row["ece_all"] <= row["ece_high"]


# calibration error


def test_calibration_error_by_hand() -> None:
    confidence, right = np.array([0.9, 0.8, 0.6, 0.5]), np.array([1.0, 0.0, 1.0, 1.0])
    # two bins of two: |(.5 + .6) − 2| and |1.7 − 1|, over 4
    assert expected_calibration_error(confidence, right, bins=2) == pytest.approx((0.9 + 0.7) / 4)
    assert expected_calibration_error(np.ones(5), np.ones(5)) == 0
    assert np.isnan(expected_calibration_error(np.array([]), np.array([])))


def test_equal_mass_bins_respect_weights() -> None:
    assert equal_mass_bins(np.array([0.1, 0.2, 0.3, 0.4]), np.ones(4), 2).tolist() == [0, 0, 1, 1]
    assert equal_mass_bins(np.array([0.1, 0.2, 0.3, 0.4]), np.array([3.0, 1, 1, 1]), 2).tolist() == [0, 1, 1, 1]


def test_worst_tenth_by_hand() -> None:
    values = np.arange(20.0)
    assert conditional_value_at_risk(values, np.ones(20)) == pytest.approx(18.5)
    assert conditional_value_at_risk(values[:15], np.ones(15)) == pytest.approx((14 + 0.5 * 13) / 1.5)


def test_risk_threshold_by_hand() -> None:
    confidence = np.array([0.9, 0.8, 0.7, 0.6])
    student, teacher = np.array([1.0, 0, 1, 0]), np.array([1.0, 1, 0, 1])
    # gains: 0, −1, 0, −1: three of four can be answered
    assert deferral_threshold(confidence, student, teacher, np.ones(4)) == 0.7
    assert deferral_threshold(confidence, teacher, teacher, np.ones(4)) == 0.6
    assert deferral_threshold(confidence, 0 * teacher, teacher + 1, np.ones(4)) == np.inf
    # equal confidence stands or falls together
    assert deferral_threshold(np.full(4, 0.5), student, teacher, np.ones(4)) == np.inf


def test_answering_in_the_teachers_place_is_tried_on_other_documents(scores: Scores, frame: pd.DataFrame) -> None:
    row = frame.loc["deep distilled"]
    assert row["coverage_gain_low"] <= row["coverage_gain"] <= row["coverage_gain_high"]
    # the student is worse than its teacher: what looks free on one half costs on the other, or nearly nothing
    assert row["coverage_gain"] < 0.02
    assert row["n"] == len(scores.results.documents)


def test_coverage_curve_ends_at_the_student_alone() -> None:
    confidence = np.array([0.9, 0.8, 0.7, 0.6])
    student, teacher = np.array([1.0, 0, 1, 0]), np.array([1.0, 1, 1, 1])
    curve = coverage_curve(confidence, student, teacher, np.full(4, 0.25))
    assert curve["combined_accuracy"].tolist() == pytest.approx([1.0, 0.75, 0.75, 0.5])
    assert curve["selective_accuracy"].tolist() == pytest.approx([1.0, 0.5, 2 / 3, 0.5])


def test_a_calibrated_model_shows_an_error_too_and_is_not_blamed() -> None:
    """Of 200 calibrated models, about one in twenty is above the bound; without it all would be miscalibrated."""
    rng = np.random.default_rng(2)
    confidence = rng.uniform(0.3, 0.9, 300)
    weight = np.ones(300)
    bound = calibrated_error_bound([confidence], weight, 0.95)
    errors = [
        expected_calibration_error(confidence, (rng.random(300) < confidence).astype(float), weight) for _ in range(200)
    ]
    assert min(errors) > 0
    assert np.mean(np.array(errors) > bound) == pytest.approx(0.05, abs=0.045)


def test_the_interval_of_a_calibration_error_covers_it() -> None:
    """Accuracy is 15 points below the confidence."""
    rng = np.random.default_rng(3)
    held, weight = 0, np.ones(400)
    for _ in range(100):
        confidence = rng.uniform(0.4, 0.9, 400)
        right = (rng.random(400) < confidence - 0.15).astype(float)
        gaps = (right - confidence)[:, None] * _bin_weights(confidence, weight)
        deviation = redrawn_error_deviation(gaps, weight, rng.multinomial(400, np.full(400, 1 / 400), 200))
        held += abs(expected_calibration_error(confidence, right) - 0.15) <= 1.96 * deviation
    assert 87 <= held <= 99


def test_documents_count_that_have_weight(tmp_path: Path) -> None:
    """A task on which the teacher is at chance is in no average, and not in the number of documents."""
    folder = build(tmp_path, documents=60, students={"deep": 0.5}, seeds=(0,))
    with edited_records(folder) as content:
        rows = content.records["teacher"]
        is_piqa = rows.index.get_level_values("task") == "piqa"
        rows.loc[is_piqa, "correct_norm"] = np.arange(is_piqa.sum()) % 2.0
    found = compute_scores(load_results(folder), ANALYSIS)
    assert "piqa" in found.excluded_tasks
    frame = calibration_frame(found, pd.DataFrame(index=found.results.documents.index)).set_index("model")
    assert frame.loc["deep distilled", "n"] == 3 * 60
    assert frame.loc["teacher", "n"] == 3 * 60
    assert frame.loc["teacher", "brier_guessing"] == pytest.approx(0.75)
