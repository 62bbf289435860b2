"""Progress of a training, reported after every batch."""

from typing import Any

import lightning as L

from distill_lit.utils.progress import ProgressCallback

# stage, done, total, unit, latest metrics


class TrainingProgressReporter(L.Callback):
    """Reports tokens done and the latest metrics."""

    def __init__(self, progress_callback: ProgressCallback, max_steps: int, tokens_per_step: int) -> None:
        """max_steps: optimizer steps of the whole training; tokens_per_step: positions read in each, by all ranks."""
        self.progress_callback, self.max_steps, self.tokens_per_step = progress_callback, max_steps, tokens_per_step

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        """Reports after every batch."""
        per_step = self.tokens_per_step
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.progress_callback("train", trainer.global_step * per_step, self.max_steps * per_step, "tokens", metrics)

    def on_validation_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, index: int, *_: Any
    ) -> None:
        """Reports validation as a stage of its own."""
        total = trainer.num_val_batches[0] if trainer.num_val_batches else 0
        self.progress_callback("validate", index + 1, float(total), "batches")
