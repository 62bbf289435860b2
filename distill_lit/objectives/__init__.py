"""Losses as pure functions of tensors: divergences, schedules, their mixture, and the fused head."""

from distill_lit.objectives.fused import Losses, can_compile, fused_losses, plain_losses
from distill_lit.objectives.objective import DIVERGENCES, MEASURES, Objective, build_objective, chunk_for

__all__ = [
    "DIVERGENCES",
    "MEASURES",
    "Losses",
    "Objective",
    "build_objective",
    "can_compile",
    "chunk_for",
    "fused_losses",
    "plain_losses",
]
