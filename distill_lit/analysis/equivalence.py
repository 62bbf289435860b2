"""What a difference excludes: what lies outside of its interval. That a difference is not significant says nothing of the
kind."""

from dataclasses import dataclass

import numpy as np

from distill_lit.analysis.crossed_variance import CrossedEstimate


@dataclass(frozen=True)
class Exclusion:
    """What two one-sided tests (TOST, Schuirmann 1987) exclude of a difference, at `alpha` / 2 each: by the two-sided
    interval of 1 − `alpha`, so that nothing is excluded that the interval shown beside it contains.

    gain: gains above it are excluded. loss: losses of more than it are excluded (a positive number, as 0.02 for −0.02).
    Negative ones say more: with a gain of −0.01 a loss of less than 0.01 is excluded as well. p: of equivalence within ±
    `margin`, twice the larger of the two.
    """

    alpha: float
    gain: float
    loss: float
    margin: float
    p: float

    @property
    def is_equivalent(self) -> bool:
        """Whether a difference of `margin` or more is excluded in both directions."""
        return bool(self.p <= self.alpha)


def exclusion(estimate: CrossedEstimate, margin: float, alpha: float = 0.05) -> Exclusion:
    """TOST on a paired difference; margin: the difference that would matter, positive."""
    reach = estimate.critical(1 - alpha / 2) * estimate.standard_error
    p = float(np.minimum(1.0, 2 * np.maximum(estimate.p_less(margin), estimate.p_greater(-margin))))
    return Exclusion(alpha, estimate.value + reach, reach - estimate.value, margin, p)
