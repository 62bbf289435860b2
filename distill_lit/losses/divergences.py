"""Divergences between the teacher's and the student's whole next-token distributions.

Every function takes log-probabilities, one row per predicted token, already softened by the term's temperature:
log_q (student) and log_p (teacher), each (N, V). It returns (N,) nats, zero where q = p.
"""

import math

import torch
from torch import Tensor

BISECTION_STEPS = 30  # of the largest probability, until neighbours in a ranking are apart
MIN_ALPHA_BETA_LOGPROB = -30.0  # log-probability that negative exponents of the α-β divergence count as smallest


def forward_kl(log_q: Tensor, log_p: Tensor) -> Tensor:
    """KL(p ‖ q) = Σ p (log p − log q). Hinton et al. 2015, 1503.02531 §2, less the teacher's entropy.

    Soft labels, token by token: the word-level distillation of Kim & Rush 2016, 1606.07947 §3.1.
    """
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def reverse_kl(log_q: Tensor, log_p: Tensor) -> Tensor:
    """KL(q ‖ p) = Σ q (log q − log p). Gu et al. 2023 (MiniLLM), 2306.08543 eq. 1."""
    return (log_q.exp() * (log_q - log_p)).sum(-1)


def symmetric_kl(log_q: Tensor, log_p: Tensor, forward_weight: float = 0.5) -> Tensor:
    """w · KL(p ‖ q) + (1 − w) · KL(q ‖ p) for w = forward_weight, 0 < w < 1; at ½ half of Jeffreys' divergence."""
    return forward_weight * forward_kl(log_q, log_p) + (1 - forward_weight) * reverse_kl(log_q, log_p)


def jensen_shannon(log_q: Tensor, log_p: Tensor, beta: float = 0.5) -> Tensor:
    """β KL(p ‖ m) + (1−β) KL(q ‖ m), m = βp + (1−β)q, 0 < β < 1. Agarwal et al. 2023 (GKD), 2306.13649 eq. 1.

    The generalized JSD of the paper. It tends to 0, not to a KL, as β → 0 or 1: ask for forward_kl or reverse_kl by name.
    """
    log_m = _mix(log_p, log_q, beta)
    return beta * forward_kl(log_m, log_p) + (1 - beta) * forward_kl(log_m, log_q)


def skew_forward_kl(log_q: Tensor, log_p: Tensor, skew: float = 0.1) -> Tensor:
    """KL(p ‖ λp + (1−λ)q), λ = skew, 0 < λ < 1. Ko et al. 2024 (DistiLLM), 2402.03898."""
    return forward_kl(_mix(log_p, log_q, skew), log_p)


def skew_reverse_kl(log_q: Tensor, log_p: Tensor, skew: float = 0.1) -> Tensor:
    """KL(q ‖ λq + (1−λ)p), λ = skew, 0 < λ < 1. Ko et al. 2024 (DistiLLM), 2402.03898."""
    return forward_kl(_mix(log_q, log_p, skew), log_q)


def contrastive_skew_kl(log_q: Tensor, log_p: Tensor, on_policy_mask: Tensor, skew: float = 0.1) -> Tensor:
    """Skew forward KL on the teacher's text, skew reverse KL on the student's. Ko et al. 2025 (DistiLLM-2), 2503.07067.

    on_policy_mask: (N,) bool, whether the student wrote the text of this token.
    """
    return torch.where(on_policy_mask, skew_reverse_kl(log_q, log_p, skew), skew_forward_kl(log_q, log_p, skew))


def adaptive_kl(log_q: Tensor, log_p: Tensor, head_mass: float = 0.5) -> Tensor:
    """w KL(p ‖ q) + (1−w) KL(q ‖ p) per token, w = head gap / (head gap + tail gap). Wu et al. 2024, 2404.02657 (AKL).

    A gap is Σ |p − q|; the head is the teacher's best token and the next ones as long as they hold at most `head_mass`
    together. The weight has no gradient.
    """
    with torch.no_grad():
        p = log_p.exp()
        gap = (p - log_q.exp()).abs()
        weight = (gap * _in_head(p, head_mass)).sum(-1) / gap.sum(-1).clamp(min=torch.finfo(p.dtype).tiny)
    return weight * forward_kl(log_q, log_p) + (1 - weight) * reverse_kl(log_q, log_p)


def _in_head(p: Tensor, mass: float) -> Tensor:
    """Which probabilities (N, V) are the largest ones of their row that hold at most `mass` together, and the largest."""
    low, high = torch.zeros_like(p[:, :1]), p.amax(-1, keepdim=True)
    largest = p == high
    for _ in range(BISECTION_STEPS):  # a search for the least probability of the head: eight times as fast as sorting
        middle = 0.5 * (low + high)
        too_many = torch.where(p >= middle, p, 0.0).sum(-1, keepdim=True) > mass
        low, high = torch.where(too_many, middle, low), torch.where(too_many, high, middle)
    return (p >= high) | largest


def total_variation(log_q: Tensor, log_p: Tensor) -> Tensor:
    """½ Σ |p − q|, between 0 and 1: no nats. Wen et al. 2023, 2307.15190 (f-distill)."""
    return 0.5 * (log_p.exp() - log_q.exp()).abs().sum(-1)


def alpha_beta(log_q: Tensor, log_p: Tensor, alpha: float = 0.2, beta: float = 0.7) -> Tensor:
    """−1/(αβ) Σ [p^α q^β − α/(α+β) p^(α+β) − β/(α+β) q^(α+β)]. Wang et al. 2025 (ABKD), 2505.04560.

    α, β → (1, 0) gives the forward, (0, 1) the reverse KL, (0, 0) half the squared difference of the logarithms. Written
    as a difference of integrals ∫ e^(ct) dt from log p to log q, it is continuous where α, β or α + β is 0. Negative
    exponents weigh by 1/p; there log-probabilities below −30 count as −30.
    """
    if abs(beta) > abs(alpha):  # D^(α,β)(p, q) = D^(β,α)(q, p), and the larger one is the safer divisor
        alpha, beta, log_q, log_p = beta, alpha, log_p, log_q
    if min(alpha, beta, alpha + beta) < 0:
        log_q, log_p = log_q.clamp(min=MIN_ALPHA_BETA_LOGPROB), log_p.clamp(min=MIN_ALPHA_BETA_LOGPROB)
    if abs(alpha) < 1e-3:
        return (0.5 * (log_q - log_p).square() * (0.5 * (alpha + beta) * (log_p + log_q)).exp()).sum(-1)
    areas = _area(alpha + beta, log_p, log_q) - (alpha * log_p).exp() * _area(beta, log_p, log_q)
    return areas.sum(-1) / alpha


def _area(exponent: float, a: Tensor, b: Tensor) -> Tensor:
    """∫ₐᵇ e^(exponent · t) dt, without cancellation where the exponent or b − a is small."""
    if exponent == 0:
        return b - a
    size = -torch.expm1(-exponent * (b - a).abs()) / exponent
    return (b - a).sign() * (exponent * torch.maximum(a, b)).exp() * size


def soft_cross_entropy(log_q: Tensor, log_p: Tensor) -> Tensor:
    """−Σ p log q: the forward KL plus the teacher's entropy, with the same gradient; several systems log it as KL."""
    return -(log_p.exp() * log_q).sum(-1)


def logit_mse(student_logits: Tensor, teacher_logits: Tensor, center: bool = False) -> Tensor:
    """Mean over the vocabulary of (z_p − z_q)², of logits (N, V); no nats. Kim et al. 2021, 2105.08919.

    center: after subtracting each row's mean, so that a constant that no softmax sees costs nothing.
    """
    if center:
        student_logits, teacher_logits = (z - z.mean(-1, keepdim=True) for z in (student_logits, teacher_logits))
    return (teacher_logits - student_logits).square().mean(-1)


def entropy(log_p: Tensor) -> Tensor:
    """−Σ p log p of each row of log_p (N, V), in nats: (N,)."""
    return -(log_p.exp() * log_p).sum(-1)


def _mix(log_a: Tensor, log_b: Tensor, share: float) -> Tensor:
    """log(share · a + (1 − share) · b)."""
    return torch.logaddexp(log_a + math.log(share), log_b + math.log1p(-share))
