"""What happens between the steps of a training: generators, checkpoints, signals, non-finite numbers, progress."""

import logging
import os
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.multiprocessing.spawn import ProcessException

from distill_lit.checkpoints import OURS, Origin, note_validation, prune
from distill_lit.files import write_json
from distill_lit.ranks import of_every_rank

log = logging.getLogger(__name__)
# stage, done, total, unit, latest metrics
Report = Callable[[str, float, float, str, dict[str, float]], None]


class Preempted(Exception):
    """SIGTERM arrived; a checkpoint of the step just taken is on disk."""


class Termination:
    """Whether SIGTERM has come."""

    def __init__(self) -> None:
        self.came = False

    def note(self, *_: Any) -> None:
        """The signal's handler."""
        self.came = True


@contextmanager
def noting_sigterm() -> Iterator[Termination]:
    """Inside, SIGTERM does not end the process but is noted, so that a checkpoint can be written first. It goes on to
    forked ranks, which save and stop; the end of a rank is then Preempted, no failure."""
    termination = Termination()

    def note(number: int, _: Any) -> None:
        termination.came = True
        for rank in active_children():
            os.kill(rank.pid or 0, number)

    previous = signal.signal(signal.SIGTERM, note)
    try:
        yield termination
    except ProcessException as error:
        if termination.came:
            raise Preempted("SIGTERM, passed on to every rank") from error
        raise
    finally:
        signal.signal(signal.SIGTERM, previous)


class GeneratorState(L.Callback):
    """Saves and restores the generators of Python, NumPy and torch, so that dropout goes on where it stopped."""

    def state_dict(self) -> dict[str, Any]:
        """The generators' states of every rank as plain values and tensors."""
        return {"ranks": of_every_rank(self._mine())}

    def _mine(self) -> dict[str, Any]:
        version, words, gauss = random.getstate()
        name, keys, position, has_gauss, cached = np.random.get_state()
        state: dict[str, Any] = {
            "python": [version, list(words), gauss],
            "numpy": [name, [int(key) for key in keys], int(position), int(has_gauss), float(cached)],
            "torch": torch.get_rng_state(),
        }
        if torch.cuda.is_available():
            state["cuda"] = torch.cuda.get_rng_state_all()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Keeps the states until training starts: Lightning still draws numbers after this."""
        self._pending = state

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Restores the generators after Lightning's own set-up."""
        pending = self.__dict__.pop("_pending", None)
        if pending is None or trainer.world_size != len(pending["ranks"]):
            return
        state = pending["ranks"][trainer.global_rank]
        version, words, gauss = state["python"]
        random.setstate((version, tuple(words), gauss))
        name, keys, position, has_gauss, cached = state["numpy"]
        np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
        torch.set_rng_state(state["torch"])
        if "cuda" in state and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(state["cuda"])


class Checkpoints(L.Callback):
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
        budget: float,
        origin: Origin,
        termination: Termination,
    ) -> None:
        """`every`, `validate_every`: optimizer steps; `budget`: GB; `origin`: what the checkpoints belong to."""
        self.folder, self.every, self.validate_every, self.keep_best = folder, every, validate_every, keep_best
        self.budget, self.origin, self.termination = budget, origin, termination

    def on_save_checkpoint(self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Writes into the checkpoint what it belongs to."""
        checkpoint[OURS] = {"origin": self.origin}

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Takes SIGTERM from Lightning, which would end the process with exit code 0; makes up for the validation that
        a checkpoint stands before."""
        signal.signal(signal.SIGTERM, self.termination.note)
        trainer._signal_connector.received_sigterm = False
        if self._is_validated(trainer.global_step):
            _validate_now(trainer)

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        """Saves between optimizer steps only: an accumulation window is never cut."""
        step = trainer.global_step
        if trainer.fit_loop.epoch_loop._should_accumulate():
            return
        asked, judged = self._is_asked(trainer), self.keep_best and self._is_validated(step)
        if asked or judged or step % self.every == 0 or step == trainer.max_steps:
            self._save(trainer, step)
        if asked:
            raise Preempted(f"SIGTERM at step {step}")

    def on_validation_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        """Stops inside a validation too; where training has begun, its step is saved first."""
        if self._is_asked(trainer):
            if trainer.state.fn == TrainerFn.FITTING and trainer.global_step:
                self._save(trainer, trainer.global_step)
            raise Preempted(f"SIGTERM at step {trainer.global_step}")

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Judges the checkpoint of this step."""
        loss = float(trainer.callback_metrics.get("validation/loss", torch.nan))
        if trainer.is_global_zero:
            note_validation(self.folder, trainer.global_step, loss)

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Validates what comes out, where the last step is not one that is validated anyway."""
        if not self._is_validated(trainer.global_step):
            _validate_now(trainer)

    def _is_validated(self, step: int) -> bool:
        return step > 0 and step % self.validate_every == 0

    def _is_asked(self, trainer: L.Trainer) -> bool:
        """Whether SIGTERM has come to any rank."""
        return bool(trainer.strategy.reduce_boolean_decision(self.termination.came, all=False))

    def _save(self, trainer: L.Trainer, step: int) -> None:
        for logger in trainer.loggers:
            logger.experiment.flush()  # what is logged must be as durable as the checkpoint that comes after it
        trainer.save_checkpoint(self.folder / f"step={step}.ckpt")
        if trainer.is_global_zero:
            prune(self.folder, self.budget)


def _validate_now(trainer: L.Trainer) -> None:
    """Validates within a training, from the first row."""
    trainer.validating = True
    trainer.fit_loop.epoch_loop.val_loop.restarting = False
    trainer.fit_loop.epoch_loop.val_loop.run()
    trainer.training = True


class FiniteSteps(L.Callback):
    """Stops before an optimizer step whose loss or gradient is not finite, and writes down what it was made of."""

    def __init__(self, folder: Path) -> None:
        """`folder`: where nonfinite.json goes."""
        self.folder = folder
        self.rows: list[list[int]] = []
        self.loss: Tensor | None = None

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Any, index: int) -> None:
        """Notes which rows are read."""
        self.rows.append(batch["rows"].tolist())

    def on_before_backward(self, trainer: L.Trainer, module: L.LightningModule, loss: Tensor) -> None:
        """Adds up the loss of the window without waiting for the device."""
        detached = loss.detach()
        self.loss = detached if self.loss is None else self.loss + detached

    def on_before_optimizer_step(self, trainer: L.Trainer, module: L.LightningModule, optimizer: Any) -> None:
        """Refuses a loss that is not finite; the gradient is looked at where it is clipped."""
        if self.loss is not None and not torch.isfinite(self.loss):
            raise FloatingPointError(f"loss is {float(self.loss)} at step {trainer.global_step}; the step was not taken")

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        """Begins anew after each optimizer step."""
        if not trainer.fit_loop.epoch_loop._should_accumulate():
            self.rows, self.loss = [], None

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException) -> None:
        """Dumps step, rows of the packed data, and the loss: enough to do the step again."""
        if isinstance(exception, FloatingPointError):
            loss = None if self.loss is None else str(float(self.loss))
            dump = {"step": trainer.global_step, "reason": str(exception), "loss": loss, "rows": self.rows}
            write_json(self.folder / "nonfinite.json", dump)
            log.error("%s; its rows are in %s", exception, self.folder / "nonfinite.json")


class Progress(L.Callback):
    """Reports tokens done and the latest metrics."""

    def __init__(self, report: Report, steps: int) -> None:
        """`report` is called; `steps`: optimizer steps of the whole training."""
        self.report, self.steps = report, steps

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        """Reports after every batch."""
        per_step = module.tokens_per_step
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.report("train", trainer.global_step * per_step, self.steps * per_step, "tokens", metrics)

    def on_validation_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, index: int, *_: Any
    ) -> None:
        """Reports validation as a stage of its own."""
        total = trainer.num_val_batches[0] if trainer.num_val_batches else 0
        self.report("validate", index + 1, float(total), "batches", {})
