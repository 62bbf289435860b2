"""The objective from hidden states, a chunk of tokens at a time, its gradient formed in the same pass.

One student projection and one teacher projection per chunk serve every term; a sparse teacher needs none. No
(tokens, vocabulary) tensor outlives its chunk, so peak memory does not grow with the sequence.
"""

import functools
import math
import os
import shutil
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from distill_lit.losses.lm_head import LMHead
from distill_lit.losses.mixture import mix_chunk
from distill_lit.losses.objective import FeatureTerm, Objective, check_teacher_supports_objective
from distill_lit.losses.reduction import TokenLogits, metric_denominator, term_sums
from distill_lit.losses.targets import (
    CrossTokenizerTarget,
    DenseTarget,
    MixtureTarget,
    SpanTarget,
    SparseTarget,
    TeacherTarget,
    slice_target,
    target_form,
)
from distill_lit.utils.exceptions import UserError


class LossOutput(NamedTuple):
    """total: scalar to minimise, per token; term_sums: (K,) unweighted sums over tokens; metric_sums: sums over tokens;
    num_tokens: how many supervised tokens there were."""

    total: Tensor
    term_sums: Tensor
    metric_sums: dict[str, Tensor]
    num_tokens: int

    def metric_means(self) -> dict[str, tuple[Tensor, Tensor]]:
        """{metric: (its mean, over how many of the tokens)}; a mean over none is 0."""
        every = self.term_sums.new_tensor(self.num_tokens)
        counts = {name: self.metric_sums.get(metric_denominator(name), every) for name in self.metric_sums}
        return {name: (total / counts[name].clamp(min=1), counts[name]) for name, total in self.metric_sums.items()}


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
    compute_metrics: bool


def distillation_loss(
    objective: Objective,
    student_logits: Tensor,
    teacher_logits: Tensor | SparseTarget | SpanTarget | None,
    labels: Tensor,
    *,
    denominator: Tensor,
    on_policy_mask: Tensor | None = None,
    progress: float = 0.0,
    compute_metrics: bool = False,
) -> LossOutput:
    """The reference: the same losses from whole logits (N, V), differentiated by autograd. See
    `fused_linear_loss`."""
    _check(objective, teacher_logits, on_policy_mask)
    weights, temperatures = _factors(objective, progress, denominator, student_logits)
    sums, measures = term_sums(
        objective, TokenLogits(student_logits, teacher_logits, labels, on_policy_mask), temperatures, compute_metrics
    )
    return LossOutput((weights * sums).sum(), sums.detach(), measures, len(labels))


def fused_linear_loss(
    objective: Objective,
    hidden_states: Tensor,
    lm_head: LMHead,
    target: TeacherTarget | None,
    labels: Tensor,
    *,
    denominator: Tensor,
    on_policy_mask: Tensor | None = None,
    progress: float = 0.0,
    chunk_size: int = 256,
    compiled: bool = False,
    compute_metrics: bool = False,
) -> LossOutput:
    """The objective over N supervised tokens from hidden states.

    hidden_states: (N, D); target: the teacher's distribution at the same tokens, None for objectives without a teacher;
    labels: (N,) ids of the predicted tokens; denominator: scalar, supervised tokens of the whole optimizer step;
    on_policy_mask: (N,) bool, whether the student wrote the text, for losses that ask; progress: share of training that is
    over, for schedules; chunk_size: tokens per pass; compiled: compile the element-wise part. Gradients reach
    `hidden_states`, `lm_head.weight` and `lm_head.bias`; a second derivative is refused. Raises UserError where a term
    cannot read the target.
    """
    _check(objective, target, on_policy_mask)
    weights, temperatures = _factors(objective, progress, denominator, hidden_states)
    compiled = compiled and len(labels) > 0  # nothing is not worth a compilation of its own
    context = FusedLossContext(
        objective, target, labels, on_policy_mask, weights, temperatures, chunk_size, compiled, compute_metrics
    )
    measures: dict[str, Tensor] = {}
    if not torch.is_grad_enabled():
        total, terms = _evaluate(hidden_states, lm_head.cast(hidden_states.dtype), context, measures)
    else:
        total, terms = _FusedLinearLoss.apply(hidden_states, lm_head.weight, lm_head.bias, lm_head, context, measures)
    return LossOutput(total, terms, measures, len(labels))


def _check(objective: Objective, target: TeacherTarget | SpanTarget | Tensor | None, on_policy_mask: Tensor | None) -> None:
    if target is None and objective.needs_teacher:
        term = next(term for term in objective.terms if isinstance(term, FeatureTerm) or term.needs_teacher)
        raise UserError(f"{term.key}: it compares with a teacher, and there is none")
    form = "absent" if target is None else target_form(target)
    check_teacher_supports_objective(objective, form, "this teacher", has_on_policy_mask=on_policy_mask is not None)


def _factors(objective: Objective, progress: float, denominator: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    weights, temperatures = objective.logit_weights_and_temperatures(progress)
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    as_tensor = functools.partial(torch.tensor, dtype=dtype, device=like.device)
    return as_tensor(weights) / denominator.clamp(min=1).to(like.device, dtype), as_tensor(temperatures)


class _FusedLinearLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        head: LMHead,
        context: FusedLossContext,
        measures: dict[str, Tensor],
    ) -> Any:
        dtype = context.weights.dtype
        total, terms = torch.zeros((), dtype=dtype, device=hidden.device), torch.zeros_like(context.weights)
        grad_hidden = torch.empty_like(hidden)
        # under adapters the head is frozen: its gradient would be as large as the head, and thrown away
        grad_weight = torch.zeros_like(weight, dtype=dtype) if ctx.needs_input_grad[1] else None
        grad_bias = None if bias is None else torch.zeros_like(bias, dtype=dtype)
        head = head.cast(hidden.dtype)
        for rows in _chunks(hidden.shape[0], context.chunk_size):
            loss, sums, grad = _chunk_forward_backward(head, hidden[rows], context, rows, measures)
            total, terms = total + loss, terms + sums
            grad_hidden[rows] = grad @ head.weight
            if grad_weight is not None:
                _maybe_compile(_accumulate, context.compiled)(grad_weight[: head.vocab_size], grad.t() @ hidden[rows])
            if grad_bias is not None:
                grad_bias[: head.vocab_size] += grad.sum(0, dtype=dtype)
        # not by save_for_backward: a second reference would make autograd copy what it could take
        ctx.gradients = [grad_hidden, grad_weight, grad_bias]
        ctx.formats = [hidden.dtype, weight.dtype, weight.dtype]
        ctx.mark_non_differentiable(terms)
        return total, terms

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> Any:
        if not ctx.gradients:
            raise RuntimeError("the fused losses gave their gradient away; compute them again for a second backward pass")
        gradients = []
        for gradient, dtype in zip(ctx.gradients, ctx.formats, strict=True):
            gradients.append(None if gradient is None else gradient.mul_(upstream).to(dtype))
        ctx.gradients = []
        return *gradients, None, None, None


def _chunk_forward_backward(
    head: LMHead, hidden: Tensor, context: FusedLossContext, rows: slice, measures: dict[str, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """(weighted loss, term sums (K,), gradient (n, V) with respect to the raw products) of one chunk."""
    raw_logits = head.project(hidden).detach().requires_grad_()
    with torch.enable_grad():
        loss, sums, metrics = _chunk_forward(head, raw_logits, context, rows)
        (grad,) = torch.autograd.grad(loss, raw_logits)
    _add(measures, metrics)
    return loss.detach(), sums.detach(), grad


def _evaluate(
    hidden: Tensor, head: LMHead, context: FusedLossContext, measures: dict[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """(total, term sums) without a gradient."""
    total, terms = torch.zeros_like(context.weights).sum(), torch.zeros_like(context.weights)
    for rows in _chunks(hidden.shape[0], context.chunk_size):
        loss, sums, metrics = _chunk_forward(head, head.project(hidden[rows]), context, rows)
        total, terms = total + loss, terms + sums
        _add(measures, metrics)
    return total, terms


def _chunks(count: int, chunk: int) -> Iterator[slice]:
    """As few pieces as the chunk size allows, and even ones; an empty one of nothing, so that all measures are there."""
    size = math.ceil(count / max(1, math.ceil(count / chunk)))
    return (slice(start, start + size) for start in range(0, max(count, 1), max(size, 1)))


def _add(sums: dict[str, Tensor], more: dict[str, Tensor]) -> None:
    for name, value in more.items():
        sums[name] = sums[name] + value if name in sums else value


def _chunk_forward(
    head: LMHead, raw_logits: Tensor, context: FusedLossContext, rows: slice
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Brings the teacher's part of a chunk beside the student's products, and calls the element-wise part."""
    target, teacher_head = context.target, None
    mixture_metrics: dict[str, Tensor] = {}
    if isinstance(target, MixtureTarget):
        log_q = head.scale_and_cap(raw_logits.detach()).log_softmax(-1) if context.compute_metrics else None
        mixed, mixture_metrics = mix_chunk(target, rows, context.labels[rows], log_q, raw_logits.shape[-1])
        teacher: Tensor | SparseTarget | SpanTarget | None = mixed
    elif isinstance(target, DenseTarget):
        teacher_head = target.lm_head
        teacher = teacher_head.project(target.hidden_states[rows])
    elif isinstance(target, CrossTokenizerTarget):
        teacher = target.span_target.slice_tokens(rows)
        if context.objective.reads_cross_tokenizer_logits:
            teacher_head = target.lm_head
            teacher = teacher._replace(logits=teacher_head.project(target.hidden_states[rows]))
    else:
        teacher = None if target is None else slice_target(target, rows)
    on_policy_mask = None if context.on_policy_mask is None else context.on_policy_mask[rows]
    tokens = TokenLogits(raw_logits, teacher, context.labels[rows], on_policy_mask)
    loss, sums, metrics = _maybe_compile(_chunk_loss, context.compiled)(
        context.objective, head, teacher_head, tokens, context.weights, context.temperatures, context.compute_metrics
    )
    return loss, sums, metrics | mixture_metrics


def _chunk_loss(
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


def _accumulate(total: Tensor, part: Tensor) -> None:
    """total += part, of another number format: eager code would first copy the part into that of the total."""
    total += part


@functools.cache
def _maybe_compile(function: Callable[..., Any], compiled: bool) -> Callable[..., Any]:
    if not compiled:
        return function
    # one process trains many objectives; past this limit the compiler would fall back without a word
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 256)
    return torch.compile(function, dynamic=True)


@torch.no_grad()
def label_logprobs_from_hidden(hidden_states: Tensor, lm_head: LMHead, labels: Tensor, chunk_size: int) -> Tensor:
    """The student's log-probabilities (N,) of its labels, float32, from hidden states (N, D), a chunk at a time."""
    lm_head = lm_head.cast(hidden_states.dtype)
    parts = [
        lm_head.scale_and_cap(lm_head.project(hidden_states[rows])).log_softmax(-1).gather(-1, labels[rows, None])[:, 0]
        for rows in _chunks(hidden_states.shape[0], chunk_size)
    ]
    return torch.cat(parts) if parts else hidden_states.new_zeros(0)


def can_compile(device: torch.device) -> bool:
    """Whether this machine can compile element-wise code: a C++ compiler for the CPU, Triton for CUDA."""
    if device.type == "cpu":
        return shutil.which(os.environ.get("CXX") or "g++") is not None or shutil.which("clang++") is not None
    from torch.utils._triton import has_triton

    return bool(has_triton())


def chunk_size_for_budget(
    budget_mib: float, vocab_size: int, compiled: bool, dtype: torch.dtype = torch.float32, num_teachers: int = 1
) -> int:
    """Tokens per pass of the fused head so that its (tokens, vocabulary) tensors fit the budget.

    dtype: of the products. Compiled: both products, the gradient and a spare; eager: those and about eight in float32. Of
    several teachers each has its own, and their mixture three more.
    """
    mixture = 4 * (num_teachers + 3) if num_teachers > 1 else 0
    per_element = 4 * dtype.itemsize + (0 if compiled else 8 * 4) + mixture
    return max(16, math.floor(budget_mib * 2**20 / (vocab_size * per_element)))
