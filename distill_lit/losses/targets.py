"""What the teacher says about N predicted tokens: everything (logits, or hidden states and a head), its k best tokens, or
draws.

A sparse target needs no projection of the teacher, so a cache of k tokens per position replaces the teacher altogether.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from distill_lit.losses.lm_head import LMHead
from distill_lit.utils.exceptions import UserError

IGNORE_INDEX = -100  # label of a position that is not supervised


class DenseTarget(NamedTuple):
    """Last hidden states (N, D) and the head that turns them into the whole distribution, a chunk at a time."""

    hidden_states: Tensor
    lm_head: LMHead


class TopKTarget(NamedTuple):
    """The teacher's k most probable tokens at T = 1, in falling order, with their true log-probabilities: below 1 in sum.

    ids: (N, k) int64; logprobs: (N, k) nats, −inf for padding behind the tokens of which there are fewer than k, such as a
    nucleus; label_logprobs: (N,) nats of the supervised token, among the k or not.
    """

    ids: Tensor
    logprobs: Tensor
    label_logprobs: Tensor


class SampledTarget(NamedTuple):
    """Tokens drawn from the teacher at T = 1: Σ weights · f(ids) estimates the mean of f under the teacher without bias.

    ids: (N, n) int64, may repeat; logprobs: (N, n) nats, the teacher's; weights: (N, n), for n plain draws 1/n, for
    counted draws count/total, for draws from a proposal p/(proposal · total), 0 for filling; label_logprobs as in
    `TopKTarget`.
    """

    ids: Tensor
    logprobs: Tensor
    weights: Tensor
    label_logprobs: Tensor


class SpanTarget(NamedTuple):
    """What a teacher with another tokenizer says of N tokens of the student, on spans of bytes that both cut alike.

    logits: (N, V of the teacher), or None where no loss reads them; same_prefix: (N,) bool, whether both have read the same
    bytes before this token: only there are the logits meant; span_length: (N,) tokens of the student in the span of this
    one, 0 for none; teacher_span_logprob, student_span_logprob: (N,) nats, log-probability of the whole span to each;
    label_logprobs: (N,) nats, the teacher's of the span shared out over its tokens, 0 without one.
    """

    logits: Tensor | None
    same_prefix: Tensor
    span_length: Tensor
    teacher_span_logprob: Tensor
    student_span_logprob: Tensor
    label_logprobs: Tensor

    def slice_tokens(self, rows: slice) -> "SpanTarget":
        """The same for some of its tokens."""
        logits = None if self.logits is None else self.logits[rows]
        return SpanTarget(logits, *(part[rows] for part in self[1:]))


class CrossTokenizerTarget(NamedTuple):
    """`SpanTarget` for all tokens of a batch. hidden_states: (N, D) of the teacher where `same`, 0 elsewhere; span_ids:
    (N,) int64, the number of each token's span, -1 for none."""

    hidden_states: Tensor
    lm_head: LMHead
    span_ids: Tensor
    span_target: SpanTarget

    def with_student_logprobs(self, label_logprobs: Tensor) -> "CrossTokenizerTarget":
        """With the student's log-probabilities of its spans, from those (N,) of its tokens."""
        inside = self.span_ids >= 0
        count = int(self.span_ids.max()) + 1 if len(self.span_ids) else 0
        total = torch.zeros(count, dtype=torch.float32, device=label_logprobs.device)
        total = total.index_add(0, self.span_ids[inside], label_logprobs[inside].float())
        student = torch.zeros_like(self.span_target.student_span_logprob)
        student[inside] = total[self.span_ids[inside]]
        return self._replace(span_target=self.span_target._replace(student_span_logprob=student))


class MixtureTarget(NamedTuple):
    """What K teachers say of N tokens, and how much each of them counts at each; `losses.mixture` makes one distribution of
    it, a chunk at a time.

    names: of the teachers; kind: arithmetic or geometric; weights: (N, K), in sum 1 at every token; targets: of each
    teacher the M tokens where it has a weight, None where there are none; tokens: (M,) int64 of each teacher, which of the
    N these are, rising; counts_before: (K, N + 1) int64, how many of the M come before each of the N.
    """

    names: tuple[str, ...]
    kind: str
    weights: Tensor
    targets: tuple[DenseTarget | None, ...]
    tokens: tuple[Tensor, ...]
    counts_before: np.ndarray


SparseTarget = TopKTarget | SampledTarget
TeacherTarget = Tensor | DenseTarget | TopKTarget | SampledTarget | CrossTokenizerTarget | MixtureTarget  # Tensor: logits
SparseTargetT = TypeVar("SparseTargetT", bound=SparseTarget)


def target_form(target: TeacherTarget | SpanTarget | Tensor) -> str:
    """`dense`, `top_k`, `sampled` or `cross_tokenizer`: the word of `LossSpec.target_forms`. A tensor is logits."""
    if isinstance(target, (SpanTarget, CrossTokenizerTarget)):
        return "cross_tokenizer"
    return "top_k" if isinstance(target, TopKTarget) else "sampled" if isinstance(target, SampledTarget) else "dense"


NUM_DIMS = {"hidden_states": 2, "ids": 2, "logprobs": 2, "weights": 2, "label_logprobs": 1, "span_ids": 1}  # (N, …) parts


def check_target(target: Any, num_tokens: int) -> None:
    """Raises UserError for what is no target of `num_tokens` tokens, as a teacher of one's own may give it."""
    needed = (
        f"needed are logits (N, V) of the N = {num_tokens} tokens that loss_mask marks, as logits[:, :-1][loss_mask], or a "
        "target of distill_lit.losses.targets, as DenseTarget"
    )
    if not isinstance(target, TeacherTarget):
        raise UserError(f"teacher: target() gave {type(target).__name__}; {needed}")
    parts = {"logits": target} if isinstance(target, Tensor) else target._asdict()
    for name, part in parts.items():
        num_dims = NUM_DIMS.get(name, 2 if name == "logits" else 0)
        if num_dims and (not isinstance(part, Tensor) or part.ndim != num_dims or len(part) != num_tokens):
            shape = tuple(part.shape) if isinstance(part, Tensor) else type(part).__name__
            raise UserError(f"teacher: target() gave {name} {shape}; {needed}")
    if isinstance(target, Tensor) and not target.is_floating_point():
        raise UserError(f"teacher: target() gave {target.dtype}; {needed}")
    if isinstance(target, DenseTarget) and target.hidden_states.shape[1] != target.lm_head.weight.shape[1]:
        widths = f"{target.hidden_states.shape[1]} wide, and its lm_head reads {target.lm_head.weight.shape[1]}"
        raise UserError(f"teacher: target() gave hidden_states {widths}")
    if isinstance(target, (TopKTarget, SampledTarget)) and target.ids.shape != target.logprobs.shape:
        shapes = f"ids {tuple(target.ids.shape)} and logprobs {tuple(target.logprobs.shape)}"
        raise UserError(f"teacher: target() gave {shapes}, which are to be of one shape")


def cut_vocabulary(target: TeacherTarget, vocab_size: int) -> TeacherTarget:
    """A target whose logits, or lm_heads where it has any, are of the first `vocab_size` tokens; that of another tokenizer
    stays.

    Raises UserError for fewer.
    """
    if isinstance(target, Tensor):
        _check_vocabulary(target.shape[1], vocab_size)
        return target[:, :vocab_size]
    if isinstance(target, MixtureTarget):
        return target._replace(targets=tuple(one and _cut_lm_head(one, vocab_size) for one in target.targets))
    return _cut_lm_head(target, vocab_size) if isinstance(target, DenseTarget) else target


def _cut_lm_head(target: DenseTarget, vocab_size: int) -> DenseTarget:
    _check_vocabulary(target.lm_head.vocab_size, vocab_size)
    return target._replace(lm_head=target.lm_head._replace(vocab_size=vocab_size))


def _check_vocabulary(size: int, vocab_size: int) -> None:
    if size < vocab_size:
        raise UserError(f"vocab_size: {vocab_size} tokens are compared, and the teacher gives {size}; give that")


def concatenate_targets(targets: Sequence[SparseTargetT]) -> SparseTargetT:
    """The tokens of targets of one form, one target after the other."""
    width = max(target.ids.shape[1] for target in targets)
    parts = zip(*(_fill_up(target, width) for target in targets), strict=True)
    return type(targets[0])(*(torch.cat(values) for values in parts))


def _fill_up(target: SparseTargetT, width: int) -> SparseTargetT:
    """The same with places for `width` tokens, if it is of the most probable ones; as many are drawn everywhere."""
    missing = (0, width - target.ids.shape[1])
    if not isinstance(target, TopKTarget):
        return target
    ids, logprobs = pad(target.ids, missing), pad(target.logprobs, missing, value=-torch.inf)
    return target._replace(ids=ids, logprobs=logprobs)


def slice_target(target: SparseTargetT, rows: slice) -> SparseTargetT:
    """The same target for some of its tokens."""
    return type(target)(*(part[rows] for part in target))
