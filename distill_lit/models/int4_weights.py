"""Weights in 4 bits: torchao's plain int4 format, packed on disk, widened to the model's number format where it is loaded.

A group of inputs of one output channel shares a scale s and an offset z: w ≈ q·s + z with q from -8 to 7, and w rounds to
the nearest of the 16 values between the group's extremes. Two weights share a byte. torchao multiplies this format on GPUs
that have the kernels of its `mslk` package; everywhere else it is the same numbers after `widen_int4_weights`, at the
speed and in the memory of full weights.
"""

from typing import Any

import torch
from torch import Tensor, nn

GROUP_SIZE = 32  # inputs that share a scale: the widths of small models have no larger common divisor
MIN_RANGE = 1e-6  # of a group, where all its weights are equal
LOWEST = -8  # of the 16 integers


def pack_int4(weight: Tensor) -> Any:
    """A torchao `Int4Tensor` of a weight (N, K) of whole groups; its scales are in the number format of the weight."""
    from torchao.quantization import Int4Tensor

    groups = weight.detach().float().unflatten(1, (-1, GROUP_SIZE))  # (N, K / G, G)
    least, most = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    scale = (most - least).clamp(min=MIN_RANGE) / 15
    integers = (((groups - least) / scale).round().clamp(0, 15) + LOWEST).to(torch.int8).flatten(1)
    packed = (integers[:, 1::2] << 4) | (integers[:, ::2] & 0xF)
    scales, offsets = (x[..., 0].T.contiguous().to(weight.dtype) for x in (scale, least - LOWEST * scale))
    return Int4Tensor(packed, scales, offsets, [1, GROUP_SIZE], weight.shape)


def unpack_int4(packed: Any) -> Tensor:
    """The weight (N, K) that an `Int4Tensor`, or what has its fields, stands for, in the number format of its scales."""
    low, high = (packed.qdata << 4) >> 4, packed.qdata >> 4  # shifts of int8 keep the sign
    integers = torch.stack([low, high], dim=-1).flatten(1).unflatten(1, (-1, packed.block_size[1]))
    scales, offsets = packed.scale.T[..., None], packed.zero_point.T[..., None]
    weight: Tensor = (integers.to(scales.dtype) * scales + offsets).flatten(1)
    return weight


class Int4Linear(nn.Module):
    """A frozen linear layer whose weight (N, K) stays packed, at 0.5 bytes and two scales per group, and is widened for
    each product."""

    def __init__(self, layer: nn.Linear) -> None:
        """The same layer, its weight rounded."""
        super().__init__()
        packed = pack_int4(layer.weight)
        self.register_buffer("qdata", packed.qdata)
        self.register_buffer("scale", packed.scale)
        self.register_buffer("zero_point", packed.zero_point)
        self.bias, self.block_size = layer.bias, packed.block_size
        self.in_features, self.out_features = layer.in_features, layer.out_features

    @property
    def weight(self) -> Tensor:
        """What the packed weight stands for."""
        return unpack_int4(self)

    def forward(self, inputs: Tensor) -> Tensor:
        """(…, K) → (…, N)."""
        return nn.functional.linear(inputs, self.weight, self.bias)


def widen_int4_weights(model: Any) -> None:
    """Replaces every int4 weight of a loaded model by what it stands for, so that it is a model in full weights again."""
    dtype, widened = model.dtype, False
    for module in model.modules():
        if isinstance(module, nn.Linear) and type(module.weight.data).__name__ == "Int4Tensor":
            module.weight = nn.Parameter(unpack_int4(module.weight).to(dtype))
            module.__dict__.pop("extra_repr", None)  # transformers' own, which describes a packed weight
            widened = True
    if widened:
        model.hf_quantizer.remove_quantization_config(model)
        model.__dict__.pop("_weight_conversions", None)  # how packed weights were read, which saving would turn around
