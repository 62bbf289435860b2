"""Losses for a teacher with another tokenizer: they never compare two tokens by their numbers."""

import torch
from torch import Tensor

from distill_lit.losses.sparse import gather_label_logprobs
from distill_lit.losses.targets import SpanTarget


def uld(log_q: Tensor, teacher: SpanTarget, k: int = 0) -> Tensor:
    """Σ |p₍ᵢ₎ − q₍ᵢ₎| of the sorted probabilities. Boizard et al. 2024 (ULD), 2402.12030 eq. 6.

    Universal logit distillation, a Wasserstein distance. log_q: (N, V). Only where both have read the same bytes, 0
    elsewhere: there alone do the two predict the same thing. The paper compares the t-th tokens of both instead. k: largest
    probabilities compared, the others in one sum; 0: all. Returns (N,), no nats.
    """
    assert teacher.logits is not None
    width = max(log_q.shape[-1], teacher.logits.shape[-1])
    count = min(k or width, log_q.shape[-1], teacher.logits.shape[-1]) if k else width
    q, p = _largest(log_q.exp(), count), _largest(teacher.logits.softmax(-1), count)
    distance = (p - q).abs().sum(-1) + (p.sum(-1) - q.sum(-1)).abs()
    return torch.where(teacher.same_prefix, distance, 0.0)


def alm(log_q: Tensor, teacher: SpanTarget, labels: Tensor, tau: float = 1.0) -> Tensor:
    """KL of whether a span of bytes follows or not. Minixhofer et al. 2025 (ALM), 2503.20083 §3.

    Approximate likelihood matching: the KL between teacher and student of (p^(1/τ), 1 − p^(1/τ)), p the probability of the
    span, a product over its tokens in each tokenizer. log_q: (N, V), labels: (N,). τ above 1 keeps long, improbable spans
    apart. The loss of a span is shared out evenly over the student's tokens in it; its gradient reaches each of them as if
    all were differentiated together. Returns (N,) nats, 0 for tokens in no span.
    """
    label_logprobs = gather_label_logprobs(log_q, labels)
    # the other tokens of the span enter as numbers; this one brings the gradient
    student_span_logprob = teacher.student_span_logprob + label_logprobs - label_logprobs.detach()
    span_kl = _binary_kl(teacher.teacher_span_logprob / tau, student_span_logprob / tau)
    token_share = span_kl - (1 - 1 / teacher.span_length.clamp(min=1)) * span_kl.detach()
    return torch.where(teacher.span_length > 0, token_share, 0.0)


def _binary_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL of two coins with these log-probabilities of heads."""
    tails_p, tails_q = _log_complement(log_p), _log_complement(log_q)
    return log_p.exp() * (log_p - log_q) + tails_p.exp() * (tails_p - tails_q)


def _log_complement(log_p: Tensor) -> Tensor:
    """log(1 − exp(log_p)), finite also where rounding makes log_p 0."""
    return torch.log(-torch.expm1(log_p.clamp(max=-1e-6)))


def _largest(probabilities: Tensor, count: int) -> Tensor:
    """(N, count) largest probabilities in falling order, filled up with zeros."""
    have = min(count, probabilities.shape[-1])
    values = (
        probabilities.topk(have, dim=-1).values if have < probabilities.shape[-1] else probabilities.sort(-1, True).values
    )
    return torch.nn.functional.pad(values, (0, count - have))
