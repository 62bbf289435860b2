"""Probabilities of the choices of each document, by what the metric of its task compares, and their temperature.

acc compares log-likelihoods, acc_norm those per character. Summed ones saturate with the length of an answer: a model seems
sure of what it does not know.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from distill_lit.analysis.array_types import FloatArray
from distill_lit.analysis.derived_columns import padded
from distill_lit.analysis.results import require_columns
from distill_lit.analysis.scores import Scores

MAX_LOG_TEMPERATURE = 6.0


@dataclass(frozen=True)
class ChoiceLogits:
    """One model's documents. logits: (D, choices) what the metric compares, −inf beyond the choices of a document; gold:
    (D,) number of the right choice; tasks: (D,); gold_bits: (D,) bits per byte of the gold answer."""

    index: pd.MultiIndex
    logits: FloatArray
    gold: NDArray[np.integer]
    tasks: NDArray[np.object_]
    gold_bits: FloatArray

    @cached_property
    def known(self) -> NDArray[np.bool_]:
        """(D,) whether there are two choices, a right one among them, and all have a finite likelihood."""
        counts = (self.logits > -np.inf).sum(axis=1)
        return np.asarray((counts >= 2) & (self.gold >= 0) & (self.gold < counts) & ~np.isnan(self.logits).any(axis=1))

    def probabilities(self, temperatures: dict[str, float] | None = None) -> FloatArray:
        """(D, choices) softmax of the logits, divided by the temperature of their task; NaN where it is not `known`."""
        scale = np.array([1 / (temperatures or {}).get(task, 1.0) for task in self.tasks])[:, None]
        found = np.full(self.logits.shape, np.nan)
        rows = self.logits[self.known]
        if len(rows):
            weights = np.exp((rows - rows.max(axis=1, keepdims=True)) * scale[self.known])
            found[self.known] = weights / weights.sum(axis=1, keepdims=True)
        return found

    def confidence(self, temperatures: dict[str, float] | None = None) -> FloatArray:
        """(D,) probability of the likeliest choice."""
        found = self.probabilities(temperatures)
        return np.asarray(found.max(axis=1) if found.shape[1] else np.full(len(found), np.nan))

    @cached_property
    def correct(self) -> FloatArray:
        """(D,) 1 where the likeliest choice is the right one, else 0; NaN where it is not `known`."""
        best = self.logits.argmax(axis=1) if self.logits.shape[1] else np.full(len(self.gold), -1)
        return np.where(self.known, (best == self.gold).astype(float), np.nan)

    @cached_property
    def brier(self) -> FloatArray:
        """(D,) Σ over the choices of (p − y)². Brier 1950."""
        found = np.nan_to_num(self.probabilities(), nan=0.0)
        found[self.known, self.gold[self.known]] -= 1
        return np.where(self.known, (found**2).sum(axis=1), np.nan)

    @cached_property
    def brier_guessing(self) -> FloatArray:
        """(D,) the same of equal probabilities: 1 − 1 / choices."""
        with np.errstate(divide="ignore"):
            return np.where(self.known, 1 - 1 / (self.logits > -np.inf).sum(axis=1), np.nan)

    def fit_temperatures(self, fit: NDArray[np.bool_]) -> dict[str, float]:
        """{task: temperature fitted on its documents in `fit` that are `known`}."""
        found = {}
        for task in dict.fromkeys(self.tasks):
            rows = (self.tasks == task) & self.known & fit
            found[task] = fit_temperature(self.logits[rows], self.gold[rows])
        return found


def choice_logits(scores: Scores, model: str) -> ChoiceLogits:
    """Of a model, on all documents of the experiment."""
    rows, documents = scores.results.records[model], scores.results.documents
    require_columns(rows, ("ll", "len_chars"), "probabilities of choices")
    by_char = {panel.task: panel.metric == "acc_norm" for panel in scores.responses.tasks}
    tasks = np.array(documents.index.get_level_values("task"), object)
    has_answer = [isinstance(ll, (list, np.ndarray)) for ll in rows["ll"]]
    lists, chars = (
        [values if known else () for values, known in zip(rows[name], has_answer, strict=True)]
        for name in ("ll", "len_chars")
    )
    logits, counts = padded(lists, -np.inf), np.array([len(values) for values in lists], int)
    is_per_char = np.array([by_char.get(task, False) for task in tasks], bool)
    logits[is_per_char] /= np.maximum(padded(chars, 1)[is_per_char, : logits.shape[1]], 1)
    inside = np.arange(logits.shape[1]) < counts[:, None]
    logits[(inside & ~np.isfinite(logits)).any(axis=1)] = np.nan
    gold = pd.to_numeric(documents["gold"], errors="coerce").fillna(-1).to_numpy(int)
    return ChoiceLogits(documents.index, logits, gold, tasks, rows["bits_per_byte"].to_numpy(float))


def fit_temperature(logits: FloatArray, gold: NDArray[np.integer]) -> float:
    """Temperature scaling: the T at which softmax(logits / T) gives the gold choices the highest likelihood. logits: (D,
    choices), −inf beyond those of a document; gold: (D,). Guo et al. 1706.04599 §4.2. 1 without documents."""
    if not len(logits):
        return 1.0
    below = logits - logits.max(axis=1, keepdims=True)
    at_gold = below[np.arange(len(below)), gold]

    def nll(log_temperature: float) -> float:
        scale = np.exp(-log_temperature)
        return float((np.log(np.exp(below * scale).sum(axis=1)) - at_gold * scale).mean())

    bounds = (-MAX_LOG_TEMPERATURE, MAX_LOG_TEMPERATURE)
    return float(np.exp(minimize_scalar(nll, bounds=bounds, method="bounded").x))
