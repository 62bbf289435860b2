"""What the teacher tells its students, wherever it lives. A signal has `target(batch, chosen)` and `to(device)`."""

from contextlib import AbstractContextManager
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from distill_lit.losses.targets import TeacherTarget
from distill_lit.models.activations import Activations, LayersByKind
from distill_lit.teachers.cross_tokenizer import CrossTokenizerTeacher
from distill_lit.teachers.offline import OfflineTeacher, SparseOfflineTeacher
from distill_lit.teachers.online import OnlineTeacher


class Teacher(Protocol):
    """The teacher as the distiller sees it."""

    def target(self, batch: dict[str, Tensor], loss_mask: Tensor) -> TeacherTarget:
        """What it says of the N tokens to predict. batch: packed rows; chosen: (B, T − 1) bool, True at the N positions
        whose next token is supervised."""
        ...

    def to(self, device: torch.device) -> None:
        """Moves what is in memory to a device."""
        ...


@runtime_checkable
class HiddenStateTeacher(Teacher, Protocol):
    """A teacher that also shows its inner states."""

    def activations(self, batch: dict[str, Tensor], wanted: LayersByKind) -> AbstractContextManager[Activations]:
        """Yields the wanted states for a batch, all of them there once `target` has been called inside."""
        ...


__all__ = [
    "CrossTokenizerTeacher",
    "HiddenStateTeacher",
    "OfflineTeacher",
    "OnlineTeacher",
    "SparseOfflineTeacher",
    "Teacher",
]
