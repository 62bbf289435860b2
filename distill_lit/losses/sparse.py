"""Losses that read the teacher at a few tokens only, and losses on labels.

`teacher` is its whole softened distribution, log-probabilities (N, V), or what is left of it: `TopKTarget` or
`SampledTarget`. From the whole distribution the k best tokens are chosen, or n are drawn, here; so a sparse cache and an
online teacher train alike. k is the most tokens that are read; None: 64 of a whole distribution, of a `TopKTarget` all.
"""

import torch
from torch import Tensor

from distill_lit.losses.divergences import forward_kl
from distill_lit.losses.targets import SampledTarget, SpanTarget, SparseTarget, TopKTarget

DEFAULT_K = 64  # tokens that are read of a whole distribution
PADDING_LOGPROB = -1e30  # of both models, where a target has no token: no probability, and finite


def top_k_kl(log_q: Tensor, teacher: Tensor | TopKTarget, k: int | None = None) -> Tensor:
    """KL between p and q, both renormalized over the teacher's k best tokens: what the student does elsewhere is free.

    log_q: (N, V). Returns (N,) nats, 0 where the odds between these tokens are the teacher's. `truncated_kl` holds the
    student's mass elsewhere against it.
    """
    best_q, best_p = top_k_logprobs(log_q, teacher, k)
    return forward_kl(best_q.log_softmax(-1), best_p.log_softmax(-1))


def truncated_kl(log_q: Tensor, teacher: Tensor | TopKTarget, k: int | None = None) -> Tensor:
    """KL(p̃ ‖ q), p̃ the teacher's k best tokens renormalized, q over the whole vocabulary: the usual top-k distillation.

    The best student is p̃ itself, so what the teacher says of all other tokens is pressed to 0; at q = p it is −log of the
    k tokens' mass. Anshumann et al. 2025, 2503.16870 §3. log_q: (N, V). Returns (N,) nats, never negative.
    """
    best_q, best_p = top_k_logprobs(log_q, teacher, k)
    return forward_kl(best_q, best_p.log_softmax(-1))


def top_k_tail_kl(log_q: Tensor, teacher: Tensor | TopKTarget, k: int | None = None) -> Tensor:
    """KL between p and q with all tokens but the teacher's k best in one bucket, at most the forward KL.

    The bucket is the tail mass of each model. log_q: (N, V). Returns (N,) nats.
    """
    best_q, best_p = top_k_logprobs(log_q, teacher, k)
    return forward_kl(_with_tail(best_q), _with_tail(best_p))


def sampled_kl(log_q: Tensor, teacher: Tensor | SampledTarget, num_samples: int = 64) -> Tensor:
    """Σ w (log p − log q) over draws from p: KL(p ‖ q) without bias, and 0 where q = p. Anshumann et al. 2025, 2503.16870.

    The paper's random sampling of logits. log_q: (N, V). Returns (N,) nats; a single estimate can be negative.
    """
    ids, log_p, weights = sample_tokens(teacher, num_samples)
    return (weights * (log_p - log_q.gather(-1, ids))).sum(-1)


def pairwise_ranking(
    log_q: Tensor, teacher: Tensor | TopKTarget, loss: str = "hinge", k: int = 16, margin: float | None = None
) -> Tensor:
    """Mean over pairs of the teacher's k best tokens of what the student pays for another order; no nats. DistillKit.

    For p_i > p_j, hinge: max(0, margin − (q_i − q_j)), without a margin that of the teacher, p_i − p_j; logistic:
    log(1 + exp(−(z_i − z_j))) of the student's logits. log_q: (N, V). Returns (N,).
    """
    student_logprobs, log_p = top_k_logprobs(log_q, teacher, k)
    p, is_token = log_p.exp(), log_p > PADDING_LOGPROB
    pairs = ((_gaps(p) > 0) & is_token.unsqueeze(-2)).to(log_q.dtype)
    if loss == "logistic":
        cost = torch.nn.functional.softplus(-_gaps(student_logprobs))
    else:
        cost = torch.relu((_gaps(p) if margin is None else margin) - _gaps(student_logprobs.exp()))
    return (cost * pairs).sum((-2, -1)) / pairs.sum((-2, -1)).clamp(min=1)


def cross_entropy(log_q: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """−Σ y log q with y = (1 − smoothing) · onehot(label) + smoothing / V: hard labels, with label smoothing.

    log_q: (N, V), labels: (N,). Returns (N,) nats.
    """
    nll = -gather_label_logprobs(log_q, labels)
    return nll if label_smoothing == 0 else (1 - label_smoothing) * nll - label_smoothing * log_q.mean(-1)


def policy_gradient_reverse_kl(
    log_q: Tensor, teacher: Tensor | SparseTarget, labels: Tensor, on_policy_mask: Tensor
) -> Tensor:
    """log q(y) − log p(y) on the student's own tokens y, with the gradient of a policy whose advantage is its negative.

    Over draws y of q the mean is KL(q ‖ p), and so is the gradient's: ∇E = E[(log q − log p) ∇log q]. Williams 1992;
    Gu et al. 2023, 2306.08543, one step. Text must be drawn at the term's own temperature. On text of others it would be
    neither, so there it is 0. log_q: (N, V), labels and on_policy_mask: (N,). Returns (N,) nats, of either sign.
    """
    label_logprobs = gather_label_logprobs(log_q, labels)
    ratio = label_logprobs.detach() - teacher_label_logprobs(teacher, labels)
    return torch.where(on_policy_mask, ratio * (1 + label_logprobs - label_logprobs.detach()), 0.0)


def top_k_logprobs(log_q: Tensor, teacher: Tensor | TopKTarget, k: int | None) -> tuple[Tensor, Tensor]:
    """(log q, log p), each (N, k), of the teacher's k most probable tokens; fewer where a `TopKTarget` holds fewer.

    Where a token of the target has fewer than others, both are `PADDING_LOGPROB`, and no gradient reaches log_q (N, V).
    """
    if isinstance(teacher, TopKTarget):
        ids, log_p = teacher.ids[..., :k], teacher.logprobs[..., :k]
    else:
        log_p, ids = teacher.topk(min(k or DEFAULT_K, teacher.shape[-1]), dim=-1)
    is_padding = log_p == -torch.inf
    return (
        log_q.gather(-1, ids).masked_fill(is_padding, PADDING_LOGPROB),
        log_p.masked_fill(is_padding, PADDING_LOGPROB),
    )


def sample_tokens(teacher: Tensor | SampledTarget, num_samples: int) -> tuple[Tensor, Tensor, Tensor]:
    """(ids, log-probabilities, weights), each (N, count), of tokens drawn with replacement; `SampledTarget` stay as they
    are."""
    if isinstance(teacher, SampledTarget):
        return teacher.ids, teacher.logprobs, teacher.weights
    ids = torch.multinomial(teacher.exp(), num_samples, replacement=True)
    log_probs = teacher.gather(-1, ids)
    return ids, log_probs, torch.full_like(log_probs, 1 / num_samples)


def teacher_label_logprobs(teacher: Tensor | SparseTarget | SpanTarget, labels: Tensor) -> Tensor:
    """The teacher's log-probabilities (N,) of the labels."""
    return gather_label_logprobs(teacher, labels) if isinstance(teacher, Tensor) else teacher.label_logprobs


def gather_label_logprobs(logprobs: Tensor, labels: Tensor) -> Tensor:
    """log_probs (N, V) at labels (N,): (N,)."""
    if torch.compiler.is_compiling():
        # the gradient of a gather scatters into a tensor of zeros; a choice by number fuses with what stands around it
        columns = torch.arange(logprobs.shape[-1], device=labels.device)
        return torch.where(columns == labels.unsqueeze(-1), logprobs, 0.0).sum(-1)
    return logprobs.gather(-1, labels.unsqueeze(-1)).squeeze(-1)


def _with_tail(log_probs: Tensor) -> Tensor:
    """log-probabilities (N, k) of some tokens and of all others together: (N, k + 1)."""
    total = log_probs.exp().sum(-1, keepdim=True)
    # rounding may leave nothing for the rest; the smallest step below 1 keeps logarithm and gradient finite
    rest = (1 - total).clamp(min=torch.finfo(log_probs.dtype).eps)
    return torch.cat([log_probs, rest.log()], -1)


def _gaps(values: Tensor) -> Tensor:
    """values_i − values_j of (N, k): (N, k, k)."""
    return values.unsqueeze(-1) - values.unsqueeze(-2)
