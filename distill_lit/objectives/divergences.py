"""Divergences between the teacher's and the student's next-token distributions.

Every function takes log-probabilities, one row per predicted token, already softened by the term's temperature:
log_q (student) and log_p (teacher), each (N, V). It returns (N,) nats, zero where q = p.
"""

import math

import torch
from torch import Tensor


def forward_kl(log_q: Tensor, log_p: Tensor) -> Tensor:
    """KL(p ‖ q) = Σ p (log p − log q). Hinton et al. 2015, 1503.02531 §2, less the teacher's entropy."""
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def reverse_kl(log_q: Tensor, log_p: Tensor) -> Tensor:
    """KL(q ‖ p) = Σ q (log q − log p). Gu et al. 2023 (MiniLLM), 2306.08543 eq. 1."""
    return (log_q.exp() * (log_q - log_p)).sum(-1)


def jensen_shannon(log_q: Tensor, log_p: Tensor, beta: float = 0.5) -> Tensor:
    """β KL(p ‖ m) + (1−β) KL(q ‖ m), m = βp + (1−β)q, 0 < β < 1. Agarwal et al. 2023 (GKD), 2306.13649 eq. 1.

    It tends to 0, not to a KL, as β → 0 or 1: ask for forward_kl or reverse_kl by name.
    """
    log_m = torch.logaddexp(log_p + math.log(beta), log_q + math.log1p(-beta))
    return beta * forward_kl(log_m, log_p) + (1 - beta) * forward_kl(log_m, log_q)


def entropy(log_p: Tensor) -> Tensor:
    """−Σ p log p of each row of log_p (N, V), in nats: (N,)."""
    return -(log_p.exp() * log_p).sum(-1)
