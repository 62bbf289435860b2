"""The live teacher: its body runs beside the student, in inference mode, in its own number format."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from distill_lit.losses.lm_head import head_of
from distill_lit.losses.targets import DenseTarget
from distill_lit.models.activations import States, Wanted, watching
from distill_lit.models.backbone import body_of
from distill_lit.models.packing_check import last_hidden
from distill_lit.utils.exceptions import UserError


class LiveTeacher:
    """A frozen teacher. It is no nn.Module, so that neither optimizer, checkpoint nor `.train()` can reach it."""

    def __init__(self, model: Any, vocabulary: int, compiled: bool = False, device: torch.device | None = None) -> None:
        """`model`: a causal language model; `vocabulary`: its real tokens; `compiled`: compile its body; `device`: where it
        runs, None for beside the student. Only its head then goes to the student, and its hidden states, batch by batch."""
        self.model = model.eval().requires_grad_(False)
        if compiled:
            body_of(model).compile()
        self.vocabulary, self.device = vocabulary, device
        self._states: States | None = None  # what is wanted of the next batch
        self.head = head_of(model, vocabulary)

    def to(self, device: torch.device) -> None:
        """Brings the teacher, or its head, to the student's device."""
        self.model.to(self.device or device)
        self.head = head_of(self.model, self.vocabulary).to(device)

    def target(self, batch: dict[str, Tensor], chosen: Tensor) -> DenseTarget:
        """Its whole distribution at the chosen positions (B, T − 1)."""
        hidden = self.hidden(batch)[:, :-1]
        return DenseTarget(hidden[chosen.to(hidden.device)].to(self.head.weight.device), self.head)

    def hidden(self, batch: dict[str, Tensor]) -> Tensor:
        """The teacher's last hidden states (B, T, D) for a batch of packed rows."""
        self.check_frozen()
        if self.device is not None:
            batch = {name: batch[name].to(self.device) for name in ("input_ids", "position_ids", "document_ids")}
        with torch.inference_mode():
            return last_hidden(self.model, batch, self._states)

    @contextmanager
    def inner_states(self, batch: dict[str, Tensor], wanted: Wanted) -> Iterator[States]:
        """What `target` inside it fills with the wanted states of the teacher."""
        with watching(self.model, wanted) as self._states:
            try:
                yield self._states
            finally:
                self._states = None

    def check_frozen(self) -> None:
        """Raises UserError if something has put the teacher into train mode or made it trainable."""
        if self.model.training or any(parameter.requires_grad for parameter in self.model.parameters()):
            raise UserError("the teacher is in train mode or trainable; it must stay frozen")
