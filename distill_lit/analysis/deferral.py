"""When a student may answer in its teacher's place: a threshold on its confidence, and what it is worth on other
documents."""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from distill_lit.analysis import significance as st
from distill_lit.analysis.array_types import FloatArray
from distill_lit.analysis.document_draws import DocumentDraws

RISK_TOLERANCE = 1e-12  # equal risks that differ by rounding


def deferral_threshold(
    confidence: FloatArray, student_correct: FloatArray, teacher_correct: FloatArray, weights: FloatArray
) -> float:
    """The lowest confidence from which the student can answer, the rest left to the teacher, with the two as often right
    as the teacher alone; infinite where there is none."""
    order = np.argsort(-confidence, kind="stable")
    gain = np.cumsum(weights[order] * (student_correct - teacher_correct)[order])
    # answers of one confidence stand or fall together
    last = np.append(np.diff(confidence[order]) != 0, True)
    fine = np.flatnonzero((gain >= -RISK_TOLERANCE) & last & (weights[order] > 0))
    return float(confidence[order][fine[-1]]) if len(fine) else float("inf")


def coverage_curve(
    confidence: FloatArray, student_correct: FloatArray, teacher_correct: FloatArray, weights: FloatArray
) -> pd.DataFrame:
    """coverage, combined_accuracy (student, else teacher) and selective_accuracy (the student on what it answers)."""
    order = np.argsort(-confidence, kind="stable")
    mass = weights[order].cumsum()
    student = (weights * student_correct)[order].cumsum()
    deferred = (weights * teacher_correct).sum() - (weights * teacher_correct)[order].cumsum()
    return pd.DataFrame(
        {
            "coverage": mass / mass[-1],
            "combined_accuracy": (student + deferred) / mass[-1],
            "selective_accuracy": student / np.maximum(mass, RISK_TOLERANCE),
        }
    )


def coverage_gain(
    draws: DocumentDraws,
    index: pd.MultiIndex,
    weights: FloatArray,
    is_discovery: NDArray[np.bool_],
    seeds: list[tuple[FloatArray, FloatArray]],
    teacher_correct: FloatArray,
    confidence_level: float,
) -> dict[str, float]:
    """What a threshold on the student's confidence is worth: chosen on one half of the documents as the lowest at which
    student and, below it, teacher are as often right as the teacher alone, then tried on the other half.

    coverage: share of the other half that the student answers; coverage_gain: how much more often the two are right there
    than the teacher alone, with percentile bounds over redrawn documents. Means over seeds.

    Args:
        index: of the documents; weights: theirs.
        is_discovery: whether a document is of the half on which the threshold is chosen.
        seeds: (confidence, whether it is right) of each seed's answers.
    """
    if not (weights[is_discovery].sum() and weights[~is_discovery].sum()):
        return {}
    answered, gains = np.zeros(len(index)), np.zeros(len(index))
    for confidence, right in seeds:
        threshold = deferral_threshold(*(values[is_discovery] for values in (confidence, right, teacher_correct, weights)))
        answered += (confidence >= threshold) / len(seeds)
        gains += (confidence >= threshold) * (right - teacher_correct) / len(seeds)
    mass = np.where(is_discovery, 0.0, weights)
    counts = draws.counts(index)
    with np.errstate(invalid="ignore"):  # draws without a document of this half say nothing
        replicates = counts @ (mass * gains) / (counts @ mass)
    found = st.percentile_interval(float(mass @ gains / mass.sum()), replicates, confidence_level)
    gain = {"coverage_gain": found.value, "coverage_gain_low": found.low, "coverage_gain_high": found.high}
    return {"coverage": float(mass @ answered / mass.sum()), **gain}
