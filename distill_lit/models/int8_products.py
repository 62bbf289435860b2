"""Products of int8 matrices on CPUs without instructions for them (VNNI, AMX): torch multiplies number by number there,
far more slowly than in float32, where the same products are exact (benchmarks/int8_products.md).

A product of int8 with int8 or uint8 is below 2¹⁵, and float32 holds every integer up to 2²⁴: sums of 512 products have no
error, in any order. Longer ones are added up in int32, so that the result is torch's own, bit for bit.
"""

import time
import warnings
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

EXACT_TERMS = 512  # products whose sum float32 holds exactly
PROBE_SHAPE = (32, 512, 512)  # rows, terms, columns of the product by which the faster way is found

_overrides: list[torch.library.Library] = []  # an override ends with its library


def int8_product(first: Tensor, second: Tensor) -> Tensor:
    """(M, K) int8 or uint8 times (K, N) int8: (M, N) int32, as `torch._int_mm` gives it."""
    parts = [
        (a.float() @ b.float()).to(torch.int32)
        for a, b in zip(first.split(EXACT_TERMS, dim=1), second.split(EXACT_TERMS, dim=0), strict=True)
    ]
    return parts[0] if len(parts) == 1 else torch.stack(parts).sum(0, dtype=torch.int32)


@cache
def use_fast_int8_products() -> bool:
    """From here on, `torch._int_mm` of this process goes by float32 on CPUs where that is faster; says whether it does."""
    rows, terms, columns = PROBE_SHAPE
    first, second = torch.ones(rows, terms, dtype=torch.int8), torch.ones(terms, columns, dtype=torch.int8)
    if _seconds(int8_product, first, second) >= _seconds(torch._int_mm, first, second):
        return False
    library = torch.library.Library("aten", "IMPL", "CPU")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that torch's own is overridden
        library.impl("_int_mm", int8_product)
    _overrides.append(library)
    return True


def _seconds(multiply: Callable[[Tensor, Tensor], Tensor], first: Tensor, second: Tensor) -> float:
    multiply(first, second)
    begun = time.perf_counter()
    multiply(first, second)
    return time.perf_counter() - begun
