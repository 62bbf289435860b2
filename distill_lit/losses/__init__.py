"""Losses as pure functions of tensors: the family, schedules, their mixture, and the fused head."""

from distill_lit.losses.fused_linear import Losses, can_compile, chunk_for, fused_losses, label_log_probs, plain_losses
from distill_lit.losses.hidden_states import REPRESENTATIONS
from distill_lit.losses.objective import Objective, build_objective, check_signal
from distill_lit.losses.presets import PRESETS, resolve_preset
from distill_lit.losses.registry import LOSSES

__all__ = [
    "LOSSES",
    "PRESETS",
    "REPRESENTATIONS",
    "Losses",
    "Objective",
    "build_objective",
    "can_compile",
    "check_signal",
    "chunk_for",
    "fused_losses",
    "label_log_probs",
    "plain_losses",
    "resolve_preset",
]
