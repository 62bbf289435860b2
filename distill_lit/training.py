"""One training: the Trainer around a distiller, in a run folder that can be killed and goes on where it stopped."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch.multiprocessing.spawn import ProcessException

from distill_lit.checkpoints import GeneratorState, SafeCheckpointIO, newest_checkpoint
from distill_lit.config import TrainingConfig
from distill_lit.data.loader import PackedDataModule
from distill_lit.distiller import Distiller

# stage, done, total, unit, latest metrics
Report = Callable[[str, float, float, str, dict[str, float]], None]


class Preempted(Exception):
    """SIGTERM arrived; a checkpoint of the step just taken is on disk."""


@dataclass
class Run:
    """What one training needs."""

    folder: Path
    distiller: Distiller
    data: PackedDataModule
    config: TrainingConfig
    seed: int
    report: Report


def train(run: Run) -> dict[str, float]:
    """Trains until the token budget is spent, resuming from the newest checkpoint; returns the last validation's metrics.

    Raises Preempted after SIGTERM, FloatingPointError for a step that is not finite.
    """
    checkpoint = newest_checkpoint(run.folder / "checkpoints")
    L.seed_everything(run.seed, verbose=False)
    trainer = build_trainer(run, resumed_at=_step_of(checkpoint))
    if checkpoint is None:
        trainer.validate(run.distiller, run.data, verbose=False)
    run.distiller.train()
    with passing_on_termination():
        trainer.fit(run.distiller, run.data, ckpt_path=str(checkpoint) if checkpoint else None, weights_only=True)
    return _final_metrics(run.folder / "metrics.jsonl")


def validate(run: Run) -> dict[str, float]:
    """The validation metrics of the student as it is, logged as step 0."""
    build_trainer(run, resumed_at=None).validate(run.distiller, run.data, verbose=False)
    return _final_metrics(run.folder / "metrics.jsonl")


def build_trainer(run: Run, resumed_at: int | None) -> L.Trainer:
    """A Trainer that shows, logs and stores nothing but what this suite wants."""
    config, window = run.config, run.config.accumulate
    board = TensorBoardLogger(
        run.folder,
        name="",
        version="",
        default_hp_metric=False,
        purge_step=None if resumed_at is None else resumed_at + 1,
    )
    return L.Trainer(
        default_root_dir=run.folder,
        accelerator="gpu" if config.accelerator == "cuda" else config.accelerator,
        devices=config.devices,
        # forked ranks share data and teacher; re-running the program, Lightning's default, would start the worker twice
        strategy="ddp_fork" if config.devices > 1 else "auto",
        precision="bf16-mixed" if config.precision == "bfloat16" else "32-true",
        max_steps=run.data.steps,
        accumulate_grad_batches=window,
        val_check_interval=max(1, round(config.validate_every * run.data.steps)) * window,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        logger=[board, JsonLines(run.folder / "metrics.jsonl", resumed_at)],
        callbacks=[GeneratorState(), Checkpoints(run), Progress(run)],
        plugins=[SafeCheckpointIO()],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        inference_mode=False,  # metrics made in inference mode could not be updated in training
    )


@contextmanager
def passing_on_termination() -> Iterator[None]:
    """Inside, SIGTERM goes on to forked ranks, which save and stop; the end of a rank is then Preempted, no failure."""
    heard = []

    def pass_on(number: int, _: Any) -> None:
        heard.append(number)
        ranks = active_children()
        for rank in ranks:
            os.kill(rank.pid or 0, number)
        if not ranks:  # before or after training: nothing to save
            raise Preempted("SIGTERM")

    previous = signal.signal(signal.SIGTERM, pass_on)
    try:
        yield
    except ProcessException as error:
        if heard:
            raise Preempted("SIGTERM, passed on to every rank") from error
        raise
    finally:
        signal.signal(signal.SIGTERM, previous)


class JsonLines(Logger):
    """One JSON object per logged step: what tables and curves are drawn from. A resumed run drops what it will repeat."""

    def __init__(self, path: Path, resumed_at: int | None) -> None:
        """`resumed_at`: optimizer steps of the checkpoint that training goes on from; None: start anew."""
        super().__init__()
        self.path = path
        kept = (
            []
            if resumed_at is None or not path.is_file()
            else [line for line in path.read_text().splitlines() if _is_before(line, resumed_at)]
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{line}\n" for line in kept))

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

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """The resolved config is in the run folder already."""


class Checkpoints(L.Callback):
    """Saves every n optimizer steps, keeps the last two, and saves at once when SIGTERM has come."""

    def __init__(self, run: Run) -> None:
        """`run`: its folder and interval are used."""
        self.folder, self.every = run.folder / "checkpoints", run.config.checkpoint_every
        self.terminated = False

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Takes SIGTERM from Lightning, which would end the process with exit code 0."""
        self._previous = signal.signal(signal.SIGTERM, self._note)

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        """Saves between optimizer steps only: an accumulation window is never cut."""
        step = trainer.global_step
        if trainer.fit_loop.epoch_loop._should_accumulate():
            return
        terminated = trainer.strategy.reduce_boolean_decision(self.terminated, all=False)  # of any rank
        if terminated or (step % self.every == 0 and step < (trainer.max_steps or 0)):
            self._save(trainer, step)
        if terminated:
            raise Preempted(f"SIGTERM at step {step}")

    def on_fit_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Gives SIGTERM back."""
        signal.signal(signal.SIGTERM, self._previous)

    def _note(self, *_: Any) -> None:
        self.terminated = True

    def _save(self, trainer: L.Trainer, step: int) -> None:
        trainer.save_checkpoint(self.folder / f"step={step}.ckpt")
        paths = sorted(self.folder.glob("step=*.ckpt"), key=lambda path: _step_of(path) or 0)
        for path in paths[:-2] if trainer.is_global_zero else []:
            trainer.strategy.checkpoint_io.remove_checkpoint(path)


class Progress(L.Callback):
    """Reports tokens done and the latest metrics."""

    def __init__(self, run: Run) -> None:
        """`run`: its `report` is called."""
        self.run = run

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        """Reports after every batch."""
        per_step = module.tokens_per_step
        metrics = {name: float(value) for name, value in trainer.logged_metrics.items()}
        self.run.report("train", trainer.global_step * per_step, self.run.data.steps * per_step, "tokens", metrics)

    def on_validation_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, index: int, *_: Any
    ) -> None:
        """Reports validation as a stage of its own."""
        total = trainer.num_val_batches[0] if trainer.num_val_batches else 0
        self.run.report("validate", index + 1, float(total), "batches", {})


def _step_of(checkpoint: Path | None) -> int | None:
    return int(checkpoint.stem.split("=")[1]) if checkpoint else None


def _is_before(line: str, step: int) -> bool:
    try:
        return bool(json.loads(line)["step"] <= step)
    except (ValueError, KeyError):
        return False  # a line cut short by a crash


def _final_metrics(path: Path) -> dict[str, float]:
    """The last value of every metric in a run's lines."""
    latest: dict[str, float] = {}
    for line in path.read_text().splitlines():
        latest.update(json.loads(line))
    latest.pop("step", None)
    return latest
