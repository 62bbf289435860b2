"""What a deployer asks: how bad is the worst, can confidence be trusted, when is the teacher needed.

Tasks are pooled with equal weight; only documents with at least two choices count.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from distill_lit.analysis import significance as st
from distill_lit.analysis.array_types import FloatArray
from distill_lit.analysis.bootstrap import bootstrap_seed, cluster_counts
from distill_lit.analysis.document_axes import RARITY
from distill_lit.analysis.score_table import find_baselines
from distill_lit.analysis.scores import Scores
from distill_lit.analysis.slices import discovery_mask

CVAR_SHARE = 0.1
N_CALIBRATION_BINS = 10  # of equal mass, for the calibration error
MAX_COVERAGE_RESAMPLES = 1000
RISK_TOLERANCE = 1e-12  # equal risks that differ by rounding


def choice_probabilities(scores: Scores, model: str) -> pd.DataFrame:
    """Per document: p_top (softmax probability of the likeliest choice), correct (it is the gold one), p_gold,
    brier (Σ over choices of (p − y)²), gold_nll (nats of the gold answer's text), choice; NaN without two choices."""
    rows, gold = scores.results.records[model], scores.results.documents["gold"]
    found = [_probabilities(ll, g) for ll, g in zip(rows["ll"], gold, strict=True)]
    names = ["p_top", "correct", "p_gold", "brier", "gold_nll", "choice"]
    return pd.DataFrame(found, index=rows.index, columns=names)


def _probabilities(likelihoods: Any, gold: Any) -> tuple[float, ...]:
    known = isinstance(likelihoods, (list, np.ndarray)) and len(likelihoods) > 1 and 0 <= int(gold) < len(likelihoods)
    if not known or not np.isfinite(np.asarray(likelihoods, float)).all():
        return (np.nan,) * 6
    ll, g = np.asarray(likelihoods, float), int(gold)
    p = choice_softmax(ll)
    top = int(p.argmax())
    brier = float(((p - (np.arange(len(p)) == g)) ** 2).sum())
    return float(p[top]), float(top == g), float(p[g]), brier, float(-ll[g]), float(top)


def choice_softmax(likelihoods: Any) -> FloatArray:
    """Probabilities of the choices from their log-likelihoods; of a single one, the probability of its text."""
    ll = np.asarray(likelihoods, float)
    if len(ll) < 2:
        return np.asarray(np.exp(ll))
    p = np.exp(ll - ll.max())
    return np.asarray(p / p.sum())


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


def conditional_value_at_risk(values: FloatArray, weights: FloatArray, share: float = CVAR_SHARE) -> float:
    """Conditional value at risk: weighted mean of the largest `share` of the values. Rockafellar & Uryasev 2000."""
    order = np.argsort(-values, kind="stable")
    mass = weights[order] / weights.sum()
    tail_mass = np.clip(share - (np.cumsum(mass) - mass), 0, mass)
    return float((values[order] * tail_mass).sum() / tail_mass.sum()) if len(values) else float("nan")


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


def calibration_frame(scores: Scores, stratum_codes: pd.DataFrame) -> pd.DataFrame:
    """One row for the teacher and per trained group, means over seeds.

    Columns: model, n (documents of the mean seed that both models give finite likelihoods), excess_nll, cvar (mean and
    worst tenth of the gold answer's NLL above the teacher's, nats), and for `all`, `head`, `tail` of RARITY: ece_<part>,
    brier_<part>; coverage, coverage_gain (bounds _low, _high), as `_coverage` says.
    """
    if scores.teacher is None:
        return pd.DataFrame()
    teacher = choice_probabilities(scores, scores.groups[scores.teacher].models[0])
    rows: list[dict[str, Any]] = [{"model": "teacher", **_calibration(scores, teacher, stratum_codes)}]
    for g, group in enumerate(scores.groups):
        if group.role not in ("distilled", "ce_only", "quantized", "external") or not group.models:
            continue
        student = [choice_probabilities(scores, model) for model in group.models]
        row = pd.DataFrame([_one_model(scores, seed, teacher, stratum_codes) for seed in student]).mean().to_dict()
        rows.append({"model": group.label, **row, **_coverage(scores, student, teacher, g)})
    return pd.DataFrame(rows)


def document_weights(scores: Scores, index: pd.MultiIndex) -> FloatArray:
    """Weights that sum to 1 over `index` and give each averaged task the same; 0 for other tasks."""
    tasks = index.get_level_values("task")
    sizes = pd.Series(1, index=index).groupby(tasks).sum()
    names = {scores.tasks[t] for t in scores.averaged}
    shares = {task: 1 / n if task in names else 0.0 for task, n in sizes.items()}
    weight = np.array([shares[task] for task in tasks])
    return np.asarray(weight / weight.sum()) if weight.sum() > 0 else weight


def _known(*frames: pd.DataFrame) -> NDArray[np.bool_]:
    return np.asarray(np.logical_and.reduce([frame["p_top"].notna() for frame in frames]))


def _one_model(scores: Scores, student: pd.DataFrame, teacher: pd.DataFrame, codes: pd.DataFrame) -> dict[str, float]:
    rows = _known(student, teacher)
    excess = (student["gold_nll"] - teacher["gold_nll"])[rows].to_numpy(float)
    weight = document_weights(scores, student.index[rows])
    if not weight.sum():
        return {}
    mean, worst = float(np.average(excess, weights=weight)), conditional_value_at_risk(excess, weight)
    return {"n": int(rows.sum()), "excess_nll": mean, "cvar": worst, **_calibration(scores, student, codes)}


def _calibration(scores: Scores, student: pd.DataFrame, codes: pd.DataFrame) -> dict[str, float]:
    parts = {"all": np.ones(len(student), bool)}
    if RARITY.name in codes:
        stratum = codes.loc[student.index, RARITY.name].to_numpy()
        parts |= {"head": stratum == 1, "tail": stratum == scores.analysis.num_strata}
    found = {}
    for name, inside in parts.items():
        rows = inside & _known(student)
        weight = document_weights(scores, student.index[rows])
        if weight.sum():
            confidence, right = student["p_top"][rows].to_numpy(float), student["correct"][rows].to_numpy(float)
            found[f"ece_{name}"] = expected_calibration_error(confidence, right, weight)
            found[f"brier_{name}"] = float(np.average(student["brier"][rows], weights=weight))
    return found


def _coverage(scores: Scores, seeds: list[pd.DataFrame], teacher: pd.DataFrame, g: int) -> dict[str, float]:
    """What a threshold on the student's confidence is worth: chosen on one half of the documents as the lowest at which
    student and, below it, teacher are as often right as the teacher alone, then tried on the other half.

    coverage: share of the other half that the student answers; coverage_gain: how much more often the two are right there
    than the teacher alone, with percentile bounds over redrawn documents. Means over seeds.
    """
    if "teacher" not in find_baselines(scores, g):
        return {}
    rows = _known(teacher, *seeds)
    index = teacher.index[rows]
    is_discovery = discovery_mask(scores.results.documents.loc[index, "cluster"].astype(str))
    weight = document_weights(scores, index)
    if not (weight[is_discovery].sum() and weight[~is_discovery].sum()):
        return {}
    teacher_correct = teacher["correct"][rows].to_numpy(float)
    answered, gains = np.zeros(len(index)), np.zeros(len(index))
    for student in seeds:
        confidence, right = student["p_top"][rows].to_numpy(float), student["correct"][rows].to_numpy(float)
        threshold = deferral_threshold(
            confidence[is_discovery], right[is_discovery], teacher_correct[is_discovery], weight[is_discovery]
        )
        answered += (confidence >= threshold) / len(seeds)
        gains += (confidence >= threshold) * (right - teacher_correct) / len(seeds)
    mass = np.where(is_discovery, 0.0, weight)
    draws = [(counts * mass) @ gains / (counts @ mass) for counts in _redrawn(scores, index)]
    value = float(mass @ gains / mass.sum())
    found = st.percentile_interval(value, np.concatenate(draws), scores.analysis.confidence_level)
    share = float(mass @ answered / mass.sum())
    return {
        "coverage": share,
        "coverage_gain": found.value,
        "coverage_gain_low": found.low,
        "coverage_gain_high": found.high,
    }


def _redrawn(scores: Scores, index: pd.MultiIndex) -> Iterator[FloatArray]:
    """Blocks (≤ draws, D) of how often each document of `index` is drawn, by cluster within its task."""
    draws, block = min(scores.analysis.n_resamples, MAX_COVERAGE_RESAMPLES), 100
    panels = {panel.task: panel for panel in scores.responses.tasks}
    tasks = index.get_level_values("task")
    streams, columns = [], []
    for task in dict.fromkeys(tasks):
        document_positions = panels[task].index.get_indexer(index[tasks == task])
        codes = panels[task].clusters[document_positions]
        columns.append(np.flatnonzero(tasks == task))
        counts = np.concatenate(list(cluster_counts(int(panels[task].clusters.max()) + 1, draws, bootstrap_seed(task))))
        streams.append(counts[:, codes])
    for start in range(0, draws, block):
        counts = np.empty((min(block, draws - start), len(index)), np.float64)
        for column, stream in zip(columns, streams, strict=True):
            counts[:, column] = stream[start : start + block]
        yield counts


def coverage_and_reliability_curves(scores: Scores, models: dict[str, str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """For {label: model id}: coverage curves (label, coverage, combined_accuracy, selective_accuracy) and reliability
    (label, confidence, accuracy) in N_CALIBRATION_BINS bins of equal mass. Empty without a teacher."""
    coverage, reliability = [pd.DataFrame()], [pd.DataFrame()]
    if scores.teacher is None:
        return coverage[0], reliability[0]
    teacher = choice_probabilities(scores, scores.groups[scores.teacher].models[0])
    for label, model in models.items():
        student = choice_probabilities(scores, model)
        rows = _known(student, teacher)
        weight = document_weights(scores, student.index[rows])
        if not weight.sum():
            continue
        confidence, right = student["p_top"][rows].to_numpy(float), student["correct"][rows].to_numpy(float)
        teacher_correct = teacher["correct"][rows].to_numpy(float)
        coverage.append(coverage_curve(confidence, right, teacher_correct, weight).assign(label=label))
        values = pd.DataFrame({"confidence": confidence * weight, "accuracy": right * weight, "weight": weight})
        sums = values.groupby(equal_mass_bins(confidence, weight)).sum()
        reliability.append(sums[["confidence", "accuracy"]].div(sums["weight"], axis=0).assign(label=label))
    return pd.concat(coverage, ignore_index=True), pd.concat(reliability, ignore_index=True)
