"""Weights rounded by hand, as the weight-only recipes of quantization round them; a default number format that rounds."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from distill_lit.models.int4_weights import GROUP_SIZE


@contextmanager
def bfloat16_default() -> Iterator[None]:
    """The default number format while Lightning's precision="bf16-true" computes a batch."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def round_by_hand(weight: Tensor, quantization: str) -> Tensor:
    return {"int4": _round_int4, "int8_weight_only": _round_int8}[quantization](weight)


def _round_int4(weight: Tensor) -> Tensor:
    """One group at a time: the nearest of 16 values, evenly from the least weight of the group to the largest."""
    rounded = torch.empty_like(weight)
    for row in range(weight.shape[0]):
        for start in range(0, weight.shape[1], GROUP_SIZE):
            group = weight[row, start : start + GROUP_SIZE]
            values = torch.linspace(float(group.min()), float(group.max()), 16)
            nearest = (group[:, None] - values[None]).abs().argmin(1)
            rounded[row, start : start + GROUP_SIZE] = values[nearest]
    return rounded


def _round_int8(weight: Tensor) -> Tensor:
    """255 steps between ± the largest weight of an output channel."""
    step = 2 * weight.abs().amax(1, keepdim=True) / 255
    return (weight * (1 / step)).round().clamp(-128, 127) * step
