"""What the teacher tells its students, wherever it lives. A signal has `head`, `hidden(batch)` and `to(device)`."""

from typing import Protocol

import torch
from torch import Tensor

from distill_lit.heads import Head
from distill_lit.signals.cached import CachedTeacher
from distill_lit.signals.live import LiveTeacher, last_hidden


class TeacherSignal(Protocol):
    """The teacher as the distiller sees it."""

    @property
    def head(self) -> Head:
        """The teacher's output head."""
        ...

    def hidden(self, batch: dict[str, Tensor]) -> Tensor:
        """Last hidden states (B, T, D) for a batch of packed rows."""
        ...

    def to(self, device: torch.device) -> None:
        """Moves what is in memory to a device."""
        ...


__all__ = ["CachedTeacher", "LiveTeacher", "TeacherSignal", "last_hidden"]
