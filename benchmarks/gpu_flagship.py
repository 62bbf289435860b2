"""The depth frontier on one GPU, from what gpu_pack.py has packed: `python benchmarks/gpu_flagship.py FOLDER --out OUT`.

SmolLM2-135M's layers, fewer and fewer, are trained on the same packed rows with their teacher (½ CE + ½ KL) and without it
(CE). A row of flagship.csv, written as soon as it is known: loss and KL on held-out rows before and after, tokens per
second, peak memory. The teacher is what the archive leaves of it (`gpu_pack.py`). `--devices 2
--strategy ddp` trains the smallest student on two GPUs instead.
"""

# ruff: noqa: E402
import argparse
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

import lightning as L
import pandas as pd
import torch

from benchmarks.gpu_pack import read_rows
from distill_lit import losses
from distill_lit.config import StudentConfig, TrainingConfig, load_experiment
from distill_lit.data.datamodule import PackedDataModule
from distill_lit.models import CalibrationData, initial_student, load_model
from distill_lit.profiling.memory import read_peak_memory, reset_peak_memory
from distill_lit.training.distiller import Distiller
from distill_lit.utils import hardware

OBJECTIVES = {
    "teacher": 0.5 * losses.CrossEntropy() + 0.5 * losses.ForwardKL(),
    "labels": losses.CrossEntropy(),
}


def train(folder: Path, shape: StudentConfig, objective: Any, arguments: argparse.Namespace) -> dict[str, Any]:
    """Trains one student; what a row of the table says of it."""
    L.seed_everything(0, verbose=False)
    model, device = folder / "model", hardware.device_for("auto")
    rows = read_rows(folder)
    student = initial_student(shape, model, CalibrationData([], ""), seed=0)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    distiller = Distiller(student, load_model(model, dtype), objective, lr=5e-4)
    tokens = arguments.steps * arguments.rows * rows["train"].sequence_length
    settings = TrainingConfig(max_tokens=tokens, micro_batch_size=arguments.rows, gradient_accumulation_steps=1)
    loader = PackedDataModule(rows["train"], rows["validation"], settings, seed=0)
    trainer = L.Trainer(
        max_steps=loader.steps,
        accelerator="gpu" if device.type == "cuda" else "cpu",
        devices=arguments.devices,
        strategy=arguments.strategy,
        precision="bf16-mixed" if device.type == "cuda" else "32-true",
        gradient_clip_val=1.0,
        log_every_n_steps=50,
        limit_val_batches=arguments.validation_batches,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    (before,) = trainer.validate(distiller, loader, verbose=False)
    used, start = reset_peak_memory(device), time.perf_counter()
    trainer.fit(distiller, loader)
    seconds = time.perf_counter() - start
    peak = (read_peak_memory(device) - used) / 2**20
    (after,) = trainer.validate(distiller, loader, verbose=False)
    kept = {
        f"{name} {when}": value for when, found in (("before", before), ("after", after)) for name, value in found.items()
    }
    speed = {"tokens per second": loader.steps * loader.tokens_per_step / seconds, "peak MiB": peak}
    return {"steps": loader.steps, **speed, **kept}


def main(arguments: argparse.Namespace) -> None:
    """All students with each objective, the smallest first: what there is no time for is the most like its teacher."""
    depths = [int(depth) for depth in arguments.depths.split(",")]
    students = load_experiment(ROOT / "experiments/depth_frontier.yaml").students
    arguments.out.mkdir(parents=True, exist_ok=True)
    found: list[dict[str, Any]] = []
    for depth in sorted(depths):
        for name, objective in OBJECTIVES.items():
            found.append(
                {"layers": depth, "objective": name, **train(arguments.folder, students[f"d{depth}"], objective, arguments)}
            )
            pd.DataFrame(found).to_csv(arguments.out / f"{arguments.name}.csv", index=False, float_format="%.5g")
            print(found[-1], flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="what gpu_pack.py has unpacked")
    parser.add_argument("--out", type=Path, default=Path("gpu_results"))
    parser.add_argument("--name", default="flagship", help="of the table")
    parser.add_argument("--depths", default="24,18,12,6")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--rows", type=int, default=16, help="packed rows of a step and device")
    parser.add_argument("--validation-batches", type=int, default=20)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--strategy", default="auto", choices=("auto", "ddp", "fsdp"))
    main(parser.parse_args())
