"""Losses between inner states of teacher and student: hidden states, attention maps, relations of queries, keys, values.

Terms of the objective like any other, but computed from what the layers hold rather than from logits. All are zero where
student and teacher agree. Every one is per predicted token, so that the supervised tokens of the optimizer step are the
denominator here too; none sees padding or another document.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from distill_lit.losses.registry import BoolOption, ChoiceOption, NumberOption
from distill_lit.utils.exceptions import UserError, suggest

FEATURE_LOSS_EPS = 1e-12  # below this an attention probability is taken for this: its logarithm stays finite
QKV_STATES = {"q": "queries", "k": "keys", "v": "values"}
LAYER_MAPPINGS = ("uniform", "last", "cka")
LayerPair = tuple[int, int]


def hidden_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over channels of (s − t)². student, teacher: (N, D). (N,). Jiao et al. 2019 (TinyBERT), 1909.10351 eq. 8.

    In large models a few channels of a few tokens are thousands of times larger than the rest and decide this.
    """
    return (student - teacher).square().mean(-1)


def hidden_cosine(student: Tensor, teacher: Tensor) -> Tensor:
    """1 − cos(s, t), between 0 and 2. student, teacher: (N, D). (N,). Sanh et al. 2019 (DistilBERT), 1910.01108 §3."""
    return 1 - torch.cosine_similarity(student, teacher, dim=-1)


def hidden_normalized(student: Tensor, teacher: Tensor) -> Tensor:
    """‖s − t‖² / ‖t‖²: the squared error as a share of the teacher's own size. student, teacher: (N, D). (N,)."""
    return (student - teacher).square().sum(-1) / teacher.square().sum(-1).clamp(min=FEATURE_LOSS_EPS)


def attention_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """Attention transfer: KL(teacher ‖ student) of what each token attends to, mean over heads, nats. student, teacher:
    (N, H, T), rows that sum to 1. (N,). Wang et al. 2020 (MiniLM), 2002.10957 eq. 5."""
    return (torch.xlogy(teacher, teacher) - teacher * student.clamp(min=FEATURE_LOSS_EPS).log()).sum(-1).mean(-1)


def attention_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Σ over keys of (s − t)², mean over heads. student, teacher: (N, H, T). (N,). TinyBERT, 1909.10351 eq. 7, but after
    the softmax, and summed over keys: a mean would depend on the padding."""
    return (student - teacher).square().sum(-1).mean(-1)


def relation_kl(student: Tensor, teacher: Tensor, num_relation_heads: int, attention_mask: Tensor) -> Tensor:
    """Relation distillation: KL(teacher ‖ student) of softmax(A Aᵀ / √d), mean over `num_relation_heads` relation heads
    into which the channels are split.

    student: (B, T, D_s), teacher: (B, T, D_t): queries, keys or values of all heads side by side, before any rotation;
    attention_mask: (B, 1, T, T) bool, which tokens are related. (B, T) nats. Widths may differ, so no projector is needed.
    Wang et al. 2020 (MiniLMv2), 2012.15828 eq. 5 and §3.2; for the values alone 2002.10957 eq. 8.
    """
    log_q, log_p = (_relations(states, num_relation_heads, attention_mask) for states in (student, teacher))
    gap: Tensor = torch.where(attention_mask, log_p.exp() * (log_p - log_q), 0.0)
    return gap.sum(-1).mean(1)


def _relations(states: Tensor, heads: int, allowed: Tensor) -> Tensor:
    """Log-probabilities (B, heads, T, T)."""
    split = states.unflatten(-1, (heads, -1)).transpose(1, 2)
    scores: Tensor = split @ split.transpose(-1, -2) / split.shape[-1] ** 0.5
    return scores.masked_fill(~allowed, torch.finfo(scores.dtype).min).log_softmax(-1)


HIDDEN_STATE_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": hidden_mse,
    "cosine": hidden_cosine,
    "normalized": hidden_normalized,
}
ATTENTION_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"kl": attention_kl, "mse": attention_mse}


class LayerMappingOption(NamedTuple):
    """An option: a named map of layers, or a list of [student layer, teacher layer]."""

    def check(self, key: str, value: Any) -> str | tuple[LayerPair, ...]:
        """The value. Raises UserError."""
        if isinstance(value, str):
            if value not in LAYER_MAPPINGS:
                raise UserError(f"{key}: unknown map {value!r}{suggest(value, LAYER_MAPPINGS)}")
            return value
        pairs = [tuple(pair) for pair in value] if isinstance(value, (list, tuple)) else []
        whole = all(len(pair) == 2 and all(type(i) is int and i >= 0 for i in pair) for pair in pairs)
        if not pairs or not whole:
            raise UserError(
                f"{key}: {value!r} is neither one of {', '.join(LAYER_MAPPINGS)} nor a list of [student, teacher]"
            )
        return tuple((first, second) for first, second in pairs)


class QKVSubsetOption(NamedTuple):
    """An option: a list of some of q, k, v."""

    def check(self, key: str, value: Any) -> tuple[str, ...]:
        """The value. Raises UserError."""
        given = list(value) if isinstance(value, (list, tuple)) else []
        if not given or len(set(given)) < len(given) or not set(given) <= set(QKV_STATES):
            raise UserError(f"{key}: {value!r} is not a list of some of {', '.join(QKV_STATES)}")
        return tuple(given)


class FeatureLossSpec(NamedTuple):
    """A kind of term: what it says of itself, and its options with their defaults."""

    about: str
    options: Mapping[str, tuple[Any, Any]]  # name: (check, default)


FEATURE_LOSSES: dict[str, FeatureLossSpec] = {
    "hidden_states": FeatureLossSpec(
        "Outputs of mapped layers: loss mse, cosine or normalized; a projector where widths differ. TinyBERT, 1909.10351.",
        {
            "loss": (ChoiceOption(tuple(HIDDEN_STATE_LOSSES)), "mse"),
            "layers": (LayerMappingOption(), "uniform"),
            "projector": (BoolOption(), False),
        },
    ),
    "attention": FeatureLossSpec(
        "Attention maps of mapped layers: loss kl or mse; heads one to one, or their mean. MiniLM, 2002.10957.",
        {
            "loss": (ChoiceOption(tuple(ATTENTION_LOSSES)), "kl"),
            "layers": (LayerMappingOption(), "uniform"),
            "heads": (ChoiceOption(("each", "mean")), "each"),
        },
    ),
    "qkv_relations": FeatureLossSpec(
        "How queries, keys, values of mapped layers relate to each other; no projector needed. MiniLMv2, 2012.15828.",
        {
            "relations": (QKVSubsetOption(), ("q", "k", "v")),
            "layers": (LayerMappingOption(), "last"),
            "num_relation_heads": (NumberOption(0, is_integer=True), 0),
        },
    ),
}
