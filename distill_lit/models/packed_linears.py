"""Weights of linear layers in the blocked order in which oneDNN multiplies, so that a step of few tokens need not reorder
them. In float32 on a CPU this takes a fifth to a half of the time off a product of 4 to 16 rows; sums are in another order.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from distill_lit.utils.hardware import free_memory

MIN_PACKED_ROWS = 4  # of a product that takes packed weights; with fewer it only waits for memory
MAX_PACKED_ROWS = 64  # rows of a product that takes packed weights; with more the plain ones are as fast
MAX_MEMORY_SHARE = 0.5  # of the memory that is free, which the packed copy may take


@contextmanager
def packed_linears(model: nn.Module) -> Iterator[None]:
    """Inside, linear layers of a model whose weights do not change multiply few rows by packed copies of them. Does nothing
    where that is not known to pay: on other devices, in other number formats, under autocast, without the memory."""
    linears = _packable(model)
    for module in linears:
        packed = torch.ops.mkldnn._reorder_linear_weight(module.weight.detach(), MAX_PACKED_ROWS)
        module.forward = functools.partial(_forward, module, packed)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for module in linears:
            del module.__dict__["forward"]


def _packable(model: nn.Module) -> list[nn.Linear]:
    if not torch.backends.mkldnn.is_available() or torch.is_autocast_enabled("cpu"):
        return []
    found = [
        module
        for module in model.modules()
        if type(module) is nn.Linear
        and "forward" not in module.__dict__
        and type(module.weight) in (nn.Parameter, Tensor)
        and module.weight.dtype == torch.float32
        and module.weight.device.type == "cpu"
    ]
    size = sum(module.weight.numel() * module.weight.element_size() for module in found)
    return found if size <= MAX_MEMORY_SHARE * free_memory(torch.device("cpu")) else []


def _forward(module: nn.Linear, packed: Any, x: Tensor) -> Tensor:
    if not MIN_PACKED_ROWS <= x.numel() // module.in_features <= MAX_PACKED_ROWS or x.dtype != torch.float32:
        return nn.functional.linear(x, module.weight, module.bias)
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, module.bias, "none", [], "")
    return product
