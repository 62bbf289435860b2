"""How a teacher cache lies in shards, and reading them: they stay on disk."""

import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from distill_lit.data import PackedDataset
from distill_lit.teachers.compression import (
    CACHE_HIDDEN_STATES,
    CACHE_HIDDEN_STATES_INT8,
    COUNTS,
    INT8_SCALE,
    RAGGED_ARRAYS,
    CompressedArrays,
    TeacherCacheFormat,
    from_int8,
)

SHARD_ROWS = 64
LAST_HIDDEN_STATE = "hidden_states"  # the array of that name in a shard; those of layers: `layer_array_name`


def shard_rows(prefix: str, rows: int) -> list[tuple[str, range]]:
    """[(name of a shard, its rows)]."""
    starts = range(0, rows, SHARD_ROWS)
    return [(_shard_name(prefix, i), range(start, min(start + SHARD_ROWS, rows))) for i, start in enumerate(starts)]


def _shard_name(prefix: str, number: int) -> str:
    return f"{prefix}-{number:05d}.safetensors"


def layer_array_name(layer: int) -> str:
    """The array in a shard that holds the hidden states behind a layer."""
    return f"layer-{layer}"


class HiddenStateShards:
    """Hidden states (T, D) of rows, last ones and those behind layers. first_row: the number of the first row held here."""

    def __init__(self, folder: Path, first_row: int = 0, kind: str = CACHE_HIDDEN_STATES) -> None:
        self.first_row, self.kind = first_row, kind
        self._read_slice = _ShardReader(folder, kind, "pt")

    def read(self, array: str, rows: Tensor) -> Tensor:
        """An array of all shards, for rows (B,): (B, T, D), on their device."""
        if self.kind == CACHE_HIDDEN_STATES_INT8:
            return from_int8(self._read(array, rows), self._read(INT8_SCALE, rows))
        return self._read(array, rows)

    def _read(self, array: str, rows: Tensor) -> Tensor:
        positions = [divmod(n, SHARD_ROWS) for n in (rows - self.first_row).tolist()]
        parts = [self._read_slice(shard, array, row, row + 1) for shard, row in positions]
        return torch.cat(parts).to(rows.device)


class SparseShards:
    """What was kept of the supervised tokens of training rows."""

    def __init__(self, folder: Path, train: PackedDataset, cache_format: TeacherCacheFormat) -> None:
        self._supervised_per_row = train.targets_per_row
        self._offsets = _offsets_within_shards(self._supervised_per_row)
        self._read_slice = _ShardReader(folder, cache_format.kind, "numpy")
        self._ragged_offsets = functools.lru_cache(maxsize=4096)(self._read_ragged_offsets)

    def read(self, rows: list[int], is_supervised: list[bool]) -> CompressedArrays:
        """The arrays of rows, one after the other; nothing of those that are not supervised in this batch."""
        parts = [self._read_row(row, flag) for row, flag in zip(rows, is_supervised, strict=True)]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _read_row(self, row: int, is_supervised: bool) -> CompressedArrays:
        shard, start = row // SHARD_ROWS, self._offsets[row]
        end = start + self._supervised_per_row[row] * is_supervised
        names = self._read_slice.names(shard)
        ragged = RAGGED_ARRAYS if COUNTS in names else ()
        found = {name: self._read_slice(shard, name, start, end) for name in names if name not in ragged}
        if ragged:
            start = self._ragged_offsets(shard)[row % SHARD_ROWS]
            end = start + found[COUNTS].sum(dtype=np.int64)
        return found | {name: self._read_slice(shard, name, start, end) for name in ragged}

    def _read_ragged_offsets(self, shard: int) -> np.ndarray:
        """Where each row of a shard begins in its ragged arrays."""
        offsets = self._offsets[shard * SHARD_ROWS : (shard + 1) * SHARD_ROWS]
        before = np.cumsum(self._read_slice(shard, COUNTS), dtype=np.int64)
        starts: np.ndarray = np.concatenate([[0], before])[offsets]
        return starts


def _offsets_within_shards(supervised_per_row: np.ndarray) -> np.ndarray:
    """Where each row's first supervised token is in the arrays of its shard. supervised_per_row: (rows,)."""
    before = np.cumsum(supervised_per_row) - supervised_per_row
    within: np.ndarray = before - before[np.arange(len(supervised_per_row)) // SHARD_ROWS * SHARD_ROWS]
    return within


class _ShardReader:
    """Slices of the arrays of shards, which stay on disk; the most recent files are kept open."""

    def __init__(self, folder: Path, prefix: str, framework: str) -> None:
        self._open = functools.lru_cache(maxsize=256)(
            lambda shard: safe_open(folder / _shard_name(prefix, shard), framework=framework)
        )

    def __call__(self, shard: int, name: str, start: int = 0, end: int | None = None) -> Any:
        return self._open(shard).get_slice(name)[int(start) : None if end is None else int(end)]

    def names(self, shard: int) -> list[str]:
        return list(self._open(shard).keys())
