"""The objective of one chunk of tokens, and its gradient with respect to the student's products.

The element-wise part runs in one of three ways: plain PyTorch; compiled by inductor; or, on CUDA and for the losses it
knows, a Triton kernel, which needs the two tiles of products and nothing else of that size.
"""

import functools
import math
import os
import shutil
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from distill_lit.losses.kernels.terms import KernelTerms, kernel_terms
from distill_lit.losses.lm_head import LMHead
from distill_lit.losses.mixture import mix_chunk
from distill_lit.losses.objective import Objective
from distill_lit.losses.reduction import TokenLogits, term_sums
from distill_lit.losses.targets import (
    CrossTokenizerTarget,
    DenseTarget,
    MixtureTarget,
    SpanTarget,
    SparseTarget,
    TeacherTarget,
    slice_target,
)
from distill_lit.utils import hardware

TILE_ALIGNMENT = 16  # columns to which the rows of the kernel's tiles are filled up, so that threads read 16 bytes at once


class KernelPlan(NamedTuple):
    """terms: what the kernel computes; coefficients: (K, parts), how much of each part a term is; weights: (parts,), what
    each part counts in the loss."""

    terms: KernelTerms
    coefficients: Tensor
    weights: Tensor


class FusedLossContext(NamedTuple):
    """What one pass over the tokens reads besides the student: the same for every chunk, or cut into chunks."""

    objective: Objective
    target: TeacherTarget | None
    labels: Tensor
    on_policy_mask: Tensor | None
    weights: Tensor  # (K,) with T^power where it applies, divided by the step's denominator
    temperatures: Tensor  # (K,)
    chunk_size: int
    compiled: bool
    kernel: KernelPlan | None
    compute_metrics: bool


class ChunkLoss(NamedTuple):
    """loss: weighted, a scalar; term_sums: (K,); metrics: sums over the tokens; gradient: (n, V) with respect to the
    student's products, None where none was asked for."""

    loss: Tensor
    term_sums: Tensor
    metrics: dict[str, Tensor]
    gradient: Tensor | None


def plan_kernel(objective: Objective, target: TeacherTarget | None, weights: Tensor) -> KernelPlan | None:
    """How the kernel computes the objective; None where it cannot, or cannot read the target. weights: (K,)."""
    terms = kernel_terms(objective)
    if terms is None or not isinstance(target, (DenseTarget, MixtureTarget, type(None))):
        return None
    coefficients = torch.tensor(terms.coefficients, dtype=weights.dtype, device=weights.device)
    return KernelPlan(terms, coefficients, (weights[:, None] * coefficients).sum(0))


def has_kernel(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the element-wise part can run in the Triton kernel: on CUDA with Triton, in float32 or less."""
    return device.type == "cuda" and dtype != torch.float64 and can_compile(device)


def differentiate_chunk(head: LMHead, hidden: Tensor, context: FusedLossContext, rows: slice) -> ChunkLoss:
    """The loss of some tokens with its gradient. hidden: (n, D) of these; grad mode is off."""
    if context.kernel is not None:
        return _run_kernel(context.kernel, head, hidden, context, rows, has_gradient=True)
    products = head.project(hidden).detach().requires_grad_()
    with torch.enable_grad():
        chunk = _compute(head, products, context, rows)
        (gradient,) = torch.autograd.grad(chunk.loss, products)
    return chunk._replace(loss=chunk.loss.detach(), term_sums=chunk.term_sums.detach(), gradient=gradient)


def evaluate_chunk(head: LMHead, hidden: Tensor, context: FusedLossContext, rows: slice) -> ChunkLoss:
    """The loss of some tokens, hidden: (n, D); grad mode is off."""
    if context.kernel is not None:
        return _run_kernel(context.kernel, head, hidden, context, rows, has_gradient=False)
    return _compute(head, head.project(hidden), context, rows)


def split_chunks(count: int, chunk: int) -> Iterator[slice]:
    """As few pieces as the chunk size allows, and even ones; an empty one of nothing, so that all measures are there."""
    size = math.ceil(count / max(1, math.ceil(count / chunk)))
    return (slice(start, start + size) for start in range(0, max(count, 1), max(size, 1)))


# ---------------------------------------------------------------- in Triton


def _run_kernel(
    plan: KernelPlan, head: LMHead, hidden: Tensor, context: FusedLossContext, rows: slice, has_gradient: bool
) -> ChunkLoss:
    from distill_lit.losses.kernels.losses import kernel_losses
    from distill_lit.losses.kernels.metrics import kernel_metric_sums
    from distill_lit.losses.kernels.rows import Products

    labels = context.labels[rows]
    on_policy_mask = None if context.on_policy_mask is None else context.on_policy_mask[rows]
    student = Products(_project_into_tile(head, hidden), head.scale, head.softcap)
    teacher: Products | None = None
    metrics: dict[str, Tensor] = {}
    if isinstance(context.target, MixtureTarget):
        log_q = head.scale_and_cap(student.tile).log_softmax(-1) if context.compute_metrics else None
        mixed, metrics = mix_chunk(context.target, rows, labels, log_q, head.vocab_size)
        teacher = Products(mixed)
    elif isinstance(context.target, DenseTarget) and (plan.terms.needs_teacher or context.compute_metrics):
        other = context.target.lm_head
        teacher = Products(_project_into_tile(other, context.target.hidden_states[rows]), other.scale, other.softcap)
    if context.compute_metrics:  # before the gradient takes the place of the products
        metrics = kernel_metric_sums(student, teacher, labels, on_policy_mask) | metrics
    parts = kernel_losses(
        plan.terms,
        student,
        teacher,
        labels,
        on_policy_mask,
        plan.weights,
        context.temperatures,
        has_gradient=has_gradient,
    )
    sums = (plan.coefficients * parts).sum(-1)
    return ChunkLoss((context.weights * sums).sum(), sums, metrics, student.tile if has_gradient else None)


def _project_into_tile(head: LMHead, hidden: Tensor) -> Tensor:
    """Raw products (n, V) in rows that begin where 16 bytes do."""
    width = math.ceil(head.vocab_size / TILE_ALIGNMENT) * TILE_ALIGNMENT
    tile = torch.empty(len(hidden), width, dtype=hidden.dtype, device=hidden.device)[:, : head.vocab_size]
    return head.project(hidden, out=tile)


# ---------------------------------------------------------------- in PyTorch


def _compute(head: LMHead, products: Tensor, context: FusedLossContext, rows: slice) -> ChunkLoss:
    """Brings the teacher's part of a chunk beside the student's products, and calls the element-wise part."""
    target, teacher_head = context.target, None
    mixture_metrics: dict[str, Tensor] = {}
    if isinstance(target, MixtureTarget):
        log_q = head.scale_and_cap(products.detach()).log_softmax(-1) if context.compute_metrics else None
        mixed, mixture_metrics = mix_chunk(target, rows, context.labels[rows], log_q, products.shape[-1])
        teacher: Tensor | SparseTarget | SpanTarget | None = mixed
    elif isinstance(target, DenseTarget):
        teacher_head = target.lm_head
        teacher = teacher_head.project(target.hidden_states[rows])
    elif isinstance(target, CrossTokenizerTarget):
        teacher = target.span_target.slice_tokens(rows)
        if context.objective.reads_cross_tokenizer_logits:
            teacher_head = target.lm_head
            teacher = teacher._replace(logits=teacher_head.project(target.hidden_states[rows]))
    elif isinstance(target, Tensor):
        dtype = torch.float64 if target.dtype == torch.float64 else torch.float32
        teacher = target[rows].detach().to(dtype, copy=True)  # autograd refuses what was made in inference mode
    else:
        teacher = None if target is None else slice_target(target, rows)
    on_policy_mask = None if context.on_policy_mask is None else context.on_policy_mask[rows]
    tokens = TokenLogits(products, teacher, context.labels[rows], on_policy_mask)
    loss, sums, metrics = maybe_compile(_element_wise, context.compiled)(
        context.objective, head, teacher_head, tokens, context.weights, context.temperatures, context.compute_metrics
    )
    return ChunkLoss(loss, sums, metrics | mixture_metrics, None)


def _element_wise(
    objective: Objective,
    head: LMHead,
    teacher_head: LMHead | None,
    tokens: TokenLogits,
    weights: Tensor,
    temperatures: Tensor,
    compute_metrics: bool,
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """(weighted loss, term sums (K,), measures) of tokens whose logits are still raw products."""
    if teacher_head is not None and isinstance(tokens.teacher_logits, Tensor):
        tokens = tokens._replace(teacher_logits=teacher_head.scale_and_cap(tokens.teacher_logits))
    if (
        teacher_head is not None
        and isinstance(tokens.teacher_logits, SpanTarget)
        and tokens.teacher_logits.logits is not None
    ):
        tokens = tokens._replace(
            teacher_logits=tokens.teacher_logits._replace(logits=teacher_head.scale_and_cap(tokens.teacher_logits.logits))
        )
    tokens = tokens._replace(student_logits=head.scale_and_cap(tokens.student_logits))
    sums, measures = term_sums(objective, tokens, temperatures, compute_metrics)
    return (weights * sums).sum(), sums, measures


@functools.cache
def maybe_compile(function: Callable[..., Any], compiled: bool) -> Callable[..., Any]:
    """The function itself, or compiled for any number of tokens."""
    if not compiled:
        return function
    # one process trains many objectives; past this limit the compiler would fall back without a word
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 256)
    return torch.compile(function, dynamic=True)


# ---------------------------------------------------------------- sizes


def can_compile(device: torch.device) -> bool:
    """Whether this machine can compile element-wise code: a C++ compiler for the CPU, Triton for CUDA."""
    if device.type == "cpu":
        return shutil.which(os.environ.get("CXX") or "g++") is not None or shutil.which("clang++") is not None
    from torch.utils._triton import has_triton

    return bool(has_triton())


def chunk_size_for_budget(
    budget_mib: float,
    vocab_size: int,
    compiled: bool,
    dtype: torch.dtype = torch.float32,
    num_teachers: int = 1,
    in_kernel: bool = False,
) -> int:
    """Tokens per pass of the fused head so that its (tokens, vocabulary) tensors fit the budget.

    dtype: of the products. In the kernel: both products; compiled: those, the gradient and a spare; eager: those and about
    eight in float32. Of several teachers each has its own, and their mixture three more.
    """
    mixture = 4 * (num_teachers + 3) if num_teachers > 1 else 0
    tiles = 2 * dtype.itemsize if in_kernel else 4 * dtype.itemsize + (0 if compiled else 8 * 4)
    return max(16, math.floor(budget_mib * 2**20 / (vocab_size * (tiles + mixture))))


def default_chunk_size(
    device: torch.device,
    vocab_size: int,
    target: TeacherTarget | None,
    *,
    compiled: bool,
    dtype: torch.dtype,
    in_kernel: bool,
    memory_budget: float = 0.0,
) -> int:
    """Tokens per pass for a budget in MiB, 0 for `hardware.logits_budget`."""
    budget = memory_budget or hardware.logits_budget(device, in_kernel)
    num_teachers = len(target.names) if isinstance(target, MixtureTarget) else 1
    if isinstance(target, CrossTokenizerTarget):
        vocab_size = max(vocab_size, target.lm_head.vocab_size)
    return chunk_size_for_budget(budget, vocab_size, compiled, dtype, num_teachers, in_kernel)
