"""What happens between the steps of a training: generators, checkpoints, signals, non-finite numbers, progress."""

import logging
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from distill_lit.utils.distributed.ranks import all_gather_object, get_rank, get_world_size
from distill_lit.utils.files import write_json

log = logging.getLogger(__name__)


class TerminateOnNonFinite(L.Callback):
    """Stops before an optimizer step whose loss or gradient is not finite, and writes down what it was made of."""

    def __init__(self, folder: Path) -> None:
        """`folder`: where nonfinite.json goes."""
        self.folder = folder
        self.window_rows: list[list[int]] = []
        self.window_loss: Tensor | None = None

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Any, index: int) -> None:
        """Notes which rows are read."""
        self.window_rows.append(batch["rows"].tolist())

    def on_before_backward(self, trainer: L.Trainer, module: L.LightningModule, loss: Tensor) -> None:
        """Adds up the loss of the window without waiting for the device."""
        detached = loss.detach()
        self.window_loss = detached if self.window_loss is None else self.window_loss + detached

    def on_before_optimizer_step(self, trainer: L.Trainer, module: L.LightningModule, optimizer: Any) -> None:
        """Refuses a loss that is not finite on any rank; the gradient is looked at where it is clipped."""
        if self.window_loss is None:
            return
        losses = torch.as_tensor(trainer.strategy.all_gather(self.window_loss)).reshape(-1)
        if not torch.isfinite(losses).all():
            module.mark_step_non_finite()
            rank = int((~torch.isfinite(losses)).nonzero()[0])
            rank_suffix = f" on rank {rank}" if get_world_size() > 1 else ""
            message = f"loss is {float(losses[rank])}{rank_suffix} at step {trainer.global_step}; the step was not taken"
            raise FloatingPointError(message)

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        """Begins anew after each optimizer step."""
        if not trainer.fit_loop.epoch_loop._should_accumulate():
            self.window_rows, self.window_loss = [], None

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException) -> None:
        """Dumps step, rows of the packed data, and the loss of the rank that had it: enough to do the step again. Where a
        gradient alone is not finite, of which only the sum is known, the rows of all ranks."""
        if not isinstance(exception, FloatingPointError):
            return
        loss = None if self.window_loss is None else float(self.window_loss)
        local_record: dict[str, Any] = {
            "rank": get_rank(),
            "loss": None if loss is None else str(loss),
            "rows": self.window_rows,
        }
        # an error that only this rank has may not wait for the others
        ranks = all_gather_object(local_record) if module.is_step_non_finite else [local_record]
        offending = [record for record in ranks if record["loss"] in ("nan", "inf", "-inf")] or ranks
        dump = {"step": trainer.global_step, "reason": str(exception), **offending[0]}
        if len(offending) > 1:
            dump |= {
                "rank": [record["rank"] for record in offending],
                "rows": [rows for record in offending for rows in record["rows"]],
            }
        if get_rank() == 0 or not module.is_step_non_finite:
            write_json(self.folder / "nonfinite.json", dump)
        log.error("%s; its rows are in %s", exception, self.folder / "nonfinite.json")
