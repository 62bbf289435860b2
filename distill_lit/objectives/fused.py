"""The objective from hidden states, a chunk of tokens at a time, its gradient formed in the same pass.

One student projection and one teacher projection per chunk serve every term. No (tokens, vocabulary) tensor outlives
its chunk, so peak memory does not grow with the sequence.
"""

import functools
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from distill_lit.heads import Head
from distill_lit.objectives.objective import Objective, measure_sums, term_sums

log = logging.getLogger(__name__)


class Losses(NamedTuple):
    """total: scalar to minimise, nats per token; terms: (K,) unweighted sums over tokens; measures: sums over tokens."""

    total: Tensor
    terms: Tensor
    measures: dict[str, Tensor]


class Settings(NamedTuple):
    """What stays the same over chunks."""

    objective: Objective
    weights: Tensor  # (K,) with T² where it applies, divided by the step's denominator
    temperatures: Tensor  # (K,)
    chunk: int
    compiled: bool
    measure: bool


def plain_losses(
    objective: Objective,
    student: Tensor,
    teacher: Tensor | None,
    labels: Tensor,
    *,
    denominator: Tensor,
    done: float = 0.0,
    measure: bool = False,
) -> Losses:
    """The reference: the same losses from whole logits (N, V), differentiated by autograd. See `fused_losses`."""
    weights, temperatures = _factors(objective, done, denominator, student)
    sums = term_sums(objective, student, teacher, labels, temperatures)
    with torch.no_grad():
        measures = measure_sums(student, teacher, labels) if measure else {}
    return Losses((weights * sums).sum(), sums.detach(), measures)


def fused_losses(
    objective: Objective,
    hidden: Tensor,
    head: Head,
    teacher_hidden: Tensor | None,
    teacher_head: Head | None,
    labels: Tensor,
    *,
    denominator: Tensor,
    done: float = 0.0,
    chunk: int = 256,
    compiled: bool = False,
    measure: bool = False,
) -> Losses:
    """The objective over N supervised tokens from hidden states.

    hidden: (N, D), teacher_hidden: (N, D_t), labels: (N,) ids of the predicted tokens; denominator: scalar, supervised
    tokens of the whole optimizer step; done: share of training that is over, for schedules; chunk: tokens per pass;
    compiled: compile the element-wise part. Gradients reach `hidden`, `head.weight` and `head.bias`; a second
    derivative is refused.
    """
    weights, temperatures = _factors(objective, done, denominator, hidden)
    settings = Settings(objective, weights, temperatures, chunk, compiled, measure)
    if not torch.is_grad_enabled():
        return _evaluate(hidden, head, teacher_hidden, teacher_head, labels, settings)
    measures: dict[str, Tensor] = {}
    total, terms = _FusedLosses.apply(
        hidden, head.weight, head.bias, head, teacher_hidden, teacher_head, labels, settings, measures
    )
    return Losses(total, terms, measures)


def _evaluate(
    hidden: Tensor,
    head: Head,
    teacher_hidden: Tensor | None,
    teacher_head: Head | None,
    labels: Tensor,
    settings: Settings,
) -> Losses:
    """The same sums without a gradient."""
    measures: dict[str, Tensor] = {}
    head, terms = head.cast(hidden.dtype), torch.zeros_like(settings.weights)
    for rows in _chunks(hidden, settings.chunk):
        student = head.finish(head.project(hidden[rows]))
        teacher = None
        if teacher_hidden is not None and teacher_head is not None:
            teacher = teacher_head.finish(teacher_head.project(teacher_hidden[rows]))
        sums = _function(term_sums, settings.compiled)
        terms = terms + sums(settings.objective, student, teacher, labels[rows], settings.temperatures)
        if settings.measure:
            _add(measures, _function(measure_sums, settings.compiled)(student, teacher, labels[rows]))
    return Losses((settings.weights * terms).sum(), terms, measures)


def _chunks(hidden: Tensor, chunk: int) -> Iterator[slice]:
    return (slice(start, start + chunk) for start in range(0, hidden.shape[0], chunk))


def _add(sums: dict[str, Tensor], more: dict[str, Tensor]) -> None:
    for name, value in more.items():
        sums[name] = sums[name] + value if name in sums else value


def _factors(objective: Objective, done: float, denominator: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    weights, temperatures = objective.factors(done)
    number = torch.float64 if like.dtype == torch.float64 else torch.float32
    as_tensor = functools.partial(torch.tensor, dtype=number, device=like.device)
    return as_tensor(weights) / denominator.clamp(min=1).to(like.device, number), as_tensor(temperatures)


class _FusedLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        head: Head,
        teacher_hidden: Tensor | None,
        teacher_head: Head | None,
        labels: Tensor,
        settings: Settings,
        measures: dict[str, Tensor],
    ) -> Any:
        number = settings.weights.dtype
        total, terms = torch.zeros((), dtype=number, device=hidden.device), torch.zeros_like(settings.weights)
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight, dtype=number)
        grad_bias = None if bias is None else torch.zeros_like(bias, dtype=number)
        head = head.cast(hidden.dtype)
        for rows in _chunks(hidden, settings.chunk):
            teacher = None if teacher_hidden is None or teacher_head is None else teacher_head.project(teacher_hidden[rows])
            loss, sums, grad = _chunk(head, hidden[rows], teacher, teacher_head, labels[rows], settings, measures)
            total, terms = total + loss, terms + sums
            grad = grad.to(hidden.dtype)
            grad_hidden[rows] = grad @ head.weight
            grad_weight[: head.vocabulary] += grad.t() @ hidden[rows]
            if grad_bias is not None:
                grad_bias[: head.vocabulary] += grad.sum(0)
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        ctx.weight_dtype = weight.dtype
        ctx.mark_non_differentiable(terms)
        return total, terms

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> Any:
        grad_hidden, grad_weight, grad_bias = ctx.saved_tensors
        scaled_bias = None if grad_bias is None else (upstream * grad_bias).to(ctx.weight_dtype)
        return (
            (upstream * grad_hidden).to(grad_hidden.dtype),
            (upstream * grad_weight).to(ctx.weight_dtype),
            scaled_bias,
            None,
            None,
            None,
            None,
            None,
            None,
        )


def _chunk(
    head: Head,
    hidden: Tensor,
    teacher_products: Tensor | None,
    teacher_head: Head | None,
    labels: Tensor,
    settings: Settings,
    measures: dict[str, Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """(weighted loss, term sums (K,), gradient (n, V) with respect to the raw products) of one chunk."""
    products = head.project(hidden).detach().requires_grad_()
    function = _function(_chunk_loss, settings.compiled)
    with torch.enable_grad():
        loss, sums = function(
            settings.objective,
            head,
            teacher_head,
            products,
            teacher_products,
            labels,
            settings.weights,
            settings.temperatures,
        )
        (grad,) = torch.autograd.grad(loss, products)
    if settings.measure:
        teacher = None if teacher_products is None or teacher_head is None else teacher_head.finish(teacher_products)
        _add(measures, _function(measure_sums, settings.compiled)(head.finish(products.detach()), teacher, labels))
    return loss.detach(), sums.detach(), grad


def _chunk_loss(
    objective: Objective,
    head: Head,
    teacher_head: Head | None,
    products: Tensor,
    teacher_products: Tensor | None,
    labels: Tensor,
    weights: Tensor,
    temperatures: Tensor,
) -> tuple[Tensor, Tensor]:
    teacher = None if teacher_products is None or teacher_head is None else teacher_head.finish(teacher_products)
    sums = term_sums(objective, head.finish(products), teacher, labels, temperatures)
    return (weights * sums).sum(), sums


@functools.cache
def _function(function: Callable[..., Any], compiled: bool) -> Callable[..., Any]:
    return torch.compile(function, dynamic=True) if compiled else function


def can_compile(device: torch.device) -> bool:
    """Whether this machine can compile element-wise code: a C++ compiler for the CPU, Triton for CUDA."""
    if device.type == "cpu":
        return shutil.which(os.environ.get("CXX") or "g++") is not None or shutil.which("clang++") is not None
    from torch.utils._triton import has_triton

    return bool(has_triton())
