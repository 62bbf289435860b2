"""What the teacher tells its students, wherever it lives. A signal has `target(batch, chosen)` and `to(device)`."""

from typing import Protocol

import torch
from torch import Tensor

from distill_lit.signals.cached import CachedTeacher, SparseTeacher
from distill_lit.signals.foreign import ForeignTeacher
from distill_lit.signals.live import LiveTeacher, last_hidden
from distill_lit.targets import Target


class TeacherSignal(Protocol):
    """The teacher as the distiller sees it."""

    def target(self, batch: dict[str, Tensor], chosen: Tensor) -> Target:
        """What it says of the N tokens to predict. batch: packed rows; chosen: (B, T − 1) bool, True at the N positions
        whose next token is supervised."""
        ...

    def to(self, device: torch.device) -> None:
        """Moves what is in memory to a device."""
        ...


__all__ = ["CachedTeacher", "ForeignTeacher", "LiveTeacher", "SparseTeacher", "TeacherSignal", "last_hidden"]
