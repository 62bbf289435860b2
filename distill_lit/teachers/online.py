"""The online teacher: its model runs beside the student, in inference mode, in its own number format."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from distill_lit.config import TeacherConfig
from distill_lit.data import TeacherDocuments
from distill_lit.losses.lm_head import get_lm_head
from distill_lit.losses.targets import DenseTarget
from distill_lit.models.activations import Activations, LayersByKind, capture_activations
from distill_lit.models.backbone import compile_backbone
from distill_lit.models.packing_check import last_hidden_state
from distill_lit.models.sharding import shard_frozen
from distill_lit.teachers.base import ALL_LAYERS, TeacherCapabilities, TeacherContext, TeacherSource
from distill_lit.teachers.prompted import hidden_states_with_prompt
from distill_lit.teachers.registry import register_teacher
from distill_lit.utils.exceptions import UserError


class OnlineTeacher:
    """A frozen teacher. It is no nn.Module, so that neither optimizer, checkpoint nor `.train()` can reach it.

    Example:
        teacher = OnlineTeacher(AutoModelForCausalLM.from_pretrained("teacher"))
        batch = {"input_ids": ids, "position_ids": positions, "document_ids": torch.ones_like(ids)}  # (B, T) each
        target = teacher.target(batch, loss_mask)  # loss_mask: (B, T - 1) bool
        logits = target.lm_head.scale_and_cap(target.lm_head.project(target.hidden_states))  # (N, vocab_size)
    """

    def __init__(
        self,
        model: Any,
        vocab_size: int | None = None,
        compiled: bool = False,
        device: torch.device | None = None,
        documents: TeacherDocuments | None = None,
    ) -> None:
        """Puts the model into eval mode and takes its gradients away.

        Args:
            model: a causal language model of transformers.
            vocab_size: its real tokens, where its lm_head has padded rows; None: all rows.
            compiled: compile its backbone.
            device: where it runs; None: beside the student. On a device of its own, only its lm_head goes to the student,
                and its hidden states, batch by batch.
            documents: what it reads instead of the student's documents, where it has a prompt of its own; batches then say
                in `rows` which packed rows they are.
        """
        self.model = model.eval().requires_grad_(False)
        if compiled:
            compile_backbone(model)
        self.vocab_size = vocab_size or model.get_output_embeddings().weight.shape[0]
        self.device, self.documents = device, documents
        self._captured: Activations | None = None  # what is wanted of the next batch
        self._is_placed = False  # sharded: it stays where it is
        self.lm_head = get_lm_head(model, self.vocab_size)

    def to(self, device: torch.device) -> None:
        """Brings the teacher, or its lm_head, to the student's device; a sharded one is there."""
        if self._is_placed:
            return
        self.model.to(self.device or device)
        self.lm_head = get_lm_head(self.model, self.vocab_size).to(device)

    def shard(self, mesh: Any, device: torch.device) -> None:
        """Spreads the model's layers over the ranks of a mesh; embeddings, final norm and lm_head, which never change, are
        whole on every rank. All ranks call this together."""
        shard_frozen(self.model, mesh, device)
        self.lm_head = get_lm_head(self.model, self.vocab_size)
        self._is_placed = True

    def target(self, batch: dict[str, Tensor], loss_mask: Tensor) -> DenseTarget:
        """Its whole distribution at the N positions that `loss_mask` (B, T − 1) marks."""
        hidden = self.hidden_states(batch)[:, :-1]
        return DenseTarget(hidden[loss_mask.to(hidden.device)].to(self.lm_head.weight.device), self.lm_head)

    def hidden_states(self, batch: dict[str, Tensor]) -> Tensor:
        """The teacher's last hidden states (B, T, D) for a batch of packed rows; with a prompt of its own those before
        supervised tokens alone."""
        self.check_frozen()
        if self.documents is not None:
            with torch.inference_mode():
                return hidden_states_with_prompt(self.model, batch, self.documents)
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


@register_teacher("online")
class OnlineSource(TeacherSource):
    """A model beside the student reads every batch, what the student has written too, and shows all its layers."""

    def capabilities(self, config: TeacherConfig) -> TeacherCapabilities:
        """All there are; with a prompt of its own no inner states, which would be those of other documents."""
        reads_as_student = not config.prompt.is_set
        return TeacherCapabilities(
            target_form="dense",
            hidden_layers=ALL_LAYERS if reads_as_student else (),
            has_attention=reads_as_student,
            scores_student_text=True,
            has_device=True,
            writes_text=True,
            reads_prompt=True,
            is_shardable=True,
        )

    def build(self, context: TeacherContext) -> OnlineTeacher:
        """Loads the model."""
        own_device = context.config.launcher.teacher_device
        device = torch.device(own_device) if own_device else None
        return OnlineTeacher(
            context.load_model(),
            context.vocab_size,
            context.config.training.compile == "always",
            device,
            context.data.teacher_documents,
        )
