"""What outgrows memory goes on in a file of the cache folder, which is gone when nobody reads it any more.

Documents, tokens and packed rows are made here as ever; only where they lie changes, so a pool larger than memory holds the
same rows as a small one.
"""

import os
import pickle
import tempfile
from array import array
from collections.abc import Sequence
from typing import Any, Generic, TypeVar, overload

import numpy as np

from distill_lit.utils.files import cache_root

MAX_MEMORY_BYTES = 1 << 28  # of one list of documents, or one array, that stays in memory
Item = TypeVar("Item")


def scratch_file() -> Any:
    """A file without a name in the cache folder: it ends with its last reader, however that ends."""
    cache_root().mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryFile(dir=cache_root())


def scratch_zeros(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Zeros, in a file where they are more than MAX_MEMORY_BYTES."""
    if np.dtype(dtype).itemsize * np.prod(shape, dtype=np.int64) <= MAX_MEMORY_BYTES:
        return np.zeros(shape, dtype=dtype)
    with scratch_file() as file:
        return np.memmap(file, dtype=dtype, mode="w+", shape=shape)


class ItemSpool(Sequence[Item], Generic[Item]):
    """A list to append to, whose items are pickled into a file once they are larger than memory allows."""

    def __init__(self) -> None:
        self._items: list[Item] = []
        self._bytes = 0
        self._file: Any = None
        self._ends = array("Q", [0])

    def append(self, item: Item, size: int) -> None:
        """size: its bytes, about."""
        self._bytes += size
        if self._file is not None:
            self._write(item)
            return
        self._items.append(item)
        if self._bytes > MAX_MEMORY_BYTES:
            self._file = scratch_file()
            for each in self._items:
                self._write(each)
            self._items = []

    def finished(self) -> Sequence[Item]:
        """Its items, a plain list where they are in memory."""
        if self._file is not None:
            self._file.flush()
        return self._items if self._file is None else self

    def _write(self, item: Item) -> None:
        self._ends.append(self._ends[-1] + self._file.write(pickle.dumps(item, pickle.HIGHEST_PROTOCOL)))

    def __len__(self) -> int:
        return len(self._items) if self._file is None else len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> list[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | list[Item]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if self._file is None:
            return self._items[index]
        place = range(len(self))[index]
        start, end = self._ends[place], self._ends[place + 1]
        item: Item = pickle.loads(os.pread(self._file.fileno(), end - start, start))  # what this process has written
        return item


class ArraySpool:
    """One long array to append to, in a file once it is larger than memory allows."""

    def __init__(self, dtype: Any) -> None:
        self._dtype = np.dtype(dtype)
        self._parts: list[np.ndarray] = []
        self._bytes = 0
        self._file: Any = None

    def append(self, part: Any) -> None:
        """part: (n,) values."""
        values = np.asarray(part, dtype=self._dtype)
        self._bytes += values.nbytes
        if self._file is None:
            self._parts.append(values)
            if self._bytes > MAX_MEMORY_BYTES:
                self._file = scratch_file()
                self._file.writelines(each.tobytes() for each in self._parts)
                self._parts = []
        else:
            self._file.write(values.tobytes())

    def finished(self) -> np.ndarray:
        """The whole array (N,)."""
        if self._file is None:
            return np.concatenate(self._parts) if self._parts else np.zeros(0, dtype=self._dtype)
        self._file.flush()
        return np.memmap(self._file, dtype=self._dtype, mode="r", shape=(self._bytes // self._dtype.itemsize,))
