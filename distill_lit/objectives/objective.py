"""The objective: named terms with weights and temperatures, reduced once and mixed once."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from distill_lit.errors import UserError, suggest
from distill_lit.objectives.divergences import entropy, forward_kl, jensen_shannon, reverse_kl
from distill_lit.objectives.schedules import Schedule, parse_schedule


class Kind(NamedTuple):
    """A divergence: its function of (log_q, log_p, **options), and for each option (default, low, high), exclusive."""

    function: Callable[..., Tensor]
    options: Mapping[str, tuple[float, float, float]] = {}


DIVERGENCES: dict[str, Kind] = {
    "forward_kl": Kind(forward_kl),
    "reverse_kl": Kind(reverse_kl),
    "jensen_shannon": Kind(jensen_shannon, {"beta": (0.5, 0.0, 1.0)}),
}
CROSS_ENTROPY = "ce"
MEASURES = ("teacher_nll", "student_nll", "teacher_entropy", "student_entropy", "agreement", "teacher_kl")


@dataclass(frozen=True)
class Term:
    """One named term; `weight` and `temperature` are functions of the share of training done."""

    name: str
    kind: str
    weight: Schedule
    temperature: Schedule
    options: Mapping[str, float] = field(default_factory=dict)

    @property
    def needs_teacher(self) -> bool:
        """Whether it compares with the teacher's distribution."""
        return self.kind != CROSS_ENTROPY


@dataclass(frozen=True)
class Objective:
    """Σ weight · [T²] · term. Terms whose weight is always 0 are left out."""

    terms: tuple[Term, ...]
    squared_temperature: bool = True

    @property
    def needs_teacher(self) -> bool:
        """Whether any term compares with the teacher."""
        return any(term.needs_teacher for term in self.terms)

    def factors(self, done: float) -> tuple[list[float], list[float]]:
        """(weights with T² where it applies, temperatures) of the terms when the share `done` of training is over."""
        temperatures = [term.temperature(done) for term in self.terms]
        weights = [
            term.weight(done) * (t * t if self.squared_temperature and term.needs_teacher else 1.0)
            for term, t in zip(self.terms, temperatures, strict=True)
        ]
        return weights, temperatures


def build_objective(terms: Mapping[str, Any], temperature_scaling: str = "hinton") -> Objective:
    """The objective of a config: {name: TermConfig-like or None}. Raises UserError for anything out of range."""
    built = [_build_term(name, term) for name, term in terms.items() if term is not None]
    built = [term for term in built if not term.weight.is_zero]
    if not built:
        raise UserError("objective.terms: at least one term with a weight is needed, as in {ce: {weight: 1}}")
    return Objective(tuple(built), temperature_scaling == "hinton")


def _build_term(name: str, term: Any) -> Term:
    key, kind = f"objective.terms.{name}", term.kind or name
    known = (CROSS_ENTROPY, *DIVERGENCES)
    if kind not in known:
        raise UserError(f"{key}: unknown loss {kind!r}{suggest(kind, known)}")
    weight = parse_schedule(f"{key}.weight", term.weight, low=0)
    temperature = parse_schedule(f"{key}.temperature", term.temperature, low=0, exclusive=True)
    if kind == CROSS_ENTROPY and any(value != 1 for _, value in temperature.points):
        raise UserError(f"{key}.temperature: labels have no temperature; leave it at 1")
    limits = DIVERGENCES[kind].options if kind in DIVERGENCES else {"label_smoothing": (0.0, -1e-9, 1.0)}
    return Term(name, kind, weight, temperature, _check_options(key, dict(term.options), limits))


def _check_options(key: str, given: dict[str, Any], limits: Mapping[str, tuple[float, float, float]]) -> dict[str, float]:
    options = {}
    for name, value in given.items():
        if name not in limits:
            raise UserError(f"{key}.options: unknown option {name!r}{suggest(name, limits)}")
        _, low, high = limits[name]
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low < value < high:
            raise UserError(f"{key}.options.{name}: {value!r} is not a number between {max(low, 0)} and {high}, exclusive")
        options[name] = float(value)
    return options


def term_sums(
    objective: Objective, student: Tensor, teacher: Tensor | None, labels: Tensor, temperatures: Tensor
) -> Tensor:
    """The sum over tokens of every term, unweighted.

    student, teacher: logits (N, V) in float32 or float64; labels: (N,) token ids; temperatures: (K,) of the K terms.
    Returns (K,) nats.
    """
    sums = []
    log_q = torch.log_softmax(student, -1)
    log_p = None if teacher is None else torch.log_softmax(teacher, -1)
    for i, term in enumerate(objective.terms):
        if term.kind == CROSS_ENTROPY:
            sums.append(_cross_entropy(log_q, labels, term.options.get("label_smoothing", 0.0)).sum())
            continue
        assert teacher is not None
        assert log_p is not None
        softened = _is_softened(term)
        soft_q = torch.log_softmax(student / temperatures[i], -1) if softened else log_q
        soft_p = torch.log_softmax(teacher / temperatures[i], -1) if softened else log_p
        sums.append(DIVERGENCES[term.kind].function(soft_q, soft_p, **term.options).sum())
    return torch.stack(sums)


def _is_softened(term: Term) -> bool:
    return any(value != 1 for _, value in term.temperature.points)


def _cross_entropy(log_q: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """−Σ y log q with y = (1 − smoothing) · onehot + smoothing / V: (N,) nats."""
    nll = -log_q.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    return nll if smoothing == 0 else (1 - smoothing) * nll - smoothing * log_q.mean(-1)


def measure_sums(student: Tensor, teacher: Tensor | None, labels: Tensor) -> dict[str, Tensor]:
    """Sums over tokens of what is watched and not trained on, at T = 1, in nats; agreement counts equal top tokens.

    student, teacher: logits (N, V); labels: (N,). The teacher's own NLL shows whether it fits the data at all.
    """
    log_q = torch.log_softmax(student, -1)
    sums = {"student_nll": _cross_entropy(log_q, labels, 0.0).sum(), "student_entropy": entropy(log_q).sum()}
    if teacher is not None:
        log_p = torch.log_softmax(teacher, -1)
        sums["teacher_nll"] = _cross_entropy(log_p, labels, 0.0).sum()
        sums["teacher_entropy"] = entropy(log_p).sum()
        sums["agreement"] = (student.argmax(-1) == teacher.argmax(-1)).sum().float()
        sums["teacher_kl"] = forward_kl(log_q, log_p).sum()
    return sums


def chunk_for(budget_mebibytes: float, vocabulary: int, compiled: bool) -> int:
    """Tokens per pass of the fused head so that its (tokens, vocabulary) tensors fit the budget: compiled, both products
    and the gradient; eager, about ten in float32."""
    tensors = 4 if compiled else 10
    return max(16, math.floor(budget_mebibytes * 2**20 / (vocabulary * 4 * tensors)))
