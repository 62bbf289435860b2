"""Which tile of the Triton kernel is fastest on this GPU? `python benchmarks/tune_kernel.py`; writes kernel_tuning.csv.

Median milliseconds of the kernel alone on both tiles of products, and the memory traffic that this is: both tiles read once
and one written, whatever it does. The constants to set are BLOCK_SIZE and NUM_WARPS of distill_lit/losses/kernels/rows.py.
"""

# ruff: noqa: E402
import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

import pandas as pd
import torch

from distill_lit.losses import CrossEntropy, ForwardKL, JensenShannon, Objective, as_objective
from distill_lit.losses.chunks import plan_kernel
from distill_lit.losses.kernels import rows
from distill_lit.losses.kernels.losses import kernel_losses
from distill_lit.losses.kernels.rows import Products

TILES = [(1024, 4), (2048, 4), (2048, 8), (4096, 8), (4096, 16), (8192, 16), (8192, 32), (16384, 32)]
VOCABULARIES = {32768: 4096, 49152: 4096, 50257: 4096, 151936: 1024, 262144: 1024}  # tokens of a tile for each
OBJECTIVES = {
    "forward_kl": as_objective(ForwardKL()),
    "hinton": 0.5 * CrossEntropy() + 0.5 * ForwardKL(temperature=2.0),
    "jensen_shannon": as_objective(JensenShannon()),
}


def time_kernel(objective: Objective, count: int, vocabulary: int, repeats: int) -> float:
    """Median milliseconds of one call."""
    width = -(-vocabulary // 16) * 16
    tiles = [torch.randn(count, width, device="cuda").mul_(3).bfloat16()[:, :vocabulary] for _ in range(2)]
    labels = torch.randint(0, vocabulary, (count,), device="cuda")
    weights = torch.full((len(objective.logit_terms),), 1 / count, device="cuda")
    plan = plan_kernel(objective, None, weights)
    assert plan is not None
    temperatures = torch.tensor(objective.logit_weights_and_temperatures(0.0)[1], device="cuda")
    times = []
    for _ in range(repeats + 3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        student, teacher = (Products(tile) for tile in tiles)
        kernel_losses(plan.terms, student, teacher, labels, None, plan.weights, temperatures, has_gradient=True)
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return float(pd.Series(times[3:]).median())


def main(arguments: argparse.Namespace) -> None:
    """All tiles, objectives and vocabularies; the table is written after each tile."""
    found = []
    for block, warps in TILES:
        rows.BLOCK_SIZE, rows.NUM_WARPS = block, warps
        for vocabulary, count in VOCABULARIES.items():
            for name, objective in OBJECTIVES.items():
                milliseconds = time_kernel(objective, count, vocabulary, arguments.repeats)
                speed = 6 * count * vocabulary / milliseconds / 1e6
                case = {"vocabulary": vocabulary, "tokens": count, "objective": name}
                found.append({"block": block, "warps": warps, **case, "ms": milliseconds, "GB/s": speed})
        pd.DataFrame(found).to_csv(Path(arguments.out) / "kernel_tuning.csv", index=False, float_format="%.4g")
    table = pd.DataFrame(found)
    best = table.loc[table.groupby(["vocabulary", "objective"])["ms"].idxmin()]
    print(best.to_string(index=False))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--out", default=str(Path(__file__).parent), help="folder of the table")
    main(parser.parse_args())
