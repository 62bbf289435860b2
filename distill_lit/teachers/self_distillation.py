"""Self-distillation: the student learns from what it was, or from an average of what it has been.

    self   a frozen copy of the student as its training begins: what it knows is kept while it learns something else
           (Li and Hoiem 2016, 1606.09282)
    ema    an exponential moving average of the student's weights, θ′ ← decay · θ′ + (1 − decay) · θ after every optimizer
           step (Tarvainen and Valpola 2017, "Mean teachers", 1703.01780)

An earlier checkpoint is neither: it is a model like others, for `teacher.model`. A copy of a student that rounds its
weights in training (`quantization_aware`) rounds as it does.
"""

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from distill_lit.config import TeacherConfig
from distill_lit.data import TeacherDocuments
from distill_lit.models.vocabulary import load_unpadded_vocab_size
from distill_lit.teachers.base import TeacherCapabilities, TeacherContext, TeacherSource
from distill_lit.teachers.online import OnlineTeacher
from distill_lit.teachers.registry import register_teacher
from distill_lit.utils.distributed.ranks import full_tensor
from distill_lit.utils.exceptions import UserError

OF_THE_STUDENT = TeacherCapabilities(
    target_form="dense",
    needs_model=False,
    scores_student_text=True,
    writes_text=True,
    copies_student=True,
    reads_prompt=True,
)


class EMATeacher(OnlineTeacher):
    """An exponential moving average of a student, beside it. It is in no optimizer; checkpoints hold its weights.

    Example:
        module = Distiller(student, EMATeacher(student, decay=0.99), losses.ForwardKL())
    """

    def __init__(
        self,
        student: Any,
        decay: float = 0.999,
        vocab_size: int | None = None,
        documents: TeacherDocuments | None = None,
    ) -> None:
        """Begins with a copy of the student in its number format. Averages of 16-bit weights are kept in float32 beside it,
        rounded for each forward pass: steps of 1 − decay would be rounded away. decay: 0 (the student itself) to 1
        exclusive; documents: as in `OnlineTeacher`. Raises UserError for another decay."""
        if not 0 <= decay < 1:
            raise UserError(f"EMATeacher(decay): {decay} is not at least 0 and below 1")
        super().__init__(copy.deepcopy(student), vocab_size, documents=documents)
        self.decay = decay
        self._long_averages: dict[str, Tensor] = {}  # of 16-bit weights

    def to(self, device: torch.device) -> None:
        """Brings the averages to the student's device."""
        super().to(device)
        self._long_averages = {name: average.to(device) for name, average in self._long_averages.items()}

    @torch.no_grad()
    def follow(self, student: Any) -> None:
        """Takes in the student's weights after an optimizer step; what is not trained stays as it is."""
        averages = dict(self.model.named_parameters())
        for name, parameter in student.named_parameters():
            if parameter.requires_grad:
                rounded = averages[name]
                is_short = rounded.dtype.itemsize < 4
                average = self._long_averages.setdefault(name, rounded.float()) if is_short else rounded
                average.lerp_(full_tensor(parameter).to(average), 1 - self.decay)
                if is_short:
                    rounded.copy_(average)

    def state_dict(self) -> dict[str, Tensor]:
        """The averaged weights by name."""
        return {name: parameter.detach() for name, parameter in self.model.named_parameters()} | self._long_averages

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Puts saved weights back."""
        for name, parameter in self.model.named_parameters():
            parameter.copy_(state[name])
            if parameter.dtype != state[name].dtype:
                self._long_averages[name] = state[name].to(parameter.device, copy=True)


class _StudentCopySource(TeacherSource):
    """A teacher that is made of the student."""

    def check(self, config: TeacherConfig) -> None:
        """Refuses fields of a cache."""
        super().check(config)
        default = TeacherConfig()
        for name in ("cache_format", "hidden_layers", "top_k", "top_p", "num_samples", "sampling_temperature"):
            if getattr(config, name) != getattr(default, name):
                raise UserError(
                    f"teacher.{name}: teacher.source {config.source} is a copy of the student that is being trained, of "
                    "which there can be no cache"
                )


@register_teacher("self")
class SelfSource(_StudentCopySource):
    """The student's own start, frozen: self-distillation."""

    def capabilities(self, config: TeacherConfig) -> TeacherCapabilities:
        """Its whole distribution, of any text; its layers are not those of `teacher.model`."""
        return replace(OF_THE_STUDENT, is_shardable=True)

    def build(self, context: TeacherContext) -> OnlineTeacher:
        """Copies the student."""
        vocab_size = load_unpadded_vocab_size(context.student_tokenizer_folder)
        model, documents = copy.deepcopy(context.student).to(context.dtype), context.data.teacher_documents
        return OnlineTeacher(model, vocab_size, documents=documents)


@register_teacher("ema")
class EMASource(_StudentCopySource):
    """An exponential moving average of the student's weights: a mean teacher."""

    def capabilities(self, config: TeacherConfig) -> TeacherCapabilities:
        """As of a copy of the student, and nothing without a training."""
        return replace(OF_THE_STUDENT, follows_student=True)

    def build(self, context: TeacherContext) -> EMATeacher:
        """Copies the student, in float32 whatever `teacher.dtype` says; autocast makes its products what they are in the
        student."""
        vocab_size = load_unpadded_vocab_size(context.student_tokenizer_folder)
        decay, documents = context.config.teacher.ema_decay, context.data.teacher_documents
        return EMATeacher(context.student, decay, vocab_size, documents)
