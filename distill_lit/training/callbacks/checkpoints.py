"""When checkpoints are written: between steps, before a validation, and at once when a signal has come."""

from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn

from distill_lit.training.callbacks.termination import TerminationRequest
from distill_lit.training.callbacks.throughput import pause_throughput
from distill_lit.training.checkpoint import CHECKPOINT_KEY, Fingerprints, rotate_checkpoints, update_best_checkpoint
from distill_lit.training.loggers import flush_loggers
from distill_lit.utils.distributed.ranks import all_gather_object
from distill_lit.utils.exceptions import Preempted


class CheckpointCallback(L.Callback):
    """Saves every n optimizer steps and after the last, at once when SIGTERM has come, and, where the best is wanted,
    before every validation.

    A checkpoint of a step that is validated stands before its validation; a run that goes on from it validates first. So
    a validation that is cut short is done again, whole.
    """

    def __init__(
        self,
        folder: Path,
        every: int,
        validate_every: int,
        keep_best: bool,
        needs_best: bool,
        budget: float,
        origin: Fingerprints,
        termination: TerminationRequest,
    ) -> None:
        """`every`, `validate_every`: optimizer steps; `keep_best`: where there is room; `needs_best`: whatever it weighs;
        `budget`: GB; `origin`: what the checkpoints belong to."""
        self.folder, self.checkpoint_interval, self.val_check_interval = folder, every, validate_every
        self.keep_best, self.needs_best = keep_best or needs_best, needs_best
        self.disk_budget_gb, self.fingerprints, self.termination = budget, origin, termination

    def on_save_checkpoint(self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Writes into the checkpoint what it belongs to."""
        checkpoint[CHECKPOINT_KEY] = {"origin": self.fingerprints}

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Makes up for the validation that a checkpoint stands before."""
        if self._is_validation_step(trainer.global_step):
            _validate_now(trainer)

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        """Saves between optimizer steps only: an accumulation window is never cut."""
        step = trainer.global_step
        if trainer.fit_loop.epoch_loop._should_accumulate():
            return
        asked, judged = self._received_signal(trainer), self.keep_best and self._is_validation_step(step)
        if asked or judged or step % self.checkpoint_interval == 0 or step == trainer.max_steps:
            self._save(trainer, step)
        if asked:
            raise Preempted(f"{asked} at step {step}")

    def on_validation_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        """Stops inside a validation too; where training has begun, its step is saved first."""
        if asked := self._received_signal(trainer):
            if trainer.state.fn == TrainerFn.FITTING and trainer.global_step:
                self._save(trainer, trainer.global_step)
            raise Preempted(f"{asked} at step {trainer.global_step}")

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Judges the checkpoint of this step."""
        loss = float(trainer.callback_metrics.get("validation/loss", torch.nan))
        if trainer.is_global_zero:
            update_best_checkpoint(self.folder, trainer.global_step, loss)

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Validates what comes out, where the last step is not one that is validated anyway."""
        if not self._is_validation_step(trainer.global_step):
            _validate_now(trainer)

    def _is_validation_step(self, step: int) -> bool:
        return step > 0 and step % self.val_check_interval == 0

    def _received_signal(self, trainer: L.Trainer) -> str:
        """The signal that has come to any rank; empty when none has."""
        if not trainer.strategy.reduce_boolean_decision(bool(self.termination.signal_name), all=False):
            return ""
        names: list[str] = all_gather_object(self.termination.signal_name)
        return next(name for name in names if name)

    def _save(self, trainer: L.Trainer, step: int) -> None:
        with pause_throughput(trainer):
            flush_loggers(trainer.loggers)  # what is logged must be as durable as the checkpoint that comes after it
            trainer.save_checkpoint(self.folder / f"step={step}.ckpt")
            if trainer.is_global_zero:
                rotate_checkpoints(self.folder, self.disk_budget_gb, self.needs_best)


def _validate_now(trainer: L.Trainer) -> None:
    """Validates within a training, from the first row."""
    trainer.validating = True
    trainer.fit_loop.epoch_loop.val_loop.restarting = False
    trainer.fit_loop.epoch_loop.val_loop.run()
    trainer.training = True
