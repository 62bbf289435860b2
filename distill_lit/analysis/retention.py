"""What a student keeps of its teacher: a ratio of two scores above chance, with Fieller's interval, and "at least q" as a
test.

There is one rule: a share is given where the teacher's lower bound leaves room for one, in every table, and NaN elsewhere.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from distill_lit.analysis.crossed_variance import CrossedEstimate
from distill_lit.analysis.scores import Scores
from distill_lit.analysis.significance import Interval

MIN_RETENTION_BASELINE = 0.05  # the teacher's lower bound above chance from which a ratio to it means something
NOTHING = Interval(float("nan"), float("nan"), float("nan"))


@dataclass(frozen=True)
class NonInferiority:
    """Whether a student keeps `share` of its teacher's score above chance.

    margin: its score less `share` of the teacher's, paired, with its interval. p: one-sided, small where it keeps more.
    """

    share: float
    margin: Interval
    p: float


def retention(scores: Scores, g: int, tasks: Sequence[int] | None = None) -> Interval:
    """Share of the teacher's average above chance that group `g` retains, on `tasks` or those in the average, with
    Fieller's interval. NaN where the teacher is not above MIN_RETENTION_BASELINE with confidence, is the group itself, or
    where answers are not right or wrong."""
    teacher, confidence = scores.teacher, scores.analysis.confidence_level
    numbers = scores.averaged if tasks is None else tasks
    if teacher in (None, g) or not all(scores.responses.tasks[t].is_binary for t in numbers):
        return NOTHING
    base, own = (scores.macro_estimate(group, tasks=tasks) for group in (teacher, g))
    if not base.interval(confidence).low > MIN_RETENTION_BASELINE or not np.isfinite(own.value):
        return NOTHING
    share = own.value / base.value
    at_share, at_one = (scores.macro_estimate(g, teacher, factor, tasks) for factor in (share, 1.0))
    covariance = (own.variance + base.variance - at_one.variance) / 2
    return fieller(own.value, base.value, own.variance, base.variance, covariance, _critical(at_share, confidence))


def fieller(
    numerator: float, denominator: float, variance: float, base_variance: float, covariance: float, critical: float
) -> Interval:
    """The ratio of two estimates with Fieller's interval (1954): all R at which numerator − R·denominator does not differ
    from 0.

    Args:
        variance: of the numerator; base_variance: of the denominator.
        critical: the quantile, of a normal or Student's distribution. NaN bounds where the denominator does not differ from
            0.
    """
    square = critical**2
    a = denominator**2 - square * base_variance
    b = numerator * denominator - square * covariance
    c = numerator**2 - square * variance
    ratio = numerator / denominator if denominator else float("nan")
    if not a > 0:
        return Interval(ratio, float("nan"), float("nan"))
    reach = max(b**2 - a * c, 0.0) ** 0.5
    return Interval(ratio, (b - reach) / a, (b + reach) / a)


def _critical(estimate: CrossedEstimate, confidence: float) -> float:
    return estimate.critical(1 - (1 - confidence) / 2)


def non_inferiority(scores: Scores, g: int, share: float) -> NonInferiority:
    """Whether group `g` keeps `share` of the teacher's average above chance. NaN without a teacher or an average."""
    if scores.teacher is None:
        return NonInferiority(share, NOTHING, float("nan"))
    estimate = scores.macro_estimate(g, scores.teacher, share)
    return NonInferiority(share, estimate.interval(scores.analysis.confidence_level), estimate.p_greater())
