"""What the teacher says about N predicted tokens: everything (hidden states and a head), its k best tokens, or draws.

A sparse target needs no projection of the teacher, so a cache of k tokens per position replaces the teacher altogether.
"""

from typing import NamedTuple, TypeVar

from torch import Tensor

from distill_lit.heads import Head


class DenseTarget(NamedTuple):
    """Last hidden states (N, D) and the head that turns them into the whole distribution, a chunk at a time."""

    hidden: Tensor
    head: Head


class TopK(NamedTuple):
    """The teacher's k most probable tokens at T = 1, in falling order, with their true log-probabilities: below 1 in sum.

    ids: (N, k) int64; log_probs: (N, k) nats; label_log_probs: (N,) nats of the supervised token, among the k or not.
    """

    ids: Tensor
    log_probs: Tensor
    label_log_probs: Tensor


class Draws(NamedTuple):
    """Tokens drawn from the teacher at T = 1: Σ weights · f(ids) estimates the mean of f under the teacher without bias.

    ids: (N, n) int64, may repeat; log_probs: (N, n) nats, the teacher's; weights: (N, n), for n plain draws 1/n, for
    counted draws count/total, for draws from a proposal p/(proposal · total), 0 for filling; label_log_probs as in `TopK`.
    """

    ids: Tensor
    log_probs: Tensor
    weights: Tensor
    label_log_probs: Tensor


Sparse = TopK | Draws
Target = DenseTarget | TopK | Draws
AnySparse = TypeVar("AnySparse", bound=Sparse)


def form_of(target: Target | Tensor) -> str:
    """`dense`, `top_k` or `draws`: the word that `Kind.targets` uses. A tensor is logits."""
    return "top_k" if isinstance(target, TopK) else "draws" if isinstance(target, Draws) else "dense"


def rows_of(target: AnySparse, rows: slice) -> AnySparse:
    """The same target for some of its tokens."""
    return type(target)(*(part[rows] for part in target))
