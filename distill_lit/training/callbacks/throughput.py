"""How fast a training reads: tokens per second of training alone, whatever is done between its steps."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import lightning as L
import torch

from distill_lit.training.timer import PausableTimer


class TokenThroughput(L.Callback):
    """Counts positions that are read, padding included, and the seconds of training; validations do not count.

    Whoever does something else between two steps does it inside `pause_throughput(trainer)`.
    """

    def __init__(self) -> None:
        self.timer = PausableTimer()
        self._new_tokens = 0  # of this rank, since the last measurement
        self._total_tokens = 0.0  # of all ranks, up to the last measurement
        self._world_size = 1

    @property
    def state_key(self) -> str:
        """Under which it stands in a checkpoint; Lightning would take the name of the class."""
        return "throughput"

    def state_dict(self) -> dict[str, Any]:
        """Positions that all ranks have read."""
        return {"tokens": self._total_tokens + self._new_tokens * self._world_size}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on counting."""
        self._total_tokens = float(state["tokens"])

    def on_fit_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """A training that was broken off may have left the timer paused."""
        self.timer, self._new_tokens, self._world_size = PausableTimer(), 0, trainer.world_size

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Training time begins: what is done before the first step, such as a validation, is over."""
        self.timer.start()

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Any, index: int) -> None:
        """Counts the positions of a micro-batch."""
        if isinstance(batch, Mapping) and "input_ids" in batch:
            self._new_tokens += batch["input_ids"].numel()

    def on_validation_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """A validation does not count as training time."""
        self.timer.pause()

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Training time goes on."""
        self.timer.resume()

    def measure(self, trainer: L.Trainer, device: torch.device) -> tuple[dict[str, float], float]:
        """(what is logged, seconds of training) since the last call of this; all ranks call it."""
        seconds = self.timer.lap()
        tokens = float(
            trainer.strategy.reduce(
                torch.tensor(float(self._new_tokens), dtype=torch.float32, device=device), reduce_op="sum"
            )
        )
        self._total_tokens, self._new_tokens = self._total_tokens + tokens, 0
        speed = tokens / max(seconds, 1e-9)
        return {"train/tokens_per_second": speed, "train/tokens": self._total_tokens}, seconds


@contextmanager
def pause_throughput(trainer: L.Trainer) -> Iterator[None]:
    """What is inside does not count as training time."""
    with ExitStack() as stack:
        for callback in trainer.callbacks:
            if isinstance(callback, TokenThroughput):
                stack.enter_context(callback.timer.paused())
        yield
