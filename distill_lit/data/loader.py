"""Packed rows → batches: the same order for the same seed, whoever reads them, and resumable between any two."""

import functools
from collections.abc import Callable, Iterator

import numpy as np
import torch

from distill_lit.config.training import TrainingConfig
from distill_lit.data.packing import PackedDataset
from distill_lit.losses.targets import IGNORE_INDEX
from distill_lit.models.packed_forward import PackedBatch
from distill_lit.utils.exceptions import UserError


def shuffled_row_indices(rows: int, seed: int, count: int, start: int = 0) -> np.ndarray:
    """Row numbers at places start … start + count − 1 of an endless reading of the pool, every pass in a new order.

    (count,) int64. Depends on nothing else, so it is the same for every student, rank and resumed run.
    """
    first, last = start // rows, -(-(start + count) // rows)
    parts = [
        _epoch_permutation(rows, seed, number)[max(0, start - number * rows) : start + count - number * rows]
        for number in range(first, last)
    ]
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)


@functools.lru_cache(maxsize=4)
def _epoch_permutation(rows: int, seed: int, number: int) -> np.ndarray:
    return np.random.default_rng([seed, number]).permutation(rows)


def rows_per_step(training: TrainingConfig) -> int:
    """Rows that all ranks read in one optimizer step."""
    return training.micro_batch_size * training.gradient_accumulation_steps * training.ranks


def optimizer_steps(training: TrainingConfig, sequence_length: int) -> int:
    """Steps in which a student reads `training.max_tokens` positions, padding included; rounded up."""
    return -(-training.max_tokens // (sequence_length * rows_per_step(training)))


def make_batch(packed: PackedDataset, rows: np.ndarray, step_tokens: int) -> PackedBatch:
    """input_ids, labels (-100 where not supervised, not shifted), position_ids, document_ids, and corpus_ids where the rows
    have them: (B, T) int64; rows: (B,) int64; step_tokens: () int64, supervised targets of the whole optimizer step, at
    least 1."""
    part = packed.take(rows)
    arrays = {
        "input_ids": part.input_ids,
        "labels": part.labels,
        "position_ids": part.position_ids,
        "document_ids": part.document_ids,
        "rows": rows,
        **({} if part.corpus_ids is None else {"corpus_ids": part.corpus_ids}),
    }
    batch = {name: torch.from_numpy(array.astype(np.int64)) for name, array in arrays.items()}
    return {**batch, "step_tokens": torch.tensor(max(1, step_tokens))}


def calibration_batches(packed: PackedDataset, rows: int = 16, size: int = 4) -> list[PackedBatch]:
    """The first rows, `size` at a time, each with input_ids, position_ids and document_ids (B, T)."""
    starts = range(0, min(rows, len(packed)), size)
    return [make_batch(packed, np.arange(i, min(i + size, len(packed))), 1) for i in starts]


class PackedLoader:
    """Batches of one rank for all optimizer steps of a run: `steps` × `gradient_accumulation_steps` of them.

    Step i reads accumulate × world_size × batch rows of `shuffled_row_indices`; the ranks share them out. Its place is its
    state, so a run resumed from a checkpoint, by as many ranks or others, sees each row once. rows_before: those that
    earlier stages of the student have read, after which it begins.
    A loader read to its end begins again. `look_ahead` is told each batch one batch earlier.
    """

    look_ahead: Callable[[PackedBatch], None] | None = None

    def __init__(
        self,
        packed: PackedDataset,
        *,
        micro_batch_size: int,
        gradient_accumulation_steps: int,
        steps: int,
        seed: int,
        rows_before: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if not packed.has_targets:
            raise UserError("no sequence to train on has a supervised token")
        self.packed, self.micro_batch_size, self.gradient_accumulation_steps, self.steps = (
            packed,
            micro_batch_size,
            gradient_accumulation_steps,
            steps,
        )
        self.seed, self.rows_before, self.rank, self.world_size = seed, rows_before, rank, world_size
        self.position = 0  # batches handed out
        self._step_targets = (-1, 0)  # the step last read, and its supervised targets

    def __len__(self) -> int:
        return self.steps * self.gradient_accumulation_steps

    def __iter__(self) -> Iterator[PackedBatch]:
        if self.position >= len(self):
            self.position = 0
        ahead: tuple[int, PackedBatch] | None = None  # the next batch and its place, where somebody has been told of it
        while self.position < len(self):
            is_made = ahead is not None and ahead[0] == self.position
            batch = ahead[1] if ahead is not None and is_made else self.batch_at(self.position)
            self.position += 1  # before yielding: a checkpoint taken while this batch is used must not repeat it
            if self.look_ahead is not None and self.position < len(self):
                ahead = self.position, self.batch_at(self.position)
                self.look_ahead(ahead[1])
            yield batch

    def rows_of_step(self, step: int) -> np.ndarray:
        """(accumulate, world_size, batch) row numbers of an optimizer step."""
        shape = (self.gradient_accumulation_steps, self.world_size, self.micro_batch_size)
        size = int(np.prod(shape))
        start = self.rows_before + step * size
        return shuffled_row_indices(len(self.packed), self.seed, size, start=start).reshape(shape)

    def batch_at(self, position: int) -> PackedBatch:
        """The batch of this rank at a place, 0 ≤ position < len(self)."""
        step, part = divmod(position, self.gradient_accumulation_steps)
        rows = self.rows_of_step(step)
        if self._step_targets[0] != step:
            self._step_targets = step, int(self.packed.count_targets(rows.flatten()).sum())
        return make_batch(self.packed, rows[part, self.rank], self._step_targets[1])

    def _settings(self) -> dict[str, int]:
        return {
            "rows": len(self.packed),
            "sequence_length": self.packed.sequence_length,
            "micro_batch_size": self.micro_batch_size,
            "gradient_accumulation_steps": self.gradient_accumulation_steps,
            "seed": self.seed,
            "world_size": self.world_size,
        }

    def state_dict(self) -> dict[str, int]:
        """Its place and what the order of the batches depends on; the same on every rank."""
        return {"position": self.position, **self._settings()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Goes to a saved place. More or fewer ranks may go on where `micro_batch_size` is such that all together read as
        many rows at a time. Raises UserError when the order of the rows is another one now."""
        ranks = ("micro_batch_size", "world_size")
        settings = self._settings()
        reads_alike = state["micro_batch_size"] * state["world_size"] == self.micro_batch_size * self.world_size
        for name, value in settings.items():
            if state[name] != value and not (name in ranks and reads_alike):
                raise UserError(
                    f"the checkpoint was read with {name} = {state[name]}, this run has {value}; "
                    "resume with the same or start anew"
                )
        self.position = state["position"]


class ValidationLoader:
    """All rows once, in their order; the ranks share out each batch. A rank that gets fewer rows than the others fills
    up with row 0 without labels, so that all ranks see equally many batches. step_tokens: targets of the batch, on all
    ranks together. `rows` counts on from `first_row`, so that held-out rows have numbers of their own."""

    def __init__(
        self, packed: PackedDataset, *, micro_batch_size: int, first_row: int = 0, rank: int = 0, world_size: int = 1
    ) -> None:
        if not packed.has_targets:
            raise UserError("no sequence to validate on has a supervised token")
        self.packed, self.micro_batch_size, self.first_row, self.rank, self.world_size = (
            packed,
            micro_batch_size,
            first_row,
            rank,
            world_size,
        )

    def __len__(self) -> int:
        return -(-len(self.packed) // (self.micro_batch_size * self.world_size))

    def __iter__(self) -> Iterator[PackedBatch]:
        size = self.micro_batch_size * self.world_size
        for start in range(0, len(self.packed), size):
            rows = np.arange(start, min(start + size, len(self.packed)))
            rank_rows = rows[self.rank :: self.world_size]
            rows_per_rank = -(-len(rows) // self.world_size)
            batch = make_batch(
                self.packed,
                np.concatenate([rank_rows, np.zeros(rows_per_rank - len(rank_rows), int)]),
                int(self.packed.count_targets(rows).sum()),
            )
            batch["labels"][len(rank_rows) :] = IGNORE_INDEX
            batch["rows"] += self.first_row
            yield batch
