"""What the kernels share: a row of logits from a row of products, log Σ exp over it online, and how a row is cut."""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

BLOCK_SIZE, NUM_WARPS = 4096, 16  # columns of a tile, and warps that share it: eight numbers a thread
LOWEST = tl.constexpr(-3.0e38)  # below all logits; with −inf, a lane that has seen nothing else would be no number


class Products(NamedTuple):
    """A tile of raw products (n, V), its columns contiguous, and what makes logits of them:
    softcap · tanh(scale · products / softcap), softcap 0 for none."""

    tile: Tensor
    scale: float = 1.0
    softcap: float = 0.0


def tile_of(num_columns: int) -> dict[str, int]:
    """Columns of a tile, and how many warps share it."""
    block = min(BLOCK_SIZE, triton.next_power_of_2(num_columns))
    return {"BLOCK": block, "num_warps": max(1, NUM_WARPS * block // BLOCK_SIZE)}


@triton.jit
def read_logits(row, columns, inside, scale, softcap, IS_CAPPED: tl.constexpr):
    # (logits, their derivative with respect to the products) of one tile
    z = tl.load(row + columns, mask=inside, other=0.0).to(tl.float32) * scale
    slope = tl.zeros_like(z) + scale
    if IS_CAPPED:
        tanh = 2.0 * tl.sigmoid(2.0 * z / softcap) - 1.0
        z = softcap * tanh
        slope = (1.0 - tanh * tanh) * scale
    return z, slope


@triton.jit
def add_exponentials(largest, total, x):
    # every lane has its own largest x and its own Σ exp(x − largest), so none waits for another
    decay = tl.exp(-tl.abs(x - largest))
    rises = x > largest
    total = tl.where(rises, total * decay + 1.0, total + decay)
    return tl.maximum(largest, x), total, rises, decay


@triton.jit
def merge_lanes(largest, total):
    # (log Σ exp over the row, the factor that makes probabilities of a lane's exponentials)
    top = tl.max(largest, axis=0)
    factor = tl.exp(largest - top)
    whole = tl.sum(total * factor, axis=0)
    return top + tl.log(whole), factor / whole
