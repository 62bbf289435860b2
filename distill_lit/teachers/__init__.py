"""What the teacher tells its students, wherever it lives. A signal has `target(batch, chosen)` and `to(device)`."""

from contextlib import AbstractContextManager
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from distill_lit.losses.targets import Target
from distill_lit.models.activations import States, Wanted
from distill_lit.teachers.cross_tokenizer import ForeignTeacher
from distill_lit.teachers.offline import CachedTeacher, SparseTeacher
from distill_lit.teachers.online import LiveTeacher


class TeacherSignal(Protocol):
    """The teacher as the distiller sees it."""

    def target(self, batch: dict[str, Tensor], chosen: Tensor) -> Target:
        """What it says of the N tokens to predict. batch: packed rows; chosen: (B, T − 1) bool, True at the N positions
        whose next token is supervised."""
        ...

    def to(self, device: torch.device) -> None:
        """Moves what is in memory to a device."""
        ...


@runtime_checkable
class InnerSignal(TeacherSignal, Protocol):
    """A teacher that also shows its inner states."""

    def inner_states(self, batch: dict[str, Tensor], wanted: Wanted) -> AbstractContextManager[States]:
        """Yields the wanted states for a batch, all of them there once `target` has been called inside."""
        ...


__all__ = ["CachedTeacher", "ForeignTeacher", "InnerSignal", "LiveTeacher", "SparseTeacher", "TeacherSignal"]
