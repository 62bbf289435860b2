"""One training: the Trainer around a distiller, in a run folder that can be killed and goes on where it stopped."""

import json
import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from distill_lit.callbacks import (
    Checkpoints,
    FiniteSteps,
    GeneratorState,
    Preempted,
    Progress,
    Report,
    Termination,
    noting_sigterm,
)
from distill_lit.checkpoints import (
    Origin,
    SafeCheckpointIO,
    differences,
    newest_checkpoint,
    saved_checkpoints,
    step_of,
)
from distill_lit.config import TrainingConfig
from distill_lit.data.module import PackedDataModule
from distill_lit.distiller import Distiller
from distill_lit.errors import UserError

log = logging.getLogger(__name__)
__all__ = ["Preempted", "Report", "Run", "train", "validate"]


@dataclass
class Run:
    """What one training needs. `origin`: {teacher, data, objective …: what identifies it}, which a checkpoint carries;
    `changed`: what becomes of a checkpoint with another origin, refuse, resume or restart."""

    folder: Path
    distiller: Distiller
    data: PackedDataModule
    config: TrainingConfig
    seed: int
    report: Report
    origin: Origin = field(default_factory=dict)
    changed: str = "refuse"
    callbacks: list[L.Callback] = field(default_factory=list)

    @property
    def checkpoints(self) -> Path:
        """Where its checkpoints are."""
        return self.folder / "checkpoints"


def train(run: Run) -> dict[str, float]:
    """Trains until the token budget is spent, resuming from the newest checkpoint; returns the last validation's metrics.

    Raises Preempted after SIGTERM, FloatingPointError for a step that is not finite, UserError for a checkpoint of
    another model, data or objective.
    """
    with noting_sigterm() as termination:
        checkpoint = find_checkpoint(run)
        L.seed_everything(run.seed, verbose=False)
        trainer = build_trainer(run, resumed_at=step_of(checkpoint) if checkpoint else None, termination=termination)
        if checkpoint is None:
            trainer.validate(run.distiller, run.data, verbose=False)
        run.distiller.train()
        trainer.fit(run.distiller, run.data, ckpt_path=str(checkpoint) if checkpoint else None, weights_only=True)
        if "validation/loss" not in _lines_of(run.folder / "metrics.jsonl", run.data.steps):
            trainer.validate(run.distiller, run.data, verbose=False)
    return final_metrics(run.folder / "metrics.jsonl")


def find_checkpoint(run: Run) -> Path | None:
    """The checkpoint to go on from, None to begin anew. Raises UserError when none is intact or the newest belongs to
    something else."""
    checkpoint, said = newest_checkpoint(run.checkpoints)
    for line in said:
        log.warning(line)
    if checkpoint is None:
        return None
    changes = differences(checkpoint, run.origin)
    if changes and run.changed == "refuse":
        raise UserError(
            f"checkpoint {checkpoint} does not belong to this run: {'; '.join(changes)}. "
            "launcher.changed=restart begins anew, launcher.changed=resume goes on all the same"
        )
    if changes:
        log.warning("checkpoint %s: %s; launcher.changed=%s", checkpoint, "; ".join(changes), run.changed)
    if changes and run.changed == "restart":
        for path in saved_checkpoints(run.checkpoints):
            SafeCheckpointIO().remove_checkpoint(path)
        return None
    return checkpoint


def validate(run: Run) -> dict[str, float]:
    """The validation metrics of the student as it is, logged as step 0."""
    trainer = build_trainer(run, resumed_at=None, termination=Termination())
    trainer.validate(run.distiller, run.data, verbose=False)
    return final_metrics(run.folder / "metrics.jsonl")


def build_trainer(run: Run, resumed_at: int | None, termination: Termination) -> L.Trainer:
    """A Trainer that shows, logs and stores nothing but what this suite wants."""
    config = run.config
    validate_every = max(1, round(config.validate_every * run.data.steps))
    # events of steps that will be taken again are dropped
    board = TensorBoardLogger(run.folder, name="", version="", default_hp_metric=False, purge_step=resumed_at or 0)
    every, budget = config.checkpoint_every, config.checkpoint_budget
    return L.Trainer(
        default_root_dir=run.folder,
        accelerator="gpu" if config.accelerator == "cuda" else config.accelerator,
        devices=config.devices,
        # forked ranks share data and teacher; re-running the program, Lightning's default, would start the worker twice
        strategy="ddp_fork" if config.devices > 1 else "auto",
        precision="bf16-mixed" if config.precision == "bfloat16" else "32-true",
        max_steps=run.data.steps,
        accumulate_grad_batches=config.accumulate,
        val_check_interval=validate_every * config.accumulate,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        logger=[board, JsonLines(run.folder / "metrics.jsonl", resumed_at)],
        callbacks=[
            FiniteSteps(run.folder),
            GeneratorState(),
            Checkpoints(run.checkpoints, every, validate_every, config.keep_checkpoints, budget, run.origin, termination),
            Progress(run.report, run.data.steps),
            *run.callbacks,
        ],
        plugins=[SafeCheckpointIO()],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        inference_mode=False,  # metrics made in inference mode could not be updated in training
    )


class JsonLines(Logger):
    """One JSON object per logged step: what tables and curves are drawn from. A resumed run drops what it will repeat.

    `step` counts optimizer steps done: before the step of a training line, before the validation of a validation line.
    """

    def __init__(self, path: Path, resumed_at: int | None) -> None:
        """`resumed_at`: optimizer steps of the checkpoint that training goes on from; None: start anew."""
        super().__init__()
        self.path = path
        lines = [] if resumed_at is None or not path.is_file() else path.read_text().splitlines()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{line}\n" for line in lines if _is_before(line, resumed_at or 0)))

    @property
    def name(self) -> str:
        """No name: there is one file per run."""
        return ""

    @property
    def version(self) -> str:
        """No version: there is one file per run."""
        return ""

    @rank_zero_only  # type: ignore[untyped-decorator]
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Appends a line."""
        values = {name: value for name, value in metrics.items() if name != "epoch"}
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")

    @property
    def experiment(self) -> "JsonLines":
        """What has a `flush`, as Lightning calls it."""
        return self

    def flush(self) -> None:
        """Makes the lines durable."""
        with self.path.open("a") as file:
            os.fsync(file.fileno())

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """The resolved config is in the run folder already."""


def _is_before(line: str, step: int) -> bool:
    try:
        return bool(json.loads(line)["step"] < step)
    except (ValueError, KeyError):
        return False  # a line cut short by a crash


def _lines_of(path: Path, step: int) -> set[str]:
    """The names of all metrics logged at a step."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return {name for line in lines if line["step"] == step for name in line}


def final_metrics(path: Path) -> dict[str, float]:
    """The last value of every metric in a run's lines."""
    latest: dict[str, float] = {}
    for line in path.read_text().splitlines():
        latest.update(json.loads(line))
    latest.pop("step", None)
    return latest
