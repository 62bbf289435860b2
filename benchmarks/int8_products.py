"""How long do products of int8 take by float32? `python benchmarks/int8_products.py` (a minute on one core).

The layers of SmolLM2-135M, at the rows of a step of writing and of a packed evaluation: torch's own `torch._int_mm`, ours,
which gives the same integers, and a product of float32, the floor. In turn in one process; the least of the rounds, since a
disturbance only adds, and the spread of the ratio over rounds. Writes benchmarks/int8_products.md.
"""

# ruff: noqa: E402
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

import numpy as np
import torch

from distill_lit.models.int8_products import int8_product
from distill_lit.utils.files import write_text
from distill_lit.utils.hardware import describe_hardware

LAYERS = ((576, 1536), (1536, 576), (576, 576))  # inputs, outputs
ROWS = (4, 64, 512)
ROUNDS = 5
PAGE = ROOT / "benchmarks/int8_products.md"


def seconds(product: Callable[[], torch.Tensor]) -> float:
    """Of one product."""
    begun = time.perf_counter()
    product()
    return time.perf_counter() - begun


def measure(rows: int, terms: int, columns: int) -> str:
    """A line of the table."""
    first, second = (torch.randint(-128, 128, (n, terms), dtype=torch.int8) for n in (rows, columns))
    second = second.T  # as weights lie
    floats = first.float(), second.float()
    ways = (
        lambda: torch._int_mm(first, second),
        lambda: int8_product(first, second),
        lambda: floats[0] @ floats[1],
    )
    assert torch.equal(ways[0](), ways[1]()), "the integers differ"
    ways[2]()
    times = np.array([[seconds(way) for way in ways] for _ in range(ROUNDS)])  # (rounds, ways)
    ratios, (own, ours, floor) = times[:, 0] / times[:, 1], times.min(axis=0) * 1e3
    return (
        f"| {rows} × {terms} × {columns} | {own:.2f} | {ours:.2f} | {floor:.2f} | {own / ours:.1f}× "
        f"({ratios.min():.1f} to {ratios.max():.1f}) | {ours / floor:.1f} |"
    )


def main() -> None:
    """Measures all, prints and writes."""
    torch.manual_seed(0)
    hardware = describe_hardware()
    lines = [
        "# Products of int8 by float32",
        "",
        f"`python benchmarks/int8_products.py`: {hardware['processor']}, {hardware['threads']} threads, VNNI: "
        f"{'yes' if torch.cpu._is_vnni_supported() else 'no'}, torch {hardware['torch']}. Milliseconds, the least of "
        f"{ROUNDS} rounds in turn; in brackets the ratio's range over the rounds. Both give the same integers.",
        "",
        "| rows × inputs × outputs | `torch._int_mm` | by float32 | float32 alone | faster | ÷ floor |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    lines += [measure(rows, *layer) for rows in ROWS for layer in LAYERS]
    page = "\n".join(lines) + "\n"
    print(page)
    write_text(PAGE, page)


if __name__ == "__main__":
    main()
