"""Losses between inner states of teacher and student: hidden states, attention maps, relations of queries, keys, values.

Terms of the objective like any other, but computed from what the layers hold rather than from logits. All are zero where
student and teacher agree. Every one is per predicted token, so that the supervised tokens of the optimizer step are the
denominator here too; none sees padding or another document.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from distill_lit.losses.registry import BoolOption, ChoiceOption, NumberOption
from distill_lit.utils.exceptions import UserError, suggest

FEATURE_LOSS_EPS = 1e-12  # below this an attention probability is taken for this: its logarithm stays finite
HIDDEN_STATES, ATTENTION = "hidden_states", "attention"
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


class ActivationDims(NamedTuple):
    """What a model's inner states look like: layers; channels of a hidden state; heads; channels of all queries, of all
    keys or values."""

    layers: int
    hidden_size: int
    heads: int
    query_size: int
    key_value_size: int
    key_value_heads: int


class FeatureInputs(NamedTuple):
    """What a loss between inner states reads beside them. loss_mask: (B, T − 1) bool, True where the next token is
    supervised; attention_mask: gives (B, 1, T, T) bool, which tokens see which; project: the term's projector for this
    pair of layers, from the student's channels to the teacher's, or what changes nothing."""

    loss_mask: Tensor
    attention_mask: Callable[[], Tensor]
    project: Callable[[Tensor], Tensor]
    student_dims: ActivationDims
    teacher_dims: ActivationDims

    def at_predictions(self, states: Tensor) -> Tensor:
        """Of states (B, T, …) those of the N tokens whose next one is supervised: (N, …)."""
        return states[:, :-1][self.loss_mask]


Options = Mapping[str, Any]


class FeatureLossSpec(NamedTuple):
    """A kind of term: what it says of itself, and how it is computed. An entry of `FEATURE_LOSSES` is all that it needs.

    options: {name: (check, default)}, `layers` among them; one called `projector` gives it a trained linear map;
    states: which states a term with these options compares, one after the other: hidden_states, attention, queries, keys
    or values; function: (student, teacher, options, inputs) → (N,) of one of them in a pair of layers, as
    `capture_activations` gives it, in float32 or float64; check: (how an error names an option, options, the dimensions
    of student and teacher), raises UserError where the term does not fit the two.
    """

    about: str
    options: Mapping[str, tuple[Any, Any]]
    states: Callable[[Options], Sequence[str]]
    function: Callable[[Tensor, Tensor, Options, FeatureInputs], Tensor]
    check: Callable[[Callable[[str], str], Options, ActivationDims, ActivationDims], None] = lambda *_: None

    @property
    def defaults(self) -> dict[str, Any]:
        """Its options where nothing is said."""
        return {name: default for name, (_, default) in self.options.items()}

    @property
    def reads_inside_layers(self) -> bool:
        """Whether it reads what only exists inside a layer, as attention maps, and not outputs of layers alone."""
        return set(self.states(self.defaults)) != {HIDDEN_STATES}


def hidden_state_loss(student: Tensor, teacher: Tensor, options: Options, inputs: FeatureInputs) -> Tensor:
    """(N,) of outputs of two layers, (B, T, D_s) and (B, T, D_t), the student's projected where there is a projector."""
    ours, theirs = inputs.at_predictions(student), inputs.at_predictions(teacher)
    return HIDDEN_STATE_LOSSES[options["loss"]](inputs.project(ours), theirs)


def attention_loss(student: Tensor, teacher: Tensor, options: Options, inputs: FeatureInputs) -> Tensor:
    """(N,) of attention maps of two layers, (B, H, T, T)."""
    ours, theirs = (inputs.at_predictions(maps.transpose(1, 2)) for maps in (student, teacher))
    if options["heads"] == "mean":
        ours, theirs = ours.mean(1, keepdim=True), theirs.mean(1, keepdim=True)
    return ATTENTION_LOSSES[options["loss"]](ours, theirs)


def qkv_relation_loss(student: Tensor, teacher: Tensor, options: Options, inputs: FeatureInputs) -> Tensor:
    """(N,) of queries, keys or values of two layers, (B, T, channels)."""
    heads = num_relation_heads(options, inputs.student_dims, inputs.teacher_dims)
    return inputs.at_predictions(relation_kl(student, teacher, heads, inputs.attention_mask()))


def num_relation_heads(options: Options, student_dims: ActivationDims, teacher_dims: ActivationDims) -> int:
    """The relation heads of a term; where it does not say, as many as divide the key-value heads of both."""
    return options["num_relation_heads"] or math.gcd(student_dims.key_value_heads, teacher_dims.key_value_heads)


def _check_widths(key: Callable[[str], str], options: Options, ours: ActivationDims, theirs: ActivationDims) -> None:
    if ours.hidden_size != theirs.hidden_size and not options["projector"]:
        raise UserError(
            f"{key('projector')}: hidden states are {ours.hidden_size} wide in the student and {theirs.hidden_size} in "
            "the teacher; set projector: true"
        )


def _check_heads(key: Callable[[str], str], options: Options, ours: ActivationDims, theirs: ActivationDims) -> None:
    if ours.heads != theirs.heads and options["heads"] == "each":
        raise UserError(
            f"{key('heads')}: the student has {ours.heads} heads and the teacher {theirs.heads}; set heads: mean"
        )


def _check_relation_heads(
    key: Callable[[str], str], options: Options, ours: ActivationDims, theirs: ActivationDims
) -> None:
    heads = num_relation_heads(options, ours, theirs)
    for relation in options["relations"]:
        for owner, dims in (("student", ours), ("teacher", theirs)):
            width = dims.query_size if relation == "q" else dims.key_value_size
            if width % heads:
                raise UserError(
                    f"{key('num_relation_heads')}: {heads} does not divide the {width} channels of the {owner}'s "
                    f"{QKV_STATES[relation]}"
                )


FEATURE_LOSSES: dict[str, FeatureLossSpec] = {
    "hidden_states": FeatureLossSpec(
        "Outputs of mapped layers: loss mse, cosine or normalized; a projector where widths differ. TinyBERT, 1909.10351.",
        {
            "loss": (ChoiceOption(tuple(HIDDEN_STATE_LOSSES)), "mse"),
            "layers": (LayerMappingOption(), "uniform"),
            "projector": (BoolOption(), False),
        },
        lambda _: (HIDDEN_STATES,),
        hidden_state_loss,
        _check_widths,
    ),
    "attention": FeatureLossSpec(
        "Attention maps of mapped layers: loss kl or mse; heads one to one, or their mean. MiniLM, 2002.10957.",
        {
            "loss": (ChoiceOption(tuple(ATTENTION_LOSSES)), "kl"),
            "layers": (LayerMappingOption(), "uniform"),
            "heads": (ChoiceOption(("each", "mean")), "each"),
        },
        lambda _: (ATTENTION,),
        attention_loss,
        _check_heads,
    ),
    "qkv_relations": FeatureLossSpec(
        "How queries, keys, values of mapped layers relate to each other; no projector needed. MiniLMv2, 2012.15828.",
        {
            "relations": (QKVSubsetOption(), ("q", "k", "v")),
            "layers": (LayerMappingOption(), "last"),
            "num_relation_heads": (NumberOption(0, is_integer=True), 0),
        },
        lambda options: [QKV_STATES[name] for name in options["relations"]],
        qkv_relation_loss,
        _check_relation_heads,
    ),
}
