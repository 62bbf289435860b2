"""What a model costs to run: speed on a fixed grid, latency, energy, and memory in a process of its own.

Models take turns (A B C A B C …) in at least five blocks, so that what else the machine does falls on all of them alike.
Greedy decoding of a fixed number of tokens after random prompts of a fixed length: no model gains by stopping early.
"""

import json
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformers import PreTrainedConfig, PreTrainedModel

from distill_lit.config.evaluation import CostConfig
from distill_lit.models.loading import allow_remote_code, is_remote_code_allowed, load_model
from distill_lit.profiling.energy import EnergyMeter, open_energy_meter
from distill_lit.profiling.memory import read_peak_memory, reset_peak_memory
from distill_lit.utils.exceptions import UserError
from distill_lit.utils.progress import ProgressCallback

Timing = tuple[float, list[float]]  # seconds to the first token, seconds of every further one


def measure_costs(
    models: dict[str, Path], settings: CostConfig, device: torch.device, progress_callback: ProgressCallback | None = None
) -> pd.DataFrame:
    """One row per model, block and point of the grid, with COLUMNS; see `_row` and `_latency_row`.

    models: {name: transformers folder}. `settings.dtype` must be a number format. All models are held at once.
    """
    loaded = {name: load_model(folder, getattr(torch, settings.dtype)).to(device) for name, folder in models.items()}
    check_positions({name: model.config for name, model in loaded.items()}, settings)
    meter, rows, turns = open_energy_meter(device), [], settings.blocks * len(loaded)
    for model in loaded.values():
        for batch, prompt, output in inference_grid(settings):
            for _ in range(settings.warmup_generations):
                time_generation(model, random_prompts(model, batch, prompt, 0), output)
    for block in range(settings.blocks):
        for turn, (name, model) in enumerate(loaded.items()):
            for row in _measure_turn(model, settings, block, meter):
                rows.append({"model": name, "block": block, **row})
            if progress_callback:
                progress_callback(f"measure {name}", block * len(loaded) + turn + 1, turns, "turns")
    memory = {name: measure_peak_memory(folder, settings, device) for name, folder in models.items()}
    return pd.DataFrame(rows).assign(peak_memory_bytes=lambda frame: frame["model"].map(memory))


def inference_grid(settings: CostConfig) -> list[tuple[int, int, int]]:
    """Points (sequences, prompt tokens, output tokens)."""
    return [(b, p, o) for b in settings.batch_sizes for p in settings.prompt_lengths for o in settings.output_lengths]


def check_positions(configs: Mapping[str, PreTrainedConfig], settings: CostConfig) -> None:
    """Raises UserError when a model has fewer positions than the longest point of the grid."""
    longest = max(settings.prompt_lengths) + max(settings.output_lengths)
    for name, config in configs.items():
        known = getattr(config.get_text_config(), "max_position_embeddings", None)
        if known and known < longest:
            raise UserError(
                f"cost.prompt_lengths: {longest} tokens with cost.output_lengths, and {name} has {known} positions"
            )


def _measure_turn(
    model: PreTrainedModel, settings: CostConfig, block: int, meter: EnergyMeter | None
) -> list[dict[str, Any]]:
    """A model's turn: every point of the grid once, then single requests for the latency."""
    rows = []
    for batch, prompt, output in inference_grid(settings):
        before = meter() if meter else 0.0
        timing = time_generation(model, random_prompts(model, batch, prompt, block), output)
        used = meter() - before if meter else None
        rows.append(_row("grid", batch, prompt, output, [timing], used))
    requests = -(-settings.requests // settings.blocks)
    prompt, output = min(settings.prompt_lengths), min(settings.output_lengths)
    prompts = [random_prompts(model, 1, prompt, 1000 * block + n) for n in range(requests)]
    before = meter() if meter else 0.0
    timings = [time_generation(model, tokens, output) for tokens in prompts]
    used = meter() - before if meter else None
    return [*rows, _row("requests", 1, prompt, output, timings, used)]


def _row(kind: str, batch: int, prompt: int, output: int, timings: list[Timing], joules: float | None) -> dict[str, Any]:
    """kind: grid or requests. ttft_s: median; prefill_s_per_token, decode_s_per_token: over the whole batch;
    itl_p50_s, itl_p95_s: of the steps after the first token; joules: per token written, NaN where unknown."""
    first = np.array([t[0] for t in timings])
    steps = np.concatenate([t[1] for t in timings])
    return {
        "kind": kind,
        "batch": batch,
        "prompt": prompt,
        "output": output,
        "requests": len(timings),
        "ttft_s": float(np.median(first)),
        "prefill_s_per_token": float(first.mean() / (batch * prompt)),
        "decode_s_per_token": float(steps.mean() / batch),
        "itl_p50_s": float(np.quantile(steps, 0.5)),
        "itl_p95_s": float(np.quantile(steps, 0.95)),
        "joules": float("nan") if joules is None else joules / (batch * output * len(timings)),
    }


def random_prompts(model: PreTrainedModel, batch: int, prompt: int, seed: int) -> torch.Tensor:
    """(batch, prompt) token ids: what they say does not matter for the time they take."""
    generator = torch.Generator().manual_seed(seed)
    vocab_size = model.config.get_text_config().vocab_size
    return torch.randint(0, vocab_size, (batch, prompt), generator=generator).to(model.device)


@torch.inference_mode()
def time_generation(model: PreTrainedModel, tokens: torch.Tensor, max_new_tokens: int) -> Timing:
    """Times `max_new_tokens` greedy tokens after each row of `tokens` (B, T), at least two."""
    return greedy_decode(model, tokens, max_new_tokens)[1]


@torch.inference_mode()
def greedy_decode(model: PreTrainedModel, tokens: torch.Tensor, max_new_tokens: int) -> tuple[torch.Tensor, Timing]:
    """((B, output) greedy tokens, their times); `generate` of transformers adds its own bookkeeping to every step."""
    new_tokens, times = [], [_now(model.device)]
    input_ids, cache = tokens, None
    for _ in range(max_new_tokens):
        outputs = model(input_ids=input_ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache, input_ids = outputs.past_key_values, outputs.logits[:, -1].argmax(-1, keepdim=True)
        new_tokens.append(input_ids)
        times.append(_now(model.device))
    steps = np.diff(times)
    return torch.cat(new_tokens, 1), (float(steps[0]), steps[1:].tolist())


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


# ---------------------------------------------------------------- memory


def measure_peak_memory(folder: Path, settings: CostConfig, device: torch.device) -> int:
    """The most bytes that a fresh process holds while it serves the largest point of the grid: on a CPU all of the
    process, its libraries included; on a GPU what torch allocated."""
    task = {"folder": str(folder), "dtype": settings.dtype, "device": str(device), "point": max(inference_grid(settings)),
            "threads": torch.get_num_threads(), "code": is_remote_code_allowed(folder)}  # fmt: skip
    command = [sys.executable, "-m", "distill_lit.profiling.inference", json.dumps(task)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(f"memory of {folder} could not be measured: {result.stderr.strip().splitlines()[-1:]}")
    return int(result.stdout.strip().splitlines()[-1])


def _measure_peak_in_process(task: dict[str, Any]) -> int:
    torch.set_num_threads(task["threads"])
    if task["code"]:
        allow_remote_code(Path(task["folder"]))
    device = torch.device(task["device"])
    model = load_model(Path(task["folder"]), getattr(torch, task["dtype"])).to(device)
    reset_peak_memory(device)  # reading the file takes memory that serving does not
    batch, prompt, output = task["point"]
    time_generation(model, random_prompts(model, batch, prompt, 0), output)
    return read_peak_memory(device)


if __name__ == "__main__":
    print(_measure_peak_in_process(json.loads(sys.argv[1])))
