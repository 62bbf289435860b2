"""The family of logit-level losses: one dict. A new loss is a function, an entry here, and a test."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from distill_lit.losses import cross_tokenizer, divergences, sparse
from distill_lit.utils.exceptions import UserError, suggest


class Number(NamedTuple):
    """An option that is a number: low ≤ value < below, or low < value < below where `exclusive`; `whole`: an integer."""

    low: float
    below: float = float("inf")
    exclusive: bool = False
    whole: bool = False

    def check(self, key: str, value: Any) -> float:
        """The value. Raises UserError."""
        kind = int if self.whole else (int, float)
        above = isinstance(value, kind) and (value > self.low if self.exclusive else value >= self.low)
        if isinstance(value, bool) or not above or not value < self.below:
            raise UserError(f"{key}: {value!r} is not {self}")
        return int(value) if self.whole else float(value)

    def __str__(self) -> str:
        noun = "a whole number" if self.whole else "a number"
        if self.below == float("inf"):
            return f"{noun} {'above' if self.exclusive else 'of at least'} {self.low:g}"
        ends = "both exclusive" if self.exclusive else f"{self.below:g} exclusive"
        return f"{noun} between {self.low:g} and {self.below:g}, {ends}"


class Word(NamedTuple):
    """An option that is one of some words."""

    choices: tuple[str, ...]

    def check(self, key: str, value: Any) -> str:
        """The value. Raises UserError."""
        if value not in self.choices:
            raise UserError(f"{key}: unknown value {value!r}{suggest(str(value), self.choices)}")
        return str(value)


class Flag(NamedTuple):
    """An option that is true or false."""

    def check(self, key: str, value: Any) -> bool:
        """The value. Raises UserError."""
        if not isinstance(value, bool):
            raise UserError(f"{key}: {value!r} is neither true nor false")
        return value


class Kind(NamedTuple):
    """A loss and what it needs.

    reads: the arguments of `function`, names of `objective.View`; options: their checks, defaults are the function's own;
    targets: the forms of a teacher it compares with, none for losses on labels alone; softens: the forms it can compare at
    another temperature than 1; power: the gradient fades as T^−power, which Hinton's scaling makes up for.
    """

    function: Callable[..., Tensor]
    reads: tuple[str, ...] = ("log_q", "teacher")
    options: Mapping[str, Number | Word | Flag] = {}
    targets: tuple[str, ...] = ("dense",)
    softens: tuple[str, ...] = ("dense",)
    power: int = 2

    @property
    def about(self) -> str:
        """The first line of the function's documentation."""
        return (self.function.__doc__ or "").strip().splitlines()[0]


SHARE = Number(0, 1, exclusive=True)
COUNT = Number(1, whole=True)

LOSSES: dict[str, Kind] = {
    "ce": Kind(
        sparse.cross_entropy,
        ("log_q", "labels"),
        {"label_smoothing": Number(0, 1)},
        targets=(),
        softens=(),
        power=0,
    ),
    "forward_kl": Kind(divergences.forward_kl),
    "reverse_kl": Kind(divergences.reverse_kl),
    "symmetric_kl": Kind(divergences.symmetric_kl, options={"forward": SHARE}),
    "jensen_shannon": Kind(divergences.jensen_shannon, options={"beta": SHARE}),
    "skew_forward_kl": Kind(divergences.skew_forward_kl, options={"skew": SHARE}),
    "skew_reverse_kl": Kind(divergences.skew_reverse_kl, options={"skew": SHARE}),
    "adaptive_kl": Kind(divergences.adaptive_kl, options={"mass": SHARE}),
    "alpha_beta": Kind(divergences.alpha_beta, options={"alpha": Number(-10, 10), "beta": Number(-10, 10)}),
    "soft_cross_entropy": Kind(divergences.soft_cross_entropy),
    "total_variation": Kind(divergences.total_variation, power=1),
    "logit_mse": Kind(
        divergences.logit_mse,
        ("student_logits", "teacher_logits"),
        {"centred": Flag()},
        softens=(),
        power=0,
    ),
    "contrastive": Kind(divergences.contrastive, ("log_q", "teacher", "by_student"), {"skew": SHARE}),
    "top_k_kl": Kind(sparse.top_k_kl, options={"k": COUNT}, targets=("dense", "top_k"), softens=("dense", "top_k")),
    "truncated_kl": Kind(sparse.truncated_kl, options={"k": COUNT}, targets=("dense", "top_k"), softens=("dense", "top_k")),
    "top_k_tail_kl": Kind(sparse.top_k_tail_kl, options={"k": COUNT}, targets=("dense", "top_k")),
    "sampled_kl": Kind(sparse.sampled_kl, options={"draws": COUNT}, targets=("dense", "draws")),
    "ranking": Kind(
        sparse.ranking,
        options={"form": Word(("hinge", "logistic")), "k": Number(2, whole=True), "margin": Number(0)},
        targets=("dense", "top_k"),
        power=1,
    ),
    "uld": Kind(
        cross_tokenizer.uld,
        options={"k": Number(0, whole=True)},
        targets=("foreign",),
        softens=(),
        power=0,
    ),
    "span_likelihood": Kind(
        cross_tokenizer.span_likelihood,
        ("log_q", "teacher", "labels"),
        {"tau": Number(0, exclusive=True)},
        targets=("foreign",),
        softens=(),
        power=0,
    ),
    "policy_reverse_kl": Kind(
        sparse.policy_reverse_kl,
        ("log_q", "teacher", "labels", "by_student"),
        targets=("dense", "top_k", "draws"),
    ),
}


def check_options(key: str, kind: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a loss, checked. Raises UserError for an unknown one or one out of range."""
    known = LOSSES[kind].options
    for name in given:
        if name not in known:
            raise UserError(f"{key}: unknown option {name!r}{suggest(name, known)}")
    return {name: known[name].check(f"{key}.{name}", value) for name, value in given.items()}
