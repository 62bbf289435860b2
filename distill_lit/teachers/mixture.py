"""Several teachers at once: a weighted mixture of their distributions, or each for the documents of its own corpora.

Every teacher is asked only about rows in which it has a weight, and keeps only the tokens where it has one: with routing a
batch costs about one forward pass, whichever teachers share it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distill_lit.losses.mixture import ARITHMETIC
from distill_lit.losses.targets import (
    DenseTarget,
    MixtureTarget,
    SampledTarget,
    TeacherTarget,
    TopKTarget,
    concatenate_targets,
)
from distill_lit.teachers.base import StudentFollowingTeacher, Teacher
from distill_lit.utils.exceptions import UserError

WEIGHT_SUM_TOLERANCE = 1e-6
Weights = Mapping[str, float]  # {name of a teacher: its weight}


class MixtureTeacher:
    """Teachers with the student's tokenizer as one teacher.

    Example:
        teachers = {"general": OnlineTeacher(one), "math": OnlineTeacher(other)}
        mixed = MixtureTeacher(teachers, {"general": 0.7, "math": 0.3}, kind="geometric")
        routed = MixtureTeacher(teachers, [{"general": 1.0}, {"math": 1.0}])  # by batch["corpus_ids"] (B, T), here 0 or 1
    """

    def __init__(
        self, teachers: Mapping[str, Teacher], weights: Weights | Sequence[Weights], kind: str = ARITHMETIC
    ) -> None:
        """Raises UserError for weights that are not those of a mean.

        Args:
            teachers: by name.
            weights: of each teacher, at least 0 and 1 in sum; one mapping for all text, or one for each corpus, in the
                order of the numbers that stand in the batch's `corpus_ids`.
            kind: arithmetic, a mixture of probabilities, or geometric, averaged logits.
        """
        self.teachers, self.kind = dict(teachers), kind
        self.is_routed = not isinstance(weights, Mapping)
        rows = [weights] if isinstance(weights, Mapping) else list(weights)
        for row in rows:
            _check_weights(row, self.teachers)
        by_corpus = torch.tensor([[row.get(name, 0.0) for name in self.teachers] for row in rows], dtype=torch.float64)
        self._weights_by_corpus = by_corpus / by_corpus.sum(1, keepdim=True)
        known = [getattr(teacher, "vocab_size", None) for teacher in self.teachers.values()]
        sizes = [size for size in known if size is not None]
        if len(set(sizes)) > 1:
            raise UserError(
                f"teachers: they have {' and '.join(map(str, sizes))} tokens; one tokenizer is needed, and its size as "
                "their vocab_size where heads are padded"
            )
        self.vocab_size = sizes[0] if sizes else None

    def to(self, device: torch.device) -> None:
        """Moves all teachers."""
        for teacher in self.teachers.values():
            teacher.to(device)
        self._weights_by_corpus = self._weights_by_corpus.to(device)

    def target(self, batch: dict[str, Tensor], loss_mask: Tensor) -> TeacherTarget:
        """What they say of the N positions that `loss_mask` (B, T − 1) marks: a `MixtureTarget`, or, where caches kept a
        few tokens of one teacher for each position, a target of that form."""
        weights = self._token_weights(batch, loss_mask)
        if not len(weights):  # targets of no token are of the form of others: ranks measure the same
            nothing = next(iter(self.teachers.values())).target(batch, loss_mask)
            if isinstance(nothing, (TopKTarget, SampledTarget)):
                return nothing
        is_asked = weights > 0
        said = [
            _ask(teacher, is_asked[:, number], batch, loss_mask) for number, teacher in enumerate(self.teachers.values())
        ]
        tokens = [asked.nonzero()[:, 0] for asked in is_asked.T]
        sparse = [target for target in said if isinstance(target, (TopKTarget, SampledTarget))]
        if sparse:
            return _gather(said, tokens, len(weights))
        dense = tuple(target if isinstance(target, DenseTarget) else None for target in said)
        counts_before = np.zeros((len(self.teachers), len(weights) + 1), dtype=np.int64)
        np.cumsum(is_asked.T.cpu().numpy(), axis=1, out=counts_before[:, 1:])
        return MixtureTarget(tuple(self.teachers), self.kind, weights, dense, tuple(tokens), counts_before)

    def _token_weights(self, batch: dict[str, Tensor], loss_mask: Tensor) -> Tensor:
        """(N, K)."""
        by_corpus = self._weights_by_corpus.to(loss_mask.device)
        if not self.is_routed:
            return by_corpus.expand(int(loss_mask.sum()), -1)
        if "corpus_ids" not in batch:
            raise UserError("batch: it has no corpus_ids, by which the teachers' weights are chosen")
        return by_corpus[batch["corpus_ids"][:, :-1][loss_mask]]

    def follow(self, student: Any) -> None:
        """Tells the teachers that follow the student of an optimizer step."""
        for teacher in self._following().values():
            teacher.follow(student)

    def state_dict(self) -> dict[str, Any]:
        """{name: state} of the teachers that follow the student."""
        return {name: teacher.state_dict() for name, teacher in self._following().items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a saved state."""
        for name, teacher in self._following().items():
            teacher.load_state_dict(state[name])

    def _following(self) -> dict[str, StudentFollowingTeacher]:
        return {name: one for name, one in self.teachers.items() if isinstance(one, StudentFollowingTeacher)}


def _check_weights(weights: Weights, teachers: Mapping[str, Teacher]) -> None:
    unknown = next((name for name in weights if name not in teachers), None)
    if unknown is not None:
        raise UserError(f"weights: there is no teacher {unknown!r}; there are {', '.join(teachers)}")
    if min(weights.values(), default=0.0) < 0 or abs(sum(weights.values()) - 1) > WEIGHT_SUM_TOLERANCE:
        raise UserError(f"weights: {dict(weights)} are to be at least 0, and 1 in sum")


def _ask(teacher: Teacher, is_asked: Tensor, batch: dict[str, Tensor], loss_mask: Tensor) -> TeacherTarget | None:
    """What a teacher says of some of the N tokens, from the rows that hold them; None of no token. is_asked: (N,) bool."""
    asked_mask = torch.zeros_like(loss_mask)
    asked_mask[loss_mask] = is_asked
    rows = asked_mask.any(1)
    if not rows.any():
        return None
    if not rows.all():
        batch = {name: value[rows] if value.ndim else value for name, value in batch.items()}
        loss_mask, asked_mask = loss_mask[rows], asked_mask[rows]
    target = teacher.target(batch, loss_mask)
    tokens = asked_mask[loss_mask]
    if isinstance(target, DenseTarget):
        return target._replace(hidden_states=target.hidden_states[tokens])
    if isinstance(target, (TopKTarget, SampledTarget)):
        return type(target)(*(part[tokens] for part in target))
    raise UserError("teachers: one of them gives a target that cannot be mixed with others")


def _gather(said: Sequence[TeacherTarget | None], tokens: Sequence[Tensor], count: int) -> TopKTarget | SampledTarget:
    """Targets of a few tokens per position, each of other positions, as one of all N. Raises UserError where two teachers
    speak of one position: their tokens differ, and so little of them cannot be mixed."""
    pairs = [
        (target, at) for target, at in zip(said, tokens, strict=True) if isinstance(target, (TopKTarget, SampledTarget))
    ]
    order = torch.cat([at for _, at in pairs])
    if len({type(target) for target, _ in pairs}) > 1 or len(order) != count or len(order.unique()) != count:
        raise UserError("teachers: a few tokens per position cannot be mixed; every document needs a teacher of its own")
    target, at = concatenate_targets([target for target, _ in pairs]), order.argsort()
    return type(target)(*(part[at] for part in target))
