"""Losses as pure functions of tensors: the family, schedules, their mixture, and the fused head."""

from distill_lit.losses.fused_linear import (
    LossOutput,
    can_compile,
    chunk_size_for_budget,
    distillation_loss,
    fused_linear_distillation_loss,
    label_logprobs_from_hidden,
)
from distill_lit.losses.hidden_states import FEATURE_LOSSES
from distill_lit.losses.objective import Objective, build_objective, check_teacher_supports_objective
from distill_lit.losses.presets import PRESETS, resolve_preset
from distill_lit.losses.registry import LOGIT_LOSSES

__all__ = [
    "FEATURE_LOSSES",
    "LOGIT_LOSSES",
    "PRESETS",
    "LossOutput",
    "Objective",
    "build_objective",
    "can_compile",
    "check_teacher_supports_objective",
    "chunk_size_for_budget",
    "distillation_loss",
    "fused_linear_distillation_loss",
    "label_logprobs_from_hidden",
    "resolve_preset",
]
