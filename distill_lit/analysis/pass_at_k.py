"""Several answers to each document: pass@k, an interval that respects documents and training seeds, and where the variance
comes from."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from distill_lit.analysis.array_types import FloatArray
from distill_lit.analysis.significance import REPLICATE_TOLERANCE, Interval, clustered_standard_error


def pass_at_k(num_answers: ArrayLike, num_correct: ArrayLike, k: int) -> FloatArray:
    """Probability that one of k answers is right, 1 − C(n−c, k) / C(n, k): unbiased where n answers were drawn and c were
    right. NaN below k answers. Chen et al. 2021, 2107.03374, equation 1.
    """
    n, c = np.broadcast_arrays(np.asarray(num_answers, float), np.asarray(num_correct, float))
    failing = np.ones(n.shape)
    for step in range(k):  # C(n−c, k) / C(n, k) = Π (n−c−i) / (n−i)
        failing *= np.clip(n - c - step, 0, None) / np.where(n > step, n - step, np.nan)
    return np.where(n >= k, 1 - failing, np.nan)


def crossed_interval(values: FloatArray, clusters: ArrayLike, confidence: float = 0.95) -> Interval:
    """Mean of `values` (documents, seeds) with a t interval for other documents and other training seeds.

    The variance of the mean is MS_documents + MS_seeds − MS_interaction over their number, where documents count by cluster
    (Liang & Zeger 1986), with Satterthwaite's degrees of freedom; one seed: by documents alone. Answers to one document are
    averaged before, so that they stay together. Bounds are NaN with fewer than two clusters; where all documents have the
    same value, which does not make it certain, they are as far off as a share −ln(1 − confidence) / clusters of other
    documents could move it by 1 each (rule of three: Hanley & Lippman-Hand 1983).
    """
    num_seeds = values.shape[1]
    value = float(values.mean()) if values.size else float("nan")
    num_clusters = len(np.unique(np.asarray(clusters)))
    if num_clusters < 2 or not np.isfinite(value):
        return Interval(value, np.nan, np.nan)
    by_document = clustered_standard_error(values.mean(axis=1), clusters) ** 2
    parts = [(by_document, num_clusters - 1)]
    variance = by_document
    if num_seeds > 1:
        by_seed = float(values.mean(axis=0).var(ddof=1)) / num_seeds
        both = _mean_square_interaction(values) / values.size
        variance = max(by_document + by_seed - both, by_document, by_seed)
        parts += [(by_seed, num_seeds - 1), (both, (num_clusters - 1) * (num_seeds - 1))]
    if np.ptp(values.mean(axis=1)) < REPLICATE_TOLERANCE:
        reach = -np.log(1 - confidence) / num_clusters
    else:
        spread = sum(part**2 / degrees for part, degrees in parts)
        reach = stats.t.ppf((1 + confidence) / 2, variance**2 / spread) * variance**0.5
    return Interval(value, value - float(reach), value + float(reach))


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
