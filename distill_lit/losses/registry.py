"""The family of logit-level losses: one dict. A new loss is a function, an entry here, and a test."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from distill_lit.losses import cross_tokenizer, divergences, sparse
from distill_lit.utils.exceptions import UserError, suggest
from distill_lit.utils.registry import Registry


class NumberOption(NamedTuple):
    """An option that is a number: low ≤ value < below, or low < value < below where `exclusive`; `is_integer`: an
    integer; reason: why there are these limits, for the message."""

    low: float
    below: float = float("inf")
    exclusive: bool = False
    is_integer: bool = False
    reason: str = ""

    def check(self, key: str, value: Any) -> float:
        """The value. Raises UserError."""
        kind = int if self.is_integer else (int, float)
        above = isinstance(value, kind) and (value > self.low if self.exclusive else value >= self.low)
        if isinstance(value, bool) or not above or not value < self.below:
            raise UserError(f"{key}: {value!r} is not {self}{self.reason and f'; {self.reason}'}")
        return int(value) if self.is_integer else float(value)

    def __str__(self) -> str:
        noun = "a whole number" if self.is_integer else "a number"
        if self.low == -float("inf"):
            return noun
        if self.below == float("inf"):
            return f"{noun} {'above' if self.exclusive else 'of at least'} {self.low:g}"
        ends = "both exclusive" if self.exclusive else f"{self.below:g} exclusive"
        return f"{noun} between {self.low:g} and {self.below:g}, {ends}"


class ChoiceOption(NamedTuple):
    """An option that is one of some words."""

    choices: tuple[str, ...]

    def check(self, key: str, value: Any) -> str:
        """The value. Raises UserError."""
        if value not in self.choices:
            raise UserError(f"{key}: unknown value {value!r}{suggest(str(value), self.choices)}")
        return str(value)


class BoolOption(NamedTuple):
    """An option that is true or false."""

    def check(self, key: str, value: Any) -> bool:
        """The value. Raises UserError."""
        if not isinstance(value, bool):
            raise UserError(f"{key}: {value!r} is neither true nor false")
        return value


class LossSpec(NamedTuple):
    """A loss and what it needs.

    inputs: the arguments of `function`, fields of `reduction.LossInputs`; options: their checks, defaults are the
    function's own; target_forms: the forms of a teacher it compares with, none for losses on labels alone;
    softenable_forms: those it can compare at another temperature than 1; temperature_power: the gradient fades as
    T^−power, which Hinton's scaling makes up for; is_divergence: never negative, and 0 where student and teacher agree.
    """

    function: Callable[..., Tensor]
    inputs: tuple[str, ...] = ("log_q", "teacher")
    options: Mapping[str, NumberOption | ChoiceOption | BoolOption] = {}
    target_forms: tuple[str, ...] = ("dense",)
    softenable_forms: tuple[str, ...] = ("dense",)
    temperature_power: int = 2
    is_divergence: bool = True

    @property
    def about(self) -> str:
        """The first line of the function's documentation, empty where it has none."""
        return (self.function.__doc__ or "").strip().partition("\n")[0]


UNIT_INTERVAL_OPTION = NumberOption(0, 1, exclusive=True)
POSITIVE_INT_OPTION = NumberOption(1, is_integer=True)
EXPONENT_OPTION = NumberOption(-1, 10, reason="exponents of small probabilities below it are beyond float32")

_LOSSES: dict[str, LossSpec] = {
    "ce": LossSpec(
        sparse.cross_entropy,
        ("log_q", "labels"),
        {"label_smoothing": NumberOption(0, 1)},
        target_forms=(),
        softenable_forms=(),
        temperature_power=0,
        is_divergence=False,
    ),
    "forward_kl": LossSpec(divergences.forward_kl),
    "reverse_kl": LossSpec(divergences.reverse_kl),
    "symmetric_kl": LossSpec(divergences.symmetric_kl, options={"forward_weight": UNIT_INTERVAL_OPTION}),
    "jensen_shannon": LossSpec(divergences.jensen_shannon, options={"beta": UNIT_INTERVAL_OPTION}),
    "skew_forward_kl": LossSpec(divergences.skew_forward_kl, options={"skew": UNIT_INTERVAL_OPTION}),
    "skew_reverse_kl": LossSpec(divergences.skew_reverse_kl, options={"skew": UNIT_INTERVAL_OPTION}),
    "adaptive_kl": LossSpec(divergences.adaptive_kl, options={"head_mass": UNIT_INTERVAL_OPTION}),
    "alpha_beta": LossSpec(divergences.alpha_beta, options={"alpha": EXPONENT_OPTION, "beta": EXPONENT_OPTION}),
    "soft_cross_entropy": LossSpec(divergences.soft_cross_entropy, is_divergence=False),
    "total_variation": LossSpec(divergences.total_variation, temperature_power=1),
    "logit_mse": LossSpec(
        divergences.logit_mse,
        ("student_logits", "teacher_logits"),
        {"center": BoolOption()},
        softenable_forms=(),
        temperature_power=0,
    ),
    "contrastive_skew_kl": LossSpec(
        divergences.contrastive_skew_kl, ("log_q", "teacher", "on_policy_mask"), {"skew": UNIT_INTERVAL_OPTION}
    ),
    "top_k_kl": LossSpec(
        sparse.top_k_kl,
        options={"k": POSITIVE_INT_OPTION},
        target_forms=("dense", "top_k"),
        softenable_forms=("dense", "top_k"),
    ),
    "truncated_kl": LossSpec(
        sparse.truncated_kl,
        options={"k": POSITIVE_INT_OPTION},
        target_forms=("dense", "top_k"),
        softenable_forms=("dense", "top_k"),
        is_divergence=False,
    ),
    "top_k_tail_kl": LossSpec(sparse.top_k_tail_kl, options={"k": POSITIVE_INT_OPTION}, target_forms=("dense", "top_k")),
    "sampled_kl": LossSpec(
        sparse.sampled_kl,
        options={"num_samples": POSITIVE_INT_OPTION},
        target_forms=("dense", "sampled"),
        is_divergence=False,
    ),
    "pairwise_ranking": LossSpec(
        sparse.pairwise_ranking,
        options={
            "loss": ChoiceOption(("hinge", "logistic")),
            "k": NumberOption(2, is_integer=True),
            "margin": NumberOption(0),
        },
        target_forms=("dense", "top_k"),
        temperature_power=1,
        is_divergence=False,
    ),
    "uld": LossSpec(
        cross_tokenizer.uld,
        options={"k": NumberOption(0, is_integer=True)},
        target_forms=("cross_tokenizer",),
        softenable_forms=(),
        temperature_power=0,
    ),
    "alm": LossSpec(
        cross_tokenizer.alm,
        ("log_q", "teacher", "labels"),
        {"tau": NumberOption(0, exclusive=True)},
        target_forms=("cross_tokenizer",),
        softenable_forms=(),
        temperature_power=0,
    ),
    "policy_gradient_reverse_kl": LossSpec(
        sparse.policy_gradient_reverse_kl,
        ("log_q", "teacher", "labels", "on_policy_mask"),
        target_forms=("dense", "top_k", "sampled"),
        is_divergence=False,
    ),
}
LOGIT_LOSSES: Registry[LossSpec] = Registry("losses.register", _LOSSES, lambda spec: spec.function)


def argument_key(key: str, name: str) -> str:
    """How an error names an argument of a term, as its user wrote it. key: `objective.terms.<name>` of a config, or
    `losses.<Class>` of Python."""
    return f"{key}.{name}" if key.startswith("objective.") else f"{key}({name})"


def option_key(key: str, option: str) -> str:
    """The same for an option of the loss."""
    return f"{key}.options.{option}" if key.startswith("objective.") else f"{key}({option})"


def check_options(key: str, checks: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a term, checked. Raises UserError for an unknown one or one out of range."""
    for name in options:
        if name not in checks:
            where = f"{key}.options" if key.startswith("objective.") else key
            raise UserError(f"{where}: unknown option {name!r}{suggest(name, checks)}")
    return {name: checks[name].check(option_key(key, name), value) for name, value in options.items()}
