"""Quantization-aware training: a student whose linear layers round their weights in every forward pass as the quantized
model will, while gradients reach the weights as if nothing had been rounded (the straight-through estimator). Jacob et al.
2018, 1712.05877; with a full-precision teacher it is quantization-aware distillation, as LLM-QAT (Liu et al., 2305.17888).

The weights that are trained, saved in checkpoints and resumed from are the unrounded ones. torchao's fake quantization
rounds them; it is optional (extra `int8`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from distill_lit.config import StudentConfig
from distill_lit.config.fields import QuantizationAware
from distill_lit.models.int4_weights import GROUP_SIZE
from distill_lit.models.quantization import check_torchao, quantize_weights, quantized_layers
from distill_lit.utils.exceptions import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def check_quantization_aware(student: StudentConfig) -> None:
    """Raises UserError for rounding in training that cannot be."""
    if student.quantization_aware == "none":
        return
    check_torchao(f"quantization_aware: {student.quantization_aware}")
    if student.lora.rank:
        raise UserError(
            "quantization_aware: not with lora: adapters are merged after the training, and the sum was never rounded in it"
        )


def prepare_quantization_aware(model: PreTrainedModel, quantization: QuantizationAware) -> PreTrainedModel:
    """The same model with fake quantization in its linear layers, head and embeddings as they were; `none`: as it was."""
    if quantization == "none":
        return model
    from torchao.quantization import Int4WeightOnlyConfig, IntxWeightOnlyConfig, quantize_
    from torchao.quantization.qat import QATConfig

    # IntxWeightOnlyConfig: int8 per output channel, the numbers of Int8WeightOnlyConfig, which QATConfig does not take
    recipe = Int4WeightOnlyConfig(group_size=GROUP_SIZE) if quantization == "int4" else IntxWeightOnlyConfig()
    chosen = set(map(id, quantized_layers(model).values()))
    with torch.random.fork_rng([]):  # torchao draws weights for its layers, and replaces them
        quantize_(model, QATConfig(recipe, step="prepare"), filter_fn=lambda module, _: id(module) in chosen)
    return model.eval()


def quantize_prepared(model: PreTrainedModel, quantization: QuantizationAware) -> PreTrainedModel:
    """The same model, fake quantization replaced by quantized weights in place; `none`: as it is."""
    if quantization == "none":
        return model
    from torchao.quantization import quantize_
    from torchao.quantization.qat import QATConfig

    with torch.random.fork_rng([]):
        quantize_(model, QATConfig(step="convert"), filter_fn=lambda module, _: isinstance(module, nn.Linear))
    return quantize_weights(model, quantization)
