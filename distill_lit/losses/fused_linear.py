"""The objective from hidden states, a chunk of tokens at a time, its gradient formed in the same pass.

One student projection and one teacher projection per chunk serve every term; a sparse teacher needs none. No
(tokens, vocabulary) tensor outlives its chunk, so peak memory does not grow with the sequence.
"""

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from distill_lit.losses.chunks import (
    FusedLossContext,
    default_chunk_size,
    differentiate_chunk,
    evaluate_chunk,
    has_kernel,
    maybe_compile,
    plan_kernel,
    split_chunks,
)
from distill_lit.losses.compatibility import check_teacher_supports_objective
from distill_lit.losses.lm_head import LMHead
from distill_lit.losses.objective import FeatureTerm, Objective
from distill_lit.losses.reduction import TokenLogits, metric_denominator, term_sums
from distill_lit.losses.targets import SpanTarget, SparseTarget, TeacherTarget, target_form
from distill_lit.utils.exceptions import UserError

# of a token's gradient before it is rounded to float16: divided by the tokens of a step it would be 0
FLOAT16_LIFT = 16.0


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


def distillation_loss(
    objective: Objective,
    student_logits: Tensor,
    teacher_logits: Tensor | SparseTarget | SpanTarget | None,
    labels: Tensor,
    *,
    denominator: Tensor | float,
    on_policy_mask: Tensor | None = None,
    progress: float = 0.0,
    compute_metrics: bool = False,
) -> LossOutput:
    """The reference: the same losses from whole logits (N, V), differentiated by autograd. See
    `fused_linear_loss`."""
    _check(objective, teacher_logits, on_policy_mask)
    weights, temperatures = _factors(objective, progress, torch.as_tensor(denominator), student_logits)
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
    denominator: Tensor | float,
    on_policy_mask: Tensor | None = None,
    progress: float = 0.0,
    chunk_size: int | None = None,
    memory_budget: float = 0.0,
    compiled: bool = False,
    kernel: bool = True,
    compute_metrics: bool = False,
) -> LossOutput:
    """The objective over N supervised tokens from hidden states.

    hidden_states: (N, D); target: the teacher's distribution at the same tokens, logits (N, V) or another target, None for
    objectives without a teacher; labels: (N,) ids of the predicted tokens; denominator: supervised tokens of the whole
    optimizer step;
    on_policy_mask: (N,) bool, whether the student wrote the text, for losses that ask; progress: share of training that is
    over, for schedules; chunk_size: tokens per pass, None: what fits memory_budget, in MiB, 0 for `hardware.logits_budget`;
    compiled: compile the element-wise part; kernel: run it in the Triton kernel on CUDA, for the losses that it knows.
    Gradients reach `hidden_states`, `lm_head.weight` and `lm_head.bias`; a second derivative is refused. Raises UserError
    where a term cannot read the target, and for a label that is none of the tokens.
    """
    _check(objective, target, on_policy_mask)
    _check_labels(labels, lm_head.vocab_size)
    denominator = torch.as_tensor(denominator)
    weights, temperatures = _factors(objective, progress, denominator, hidden_states)
    device, dtype = hidden_states.device, hidden_states.dtype
    lift = None
    if dtype == torch.float16:
        lift = FLOAT16_LIFT * denominator.clamp(min=1).to(weights)
        weights = weights * lift
    plan = plan_kernel(objective, target, weights) if kernel and has_kernel(device, dtype) else None
    compiled = compiled and len(labels) > 0  # nothing is not worth a compilation of its own
    chunk_size = chunk_size or default_chunk_size(
        device,
        lm_head.vocab_size,
        target,
        compiled=compiled,
        dtype=dtype,
        in_kernel=plan is not None,
        memory_budget=memory_budget,
    )
    context = FusedLossContext(
        objective, target, labels, on_policy_mask, weights, temperatures, chunk_size, compiled, plan, compute_metrics
    )
    measures: dict[str, Tensor] = {}
    if not torch.is_grad_enabled():
        total, terms = _evaluate(hidden_states, lm_head.cast(dtype), context, measures)
    else:
        total, terms = _FusedLinearLoss.apply(hidden_states, lm_head.weight, lm_head.bias, lm_head, context, measures)
    return LossOutput(total if lift is None else total / lift, terms, measures, len(labels))


def product_dtype(factor: Tensor) -> torch.dtype:
    """The number format of products of hidden states or of a head: autocast's where it is on, else that of the factor."""
    is_autocast = torch.is_autocast_enabled(factor.device.type)
    return torch.get_autocast_dtype(factor.device.type) if is_autocast else factor.dtype


def _check(objective: Objective, target: TeacherTarget | SpanTarget | Tensor | None, on_policy_mask: Tensor | None) -> None:
    if target is None and objective.needs_teacher:
        term = next(term for term in objective.terms if isinstance(term, FeatureTerm) or term.needs_teacher)
        raise UserError(f"{term.key}: it compares with a teacher, and there is none")
    form = "absent" if target is None else target_form(target)
    check_teacher_supports_objective(objective, form, "this teacher", has_on_policy_mask=on_policy_mask is not None)


def _check_labels(labels: Tensor, vocab_size: int) -> None:
    # compiled code and the kernel look for a label among the columns: what is in none would count as if it were certain,
    # and on CUDA a gather of it would end the process
    if not len(labels):
        return
    least, most = torch.stack(labels.aminmax()).tolist()
    if least < 0 or most >= vocab_size:
        raise UserError(
            f"labels: {least if least < 0 else most} is none of the {vocab_size} tokens that are compared (rows of the "
            "smaller lm_head, or vocab_size); -100 leaves a position out"
        )


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
        for rows in split_chunks(hidden.shape[0], context.chunk_size):
            chunk = differentiate_chunk(head, hidden[rows], context, rows)
            total, terms = total + chunk.loss, terms + chunk.term_sums
            _add(measures, chunk.metrics)
            grad = chunk.gradient
            assert grad is not None
            grad_hidden[rows] = grad @ head.weight
            if grad_weight is not None:
                _add_product(grad_weight[: head.vocab_size], grad, hidden[rows], context.compiled)
            if grad_bias is not None:
                grad_bias[: head.vocab_size] += grad.sum(0, dtype=dtype)
            del chunk, grad  # before the next chunk asks for as much
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
            if gradient is not None and gradient.dtype == torch.float16:
                gradient = gradient.float()  # the factor of a GradScaler is beyond float16
            gradients.append(None if gradient is None else gradient.mul_(upstream).to(dtype))
        ctx.gradients = []
        return *gradients, None, None, None


def _evaluate(
    hidden: Tensor, head: LMHead, context: FusedLossContext, measures: dict[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """(total, term sums) without a gradient."""
    total, terms = torch.zeros_like(context.weights).sum(), torch.zeros_like(context.weights)
    for rows in split_chunks(hidden.shape[0], context.chunk_size):
        chunk = evaluate_chunk(head, hidden[rows], context, rows)
        total, terms = total + chunk.loss, terms + chunk.term_sums
        _add(measures, chunk.metrics)
    return total, terms


def _add(sums: dict[str, Tensor], more: dict[str, Tensor]) -> None:
    for name, value in more.items():
        sums[name] = sums[name] + value if name in sums else value


def _add_product(total: Tensor, grad: Tensor, hidden: Tensor, compiled: bool) -> None:
    """total (V, D) += gradᵀ (V, n) @ hidden (n, D)."""
    if total.is_cuda and total.dtype == torch.float32 and grad.dtype in (torch.bfloat16, torch.float16):
        # in one product: no part of its own, and nothing is rounded before it is added
        torch.addmm(total, grad.t(), hidden, out_dtype=torch.float32, out=total)
    else:
        if grad.dtype == torch.float16:  # whose sums over tokens would be infinite
            grad, hidden = grad.float(), hidden.float()
        maybe_compile(_accumulate, compiled)(total, grad.t() @ hidden)


def _accumulate(total: Tensor, part: Tensor) -> None:
    """total += part, of another number format: eager code would first copy the part into that of the total."""
    total += part


@torch.no_grad()
def label_logprobs_from_hidden(hidden_states: Tensor, lm_head: LMHead, labels: Tensor, chunk_size: int | None) -> Tensor:
    """The student's log-probabilities (N,) of its labels, float32, from hidden states (N, D), a chunk at a time; chunk_size
    as of `fused_linear_loss`."""
    device, dtype = hidden_states.device, hidden_states.dtype
    lm_head = lm_head.cast(dtype)
    chunk_size = chunk_size or default_chunk_size(
        device, lm_head.vocab_size, None, compiled=False, dtype=dtype, in_kernel=False
    )
    parts = [
        lm_head.scale_and_cap(lm_head.project(hidden_states[rows])).log_softmax(-1).gather(-1, labels[rows, None])[:, 0]
        for rows in split_chunks(hidden_states.shape[0], chunk_size)
    ]
    return torch.cat(parts) if parts else hidden_states.new_zeros(0)
