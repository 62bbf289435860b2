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

from distill_lit.losses.lm_head import Head
from distill_lit.losses.objective import Objective, check_signal
from distill_lit.losses.reduction import COUNTED_BY, Tokens, term_sums
from distill_lit.losses.targets import DenseTarget, Foreign, ForeignTarget, Sparse, Target, form_of, rows_of
from distill_lit.utils.exceptions import UserError


class Losses(NamedTuple):
    """total: scalar to minimise, per token; terms: (K,) unweighted sums over tokens; measures: sums over tokens."""

    total: Tensor
    terms: Tensor
    measures: dict[str, Tensor]

    def means(self, tokens: int) -> dict[str, tuple[Tensor, Tensor]]:
        """{measure: (its mean, over how many of the `tokens` tokens)}; a mean over none is 0."""
        every = self.terms.new_tensor(tokens)
        counts = {name: self.measures.get(COUNTED_BY.get(name, ""), every) for name in self.measures}
        return {name: (total / counts[name].clamp(min=1), counts[name]) for name, total in self.measures.items()}


class Pass(NamedTuple):
    """What one pass over the tokens reads besides the student: the same for every chunk, or cut into chunks."""

    objective: Objective
    target: Target | None
    labels: Tensor
    by_student: Tensor | None
    weights: Tensor  # (K,) with T^power where it applies, divided by the step's denominator
    temperatures: Tensor  # (K,)
    chunk: int
    compiled: bool
    measure: bool


def plain_losses(
    objective: Objective,
    student: Tensor,
    teacher: Tensor | Sparse | Foreign | None,
    labels: Tensor,
    *,
    denominator: Tensor,
    by_student: Tensor | None = None,
    done: float = 0.0,
    measure: bool = False,
) -> Losses:
    """The reference: the same losses from whole logits (N, V), differentiated by autograd. See `fused_losses`."""
    _check(objective, teacher, by_student)
    weights, temperatures = _factors(objective, done, denominator, student)
    sums, measures = term_sums(objective, Tokens(student, teacher, labels, by_student), temperatures, measure)
    return Losses((weights * sums).sum(), sums.detach(), measures)


def fused_losses(
    objective: Objective,
    hidden: Tensor,
    head: Head,
    target: Target | None,
    labels: Tensor,
    *,
    denominator: Tensor,
    by_student: Tensor | None = None,
    done: float = 0.0,
    chunk: int = 256,
    compiled: bool = False,
    measure: bool = False,
) -> Losses:
    """The objective over N supervised tokens from hidden states.

    hidden: (N, D); target: what the teacher says of the same tokens, None for objectives without a teacher; labels: (N,)
    ids of the predicted tokens; denominator: scalar, supervised tokens of the whole optimizer step; by_student: (N,) bool,
    whether the student wrote the text, for losses that ask; done: share of training that is over, for schedules; chunk:
    tokens per pass; compiled: compile the element-wise part. Gradients reach `hidden`, `head.weight` and `head.bias`; a
    second derivative is refused. Raises UserError where a term cannot read the target.
    """
    _check(objective, target, by_student)
    weights, temperatures = _factors(objective, done, denominator, hidden)
    compiled = compiled and len(labels) > 0  # nothing is not worth a compilation of its own
    plan = Pass(objective, target, labels, by_student, weights, temperatures, chunk, compiled, measure)
    measures: dict[str, Tensor] = {}
    if not torch.is_grad_enabled():
        total, terms = _evaluate(hidden, head.cast(hidden.dtype), plan, measures)
    else:
        total, terms = _FusedLosses.apply(hidden, head.weight, head.bias, head, plan, measures)
    return Losses(total, terms, measures)


def _check(objective: Objective, target: Target | Foreign | Tensor | None, by_student: Tensor | None) -> None:
    if target is None and objective.needs_teacher:
        raise UserError("objective: a term compares with the teacher, and there is no teacher signal")
    form = "absent" if target is None else form_of(target)
    check_signal(objective, form, "this signal", tells_author=by_student is not None)


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
        plan: Pass,
        measures: dict[str, Tensor],
    ) -> Any:
        number = plan.weights.dtype
        total, terms = torch.zeros((), dtype=number, device=hidden.device), torch.zeros_like(plan.weights)
        grad_hidden = torch.empty_like(hidden)
        # under adapters the head is frozen: its gradient would be as large as the head, and thrown away
        grad_weight = torch.zeros_like(weight, dtype=number) if ctx.needs_input_grad[1] else None
        grad_bias = None if bias is None else torch.zeros_like(bias, dtype=number)
        head = head.cast(hidden.dtype)
        for rows in _chunks(hidden.shape[0], plan.chunk):
            loss, sums, grad = _chunk(head, hidden[rows], plan, rows, measures)
            total, terms = total + loss, terms + sums
            grad_hidden[rows] = grad @ head.weight
            if grad_weight is not None:
                _function(_accumulate, plan.compiled)(grad_weight[: head.vocabulary], grad.t() @ hidden[rows])
            if grad_bias is not None:
                grad_bias[: head.vocabulary] += grad.sum(0, dtype=number)
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


def _chunk(
    head: Head, hidden: Tensor, plan: Pass, rows: slice, measures: dict[str, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """(weighted loss, term sums (K,), gradient (n, V) with respect to the raw products) of one chunk."""
    products = head.project(hidden).detach().requires_grad_()
    with torch.enable_grad():
        loss, sums, measured = _run(head, products, plan, rows)
        (grad,) = torch.autograd.grad(loss, products)
    _add(measures, measured)
    return loss.detach(), sums.detach(), grad


def _evaluate(hidden: Tensor, head: Head, plan: Pass, measures: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """(total, term sums) without a gradient."""
    total, terms = torch.zeros_like(plan.weights).sum(), torch.zeros_like(plan.weights)
    for rows in _chunks(hidden.shape[0], plan.chunk):
        loss, sums, measured = _run(head, head.project(hidden[rows]), plan, rows)
        total, terms = total + loss, terms + sums
        _add(measures, measured)
    return total, terms


def _chunks(count: int, chunk: int) -> Iterator[slice]:
    """As few pieces as the chunk size allows, and even ones; an empty one of nothing, so that all measures are there."""
    size = math.ceil(count / max(1, math.ceil(count / chunk)))
    return (slice(start, start + size) for start in range(0, max(count, 1), max(size, 1)))


def _add(sums: dict[str, Tensor], more: dict[str, Tensor]) -> None:
    for name, value in more.items():
        sums[name] = sums[name] + value if name in sums else value


def _run(head: Head, products: Tensor, plan: Pass, rows: slice) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Brings the teacher's part of a chunk beside the student's products, and calls the element-wise part."""
    target, teacher_head = plan.target, None
    if isinstance(target, DenseTarget):
        teacher_head = target.head
        teacher: Tensor | Sparse | Foreign | None = teacher_head.project(target.hidden[rows])
    elif isinstance(target, ForeignTarget):
        teacher = target.said.rows(rows)
        if plan.objective.reads_foreign_logits:
            teacher_head = target.head
            teacher = teacher._replace(logits=teacher_head.project(target.hidden[rows]))
    else:
        teacher = None if target is None else rows_of(target, rows)
    by_student = None if plan.by_student is None else plan.by_student[rows]
    tokens = Tokens(products, teacher, plan.labels[rows], by_student)
    found: tuple[Tensor, Tensor, dict[str, Tensor]] = _function(_chunk_loss, plan.compiled)(
        plan.objective, head, teacher_head, tokens, plan.weights, plan.temperatures, plan.measure
    )
    return found


def _chunk_loss(
    objective: Objective,
    head: Head,
    teacher_head: Head | None,
    tokens: Tokens,
    weights: Tensor,
    temperatures: Tensor,
    measure: bool,
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """(weighted loss, term sums (K,), measures) of tokens whose logits are still raw products."""
    if teacher_head is not None and isinstance(tokens.teacher, Tensor):
        tokens = tokens._replace(teacher=teacher_head.finish(tokens.teacher))
    if teacher_head is not None and isinstance(tokens.teacher, Foreign) and tokens.teacher.logits is not None:
        tokens = tokens._replace(teacher=tokens.teacher._replace(logits=teacher_head.finish(tokens.teacher.logits)))
    tokens = tokens._replace(student=head.finish(tokens.student))
    sums, measures = term_sums(objective, tokens, temperatures, measure)
    return (weights * sums).sum(), sums, measures


def _accumulate(total: Tensor, part: Tensor) -> None:
    """total += part, of another number format: eager code would first copy the part into that of the total."""
    total += part


@functools.cache
def _function(function: Callable[..., Any], compiled: bool) -> Callable[..., Any]:
    if not compiled:
        return function
    # one process trains many objectives; past this limit the compiler would fall back without a word
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 256)
    return torch.compile(function, dynamic=True)


@torch.no_grad()
def label_log_probs(hidden: Tensor, head: Head, labels: Tensor, chunk: int) -> Tensor:
    """The student's log-probabilities (N,) of its labels, float32, from hidden states (N, D), a chunk at a time."""
    head = head.cast(hidden.dtype)
    parts = [
        head.finish(head.project(hidden[rows])).log_softmax(-1).gather(-1, labels[rows, None])[:, 0]
        for rows in _chunks(hidden.shape[0], chunk)
    ]
    return torch.cat(parts) if parts else hidden.new_zeros(0)


def can_compile(device: torch.device) -> bool:
    """Whether this machine can compile element-wise code: a C++ compiler for the CPU, Triton for CUDA."""
    if device.type == "cpu":
        return shutil.which(os.environ.get("CXX") or "g++") is not None or shutil.which("clang++") is not None
    from torch.utils._triton import has_triton

    return bool(has_triton())


def chunk_for(budget_mebibytes: float, vocabulary: int, compiled: bool, dtype: torch.dtype = torch.float32) -> int:
    """Tokens per pass of the fused head so that its (tokens, vocabulary) tensors fit the budget.

    dtype: of the products. Compiled: both products, the gradient and a spare; eager: those and about eight in float32.
    """
    per_element = 4 * dtype.itemsize + (0 if compiled else 8 * 4)
    return max(16, math.floor(budget_mebibytes * 2**20 / (vocabulary * per_element)))
