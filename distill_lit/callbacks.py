"""What happens between the steps of a training: generators, checkpoints, signals, non-finite numbers, progress."""

import logging
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from distill_lit.checkpoints import OURS, Origin, note_validation, prune
from distill_lit.errors import Preempted
from distill_lit.files import write_json
from distill_lit.ranks import of_every_rank, rank_count, this_rank

log = logging.getLogger(__name__)
# stage, done, total, unit, latest metrics
Report = Callable[[str, float, float, str, dict[str, float]], None]


class Termination:
    """Which signal has asked to stop, empty while none has."""

    def __init__(self) -> None:
        self.name = ""

    def note(self, number: int, *_: Any) -> None:
        """The signal's handler."""
        self.name = self.name or signal.Signals(number).name


@contextmanager
def noting_signals() -> Iterator[Termination]:
    """Inside, SIGTERM does not end the process but is noted, so that a checkpoint can be written first; so are SIGUSR1 and
    SIGUSR2, by which schedulers warn before a job's time is over."""
    termination = Termination()
    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
    previous = {number: signal.signal(number, termination.note) for number in numbers}
    try:
        yield termination
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class GeneratorState(L.Callback):
    """Saves and restores the generators of Python, NumPy and torch, so that dropout goes on where it stopped."""

    @property
    def state_key(self) -> str:
        """Under which it stands in a checkpoint; Lightning would take the name of the class."""
        return "generators"

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
        """Makes up for the validation that a checkpoint stands before."""
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
            raise Preempted(f"{asked} at step {step}")

    def on_validation_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        """Stops inside a validation too; where training has begun, its step is saved first."""
        if asked := self._is_asked(trainer):
            if trainer.state.fn == TrainerFn.FITTING and trainer.global_step:
                self._save(trainer, trainer.global_step)
            raise Preempted(f"{asked} at step {trainer.global_step}")

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

    def _is_asked(self, trainer: L.Trainer) -> str:
        """The signal that has come to any rank; empty when none has."""
        if not trainer.strategy.reduce_boolean_decision(bool(self.termination.name), all=False):
            return ""
        names: list[str] = of_every_rank(self.termination.name)
        return next(name for name in names if name)

    def _save(self, trainer: L.Trainer, step: int) -> None:
        with trainer.lightning_module.clock.paused():
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
        """Refuses a loss that is not finite on any rank; the gradient is looked at where it is clipped."""
        if self.loss is None:
            return
        losses = torch.as_tensor(trainer.strategy.all_gather(self.loss)).reshape(-1)
        if not torch.isfinite(losses).all():
            module.refuse_step()
            rank = int((~torch.isfinite(losses)).nonzero()[0])
            where = f" on rank {rank}" if rank_count() > 1 else ""
            said = f"loss is {float(losses[rank])}{where} at step {trainer.global_step}; the step was not taken"
            raise FloatingPointError(said)

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        """Begins anew after each optimizer step."""
        if not trainer.fit_loop.epoch_loop._should_accumulate():
            self.rows, self.loss = [], None

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException) -> None:
        """Dumps step, rows of the packed data, and the loss of the rank that had it: enough to do the step again. Where a
        gradient alone is not finite, of which only the sum is known, the rows of all ranks."""
        if not isinstance(exception, FloatingPointError):
            return
        loss = None if self.loss is None else float(self.loss)
        mine: dict[str, Any] = {"rank": this_rank(), "loss": None if loss is None else str(loss), "rows": self.rows}
        # an error that only this rank has may not wait for the others
        ranks = of_every_rank(mine) if module.is_step_refused else [mine]
        guilty = [found for found in ranks if found["loss"] in ("nan", "inf", "-inf")] or ranks
        dump = {"step": trainer.global_step, "reason": str(exception), **guilty[0]}
        if len(guilty) > 1:
            dump |= {
                "rank": [found["rank"] for found in guilty],
                "rows": [rows for found in guilty for rows in found["rows"]],
            }
        if this_rank() == 0 or not module.is_step_refused:
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
