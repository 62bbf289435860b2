"""How does what the suite does grow with its size? `python benchmarks/growth.py` (minutes; `--quick`: two sizes each).

A distillation step over the student's layers, the tokens of a row and the vocabulary; planning over the runs of a grid;
evaluating and drawing a report over documents. Models are small and random: what counts is how much longer twice as much
takes. Seconds of one processor, so that other work on the machine matters little. Writes benchmarks/growth.md, growth.csv
and growth.png after each case.
"""

# ruff: noqa: E402
import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)
sys.path.append(str(ROOT / "tests"))

import numpy as np
import pandas as pd
import torch
from helpers.synthetic_results import build
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.arguments import existing_folder, positive
from benchmarks.launcher_throughput import load
from benchmarks.prefix_tree_lm import TEACHER, build_requests
from distill_lit import Distiller, losses
from distill_lit.config.evaluation import AnalysisConfig
from distill_lit.evaluation.prefix_tree_lm import PrefixTreeLM
from distill_lit.experiment.experiment import Experiment
from distill_lit.models import load_tokenizer, model_folder
from distill_lit.profiling.memory import read_peak_memory, reset_peak_memory
from distill_lit.report import build_report_bundle, render_report
from distill_lit.utils import hardware

HIDDEN_SIZE, LAYERS, TOKENS, VOCABULARY = 256, 4, 512, 8192
DOCUMENT_TOKENS = 128  # of each document in a packed row
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Case:
    """What grows. run: makes, for a size, what is timed."""

    title: str
    unit: str
    sizes: tuple[int, ...]
    run: Callable[[int, Path], Callable[[], object]]


def random_model(layers: int, vocabulary: int) -> Any:
    """A Llama of 256 channels."""
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary, hidden_size=HIDDEN_SIZE, intermediate_size=4 * HIDDEN_SIZE, num_hidden_layers=layers,
            num_attention_heads=4, max_position_embeddings=1 << 16,
        )
    )  # fmt: skip


def distillation_step(layers: int = LAYERS, tokens: int = TOKENS, vocabulary: int = VOCABULARY) -> Callable[[], object]:
    """Forward and backward pass of the forward KL over one packed row, with a live teacher of four layers."""
    module = Distiller(random_model(layers, vocabulary), random_model(LAYERS, vocabulary), losses.ForwardKL())
    ids = torch.randint(0, vocabulary, (1, tokens), generator=torch.Generator().manual_seed(0))
    index = torch.arange(tokens)[None]
    batch = {
        "input_ids": ids, "labels": ids,
        "document_ids": 1 + index // DOCUMENT_TOKENS, "position_ids": index % DOCUMENT_TOKENS,
    }  # fmt: skip

    def step() -> None:
        module.loss(module.student, batch, 0.0, compute_metrics=False, with_teacher=True).total.backward()
        module.student.zero_grad()  # now: gradients left over would hide as much of the next peak

    step()
    return step


def planning(hundreds: int, folder: Path) -> Callable[[], object]:
    """Every run of a grid checked, named and identified; each time by an experiment that has planned nothing yet."""
    config = load(folder, hundreds).config

    def plan() -> int:
        experiment = Experiment(config, folder)
        experiment.validate()
        return len(experiment.runs)

    return plan


def evaluation(documents: int, folder: Path) -> Callable[[], object]:
    """Log-likelihoods of piqa by a model of two layers."""
    tokenizer = load_tokenizer(model_folder(TEACHER))
    model = random_model(2, len(tokenizer)).eval()
    lm = PrefixTreeLM(model, tokenizer)
    lm.loglikelihood(build_requests("piqa", 0, 4), disable_tqdm=True)  # checks itself once
    requests = build_requests("piqa", 0, documents)
    return lambda: lm.loglikelihood(requests, disable_tqdm=True)


def report(documents: int, folder: Path) -> Callable[[], object]:
    """All tables, tests and figures of seven models on four tasks."""
    build(folder, documents=documents // 4)
    return lambda: render_report(folder, build_report_bundle(folder, AnalysisConfig(), "growth"))


CASES = (
    Case("Distillation step", "layers of the student", (2, 4, 8, 16, 32), lambda n, _: distillation_step(layers=n)),
    Case("Distillation step", "tokens of a row", (256, 512, 1024, 2048, 4096), lambda n, _: distillation_step(tokens=n)),
    Case(
        "Distillation step", "vocabulary", (8192, 16384, 32768, 65536, 131072), lambda n, _: distillation_step(vocabulary=n)
    ),
    Case("Planning", "runs of a grid, hundreds", (1, 3, 10, 30, 100), planning),
    Case("Evaluation", "documents", (50, 100, 200, 400, 800), evaluation),
    Case("Report", "documents", (100, 300, 1000, 3000, 10000), report),
)


def measure(case: Case, sizes: tuple[int, ...], rounds: int) -> list[dict[str, Any]]:
    """A row per size: least seconds of one processor over the rounds, and MiB beyond what was in use before."""
    rows = []
    for size in sizes:
        with tempfile.TemporaryDirectory() as name:
            run = case.run(size, Path(name))
            seconds, before = [], reset_peak_memory(CPU)
            for _ in range(rounds):
                start = time.process_time()
                run()
                seconds.append(time.process_time() - start)
            memory = (read_peak_memory(CPU) - before) / 2**20
        rows.append({"what": case.title, "grows": case.unit, "size": size, "seconds": min(seconds), "peak_mib": memory})
        print(rows[-1], flush=True)
    return rows


def exponent(part: pd.DataFrame, column: str = "seconds") -> float:
    """The power of the size with which the larger half grows: 1 is in proportion."""
    upper = part.tail(3)
    return float(np.polyfit(np.log(upper["size"]), np.log(upper[column]), 1)[0])


def draw(table: pd.DataFrame, path: Path) -> None:
    """A panel per case on logarithmic axes, with growth in proportion as a dotted line."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator

    figure, panels = plt.subplots(2, 3, figsize=(9, 5.2), layout="constrained")
    for axes, (_, part) in zip(panels.flat, table.groupby(["what", "grows"], sort=False), strict=False):
        first = part.iloc[-1]
        axes.plot(part["size"], part["seconds"], marker="o", markersize=4, color="#4878a8")
        proportion = first["seconds"] * part["size"] / first["size"]
        axes.plot(part["size"], proportion, linestyle=":", color="#999999", linewidth=1)
        axes.set(xscale="log", yscale="log", xlabel=first["grows"])
        axes.set_title(f"{first['what']}: power {exponent(part):.2f}", loc="left", fontsize=10)
        axes.set_xticks(part["size"], [f"{size:,}" for size in part["size"]], fontsize=8)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
    figure.supylabel("seconds of one processor", fontsize=10)
    figure.savefig(path, dpi=160)
    plt.close(figure)


def render_page(table: pd.DataFrame, rounds: int) -> str:
    """The figure and its numbers."""
    machine = hardware.describe_hardware()
    lines = [
        "# How it grows",
        "",
        f"`{' '.join(['python benchmarks/growth.py', *sys.argv[1:]])}`: {machine['processor']}, torch {machine['torch']}, "
        f"one thread. A step: forward KL from a live teacher of {LAYERS} layers to a student of {LAYERS}, {HIDDEN_SIZE} "
        f"channels, one row of {TOKENS} tokens in documents of {DOCUMENT_TOKENS}, vocabulary {VOCABULARY:,}, but for what "
        "grows. Evaluation: piqa, two layers. Report: seven models on four tasks. Power: of the size, over the three "
        "largest; 1 is in proportion, the dotted line. Seconds of one processor, least of "
        f"{rounds} rounds; MiB at the peak beyond what was in use before.",
        "",
        "![Seconds over size, on logarithmic axes](growth.png)",
        "",
        "| what | grows | from | to | seconds | power | MiB |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for (what, grows), part in table.groupby(["what", "grows"], sort=False):
        first, last = part.iloc[0], part.iloc[-1]
        cells = [
            what, grows, f"{first['size']:,}", f"{last['size']:,}", f"{first['seconds']:.3g} to {last['seconds']:.3g}",
            f"{exponent(part):.2f}", f"{first['peak_mib']:.0f} to {last['peak_mib']:.0f}",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def main() -> None:
    """Measures, prints and writes; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the two smallest sizes, once: to see that it runs")
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument(
        "--out", type=existing_folder, default=Path(__file__).parent, help="folder of the tables and the figure"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    rounds, count = (1, 2) if options.quick else (options.rounds, None)
    rows: list[dict[str, Any]] = []
    for case in CASES:
        rows += measure(case, case.sizes[:count], rounds)
        table = pd.DataFrame(rows)
        table.to_csv(options.out / "growth.csv", index=False, float_format="%.6g")
        draw(table, options.out / "growth.png")
        (options.out / "growth.md").write_text(render_page(table, rounds), encoding="utf-8")


if __name__ == "__main__":
    main()
