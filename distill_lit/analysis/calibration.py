"""Whether a model's confidence can be trusted, and how bad its worst documents are.

Confidence is the softmax over the choices of what the task's own metric compares: log-likelihoods, or for acc_norm those
per character. Summed log-likelihoods saturate with the length of an answer, and order models backwards. Tasks are pooled
with equal weight; only documents with at least two choices count.
"""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import norm

from distill_lit.analysis.array_types import FloatArray
from distill_lit.analysis.choices import ChoiceLogits, choice_logits
from distill_lit.analysis.deferral import coverage_curve, coverage_gain
from distill_lit.analysis.document_axes import RARITY
from distill_lit.analysis.document_draws import DocumentDraws
from distill_lit.analysis.score_table import find_baselines
from distill_lit.analysis.scores import Scores

CVAR_SHARE = 0.1
N_CALIBRATION_BINS = 10  # of equal mass, for the calibration error
CALIBRATED_DRAWS = 400  # of answers that are right as often as the confidence says
GROUPED_ROLES = ("distilled", "ce_only", "quantized", "external")


def expected_calibration_error(
    confidence: FloatArray, correct: FloatArray, weights: FloatArray | None = None, bins: int = N_CALIBRATION_BINS
) -> float:
    """Expected calibration error over `bins` bins of equal mass: weighted mean of |accuracy − confidence|.

    Nixon et al. 1904.01685. NaN without documents.
    """
    if not len(confidence):
        return float("nan")
    weight = np.ones(len(confidence)) if weights is None else weights
    gap = np.bincount(equal_mass_bins(confidence, weight, bins), weights=weight * (correct - confidence), minlength=bins)
    return float(np.abs(gap).sum() / weight.sum())


def equal_mass_bins(confidence: FloatArray, weights: FloatArray, bins: int = N_CALIBRATION_BINS) -> NDArray[np.integer]:
    """Bin number 0 … bins − 1 of each document, least confident first, each bin with the same weight."""
    order = np.argsort(confidence, kind="stable")
    share = weights[order] / weights.sum()
    numbers = np.empty(len(confidence), np.int64)
    numbers[order] = np.minimum((bins * (np.cumsum(share) - share / 2)).astype(int), bins - 1)
    return numbers


def calibrated_error_bound(confidences: list[FloatArray], weights: FloatArray, level: float) -> float:
    """The quantile `level` of the calibration error of perfectly calibrated models: with few documents it is not 0. Of the
    mean over models with these confidences, (D,) each, whose answers are drawn independently. Vaicenavicius 1902.06977."""
    rng = np.random.default_rng(20262)
    total = np.zeros(CALIBRATED_DRAWS)
    for confidence in confidences:
        by_bin = _bin_weights(confidence, weights)
        right = rng.random((CALIBRATED_DRAWS, len(confidence))) < confidence
        total += np.abs((right - confidence) @ by_bin).sum(axis=1) / weights.sum()
    return float(np.quantile(total / len(confidences), level))


def redrawn_error_deviation(gaps: FloatArray, weights: FloatArray, counts: FloatArray) -> float:
    """Standard deviation of a calibration error over redrawn documents: such an error is itself too large, so that only its
    spread is used. gaps: (D, bins) what each document adds to the gap of its bin; counts: (draws, D)."""
    return float((np.abs(counts @ gaps).sum(axis=1) / (counts @ weights)).std())


def _bin_weights(confidence: FloatArray, weights: FloatArray) -> FloatArray:
    """(D, bins): the weight of a document in its bin, 0 elsewhere."""
    numbers = equal_mass_bins(confidence, weights)
    found = np.zeros((len(confidence), N_CALIBRATION_BINS))
    found[np.arange(len(confidence)), numbers] = weights
    return found


def conditional_value_at_risk(values: FloatArray, weights: FloatArray, share: float = CVAR_SHARE) -> float:
    """Conditional value at risk: weighted mean of the largest `share` of the values. Rockafellar & Uryasev 2000."""
    order = np.argsort(-values, kind="stable")
    mass = weights[order] / weights.sum()
    tail_mass = np.clip(share - (np.cumsum(mass) - mass), 0, mass)
    return float((values[order] * tail_mass).sum() / tail_mass.sum()) if len(values) else float("nan")


def calibration_frame(scores: Scores, stratum_codes: pd.DataFrame) -> pd.DataFrame:
    """One row for the teacher and per trained group, means over seeds.

    Columns: model, n (documents that count: with two choices and finite likelihoods of all its seeds, of averaged tasks),
    excess_bits_per_byte, cvar_bits_per_byte (mean and worst tenth of the gold answer's bits per byte above the teacher's);
    for `all`, `head`, `tail` of RARITY: ece_<part>, brier_<part>; ece_low, ece_high (over redrawn documents; low is 0 where
    a calibrated model may show as much), ece_calibrated (what one shows at most with these documents), ece_scaled (after
    temperature scaling by task, fitted on one half and measured on the other, both ways), brier_guessing (of equal
    probabilities); coverage, coverage_gain (bounds _low, _high), as `coverage_gain` says.
    """
    if scores.teacher is None:
        return pd.DataFrame()
    teacher = choice_logits(scores, scores.groups[scores.teacher].models[0])
    draws = DocumentDraws(scores)
    rows: list[dict[str, Any]] = [{"model": "teacher", **_calibration(scores, [teacher], stratum_codes, draws)}]
    for g, group in enumerate(scores.groups):
        if group.role not in GROUPED_ROLES or not group.models:
            continue
        seeds = [choice_logits(scores, model) for model in group.models]
        found = {**_excess(scores, seeds, teacher), **_calibration(scores, seeds, stratum_codes, draws)}
        rows.append({"model": group.label, **found, **_coverage(scores, seeds, teacher, g, draws)})
    return pd.DataFrame(rows)


def document_weights(scores: Scores, tasks: NDArray[np.object_]) -> FloatArray:
    """Weights that sum to 1 over documents of these `tasks` and give each averaged task the same; 0 for other tasks."""
    numbers, names = pd.factorize(tasks)
    averaged = {scores.tasks[t] for t in scores.averaged}
    weight = np.array([name in averaged for name in names], float)[numbers] / np.bincount(numbers)[numbers]
    return np.asarray(weight / weight.sum()) if weight.sum() > 0 else weight


def _known(models: list[ChoiceLogits]) -> NDArray[np.bool_]:
    return np.asarray(np.logical_and.reduce([model.known for model in models]))


def _excess(scores: Scores, seeds: list[ChoiceLogits], teacher: ChoiceLogits) -> dict[str, float]:
    """Bits per byte of the gold answers above the teacher's: mean and worst tenth."""
    excess = np.stack([seed.gold_bits - teacher.gold_bits for seed in seeds])
    rows = _known([teacher, *seeds]) & np.isfinite(excess).all(axis=0)
    weight = document_weights(scores, teacher.tasks[rows])
    if not weight.sum():
        return {}
    return {
        "excess_bits_per_byte": float(np.mean([np.average(values, weights=weight) for values in excess[:, rows]])),
        "cvar_bits_per_byte": float(np.mean([conditional_value_at_risk(values, weight) for values in excess[:, rows]])),
    }


def _calibration(scores: Scores, seeds: list[ChoiceLogits], codes: pd.DataFrame, draws: DocumentDraws) -> dict[str, float]:
    known = _known(seeds)
    parts = {"all": np.ones(len(known), bool)}
    if RARITY.name in codes:
        stratum = codes[RARITY.name].to_numpy()
        parts |= {"head": stratum == 1, "tail": stratum == scores.analysis.num_strata}
    confidences, found = [seed.confidence() for seed in seeds], {}
    for name, inside in parts.items():
        rows = inside & known
        weight = document_weights(scores, seeds[0].tasks[rows])
        if weight.sum():
            errors = [
                expected_calibration_error(sure[rows], seed.correct[rows], weight)
                for sure, seed in zip(confidences, seeds, strict=True)
            ]
            found[f"ece_{name}"] = float(np.mean(errors))
            found[f"brier_{name}"] = float(np.mean([np.average(seed.brier[rows], weights=weight) for seed in seeds]))
    if not found:
        return {}
    confidences = [sure[known] for sure in confidences]
    return {**found, **_calibration_of_all(scores, seeds, confidences, known, found["ece_all"], draws)}


def _calibration_of_all(
    scores: Scores,
    seeds: list[ChoiceLogits],
    confidences: list[FloatArray],
    known: NDArray[np.bool_],
    error: float,
    draws: DocumentDraws,
) -> dict[str, float]:
    """The number of documents, and what is said of the calibration error over all of them."""
    index, level = seeds[0].index[known], scores.analysis.confidence_level
    weight = document_weights(scores, seeds[0].tasks[known])
    gaps = np.concatenate(
        [(seed.correct[known] - sure)[:, None] * _bin_weights(sure, weight)
         for sure, seed in zip(confidences, seeds, strict=True)], axis=1)  # fmt: skip
    bound = calibrated_error_bound(confidences, weight, level)
    reach = float(norm.ppf((1 + level) / 2)) * redrawn_error_deviation(gaps, weight, draws.counts(index)) / len(seeds)
    return {
        "n": int((weight > 0).sum()),
        "ece_low": 0.0 if error <= bound else max(0.0, error - reach),
        "ece_high": error + reach,
        "ece_calibrated": bound,
        "ece_scaled": float(np.mean([_scaled_error(seed, draws.first_half, known, weight) for seed in seeds])),
        "brier_guessing": float(np.average(seeds[0].brier_guessing[known], weights=weight)),
    }


def _scaled_error(seed: ChoiceLogits, first: NDArray[np.bool_], known: NDArray[np.bool_], weight: FloatArray) -> float:
    """Calibration error after temperature scaling: each half with the temperatures of the other."""
    by_half = [seed.confidence(seed.fit_temperatures(half & known)) for half in (first, ~first)]
    sure = np.where(first, by_half[1], by_half[0])
    return expected_calibration_error(sure[known], seed.correct[known], weight)


def _coverage(
    scores: Scores,
    seeds: list[ChoiceLogits],
    teacher: ChoiceLogits,
    g: int,
    draws: DocumentDraws,
) -> dict[str, float]:
    """`coverage_gain` by confidences that temperature scaling makes comparable between tasks."""
    if "teacher" not in find_baselines(scores, g):
        return {}
    rows, first = _known([teacher, *seeds]), draws.first_half
    answers = [(seed.confidence(seed.fit_temperatures(first & rows))[rows], seed.correct[rows]) for seed in seeds]
    weight = document_weights(scores, teacher.tasks[rows])
    level = scores.analysis.confidence_level
    return coverage_gain(draws, teacher.index[rows], weight, first[rows], answers, teacher.correct[rows], level)


def coverage_and_reliability_curves(scores: Scores, models: dict[str, str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """For {label: model id}: coverage curves (label, coverage, combined_accuracy, selective_accuracy) by confidences after
    temperature scaling, and reliability (label, confidence, accuracy) in N_CALIBRATION_BINS bins of equal mass without.
    Empty without a teacher."""
    coverage, reliability = [pd.DataFrame()], [pd.DataFrame()]
    if scores.teacher is None:
        return coverage[0], reliability[0]
    teacher = choice_logits(scores, scores.groups[scores.teacher].models[0])
    for label, model in models.items():
        student = choice_logits(scores, model)
        rows = _known([student, teacher])
        weight = document_weights(scores, student.tasks[rows])
        if not weight.sum():
            continue
        confidence, right = student.confidence()[rows], student.correct[rows]
        scaled = student.confidence(student.fit_temperatures(rows))[rows]
        coverage.append(coverage_curve(scaled, right, teacher.correct[rows], weight).assign(label=label))
        values = pd.DataFrame({"confidence": confidence * weight, "accuracy": right * weight, "weight": weight})
        sums = values.groupby(equal_mass_bins(confidence, weight)).sum()
        reliability.append(sums[["confidence", "accuracy"]].div(sums["weight"], axis=0).assign(label=label))
    return pd.concat(coverage, ignore_index=True), pd.concat(reliability, ignore_index=True)
