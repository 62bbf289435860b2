"""What do hidden-state losses cost? `python benchmarks/hidden_state_losses.py` (about 10 minutes on two cores).

Whole training steps of a shallow student beside its online teacher, SmolLM2-135M: KL alone, and KL with each kind of term.
Every measurement is a process of its own, and the rounds go through all kinds in turn, so that a machine that slows down
slows them alike. Writes results/hidden_state_losses/table.md and .csv: median seconds of a step, and peak memory.
"""

# ruff: noqa: E402
import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

import numpy as np
import pandas as pd
import torch

from distill_lit import data
from distill_lit.config import StudentConfig, TermConfig, load_experiment
from distill_lit.data.loader import calibration_batches, make_batch
from distill_lit.losses import build_objective, can_compile, chunk_size_for_budget
from distill_lit.models import CalibrationData, initial_student, load_model, load_tokenizer, model_folder
from distill_lit.teachers import OnlineTeacher
from distill_lit.training.distiller import Distiller
from distill_lit.training.feature_alignment import build_feature_alignment, use_eager_attention
from distill_lit.training.loss import FusedLossSettings
from distill_lit.training.trainer import optimizer_settings, prepare_student
from distill_lit.utils import hardware
from distill_lit.utils.files import write_text

KL = {"kl": TermConfig(kind="forward_kl")}
EAGER = "KL, eager attention"
OBJECTIVES: dict[str, dict[str, TermConfig]] = {
    "KL": KL,
    EAGER: KL,
    "KL + hidden states, every layer": {**KL, "hidden_states": TermConfig(options={"loss": "normalized"})},
    "KL + hidden states, every layer, projectors": {**KL, "hidden_states": TermConfig(options={"projector": True})},
    "KL + relations, last layer": {**KL, "qkv_relations": TermConfig()},
    "KL + relations, every layer": {**KL, "qkv_relations": TermConfig(options={"layers": "uniform"})},
    "KL + attention, last layer": {**KL, "attention": TermConfig(options={"layers": "last"})},
    "KL + attention, every layer": {**KL, "attention": TermConfig()},
}


def measure(kind: str, options: argparse.Namespace) -> dict[str, float]:
    """seconds: median of the steps but the first; peak_mib: most memory that the process, or the GPU, ever held."""
    config = load_experiment(options.experiment, [f"data.sequence_length={options.length}"])
    folder = model_folder(config.teacher.model)
    prepared = data.prepare_datasets(config.data, folder, config.dataset_source)
    device = hardware.device_for("auto")
    distiller = _build_distiller(kind, config, folder, prepared, options.depth).to(device)
    optimizer = distiller.configure_optimizers()
    rows = np.arange(min(options.batch, len(prepared.train)))
    batch = {name: value.to(device) for name, value in make_batch(prepared.train, rows, 1).items()}
    dtype, num_tokens = distiller.loss.settings.dtype, (batch["labels"][:, 1:] >= 0).sum()
    times = []
    for _ in range(options.steps + 1):
        start = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            losses = distiller.loss(distiller.student, batch, denominator=num_tokens)
        losses.total.backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated() / 2**20
    return {"seconds": float(np.median(times[1:])), "peak_mib": peak}


def _build_distiller(kind: str, config: Any, folder: Path, prepared: data.PreparedData, depth: int) -> Distiller:
    dtype = getattr(torch, hardware.fastest_dtype(hardware.device_for("auto")))
    vocab_size = max(load_tokenizer(folder).get_vocab().values()) + 1
    student = initial_student(StudentConfig(num_layers=depth, layers="uniform"), folder, CalibrationData([], ""), seed=0)
    teacher = OnlineTeacher(load_model(folder, dtype), vocab_size)
    objective = build_objective(OBJECTIVES[kind])
    use_eager_attention(objective, student, teacher.model)
    feature_alignment = build_feature_alignment(
        objective, student, teacher.model.config, teacher.model, calibration_batches(prepared.train), seed=0
    )
    if kind == EAGER:
        for model in (student, teacher.model):
            model.set_attn_implementation("eager")
    compiled = can_compile(hardware.device_for("auto"))
    fused_loss_settings = FusedLossSettings(chunk_size_for_budget(512, vocab_size, compiled), compiled, dtype)
    prepare_student(student, config.training)
    # a constant learning rate: the schedule would need a Trainer
    return Distiller(
        student.train(),
        teacher,
        objective,
        vocab_size=vocab_size,
        feature_alignment=feature_alignment,
        fused_loss_settings=fused_loss_settings,
        optimizer=optimizer_settings(config.training)["optimizer"],
    )


def measure_rounds(options: argparse.Namespace) -> pd.DataFrame:
    """A row per kind: medians over the rounds, and ratios to KL alone."""
    measured: dict[str, list[dict[str, float]]] = {kind: [] for kind in OBJECTIVES}
    own = [sys.executable, str(Path(__file__).resolve()), *sys.argv[1:]]
    for _ in range(options.rounds):
        for kind in OBJECTIVES:
            result = subprocess.run([*own, "--only", kind], stdout=subprocess.PIPE, text=True, check=True)
            measured[kind].append(json.loads(result.stdout.splitlines()[-1]))
            print(kind, measured[kind][-1], flush=True)
    table = pd.DataFrame({kind: pd.DataFrame(values).median() for kind, values in measured.items()}).T
    table["time_ratio"] = table["seconds"] / table["seconds"]["KL"]
    table["memory_ratio"] = table["peak_mib"] / table["peak_mib"]["KL"]
    return table.rename_axis("objective").reset_index()


def as_markdown(table: pd.DataFrame, options: argparse.Namespace) -> str:
    """The table and how it was made."""
    machine = hardware.describe_hardware()
    lines = [
        "# What hidden-state losses cost",
        "",
        f"`python benchmarks/hidden_state_losses.py --depth {options.depth} --batch {options.batch} "
        f"--length {options.length} --steps {options.steps} --rounds {options.rounds}`",
        "",
        f"Whole training steps, a student of {options.depth} layers beside the online teacher, {options.batch} × "
        f"{options.length} tokens. {machine['gpu'] or machine['processor']}, {machine['threads']} threads, "
        f"torch {machine['torch']}. Memory is all that the process held, models and optimizer included.",
        "",
        "| objective | seconds a step | of KL alone | peak MiB | of KL alone |",
        "|---|---:|---:|---:|---:|",
    ]
    for row in table.to_dict("records"):
        lines.append(
            f"| {row['objective']} | {row['seconds']:.2f} | {row['time_ratio']:.2f} | {row['peak_mib']:,.0f} "
            f"| {row['memory_ratio']:.2f} |"
        )
    return "\n".join([*lines, ""])


def main() -> None:
    """Makes the table, prints it, writes it; with --only, one measurement as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depth", type=int, default=6, help="layers of the student")
    parser.add_argument("--batch", type=int, default=8, help="rows")
    parser.add_argument("--length", type=int, default=256, help="tokens a row")
    parser.add_argument("--steps", type=int, default=3, help="measured, after one that is not")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--experiment", type=Path, default=ROOT / "experiments/quickstart.yaml", help="teacher and data")
    parser.add_argument("--out", type=Path, default=ROOT / "results/hidden_state_losses")
    parser.add_argument("--only", choices=OBJECTIVES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        print(json.dumps(measure(options.only, options)))
        return
    table = measure_rounds(options)
    text = as_markdown(table, options)
    write_text(options.out / "table.md", text)
    write_text(options.out / "table.csv", table.round(4).to_csv(index=False))
    print(text)


if __name__ == "__main__":
    main()
