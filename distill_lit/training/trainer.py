"""One training: the Trainer around a distiller, in a run folder that can be killed and goes on where it stopped."""

import json
import logging
import math
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import Logger, TensorBoardLogger

from distill_lit.config import TrainingConfig
from distill_lit.data.datamodule import PackedDataModule
from distill_lit.training.callbacks.checkpoints import Checkpoints
from distill_lit.training.callbacks.nonfinite_guard import FiniteSteps
from distill_lit.training.callbacks.progress import Progress, Report
from distill_lit.training.callbacks.random_state import GeneratorState
from distill_lit.training.callbacks.termination import Termination, noting_signals
from distill_lit.training.checkpoint import (
    Origin,
    SafeCheckpointIO,
    differences,
    newest_checkpoint,
    saved_checkpoints,
    step_of,
)
from distill_lit.training.distiller import Distiller
from distill_lit.training.local_trainer import quiet_trainer
from distill_lit.utils.distributed.ranks import of_first_rank, rank_count, this_rank
from distill_lit.utils.exceptions import Preempted, UserError
from distill_lit.utils.files import read_lines, write_text

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

    Every one of `training.devices` ranks calls this, each with a run of its own (`together`). Raises Preempted after
    SIGTERM, FloatingPointError for a step that is not finite, UserError for a checkpoint of something else.
    """
    if run.config.devices != rank_count():
        raise RuntimeError(f"training.devices is {run.config.devices}, and {rank_count()} ranks are here; see `together`")
    with noting_signals() as termination:
        checkpoint = of_first_rank(lambda: find_checkpoint(run))
        L.seed_everything(run.seed, verbose=False)
        trainer = build_trainer(run, resumed_at=step_of(checkpoint) if checkpoint else None, termination=termination)
        if checkpoint is None:
            trainer.validate(run.distiller, run.data, verbose=False)
        run.distiller.train()
        trainer.fit(run.distiller, run.data, ckpt_path=str(checkpoint) if checkpoint else None, weights_only=True)
        if of_first_rank(lambda: "validation/loss" not in _names_at(run.folder / "metrics.jsonl", run.data.steps)):
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
    """The validation metrics of the student as it is, logged as step 0; one process alone does it."""
    alone = replace(run, config=replace(run.config, devices=1))
    trainer = build_trainer(alone, resumed_at=None, termination=Termination())
    trainer.validate(run.distiller, run.data, verbose=False)
    return final_metrics(run.folder / "metrics.jsonl")


def build_trainer(run: Run, resumed_at: int | None, termination: Termination) -> L.Trainer:
    """A Trainer that shows, logs and stores nothing but what this suite wants."""
    config = run.config
    validate_every = max(1, round(config.validate_every * run.data.steps))
    # events of steps that will be taken again are dropped
    board = TensorBoardLogger(run.folder, name="", version="", default_hp_metric=False, purge_step=resumed_at or 0)
    every, budget = config.checkpoint_every, config.checkpoint_budget
    return quiet_trainer(
        default_root_dir=run.folder,
        accelerator="gpu" if config.accelerator == "cuda" else config.accelerator,
        devices=config.devices,
        strategy="ddp" if config.devices > 1 else "auto",
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
        if this_rank() == 0:
            kept = [line for line in read_lines(path) if _step_of(line) < resumed_at] if resumed_at is not None else []
            write_text(path, "".join(json.dumps(line) + "\n" for line in kept))

    @property
    def name(self) -> str:
        """No name: there is one file per run."""
        return ""

    @property
    def version(self) -> str:
        """No version: there is one file per run."""
        return ""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Appends a line, on the first rank."""
        if this_rank():
            return
        values = {name: value for name, value in metrics.items() if name != "epoch"}
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")

    @property
    def experiment(self) -> "JsonLines":
        """What has a `flush`, as Lightning calls it."""
        return self

    def flush(self) -> None:
        """Makes the lines durable."""
        if this_rank():
            return
        with self.path.open("a") as file:
            os.fsync(file.fileno())

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """The resolved config is in the run folder already."""


def _step_of(line: dict[str, Any]) -> float:
    """The step of a logged line; NaN, which is before and after nothing, where it has none."""
    step = line.get("step")
    return step if isinstance(step, (int, float)) else math.nan


def _names_at(path: Path, step: int) -> set[str]:
    """The names of all metrics logged at a step."""
    return {name for line in read_lines(path) if _step_of(line) == step for name in line}


def final_metrics(path: Path) -> dict[str, float]:
    """The last value of every metric in a run's lines."""
    latest: dict[str, float] = {}
    for line in read_lines(path):
        latest.update(line)
    latest.pop("step", None)
    return latest
