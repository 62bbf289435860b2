"""Losses as objects: one function per entry of the registry, each giving a term that can be weighted and added up.

Every `weight` and `temperature` is a number or a schedule (`linear`, `cosine`, `piecewise`); `name` is what the term is
called in logged metrics. All raise UserError for an option out of range.

Example:
    >>> loss = 0.5 * CrossEntropy() + 0.5 * ForwardKL(temperature=2.0)
    >>> loss.term_names
    ['ce', 'forward_kl']
"""

import inspect
from collections.abc import Sequence
from typing import Any

from distill_lit.losses.hidden_states import FEATURE_LOSSES, LayerPair
from distill_lit.losses.objective import FeatureTerm, Term, build_term
from distill_lit.losses.registry import LOGIT_LOSSES
from distill_lit.losses.schedules import Schedule

Value = float | Schedule


def _logit_term(class_name: str, kind: str, name: str, weight: Value, temperature: Value = 1.0, **options: Any) -> Term:
    if kind in LOGIT_LOSSES:
        parameters = inspect.signature(LOGIT_LOSSES[kind].function).parameters
        options = {key: v for key, v in options.items() if key not in parameters or v != parameters[key].default}
    term = build_term(f"losses.{class_name}", name or kind, kind, weight, temperature, options)
    assert isinstance(term, Term)
    return term


def _feature_term(class_name: str, kind: str, name: str, weight: Value, **options: Any) -> FeatureTerm:
    options = {key: value for key, value in options.items() if value != FEATURE_LOSSES[kind].defaults[key]}
    term = build_term(f"losses.{class_name}", name or kind, kind, weight, 1.0, options)
    assert isinstance(term, FeatureTerm)
    return term


def Loss(kind: str, *, temperature: Value = 1.0, weight: Value = 1.0, name: str = "", **options: Any) -> Term | FeatureTerm:
    """A loss of the registry by its name, such as one of your own that `register` has put there.

    Example:
        >>> 0.5 * CrossEntropy() + Loss("my_divergence", temperature=2.0)
    """
    if kind in FEATURE_LOSSES:
        return build_term("losses.Loss", name or kind, kind, weight, temperature, options)
    return _logit_term("Loss", kind, name, weight, temperature, **options)


# ---------------------------------------------------------------- labels


def CrossEntropy(*, label_smoothing: float = 0.0, weight: Value = 1.0, name: str = "") -> Term:
    """−log q of the label, as in plain training; no teacher."""
    return _logit_term("CrossEntropy", "ce", name, weight, label_smoothing=label_smoothing)


# ---------------------------------------------------------------- the whole distribution


def ForwardKL(*, temperature: Value = 1.0, weight: Value = 1.0, name: str = "") -> Term:
    """KL(teacher ‖ student). Hinton et al. 2015, 1503.02531."""
    return _logit_term("ForwardKL", "forward_kl", name, weight, temperature)


def ReverseKL(*, temperature: Value = 1.0, weight: Value = 1.0, name: str = "") -> Term:
    """KL(student ‖ teacher). Gu et al. 2023 (MiniLLM), 2306.08543."""
    return _logit_term("ReverseKL", "reverse_kl", name, weight, temperature)


def SymmetricKL(*, forward_weight: float = 0.5, temperature: Value = 1.0, weight: Value = 1.0, name: str = "") -> Term:
    """forward_weight · KL(teacher ‖ student) + (1 − forward_weight) · KL(student ‖ teacher)."""
    return _logit_term("SymmetricKL", "symmetric_kl", name, weight, temperature, forward_weight=forward_weight)


def JensenShannon(*, beta: float = 0.5, temperature: Value = 1.0, weight: Value = 1.0, name: str = "") -> Term:
    """Generalised Jensen-Shannon divergence, 0 < beta < 1. Agarwal et al. 2023 (GKD), 2306.13649."""
    return _logit_term("JensenShannon", "jensen_shannon", name, weight, temperature, beta=beta)


def SkewForwardKL(*, skew: float = 0.1, temperature: Value = 1.0, weight: Value = 1.0, name: str = "") -> Term:
    """KL(p ‖ skew · p + (1 − skew) · q). Ko et al. 2024 (DistiLLM), 2402.03898."""
    return _logit_term("SkewForwardKL", "skew_forward_kl", name, weight, temperature, skew=skew)


def SkewReverseKL(*, skew: float = 0.1, temperature: Value = 1.0, weight: Value = 1.0, name: str = "") -> Term:
    """KL(q ‖ skew · q + (1 − skew) · p). Ko et al. 2024 (DistiLLM), 2402.03898."""
    return _logit_term("SkewReverseKL", "skew_reverse_kl", name, weight, temperature, skew=skew)


def AdaptiveKL(*, head_mass: float = 0.5, temperature: Value = 1.0, weight: Value = 1.0, name: str = "") -> Term:
    """Forward and reverse KL, weighted token by token by where the two differ. Wu et al. 2024 (AKL), 2404.02657."""
    return _logit_term("AdaptiveKL", "adaptive_kl", name, weight, temperature, head_mass=head_mass)


def AlphaBeta(
    *, alpha: float = 0.2, beta: float = 0.7, temperature: Value = 1.0, weight: Value = 1.0, name: str = ""
) -> Term:
    """The α-β divergence. Wang et al. 2025 (ABKD), 2505.04560."""
    return _logit_term("AlphaBeta", "alpha_beta", name, weight, temperature, alpha=alpha, beta=beta)


def SoftCrossEntropy(*, temperature: Value = 1.0, weight: Value = 1.0, name: str = "") -> Term:
    """−Σ p log q: the forward KL plus the teacher's entropy."""
    return _logit_term("SoftCrossEntropy", "soft_cross_entropy", name, weight, temperature)


def TotalVariation(*, temperature: Value = 1.0, weight: Value = 1.0, name: str = "") -> Term:
    """½ Σ |p − q|. Wen et al. 2023 (f-distill), 2307.15190."""
    return _logit_term("TotalVariation", "total_variation", name, weight, temperature)


def LogitMSE(*, center: bool = False, weight: Value = 1.0, name: str = "") -> Term:
    """Mean over the vocabulary of the squared difference of the logits. Kim et al. 2021, 2105.08919."""
    return _logit_term("LogitMSE", "logit_mse", name, weight, center=center)


# ---------------------------------------------------------------- some tokens of the teacher


def TopKKL(*, k: int | None = None, temperature: Value = 1.0, weight: Value = 1.0, name: str = "") -> Term:
    """KL of both, renormalized over the teacher's k best tokens."""
    return _logit_term("TopKKL", "top_k_kl", name, weight, temperature, k=k)


def TruncatedKL(*, k: int | None = None, temperature: Value = 1.0, weight: Value = 1.0, name: str = "") -> Term:
    """KL of the teacher's k best tokens, renormalized, and the student's whole distribution. 2503.16870 §3."""
    return _logit_term("TruncatedKL", "truncated_kl", name, weight, temperature, k=k)


def TopKTailKL(*, k: int | None = None, temperature: Value = 1.0, weight: Value = 1.0, name: str = "") -> Term:
    """KL with all tokens but the teacher's k best in one bucket."""
    return _logit_term("TopKTailKL", "top_k_tail_kl", name, weight, temperature, k=k)


def SampledKL(*, num_samples: int = 64, temperature: Value = 1.0, weight: Value = 1.0, name: str = "") -> Term:
    """The forward KL from tokens drawn from the teacher, without bias. Anshumann et al. 2025, 2503.16870."""
    return _logit_term("SampledKL", "sampled_kl", name, weight, temperature, num_samples=num_samples)


def PairwiseRanking(
    *,
    loss: str = "hinge",
    k: int = 16,
    margin: float | None = None,
    temperature: Value = 1.0,
    weight: Value = 1.0,
    name: str = "",
) -> Term:
    """What the student pays for another order of the teacher's k best tokens; loss: hinge or logistic. DistillKit."""
    return _logit_term("PairwiseRanking", "pairwise_ranking", name, weight, temperature, loss=loss, k=k, margin=margin)


# ---------------------------------------------------------------- the student's own text


def ContrastiveSkewKL(*, skew: float = 0.1, temperature: Value = 1.0, weight: Value = 1.0, name: str = "") -> Term:
    """Skew forward KL on the teacher's text, skew reverse KL on the student's. DistiLLM-2, 2503.07067."""
    return _logit_term("ContrastiveSkewKL", "contrastive_skew_kl", name, weight, temperature, skew=skew)


def PolicyGradientReverseKL(*, temperature: Value = 1.0, weight: Value = 1.0, name: str = "") -> Term:
    """The reverse KL as a reward of a policy gradient, on the student's own text: single-step, no return-to-go. MiniLLM,
    2306.08543."""
    return _logit_term("PolicyGradientReverseKL", "policy_gradient_reverse_kl", name, weight, temperature)


# ---------------------------------------------------------------- a teacher with another tokenizer


def ULD(*, k: int = 0, weight: Value = 1.0, name: str = "") -> Term:
    """Universal logit distillation: the distance of the sorted probabilities. Boizard et al. 2024, 2402.12030."""
    return _logit_term("ULD", "uld", name, weight, k=k)


def ALM(*, tau: float = 1.0, weight: Value = 1.0, name: str = "") -> Term:
    """Approximate likelihood matching on spans of bytes. Minixhofer et al. 2025, 2503.20083."""
    return _logit_term("ALM", "alm", name, weight, tau=tau)


# ---------------------------------------------------------------- hidden states


def HiddenStates(
    *,
    loss: str = "mse",
    layers: str | Sequence[LayerPair] = "uniform",
    projector: bool = False,
    weight: Value = 1.0,
    name: str = "",
) -> FeatureTerm:
    """Outputs of mapped layers: loss mse, cosine or normalized; layers: uniform, last, cka (those most alike by linear
    CKA), or (student layer, teacher layer) pairs; projector: a trained linear map, where the widths differ. TinyBERT,
    1909.10351."""
    return _feature_term("HiddenStates", "hidden_states", name, weight, loss=loss, layers=layers, projector=projector)


def Attention(
    *,
    loss: str = "kl",
    layers: str | Sequence[LayerPair] = "uniform",
    heads: str = "each",
    weight: Value = 1.0,
    name: str = "",
) -> FeatureTerm:
    """Attention maps of mapped layers: loss kl or mse; heads: each with each, or their mean. Both models need
    attn_implementation="eager". MiniLM, 2002.10957."""
    return _feature_term("Attention", "attention", name, weight, loss=loss, layers=layers, heads=heads)


def QKVRelations(
    *,
    relations: Sequence[str] = ("q", "k", "v"),
    layers: str | Sequence[LayerPair] = "last",
    num_relation_heads: int = 0,
    weight: Value = 1.0,
    name: str = "",
) -> FeatureTerm:
    """How queries, keys and values of mapped layers relate to each other. MiniLMv2, 2012.15828."""
    return _feature_term(
        "QKVRelations",
        "qkv_relations",
        name,
        weight,
        relations=tuple(relations),
        layers=layers,
        num_relation_heads=num_relation_heads,
    )
