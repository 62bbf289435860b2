"""Multi-teacher distillation, several teachers as one target: a mixture of their distributions, token by token.

    arithmetic   Σ w p           a mixture of distributions: what any teacher finds probable stays probable
    geometric    softmax(Σ w z)  averaged logits, a product of experts: what one teacher excludes is excluded

w are weights that sum to 1 at every token, p and z a teacher's probabilities and logits. Hinton et al. 2015, 1503.02531 §1
name both means. A weight of 1 leaves one teacher, so routing text to teachers is a mixture too. A term's temperature
softens the mixture as it would soften one teacher; softened logits averaged are the same as averaged logits softened.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from distill_lit.losses.divergences import forward_kl
from distill_lit.losses.sparse import gather_label_logprobs
from distill_lit.losses.targets import MixtureTarget

ARITHMETIC, GEOMETRIC = "arithmetic", "geometric"


class TeacherLogits(NamedTuple):
    """What one of K teachers says of n tokens. teacher: its number; tokens: (m,) int64, those where it has a weight, None
    for all n; logits: (m, V)."""

    teacher: int
    tokens: Tensor | None
    logits: Tensor


def mix_logits(logits: Sequence[Tensor], weights: Tensor, kind: str = ARITHMETIC) -> Tensor:
    """Logits (N, V) of the mixture of K teachers.

    Args:
        logits: of each teacher, (N, V).
        weights: (N, K) or (K,), at least 0, in sum 1 at every token.
        kind: arithmetic or geometric.
    """
    weights = weights.expand(len(logits[0]), len(logits))
    parts = []
    for teacher, teacher_logits in enumerate(logits):
        tokens = weights[:, teacher].nonzero()[:, 0]
        parts.append(TeacherLogits(teacher, tokens, teacher_logits[tokens]))
    return _mix(parts, weights, kind, logits[0].shape[-1])


def _mix(parts: Sequence[TeacherLogits], weights: Tensor, kind: str, vocab_size: int) -> Tensor:
    """Logits (n, V). weights: (n, K); every token is in a part."""
    dtype = parts[0].logits.dtype if parts else torch.float32
    weights = weights.to(dtype)
    mixed: Tensor | None = None
    normalizer = weights.new_zeros(len(weights), 1)  # Σ w logsumexp(z), by which log-probabilities are logits again
    for part in parts:
        tokens = slice(None) if part.tokens is None else part.tokens
        weight, logits = weights[tokens, part.teacher, None], part.logits
        if kind == ARITHMETIC:
            logsumexp = logits.logsumexp(-1, keepdim=True)
            normalizer[tokens] += weight * logsumexp
            logits = logits - logsumexp + weight.log()
        else:
            logits = weight * logits
        if mixed is None and part.tokens is None:
            mixed = logits
            continue
        if mixed is None:
            mixed = logits.new_full((len(weights), vocab_size), -torch.inf if kind == ARITHMETIC else 0.0)
        mixed[tokens] = torch.logaddexp(mixed[tokens], logits) if kind == ARITHMETIC else mixed[tokens] + logits
    if mixed is None:
        return weights.new_zeros(len(weights), vocab_size)
    return mixed + normalizer if kind == ARITHMETIC else mixed


@torch.no_grad()
def mix_chunk(
    target: MixtureTarget, rows: slice, labels: Tensor, log_q: Tensor | None, vocab_size: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """(logits (n, V) of the mixture, {measure: sum over tokens}) of a chunk of n tokens.

    Measures, for every teacher, whether or not it is asked here. teacher_share: how much of the target is this teacher's:
    of an arithmetic mixture its responsibility for the label, w p(label) / Σ w p(label); of a geometric one its weight.
    scored_by: tokens where it has a weight. teacher_kl: KL(teacher ‖ student) in nats there.

    labels: (n,); log_q: the student's log-probabilities (n, V), None where nothing is measured.
    """
    parts = _project_teachers(target, rows)
    measures = {} if log_q is None else _metric_sums(target, rows, parts, log_q, labels)
    return _mix(parts, target.weights[rows], target.kind, vocab_size), measures


def _project_teachers(target: MixtureTarget, rows: slice) -> list[TeacherLogits]:
    """Logits of every teacher for a chunk of tokens, where it has a weight."""
    start, stop = rows.start, min(rows.stop, len(target.weights))
    found = []
    for number, dense in enumerate(target.targets):
        if dense is None:
            continue
        first, last = (int(target.counts_before[number, at]) for at in (start, stop))
        if first == last:
            continue
        logits = dense.lm_head.scale_and_cap(dense.lm_head.project(dense.hidden_states[first:last]))
        tokens = None if last - first == stop - start else target.tokens[number][first:last] - start
        found.append(TeacherLogits(number, tokens, logits))
    return found


def _metric_sums(
    target: MixtureTarget, rows: slice, parts: Sequence[TeacherLogits], log_q: Tensor, labels: Tensor
) -> dict[str, Tensor]:
    weights = target.weights[rows].to(log_q.dtype)
    joint, kl = torch.full_like(weights, -torch.inf), torch.zeros_like(weights)
    for part in parts:
        tokens = slice(None) if part.tokens is None else part.tokens
        log_p = part.logits.log_softmax(-1)
        kl[tokens, part.teacher] = forward_kl(log_q[tokens], log_p)
        joint[tokens, part.teacher] = weights[tokens, part.teacher].log() + gather_label_logprobs(log_p, labels[tokens])
    shares = joint.softmax(-1) if target.kind == ARITHMETIC else weights
    totals = {"teacher_share": shares, "scored_by": (weights > 0).to(weights.dtype), "teacher_kl": kl}
    return {
        f"{measure}/{name}": values[:, number].sum()
        for measure, values in totals.items()
        for number, name in enumerate(target.names)
    }
