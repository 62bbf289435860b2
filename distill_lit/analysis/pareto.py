"""Quality against cost: who is on the frontier and how surely, and whether "90% at a tenth" holds on a cost axis."""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from distill_lit.analysis import scores as sc
from distill_lit.analysis.array_types import FloatArray
from distill_lit.analysis.model_groups import group_cost
from distill_lit.analysis.retention import non_inferiority, retention
from distill_lit.analysis.score_table import find_baselines
from distill_lit.analysis.scores import Scores
from distill_lit.analysis.significance import REPLICATE_TOLERANCE, percentile_interval

COST_AXES = {  # column of runs.csv: what it is, in words with its unit
    "parameters": "parameters",
    "non_embedding_parameters": "non-embedding parameters",
    "bytes": "bytes on disk",
    "flops_per_token": "FLOPs per token",
    "kv_cache_bytes_per_token": "KV cache bytes per token",
    "prefill_s_per_token": "prefill seconds per token",
    "decode_s_per_token": "decode seconds per token",
    "ttft_s": "time to first token (TTFT), seconds",
    "itl_p50_s": "inter-token latency, median, seconds",
    "itl_p95_s": "inter-token latency, 95th percentile, seconds",
    "peak_memory_bytes": "peak memory, bytes",
    "joules_per_token": "joules per generated token",
    "price_per_million_tokens": "price of a million generated tokens",
}
RATIO_COLUMNS = ("ratio", "ratio_low", "ratio_high")
CLAIM_HOLDS, CLAIM_FAILS, CLAIM_UNDECIDED = "yes", "no", "undecided"  # answers to the claim as a question


def cost_axes(scores: Scores) -> list[str]:
    """The cost axes on which at least one group with records has a positive number."""
    return [name for name in COST_AXES if any(group_cost(g, scores.results, name) > 0 for g in scores.groups if g.models)]


def pareto_frontier(scores: Scores, axis: str) -> pd.DataFrame:
    """One row per group that has a cost and a macro score, cheapest first, of equal cost the teacher.

    Columns: model, role, student, variant, num_seeds, cost, score, low, high (above chance), on_frontier (probability over
    other documents and seeds that no other group is at most as costly and better).
    """
    rows, draws, everyone = [], [], scores.macro_draws
    for g, group in enumerate(scores.groups):
        cost, value = group_cost(group, scores.results, axis), sc.macro_score(scores, g)
        if group.models and _is_placed(scores, axis, g):
            rows.append(
                {
                    "model": group.label,
                    "role": group.role,
                    "student": group.student,
                    "variant": group.variant,
                    "num_seeds": len(group.models),
                    "cost": cost,
                    "score": value.value,
                    "low": value.low,
                    "high": value.high,
                }
            )
            draws.append(everyone[:, g])
    if not rows:
        return pd.DataFrame(
            columns=["model", "role", "student", "variant", "num_seeds", "cost", "score", "low", "high", "on_frontier"]
        )
    frame = pd.DataFrame(rows)
    frame["on_frontier"] = pareto_optimal_mask(frame["cost"].to_numpy(float), np.stack(draws, axis=1)).mean(axis=0)
    first = frame.assign(other=frame["role"] != "teacher").sort_values(["cost", "other", "score"], kind="stable")
    return first.drop(columns="other").reset_index(drop=True)


def pareto_optimal_mask(costs: FloatArray, scores: FloatArray) -> NDArray[np.bool_]:
    """(draw, group) whether no other group is at most as costly and better, or cheaper and as good."""
    alone = np.ones(scores.shape, bool)
    for g, cost in enumerate(costs):
        for other, price in enumerate(costs):
            if other != g and price <= cost:
                ahead = scores[:, other] - scores[:, g]
                better = ahead >= -REPLICATE_TOLERANCE if price < cost else ahead > REPLICATE_TOLERANCE
                alone[:, g] &= ~better
    return alone


def hypervolume(costs: FloatArray, scores: FloatArray, reference_cost: float, reference_score: float = 0.0) -> FloatArray:
    """Area under the frontier in score × decades of cost, between `reference_score` and up to `reference_cost`.

    scores: (draw, group); returns (draw,). Zitzler & Thiele 1999, with cost on a log10 scale.
    """
    order = np.argsort(costs, kind="stable")
    place = np.log10(np.minimum(costs[order], reference_cost))
    best = np.maximum.accumulate(np.maximum(scores[:, order], reference_score), axis=1)
    width = np.diff(place, append=np.log10(reference_cost))
    return np.asarray(((best - reference_score) * width).sum(axis=1))


def hypervolume_gains(scores: Scores, axis: str) -> pd.DataFrame:
    """Per variant: hypervolume of its distilled students, of the same students without teacher, and the difference
    (`series`: distilled, ce_only, gain), each with bounds. Of all variants the best beats one baseline by chance.

    The reference point is the teacher's cost at chance. Empty without a teacher; without variants that have both kinds.
    """
    teacher = scores.teacher
    price = group_cost(scores.groups[teacher], scores.results, axis) if teacher is not None else float("nan")
    pairs: dict[str, list[tuple[int, int]]] = {}
    for g, group in enumerate(scores.groups):
        without = find_baselines(scores, g).get("ce_only")
        if without is not None and price > 0 and _is_placed(scores, axis, g) and _is_placed(scores, axis, without):
            pairs.setdefault(group.variant, []).append((g, without))
    rows, draws = [], scores.macro_draws if pairs else np.empty(0)
    for variant, found in pairs.items():
        distilled, without_teacher = (
            _volume(scores, axis, list(members), price, draws) for members in zip(*found, strict=True)
        )
        for series, volume in (
            ("distilled", distilled),
            ("ce_only", without_teacher),
            ("gain", distilled - without_teacher),
        ):
            bounds = percentile_interval(volume[0], volume[1:], scores.analysis.confidence_level)
            rows.append({"variant": variant, "series": series, **bounds._asdict()})
    return pd.DataFrame(rows, columns=["variant", "series", "value", "low", "high"])


def _is_placed(scores: Scores, axis: str, g: int) -> bool:
    """Whether a group has a cost on the axis and a macro score."""
    return group_cost(scores.groups[g], scores.results, axis) > 0 and bool(np.isfinite(scores.macro(g)))


def _volume(scores: Scores, axis: str, groups: list[int], price: float, draws: FloatArray) -> FloatArray:
    """Hypervolume of these groups: of the scores themselves, then of every one of `draws`."""
    costs = np.array([group_cost(scores.groups[g], scores.results, axis) for g in groups])
    points = np.stack([np.concatenate([[scores.macro(g)], draws[:, g]]) for g in groups], axis=1)
    return hypervolume(costs, points, price)


def efficiency_claims(scores: Scores) -> pd.DataFrame:
    """The claim "at least q of the teacher's quality at most c of its cost", per student and cost axis.

    Columns: model, axis, retention(_low, _high) (share of the teacher's macro average, as `retention` gives it),
    raw_retention (share of its uncentered average), margin, low, high (g_S − q·g_T: non-inferiority), p (one-sided, small
    where it keeps more), ratio, ratio_low, ratio_high (cost_T / cost_S), verdict.
    """
    teacher, rows, axes = scores.teacher, [], cost_axes(scores)
    for g, group in enumerate(scores.groups if len(scores.averaged) else ()):
        if teacher is None or group.role in ("teacher", "untrained") or not group.models:
            continue
        quality = _quality(scores, g, teacher)
        for axis in axes if np.isfinite(quality["margin"]) else ():
            ratio = [_cost_ratio(scores, g, teacher, axis, bound) for bound in ("", "_low", "_high")]
            if np.isfinite(ratio[0]):
                facts = {"model": group.label, "role": group.role, "axis": axis} | quality
                verdict = _verdict(quality["low"], quality["high"], ratio[1], ratio[2], scores.analysis.claim_max_cost)
                rows.append(facts | dict(zip(RATIO_COLUMNS, ratio, strict=True)) | {"verdict": verdict})
    names = [
        "model",
        "role",
        "axis",
        "retention",
        "retention_low",
        "retention_high",
        "raw_retention",
        "margin",
        "low",
        "high",
        "p",
        *RATIO_COLUMNS,
        "verdict",
    ]
    return pd.DataFrame(rows, columns=names)


def _quality(scores: Scores, g: int, teacher: int) -> dict[str, float]:
    """What a student keeps of its teacher's quality."""
    kept, retained = non_inferiority(scores, g, scores.analysis.claim_min_quality), retention(scores, g)
    raw = scores.raw[scores.averaged]
    return {
        "retention": retained.value,
        "retention_low": retained.low,
        "retention_high": retained.high,
        "raw_retention": float(raw[:, g].mean() / raw[:, teacher].mean()),
        "margin": kept.margin.value,
        "low": kept.margin.low,
        "high": kept.margin.high,
        "p": kept.p,
    }


def _verdict(margin_low: float, margin_high: float, ratio_low: float, ratio_high: float, share: float) -> str:
    """Whether a margin that is positive and a ratio of costs of 1 / `share` are shown, excluded, or neither."""
    needed = (1 - 1e-9) / share
    if margin_low > 0 and ratio_low >= needed:
        return CLAIM_HOLDS
    return CLAIM_FAILS if margin_high < 0 or ratio_high < needed else CLAIM_UNDECIDED


def _cost_ratio(scores: Scores, g: int, teacher: int, axis: str, bound: str) -> float:
    """cost_T / cost_S with its bounds: measured in the same blocks where there are columns `<axis>_ratio…`."""
    paired = group_cost(scores.groups[g], scores.results, f"{axis}_ratio{bound}")
    if np.isfinite(paired):
        return paired
    opposite = {"": "", "_low": "_high", "_high": "_low"}[bound]
    above = group_cost(scores.groups[teacher], scores.results, axis + bound)
    below = group_cost(scores.groups[g], scores.results, axis + opposite)
    above = above if np.isfinite(above) else group_cost(scores.groups[teacher], scores.results, axis)
    below = below if np.isfinite(below) else group_cost(scores.groups[g], scores.results, axis)
    return above / below if below > 0 else float("nan")
