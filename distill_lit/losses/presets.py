"""Conventions of others, by name: the terms and the scaling that reproduce their loss on the same logits."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, NamedTuple

from distill_lit.losses.objective import TERM_DEFAULTS, Objective, build_objective, objective_of_terms
from distill_lit.losses.registry import LOGIT_LOSSES
from distill_lit.losses.schedules import scale_weight
from distill_lit.utils.exceptions import UserError, suggest

TemperatureScaling = Literal["auto", "hinton", "none"]


class Preset(NamedTuple):
    """about: whose convention; terms: fields of each term as in a config; temperature_scaling: hinton or none."""

    about: str
    terms: Mapping[str, Mapping[str, Any]]
    temperature_scaling: TemperatureScaling = "none"


PRESETS: dict[str, Preset] = {
    "hinton": Preset(
        "½ CE + ½ T² KL(p ‖ q) at T = 2. Hinton et al. 2015, 1503.02531 §2.1.",
        {"ce": {"weight": 0.5}, "kl": {"kind": "forward_kl", "weight": 0.5, "temperature": 2.0}},
        "hinton",
    ),
    "gkd": Preset(
        "Generalized Jensen-Shannon divergence, β = ½, no T²: the term alone, on_policy.fraction is GKD's λ; trl's β = 0 "
        "and 1 are forward_kl and reverse_kl. Agarwal et al. 2023 (GKD), 2306.13649, as in trl's GKDTrainer.",
        {"jsd": {"kind": "jensen_shannon", "options": {"beta": 0.5}}},
    ),
    "torchtune": Preset(
        "½ CE + ½ ForwardKLLoss, which is −Σ p log q: torchtune's knowledge distillation recipe, kd_ratio = ½.",
        {"ce": {"weight": 0.5}, "kd": {"kind": "soft_cross_entropy", "weight": 0.5}},
    ),
    "distillm": Preset(
        "Skew reverse KL, λ = 0.1, kd_ratio 1: DistiLLM's skewed_reverse_kl. Ko et al. 2024, 2402.03898.",
        {"srkl": {"kind": "skew_reverse_kl", "options": {"skew": 0.1}}},
    ),
    "minillm": Preset(
        "Reverse KL at every token, MiniLLM's single-step part: the term alone, on_policy.fraction: 1 lets the student "
        "write the text. Gu et al. 2023 (MiniLLM), 2306.08543.",
        {"rkl": {"kind": "reverse_kl"}},
    ),
    "distillkit": Preset(
        "½ CE + ½ T² KL(p ‖ q) at T = 1: DistillKit's default losses on a dense teacher.",
        {"ce": {"weight": 0.5}, "kl": {"kind": "forward_kl", "weight": 0.5}},
        "hinton",
    ),
}


def preset(name: str) -> Objective:
    """The objective of a preset, as `objective.preset` of a config, for `Distiller(loss=…)`; `distill-lit list objectives`
    says what each is. Raises UserError for an unknown one.

    Example:
        >>> losses.preset("hinton").term_names
        ['ce', 'kl']
        >>> loss = losses.preset("gkd") + 0.1 * losses.CrossEntropy()
    """
    if name not in PRESETS:
        raise UserError(f"losses.preset: unknown value {name!r}{suggest(str(name), PRESETS)}")
    built = build_objective(*resolve_preset(name, {}, "auto"))
    terms = [replace(term, key=f"losses.preset({name!r})") for term in built.terms]
    return objective_of_terms(terms, built.scales_by_temperature)


def resolve_preset(
    preset: str, terms: Mapping[str, Mapping[str, Any] | None], temperature_scaling: TemperatureScaling
) -> tuple[dict[str, dict[str, Any]], TemperatureScaling]:
    """({term: its fields}, temperature scaling) of a preset with what a config says on top, which `build_objective` takes.

    Of a term that both name, a config replaces single fields and single options; a term of None is taken away; fields of
    None are not said. Raises UserError for an unknown preset.
    """
    if preset and preset not in PRESETS:
        raise UserError(f"objective.preset: unknown value {preset!r}{suggest(preset, PRESETS)}")
    base = PRESETS[preset] if preset else Preset("", {}, "hinton")
    resolved = {name: {**TERM_DEFAULTS, **fields} for name, fields in base.terms.items()}
    for name, fields in terms.items():
        if fields is None:
            resolved.pop(name, None)
            continue
        given = {field: value for field, value in fields.items() if value not in (None, "")}
        base_fields = resolved.get(name, TERM_DEFAULTS)
        resolved[name] = {**base_fields, **given, "options": {**base_fields["options"], **given.get("options", {})}}
    return resolved, base.temperature_scaling if temperature_scaling == "auto" else temperature_scaling


def mix_terms(terms: Mapping[str, Mapping[str, Any]], alpha: float) -> dict[str, dict[str, Any]]:
    """α · (what compares with the teacher) + (1 − α) · (what is on labels): the terms, {name: fields}, with other weights.

    The weight of each term, a number or a schedule, is multiplied by α or by 1 − α. `ce` of weight 1 − α joins them where
    no term is on labels. Hinton et al. 2015, 1503.02531 §2: a weighted average of two objectives. Raises UserError where
    nothing compares with the teacher.
    """
    on_labels = [name for name, fields in terms.items() if _is_on_labels(fields.get("kind") or name)]
    if len(on_labels) == len(terms):
        raise UserError("objective.alpha: no term compares with the teacher, so there is nothing to mix; add one, as kl")
    if not on_labels and "ce" in terms:
        raise UserError("objective.alpha: it adds a term `ce` on labels, and terms.ce compares with the teacher; rename it")
    complete: Mapping[str, Mapping[str, Any]] = terms if on_labels else {**terms, "ce": TERM_DEFAULTS}
    labels_weight = round(1 - alpha, 12)
    return {
        name: {
            **fields,
            "weight": scale_weight(fields["weight"], labels_weight if name in on_labels or name not in terms else alpha),
        }
        for name, fields in complete.items()
    }


def _is_on_labels(kind: str) -> bool:
    return kind in LOGIT_LOSSES and not LOGIT_LOSSES[kind].target_forms
