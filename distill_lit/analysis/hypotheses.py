"""Whether the results agree with what was declared before the run.

Each hypothesis is an average over pairs of models, paired by document and seed, and claims a region in which its difference
lies: above `margin`, below it, within ± `margin`. Results agree where the region's complement is rejected, contradict where
the region is, each by one-sided tests, with Holm's correction over all hypotheses of the experiment. Claims as regions:
Lakens 2017 (equivalence), Piaggio et al. 2012 (non-inferiority).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from scipy import optimize

from distill_lit.analysis.compared_models import NotTestable, compared_pairs, mean_contrast
from distill_lit.analysis.crossed_variance import NONE, NOT_KNOWN, Component, CrossedEstimate, sum_components
from distill_lit.analysis.endpoints import (
    ACCURACY,
    ACCURACY_ENDPOINT,
    PROBE_ENDPOINTS,
    PROBE_PREFIX,
    QUESTION_ENDPOINTS,
    Endpoint,
    probe_scores,
    question_scores,
)
from distill_lit.analysis.pooled_seeds import lone_seeds, pooled_seeds
from distill_lit.analysis.results import has_different_validation_data, has_several_teachers
from distill_lit.analysis.scores import Contrast, Scores
from distill_lit.analysis.significance import REPLICATE_TOLERANCE, Interval, holm
from distill_lit.config.evaluation import AnalysisConfig
from distill_lit.config.hypotheses import VALIDATION_ENDPOINTS, HypothesisConfig, endpoint_of, margin_of
from distill_lit.utils.exceptions import UserError

AGREES, CONTRADICTS, UNDECIDED, NOT_TESTED = "agrees", "contradicts", "undecided", "not tested"
MOST_REPEATED = 1000.0  # times the documents and seeds, beyond which no number is given
MIN_SEEDS = 3  # of a claim: two say too little of how much others would differ
VALIDATION_KL = Endpoint("val_kl", "val_kl", "KL to the teacher on the corpus", "nats per token", False)
VALIDATION_CE = Endpoint("val_ce", "val_ce", "loss on the corpus", "nats per token", False)
ENDPOINTS = {
    **{one.name: one for one in (ACCURACY_ENDPOINT, *QUESTION_ENDPOINTS, VALIDATION_KL, VALIDATION_CE)},
    **{f"{PROBE_PREFIX}{one.name}": one for one in PROBE_ENDPOINTS},
}


@dataclass(frozen=True)
class HypothesisTest:
    """One hypothesis and what the results say.

    pairs: labels of the models compared, (one, other). difference: mean over the pairs of one less the other, or of their
    gains, in the unit of the endpoint (a share, for points); where less is better, negative ones are better. p: twice that
    of the one-sided test that decides, since either may; p_adjusted: after Holm over the hypotheses. detectable: the
    smallest distance from the border of the region that is found with 80% power. factor: how many times the documents and
    seeds would find the distance that was seen, and give three seeds. reason: in words, of NOT_TESTED, and of UNDECIDED in
    spite of p_adjusted.
    """

    name: str
    hypothesis: HypothesisConfig
    endpoint: Endpoint
    is_probe: bool
    margin: float
    pairs: tuple[tuple[str, str], ...]
    num_seeds: int
    difference: Interval
    p: float
    p_adjusted: float
    detectable: float
    factor: float
    outcome: str
    reason: str


@dataclass(frozen=True)
class _Estimated:
    """A hypothesis before the correction. p_for: that its difference lies outside of the region; p_against: inside."""

    pairs: tuple[tuple[str, str], ...] = ()
    estimate: CrossedEstimate = NONE
    margin: float = float("nan")
    p_for: float = float("nan")
    p_against: float = float("nan")
    reason: str = ""

    @property
    def p(self) -> float:
        """That the border lies where the difference is, two-sided."""
        return float(np.minimum(1.0, 2 * np.minimum(self.p_for, self.p_against)))


def run_hypothesis_tests(scores: Scores, hypotheses: Mapping[str, HypothesisConfig]) -> list[HypothesisTest]:
    """A test of each, in the order of the config. scores: by the metrics of the tasks."""
    by_endpoint: dict[str, Scores | None] = {ACCURACY: scores}
    found = {name: _estimated(scores, hypothesis, by_endpoint) for name, hypothesis in hypotheses.items()}
    known = {name: one.p for name, one in found.items() if not np.isnan(one.p)}
    adjusted = dict(zip(known, map(float, holm(list(known.values()))), strict=True))
    level = scores.analysis.alpha / max(len(known), 1)
    return [
        _decided(name, hypotheses[name], one, adjusted.get(name, float("nan")), level, scores.analysis)
        for name, one in found.items()
    ]


def _decided(
    name: str, hypothesis: HypothesisConfig, one: _Estimated, p_adjusted: float, level: float, analysis: AnalysisConfig
) -> HypothesisTest:
    """level: of Holm's first step, at which differences are to be detectable."""
    asked, seeds, detectable = endpoint_of(hypothesis, analysis), one.estimate.num_seeds, one.estimate.detectable(level)
    distance = _distance(one.estimate.value, hypothesis.expect, one.margin, ENDPOINTS[asked].higher_is_better)
    factor = _deciding_factor(one.estimate, distance, level, max(MIN_SEEDS / max(seeds, 1), 1.0))
    outcome, reason = _outcome(one, p_adjusted <= analysis.alpha, distance >= detectable)
    return HypothesisTest(
        name=name,
        hypothesis=hypothesis,
        endpoint=ENDPOINTS[asked],
        is_probe=asked.startswith(PROBE_PREFIX),
        margin=one.margin,
        pairs=one.pairs,
        num_seeds=seeds,
        difference=one.estimate.interval(analysis.confidence_level),
        p=one.p,
        p_adjusted=p_adjusted,
        detectable=detectable,
        factor=factor,
        outcome=outcome,
        reason=reason,
    )


def _deciding_factor(estimate: CrossedEstimate, distance: float, level: float, least: float) -> float:
    """How many times the documents and seeds, at least `least`, would find this distance at `level` with 80% power;
    infinite above MOST_REPEATED."""

    def is_found(factor: float) -> bool:
        return estimate.repeated(factor).detectable(level) <= distance

    if not is_found(MOST_REPEATED):
        return float("inf")
    if is_found(least):
        return least
    return float(optimize.bisect(lambda x: is_found(x) - 0.5, least, MOST_REPEATED, rtol=1e-3))


def _estimated(scores: Scores, hypothesis: HypothesisConfig, by_endpoint: dict[str, Scores | None]) -> _Estimated:
    """by_endpoint: the scores by the endpoints that were asked for so far."""
    asked = endpoint_of(hypothesis, scores.analysis)
    labels: tuple[tuple[str, str], ...] = ()
    try:
        margin = margin_of(hypothesis, scores.analysis)
        pairs = compared_pairs(scores.groups, hypothesis, scores.results.short_grid_values)
        labels = tuple((scores.groups[one].label, scores.groups[other].label) for one, other in pairs)
        contrast = mean_contrast(scores.groups, pairs, hypothesis.measure)
        if asked in VALIDATION_ENDPOINTS:
            estimate = _validation_estimate(scores, contrast, asked)
        else:
            if asked not in by_endpoint:
                by_endpoint[asked] = _scores_by(scores, asked)
            estimate = _contrast_by(scores, by_endpoint[asked], contrast, hypothesis.tasks)
        estimate = replace(estimate, num_seeds=_fewest_seeds(scores, contrast))
    except (NotTestable, UserError) as error:
        return _Estimated(labels, reason=str(error))
    p = _region_p(estimate, hypothesis.expect, margin, ENDPOINTS[asked].higher_is_better)
    return _Estimated(labels, estimate, margin, *p)


def _fewest_seeds(scores: Scores, contrast: Contrast) -> int:
    """Of the models that have seeds: one that has a single seed is compared with each of another's, but stays one."""
    return min((len(scores.groups[g].seeds) for g in contrast if scores.groups[g].seeds), default=1)


def _scores_by(scores: Scores, endpoint: str) -> Scores | None:
    """The scores by a graded endpoint; None where no model has it."""
    if endpoint.startswith(PROBE_PREFIX):
        return probe_scores(scores, ENDPOINTS[endpoint])
    return question_scores(scores, ENDPOINTS[endpoint])


def _contrast_by(scores: Scores, found: Scores | None, contrast: Contrast, tasks: list[str]) -> CrossedEstimate:
    """The contrast by an endpoint, whose scores are `found`. tasks: to average over, all where none is named. Raises
    NotTestable without results."""
    if found is None or not found.tasks:
        raise NotTestable("nothing was measured by this endpoint")
    if not tasks and not len(found.averaged):
        raise NotTestable("no task is averaged, see the notes below the scores")
    for task in tasks:
        if task not in found.tasks:
            raise NotTestable(f"{task} has no results by this endpoint")
    own = {found.group_index(scores.groups[g].label): weight for g, weight in contrast.items()}
    estimate = found.contrast_estimate(own, [found.tasks.index(task) for task in tasks] or None)
    if not np.isfinite(estimate.value):
        raise NotTestable("some of its models have no results by this endpoint")
    return estimate


def _validation_estimate(scores: Scores, contrast: Contrast, column: str) -> CrossedEstimate:
    """By a column of runs.csv, a value a model. Seeds alone vary: all models are validated on the same text."""
    runs = scores.results.runs
    runs = runs[runs["model"].isin([model for g in contrast for model in scores.groups[g].models])]
    if has_different_validation_data(runs):
        raise NotTestable("students are validated on different text")
    if column == VALIDATION_KL.name and has_several_teachers(runs):
        raise NotTestable("KLs to different teachers do not compare")
    of_model = runs.set_index("model").get(column, {})
    values = np.array([[float(of_model.get(model, np.nan)) for model in scores.responses.models]])
    blocks = scores.blocks(values, contrast)
    if any(np.isnan(block).any() for block in blocks):
        raise NotTestable("some of its models were not validated")
    seeds = min(block.shape[1] for block in blocks)
    value = float(sum(block.mean() for block in blocks))
    if seeds < 2 or all(np.ptp(block) < REPLICATE_TOLERANCE for block in blocks):  # seeds that change nothing are one
        return CrossedEstimate(value, NOT_KNOWN, NOT_KNOWN, NOT_KNOWN, 1)
    none = Component(0.0, float("inf"))
    own = Component(sum(float(block.var(ddof=1)) / block.shape[1] for block in blocks), seeds - 1)
    lone = lone_seeds(scores, contrast)
    found = pooled_seeds(scores, contrast, lambda: values[0]) or (own,)
    parts = tuple(Component(lone * part.variance, part.df) for part in found)
    return CrossedEstimate(value, none, sum_components(parts), none, seeds, parts)


def _region_p(estimate: CrossedEstimate, expect: str, margin: float, higher_is_better: bool) -> tuple[float, float]:
    """(p that the difference is not in the region of `expect`, p that it is), one-sided."""

    def above(bound: float) -> float:  # small where the difference is better than `bound`
        return estimate.p_greater(bound) if higher_is_better else estimate.p_less(-bound)

    def below(bound: float) -> float:
        return estimate.p_less(bound) if higher_is_better else estimate.p_greater(-bound)

    if expect == "equal":
        return max(above(-margin), below(margin)), min(1.0, 2 * min(above(margin), below(-margin)))
    bound = _border(expect, margin)
    return (above(bound), below(bound)) if expect in ("better", "not_worse") else (below(bound), above(bound))


def _border(expect: str, margin: float) -> float:
    """Where a region with one border ends, in the direction of better."""
    return -margin if expect in ("worse", "not_worse") else margin


def _distance(value: float, expect: str, margin: float, higher_is_better: bool) -> float:
    """From the nearest border of the region."""
    better = value if higher_is_better else -value
    return abs(margin - abs(better)) if expect == "equal" else abs(better - _border(expect, margin))


def _outcome(one: _Estimated, is_significant: bool, is_detectable: bool) -> tuple[str, str]:
    """(outcome, why it is that in spite of its p)."""
    if one.reason:
        return NOT_TESTED, one.reason
    seeds = one.estimate.num_seeds
    if np.isnan(one.p):
        return UNDECIDED, f"nothing says how much others would differ; a claim needs {MIN_SEEDS} seeds"
    if not is_significant:
        return UNDECIDED, ""
    if seeds < MIN_SEEDS:
        return UNDECIDED, f"significant, but a claim needs {MIN_SEEDS} seeds"
    if not is_detectable:
        return UNDECIDED, "significant, but less than what would be found again with 80% power"
    return (AGREES if one.p_for < one.p_against else CONTRADICTS), ""
