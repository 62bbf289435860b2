"""What does a (T, T) mask cost packed rows? `python benchmarks/packed_attention.py` (minutes; `--quick`: seconds).

Forward and backward pass of a small Llama over one row of T tokens, with documents of 64 to 2048 tokens: by the mask and
by every kernel of `training.packed_attention` that this device has, in turn in one process. Before it is timed, a kernel
must give the mask's hidden states and gradients. Peak memory is what a pass takes above the model. Where the mask would
not fit MAX_MASK_GB, its memory is that of its numbers: (T, T) booleans and, in the model's format, what is added to scores.
Writes benchmarks/packed_attention.md and .csv (with --device cuda: packed_attention_cuda.*).
"""

# ruff: noqa: E402
import argparse
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from distill_lit.models.packed_attention import usable_kernels
from distill_lit.models.packed_forward import ONE_MASK, PackedBatch, plan_forward_passes, run_backbone
from distill_lit.models.packing_check import relative_error
from distill_lit.profiling.memory import read_peak_memory, reset_peak_memory
from distill_lit.utils import hardware

LENGTHS = (512, 1024, 2048, 4096, 8192, 16384, 32768)
DOCUMENT_TOKENS = (64, 2048)  # the shortest and the longest; their logarithms are drawn evenly
MAX_MASK_GB = 1.0
TOLERANCE = 1e-4  # relative, of hidden states and of gradients, float32


def main() -> None:
    """Measures, prints and writes; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="short rows, one round; writes nothing")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each way (default: 3)")
    options = parser.parse_args()
    device = torch.device(options.device)
    model = small_llama(device)
    lengths, rounds = (LENGTHS[:2], 1) if options.quick else (LENGTHS, options.rounds)
    rows: list[dict[str, Any]] = []
    for length in lengths:
        rows += measure(model, length, rounds)
        print(rows[-1], flush=True)
    table = pd.DataFrame(rows)
    page = render_page(table, device, rounds)
    print(page)
    if not options.quick:
        path = ROOT / f"benchmarks/packed_attention{'_cuda' if device.type == 'cuda' else ''}"
        table.to_csv(path.with_suffix(".csv"), index=False, float_format="%.6g")
        path.with_suffix(".md").write_text(page, encoding="utf-8")


def small_llama(device: torch.device) -> Any:
    """Two layers, 2 query heads of 64 channels, 1 key head; bfloat16 on GPUs, where varlen asks for it."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=max(LENGTHS),
    )
    return LlamaForCausalLM(config).to(device, torch.bfloat16 if device.type == "cuda" else torch.float32)


def packed_row(length: int, device: torch.device) -> PackedBatch:
    """One row of `length` tokens, filled with documents."""
    draw = np.random.default_rng(0)
    low, high = np.log(DOCUMENT_TOKENS)
    sizes = np.exp(draw.uniform(low, high, 2 + length // DOCUMENT_TOKENS[0])).astype(int)
    ends = np.minimum(np.cumsum(sizes), length)
    documents = 1 + np.searchsorted(ends, np.arange(length), side="right")
    starts = np.concatenate([[0], ends])[documents - 1]
    arrays = {
        "input_ids": draw.integers(3, 512, length),
        "document_ids": documents,
        "position_ids": np.arange(length) - starts,
    }
    return {name: torch.from_numpy(array)[None].to(device) for name, array in arrays.items()}


def run(model: Any, batch: PackedBatch, layout: str) -> Tensor:
    """A forward and a backward pass; the hidden states (T, D)."""
    model.zero_grad()
    (part,) = plan_forward_passes(model, batch, layout)
    hidden = run_backbone(model, part)
    hidden.float().square().mean().backward()
    return hidden.detach()[0]


def measure(model: Any, length: int, rounds: int) -> list[dict[str, Any]]:
    """The mask's row of the table, and those of the kernels."""
    device = next(model.parameters()).device
    batch, number = packed_row(length, device), next(model.parameters()).element_size()
    mask_gb = length**2 * (1 + number) / 1e9
    is_mask_measured = mask_gb < MAX_MASK_GB
    layouts = [*([ONE_MASK] if is_mask_measured else []), *usable_kernels(model)]
    expected = states_and_gradients(model, batch, ONE_MASK) if is_mask_measured else None
    for layout in layouts if expected is not None else []:
        check_same(states_and_gradients(model, batch, layout), expected, device)
    seconds: dict[str, list[float]] = {layout: [] for layout in layouts}
    peaks = {}
    is_warm = expected is not None  # by the check
    for turn in range(rounds + (not is_warm)):
        for layout in layouts:
            before, start = reset_peak_memory(device), time.perf_counter()
            run(model, batch, layout)
            if device.type == "cuda":
                torch.cuda.synchronize()
            if turn or is_warm:  # else the first warms up, and compiles
                seconds[layout].append(time.perf_counter() - start)
            peaks[layout] = (read_peak_memory(device) - before) / 2**20
    facts = {"tokens": length, "documents": int(batch["document_ids"].max())}
    unmeasured = {"way": "mask, by formula", "seconds": np.nan, "memory_mib": length**2 * (1 + number) / 2**20}
    measured = [
        {"way": "mask" if way == ONE_MASK else way, "seconds": float(np.median(seconds[way])), "memory_mib": peaks[way]}
        for way in layouts
    ]
    return [{**facts, **row} for row in [*([] if is_mask_measured else [unmeasured]), *measured]]


def states_and_gradients(model: Any, batch: PackedBatch, layout: str) -> list[Tensor]:
    """Hidden states, and the gradients of every matrix."""
    hidden = run(model, batch, layout)
    return [hidden, *(p.grad.clone() for p in model.parameters() if p.grad is not None and p.ndim == 2)]


def check_same(actual: list[Tensor], expected: list[Tensor], device: torch.device) -> None:
    """Raises AssertionError where a kernel is not the mask."""
    allowed = TOLERANCE if device.type == "cpu" else 0.05  # of bfloat16
    assert relative_error(actual[0], expected[0]) < allowed
    for ours, theirs in zip(actual[1:], expected[1:], strict=True):
        assert float((ours - theirs).norm() / theirs.norm()) < allowed


def render_page(table: pd.DataFrame, device: torch.device, rounds: int) -> str:
    """The table in Markdown: ratios are against the mask of the same T."""
    command = " ".join(["python benchmarks/packed_attention.py", *sys.argv[1:]])
    name = torch.cuda.get_device_name() if device.type == "cuda" else hardware.describe_hardware()["processor"]
    lines = [
        "# Attention within documents, without a (T, T) mask",
        "",
        f"`{command}`: two layers of a Llama, forward and backward pass over one row, "
        f"{name}, torch {torch.__version__}; "
        f"median of {rounds} rounds in turn. Memory: peak of a pass above the model. Ratios: the mask's over the kernel's, "
        "above 1 is better. By formula: T² booleans and T² numbers of the model's format, nothing else.",
        "",
        "| tokens a row | documents | way | seconds | faster | memory MiB | less memory |",
        "|---:|---:|---|---:|---:|---:|---:|",
    ]
    for _, group in table.groupby("tokens"):
        mask = group.iloc[0]
        for _, row in group.iterrows():
            faster = "" if row is mask or np.isnan(mask.seconds) else f"{mask.seconds / row.seconds:.2f}×"
            seconds = "" if np.isnan(row.seconds) else f"{row.seconds:.3f}"
            less = f"{mask.memory_mib / max(row.memory_mib, 0.1):.1f}×"
            is_mask = row.way.startswith("mask")
            lines.append(
                f"| {row.tokens} | {row.documents} | {row.way} | {seconds} | {'' if is_mask else faster} | "
                f"{row.memory_mib:.0f} | {'' if is_mask else less} |"
            )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
