"""Sums over tokens of every term and of what is watched, from logits: each softmax once, whoever reads it."""

from typing import NamedTuple

import torch
from torch import Tensor

from distill_lit.losses.divergences import entropy, forward_kl, reverse_kl
from distill_lit.losses.objective import Objective, Term
from distill_lit.losses.sparse import gather_label_logprobs, teacher_label_logprobs
from distill_lit.losses.targets import SampledTarget, SpanTarget, SparseTarget, TopKTarget

# measures of some of the tokens, and the measure that counts these where there is one
METRIC_DENOMINATORS = {"teacher_nll": "in_spans", "student_span_nll": "in_spans", "own_reverse_kl": "on_policy_mask",
                       "engine_gap": "engine_tokens", "importance_ratio": "engine_tokens"}  # fmt: skip
MAX_LOG_RATIO = 20.0


def metric_denominator(name: str) -> str:
    """The measure that counts the tokens which a measure is about; empty for all tokens."""
    kind, _, teacher = name.partition("/")  # of a mixture: teacher_kl/<name of a teacher>
    return f"scored_by/{teacher}" if teacher and kind == "teacher_kl" else METRIC_DENOMINATORS.get(name, "")


class TokenLogits(NamedTuple):
    """N predicted tokens. student_logits: logits (N, V) in float32 or float64; teacher_logits: logits (N, V), a sparse
    target, or None; labels: (N,) ids; on_policy_mask: (N,) bool, whether the student wrote the text, or None where nobody
    says."""

    student_logits: Tensor
    teacher_logits: Tensor | SparseTarget | SpanTarget | None
    labels: Tensor
    on_policy_mask: Tensor | None = None


class LossInputs(NamedTuple):
    """What losses read of some tokens at one temperature: log_q (N, V), and the teacher's log-probabilities or k tokens."""

    log_q: Tensor
    teacher: Tensor | SparseTarget | SpanTarget | None
    labels: Tensor
    on_policy_mask: Tensor | None
    student_logits: Tensor
    teacher_logits: Tensor | SparseTarget | SpanTarget | None


def term_sums(
    objective: Objective, logits: TokenLogits, temperatures: Tensor, compute_metrics: bool = False
) -> tuple[Tensor, dict[str, Tensor]]:
    """((K,) sums over tokens of the K terms, unweighted, in the unit of each; {measure: sum over tokens}, or {}).

    temperatures: (K,), read where a term has one.
    """
    inputs_by_temperature: dict[object, LossInputs] = {}  # by the temperature's schedule, None for T = 1

    def get_inputs(term: Term | None, index: int) -> LossInputs:
        key = term.temperature if term is not None and term.uses_temperature else None
        if key not in inputs_by_temperature:
            inputs_by_temperature[key] = apply_temperature(logits, None if key is None else temperatures[index])
        return inputs_by_temperature[key]

    sums = [
        term.loss_spec.function(
            *(getattr(get_inputs(term, i), name) for name in term.loss_spec.inputs), **term.options
        ).sum()
        for i, term in enumerate(objective.logit_terms)
    ]
    with torch.no_grad():
        measures = compute_metric_sums(get_inputs(None, 0)) if compute_metrics else {}
    return torch.stack(sums) if sums else logits.student_logits.new_zeros(0), measures


def apply_temperature(logits: TokenLogits, temperature: Tensor | None) -> LossInputs:
    """What losses read at a temperature; None: 1."""
    student, teacher = logits.student_logits, logits.teacher_logits
    if temperature is not None:
        student = student / temperature
        if isinstance(teacher, Tensor):
            teacher = teacher / temperature
        elif isinstance(teacher, TopKTarget):
            teacher = teacher._replace(logprobs=teacher.logprobs / temperature)
    if isinstance(teacher, Tensor):
        teacher = teacher.log_softmax(-1)
    return LossInputs(
        student.log_softmax(-1), teacher, logits.labels, logits.on_policy_mask, logits.student_logits, logits.teacher_logits
    )


def compute_metric_sums(inputs: LossInputs) -> dict[str, Tensor]:
    """Sums over tokens of what is watched and not trained on, at T = 1, in nats; agreement counts equal best tokens, and
    draft_acceptance is Σ min(p, q) over the vocabulary: the probability that the teacher, verifying what the student
    drafts, accepts a token (Leviathan et al. 2211.17192, corollary 3.6).

    Of a sparse teacher only what it can tell. The teacher's own NLL shows whether it fits the data at all; of a teacher
    with another tokenizer it is known in spans only, and so is the student's that is comparable with it. Where it is said
    who wrote the text, the reverse KL on the student's own is measured too, from whole distributions.
    """
    log_q, teacher, labels = inputs.log_q, inputs.teacher, inputs.labels
    sums = {"student_nll": -gather_label_logprobs(log_q, labels).sum(), "student_entropy": entropy(log_q).sum()}
    if teacher is None:
        return sums
    sums["teacher_nll"] = -teacher_label_logprobs(teacher, labels).sum()
    if isinstance(teacher, SpanTarget):
        in_span = teacher.span_length > 0
        sums["student_span_nll"] = -torch.where(in_span, gather_label_logprobs(log_q, labels), 0.0).sum()
        sums["in_spans"] = in_span.sum().to(log_q.dtype)
    if isinstance(teacher, Tensor):
        sums["teacher_entropy"] = entropy(teacher).sum()
        sums["teacher_kl"] = forward_kl(log_q, teacher).sum()
        sums["draft_acceptance"] = torch.minimum(log_q, teacher).exp().sum()
    if isinstance(teacher, Tensor) and inputs.on_policy_mask is not None:
        sums["own_reverse_kl"] = torch.where(inputs.on_policy_mask, reverse_kl(log_q, teacher), 0.0).sum()
        sums["on_policy_mask"] = inputs.on_policy_mask.sum().to(log_q.dtype)
    if not isinstance(teacher, (SampledTarget, SpanTarget)):
        teacher_top1 = teacher.ids[:, 0] if isinstance(teacher, TopKTarget) else teacher.argmax(-1)
        sums["agreement"] = (log_q.argmax(-1) == teacher_top1).sum().to(log_q.dtype)
    return sums


def engine_gap_sums(logprobs: Tensor, engine_logprobs: Tensor) -> dict[str, Tensor]:
    """How another engine that wrote a text differs from the model that learns from it: sums over its tokens of |log q −
    log q_engine| (`engine_gap`), in nats, and of q / q_engine (`importance_ratio`), whose mean over drawn tokens is 1 where
    both are one distribution; and how many tokens they are.

    logprobs, engine_logprobs: (N,) of both for the same tokens, the engine's NaN where it did not write them.
    """
    known = ~engine_logprobs.isnan()
    log_ratio = (logprobs - engine_logprobs)[known]
    return {
        "engine_gap": log_ratio.abs().sum(),
        "importance_ratio": log_ratio.clamp(max=MAX_LOG_RATIO).exp().sum(),
        "engine_tokens": known.sum().to(logprobs.dtype),
    }
