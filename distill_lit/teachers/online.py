"""The live teacher: its body runs beside the student, in inference mode, in its own number format."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from distill_lit.losses.lm_head import get_lm_head
from distill_lit.losses.targets import DenseTarget
from distill_lit.models.activations import Activations, LayersByKind, capture_activations
from distill_lit.models.backbone import get_backbone
from distill_lit.models.packing_check import last_hidden_state
from distill_lit.utils.exceptions import UserError


class OnlineTeacher:
    """A frozen teacher. It is no nn.Module, so that neither optimizer, checkpoint nor `.train()` can reach it."""

    def __init__(self, model: Any, vocab_size: int, compiled: bool = False, device: torch.device | None = None) -> None:
        """`model`: a causal language model; `vocabulary`: its real tokens; `compiled`: compile its body; `device`: where it
        runs, None for beside the student. Only its head then goes to the student, and its hidden states, batch by batch."""
        self.model = model.eval().requires_grad_(False)
        if compiled:
            get_backbone(model).compile()
        self.vocab_size, self.device = vocab_size, device
        self._captured: Activations | None = None  # what is wanted of the next batch
        self.lm_head = get_lm_head(model, vocab_size)

    def to(self, device: torch.device) -> None:
        """Brings the teacher, or its head, to the student's device."""
        self.model.to(self.device or device)
        self.lm_head = get_lm_head(self.model, self.vocab_size).to(device)

    def target(self, batch: dict[str, Tensor], loss_mask: Tensor) -> DenseTarget:
        """Its whole distribution at the chosen positions (B, T − 1)."""
        hidden = self.hidden_states(batch)[:, :-1]
        return DenseTarget(hidden[loss_mask.to(hidden.device)].to(self.lm_head.weight.device), self.lm_head)

    def hidden_states(self, batch: dict[str, Tensor]) -> Tensor:
        """The teacher's last hidden states (B, T, D) for a batch of packed rows."""
        self.check_frozen()
        if self.device is not None:
            names = ("input_ids", "attention_mask", "position_ids", "document_ids")
            batch = {name: batch[name].to(self.device) for name in names if name in batch}
        with torch.inference_mode():
            return last_hidden_state(self.model, batch, self._captured)

    @contextmanager
    def activations(self, batch: dict[str, Tensor], wanted: LayersByKind) -> Iterator[Activations]:
        """What `target` inside it fills with the wanted states of the teacher."""
        with capture_activations(self.model, wanted) as self._captured:
            try:
                yield self._captured
            finally:
                self._captured = None

    def check_frozen(self) -> None:
        """Raises UserError if something has put the teacher into train mode or made it trainable."""
        if self.model.training or any(parameter.requires_grad for parameter in self.model.parameters()):
            raise UserError("the teacher is in train mode or trainable; it must stay frozen")
