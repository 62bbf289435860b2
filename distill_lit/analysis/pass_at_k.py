"""Several answers to each document: pass@k, an interval that respects documents and training seeds, and where the variance
comes from."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from distill_lit.analysis.array_types import FloatArray
from distill_lit.analysis.crossed_variance import TaskValues, crossed_estimate
from distill_lit.analysis.significance import Interval


def pass_at_k(num_answers: ArrayLike, num_correct: ArrayLike, k: int) -> FloatArray:
    """Probability that one of k answers is right, 1 − C(n−c, k) / C(n, k): unbiased where n answers were drawn and c were
    right. NaN below k answers. Chen et al. 2021, 2107.03374, equation 1.
    """
    n, c = np.broadcast_arrays(np.asarray(num_answers, float), np.asarray(num_correct, float))
    failing = np.ones(n.shape)
    for step in range(k):  # C(n−c, k) / C(n, k) = Π (n−c−i) / (n−i)
        failing *= np.clip(n - c - step, 0, None) / np.where(n > step, n - step, np.nan)
    return np.where(n >= k, 1 - failing, np.nan)


def answers_interval(values: FloatArray, clusters: NDArray[np.integer], confidence: float = 0.95) -> Interval:
    """Mean of `values` (documents, seeds), each between 0 and 1 or a difference of such, for other documents and training
    seeds. Answers to one document are averaged before, so that they stay together."""
    return crossed_estimate([TaskValues((values,), clusters, unit=1.0)]).interval(confidence)


def _mean_square_interaction(values: FloatArray) -> float:
    """Mean square of what documents and seeds do not explain each by itself."""
    rest = values - values.mean(axis=1, keepdims=True) - values.mean(axis=0, keepdims=True) + values.mean()
    return float((rest**2).sum() / ((len(values) - 1) * (values.shape[1] - 1)))


@dataclass(frozen=True)
class VarianceSplit:
    """What one answer varies by. Components are variances, never below 0, and NaN where the design cannot tell: `documents`
    (and with one seed, what a seed makes of them), `seeds` of training, `interaction` of both, `answers` drawn to the same
    document."""

    documents: float
    seeds: float
    interaction: float
    answers: float
    num_documents: int
    num_seeds: int
    num_answers: int

    def mean_variances(self) -> dict[str, float]:
        """{source: what it adds to the variance of the mean}."""
        cells = self.num_documents * self.num_seeds
        return {
            "documents": self.documents / self.num_documents,
            "seeds": self.seeds / self.num_seeds,
            "interaction": self.interaction / cells,
            "answers": self.answers / (cells * self.num_answers),
        }

    @property
    def standard_error(self) -> float:
        """Of the mean, for other documents, seeds and answers."""
        return float(np.nansum(list(self.mean_variances().values())) ** 0.5)


def split_variance(scores: FloatArray) -> VarianceSplit:
    """The components of scores (documents, seeds, answers), by the mean squares of documents × seeds with answers inside.

    E MS_answers = σ²a; E MS_interaction = σ²a + Rσ²ds; E MS_seeds = that + DRσ²s; E MS_documents = that of the interaction
    + SRσ²d (Searle, Casella & McCulloch 1992, §4.5). Raises ValueError below two documents.
    """
    num_documents, num_seeds, num_answers = scores.shape
    if num_documents < 2:
        raise ValueError("a variance needs two documents")
    cells = scores.mean(axis=2)
    within = float(scores.var(axis=2, ddof=1).mean()) if num_answers > 1 else float("nan")
    residual = float(np.nan_to_num(within))
    between_documents = num_answers * num_seeds * float(cells.mean(axis=1).var(ddof=1))
    seeds = interaction = float("nan")
    below = residual  # the mean square that documents are compared with
    if num_seeds > 1:
        below = num_answers * _mean_square_interaction(cells)
        interaction = max(0.0, (below - residual) / num_answers)
        between_seeds = num_answers * num_documents * float(cells.mean(axis=0).var(ddof=1))
        seeds = max(0.0, (between_seeds - below) / (num_documents * num_answers))
    documents = max(0.0, (between_documents - below) / (num_seeds * num_answers))
    return VarianceSplit(documents, seeds, interaction, within, num_documents, num_seeds, num_answers)
