"""The loaders of one run as Lightning wants them. Apart from the loaders, since Lightning takes seconds to import."""

from collections.abc import Callable
from typing import Any

from lightning.pytorch import LightningDataModule

from distill_lit.config.training import TrainingConfig
from distill_lit.data.loader import PackedLoader, ValidationLoader, optimizer_steps, rows_per_step
from distill_lit.data.packing import PackedDataset
from distill_lit.models.packed_forward import PackedBatch


class PackedDataModule(LightningDataModule):
    """Training and validation batches of one run, in the order of `seed`. rows_before: rows to train on that the stages
    before this one have read. `steps`: optimizer steps; `look_ahead`: told each training batch one batch earlier."""

    look_ahead: Callable[[PackedBatch], None] | None = None

    def __init__(
        self, train: PackedDataset, validation: PackedDataset, training: TrainingConfig, seed: int, rows_before: int = 0
    ) -> None:
        super().__init__()
        self.train, self.validation, self.training, self.seed = train, validation, training, seed
        self.rows_before = rows_before
        self.steps = optimizer_steps(training, train.sequence_length)

    @property
    def tokens_per_step(self) -> int:
        """Positions that all ranks read in one optimizer step, padding included."""
        return rows_per_step(self.training) * self.train.sequence_length

    def _rank_and_world_size(self) -> dict[str, Any]:
        """Which of how many ranks this is; before a Trainer is attached the only one."""
        trainer = self.trainer
        return {"rank": trainer.global_rank, "world_size": trainer.world_size} if trainer else {}

    def train_dataloader(self) -> PackedLoader:
        loader = PackedLoader(
            self.train,
            micro_batch_size=self.training.micro_batch_size,
            gradient_accumulation_steps=self.training.gradient_accumulation_steps,
            steps=self.steps,
            seed=self.seed,
            rows_before=self.rows_before,
            **self._rank_and_world_size(),
        )
        loader.look_ahead = self.look_ahead
        return loader

    def val_dataloader(self) -> ValidationLoader:
        return ValidationLoader(
            self.validation,
            micro_batch_size=self.training.micro_batch_size,
            first_row=len(self.train),
            **self._rank_and_world_size(),
        )
