"""A loss or gradient that is not finite stops the training before its optimizer step."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from distill_lit.utils.distributed.ranks import all_gather_object, full_tensor, get_rank, get_world_size
from distill_lit.utils.files import write_json

log = logging.getLogger(__name__)


def gradient_norm(module: nn.Module) -> Tensor:
    """The norm of all gradients together, before clipping; a sharded one is that of all ranks, who call this together."""
    gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    return full_tensor(nn.utils.get_total_norm(gradients))


class TerminateOnNonFinite(L.Callback):
    """Raises FloatingPointError before an optimizer step whose loss or gradient is not finite, and writes down what the
    step was made of. Measures the gradient's norm, which the module clips by and the log shows."""

    def __init__(self, folder: Path | None = None) -> None:
        """`folder`: where nonfinite.json goes; None: nothing is written."""
        self.folder = folder
        self.window_rows: list[list[int]] = []  # of this accumulation window
        self.window_loss: Tensor | None = None
        self._is_known_to_all_ranks = False  # then they can still tell each other why

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Any, index: int) -> None:
        """Notes which rows are read, where the batch says so."""
        if isinstance(batch, Mapping) and "rows" in batch:
            self.window_rows.append(batch["rows"].tolist())

    def on_before_backward(self, trainer: L.Trainer, module: L.LightningModule, loss: Tensor) -> None:
        """Adds up the loss of the window without waiting for the device."""
        detached = loss.detach()
        self.window_loss = detached if self.window_loss is None else self.window_loss + detached

    def on_before_optimizer_step(self, trainer: L.Trainer, module: Any, optimizer: Any) -> None:
        """Measures the gradient's norm, and refuses a loss that is not finite on any rank, or a norm that is not."""
        module.gradient_norm = gradient_norm(module)
        if getattr(trainer.precision_plugin, "scaler", None) is not None:
            return  # float16: the scaler skips such a step and tries a smaller scale
        self._check_loss(trainer)
        if not torch.isfinite(module.gradient_norm):
            self._is_known_to_all_ranks = True
            raise FloatingPointError(
                f"gradient norm is {float(module.gradient_norm)} at step {trainer.global_step}; the step was not taken"
            )

    def _check_loss(self, trainer: L.Trainer) -> None:
        if self.window_loss is None:
            return
        losses = torch.as_tensor(trainer.strategy.all_gather(self.window_loss)).reshape(-1)
        if not torch.isfinite(losses).all():
            self._is_known_to_all_ranks = True
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
        if not isinstance(exception, FloatingPointError) or self.folder is None:
            return
        loss = None if self.window_loss is None else float(self.window_loss)
        local_record: dict[str, Any] = {
            "rank": get_rank(),
            "loss": None if loss is None else str(loss),
            "rows": self.window_rows,
        }
        # an error that only this rank has may not wait for the others
        ranks = all_gather_object(local_record) if self._is_known_to_all_ranks else [local_record]
        offending = [record for record in ranks if record["loss"] in ("nan", "inf", "-inf")] or ranks
        dump = {"step": trainer.global_step, "reason": str(exception), **offending[0]}
        if len(offending) > 1:
            dump |= {
                "rank": [record["rank"] for record in offending],
                "rows": [rows for record in offending for rows in record["rows"]],
            }
        if get_rank() == 0 or not self._is_known_to_all_ranks:
            write_json(self.folder / "nonfinite.json", dump)
        log.error("%s; its rows are in %s", exception, self.folder / "nonfinite.json")
