"""Sequence packing: documents → rows of fixed length, several to a row, none across rows unless longer than one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from distill_lit.config import DataConfig
from distill_lit.data.spool import scratch_zeros
from distill_lit.data.tokenization import TokenizedDocuments
from distill_lit.losses.targets import IGNORE_INDEX
from distill_lit.models.document_spans import is_document_start
from distill_lit.utils.exceptions import UserError

OPEN_ROWS = 64  # rows that may still take a document
COUNTED_ROWS = 256  # at a time
READ_ROWS = 1024  # at a time, where all are read
PACKED_ARRAYS = ("input_ids", "document_ids", "loss_mask")  # what is kept of packed rows


@dataclass(frozen=True)
class PackedDataset:
    """Packed rows, all arrays (rows, length), perhaps memory-mapped.

    input_ids: tokens; padding is 0. document_ids: 1, 2, … within a row; 0 is padding. loss_mask (bool): the token is a
    target of the one before it: never the first of a document, so that no document is predicted from another. corpus_ids:
    which of the corpora, in the order of their names from 0, a token is of, 0 in padding; None where nobody asks.
    """

    input_ids: np.ndarray
    document_ids: np.ndarray
    loss_mask: np.ndarray
    corpus_ids: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def sequence_length(self) -> int:
        """Tokens per row."""
        return int(self.input_ids.shape[1])

    @property
    def labels(self) -> np.ndarray:
        """(rows, length) int64: the token itself where it is supervised, -100 elsewhere. Not shifted."""
        return np.where(self.loss_mask, self.input_ids.astype(np.int64), IGNORE_INDEX)

    @property
    def position_ids(self) -> np.ndarray:
        """(rows, length) int64: 0, 1, … from the start of each document; 0 in padding."""
        at = np.broadcast_to(np.arange(self.sequence_length), self.document_ids.shape)
        starts = np.maximum.accumulate(np.where(is_document_start(self.document_ids), at, 0), axis=1)
        return np.where(self.document_ids > 0, at - starts, 0)

    @property
    def targets_per_row(self) -> np.ndarray:
        """(rows,) int64: supervised targets of each row."""
        return np.asarray(self.loss_mask.sum(axis=1, dtype=np.int64))

    def count_targets(self, rows: np.ndarray) -> np.ndarray:
        """(len(rows),) int64: supervised targets of the rows with these numbers."""
        return np.asarray(self.loss_mask[rows].sum(axis=1, dtype=np.int64))

    @property
    def has_targets(self) -> bool:
        """Whether any token is supervised; rows are read until one is."""
        starts = range(0, len(self), COUNTED_ROWS)
        return any(self.count_targets(np.arange(i, min(i + COUNTED_ROWS, len(self)))).any() for i in starts)

    @property
    def num_tokens(self) -> int:
        """Tokens that are not padding."""
        return int(np.count_nonzero(self.document_ids))

    @property
    def padding_share(self) -> float:
        """Share of positions that are padding."""
        return 1 - self.num_tokens / self.document_ids.size if self.document_ids.size else 0.0

    @property
    def num_documents(self) -> int:
        """Documents, or pieces of split ones, in all rows."""
        return int(self.document_ids.max(axis=1).sum(dtype=np.int64)) if len(self) else 0

    def share_of_rows(self, corpora: Sequence[int]) -> float:
        """Share of the rows in which a token of one of these corpora, by number, is supervised; 1 where nobody says."""
        if self.corpus_ids is None or not len(self):
            return 1.0
        return float((np.isin(self.corpus_ids, corpora) & self.loss_mask).any(axis=1).mean())

    def take(self, rows: np.ndarray) -> "PackedDataset":
        """The rows with these numbers, in this order."""
        corpus_ids = None if self.corpus_ids is None else self.corpus_ids[rows]
        return PackedDataset(self.input_ids[rows], self.document_ids[rows], self.loss_mask[rows], corpus_ids)

    @staticmethod
    def concatenate(parts: Sequence["PackedDataset"]) -> "PackedDataset":
        """The rows of several, one after the other, copied; `ChainedRows` are not."""
        names = PACKED_ARRAYS if any(part.corpus_ids is None for part in parts) else (*PACKED_ARRAYS, "corpus_ids")
        return PackedDataset(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


class UnreadRows(PackedDataset):
    """Rows that `take` reads when they are asked for. Who asks for the whole arrays gets them read, in memory."""

    def take(self, rows: np.ndarray) -> PackedDataset:
        """Reads the rows with these numbers, in this order."""
        raise NotImplementedError

    def _all(self, name: str) -> Any:
        return getattr(self.take(np.arange(len(self))), name)

    @property
    def input_ids(self) -> np.ndarray:  # type: ignore[override]
        return np.asarray(self._all("input_ids"))

    @property
    def document_ids(self) -> np.ndarray:  # type: ignore[override]
        return np.asarray(self._all("document_ids"))

    @property
    def loss_mask(self) -> np.ndarray:  # type: ignore[override]
        return np.asarray(self._all("loss_mask"))

    def count_targets(self, rows: np.ndarray) -> np.ndarray:
        parts = [rows[i : i + READ_ROWS] for i in range(0, len(rows), READ_ROWS)]
        counts = [self.take(part).loss_mask.sum(axis=1, dtype=np.int64) for part in parts]
        return np.concatenate(counts) if counts else np.zeros(0, dtype=np.int64)

    @property
    def targets_per_row(self) -> np.ndarray:
        """(rows,) int64; reads every row, a few at a time."""
        return self.count_targets(np.arange(len(self)))


class ChainedRows(UnreadRows):
    """The rows of several data sets, one after the other, none of them copied before it is read."""

    def __init__(self, parts: Sequence[PackedDataset]) -> None:
        """parts: at least one, all of rows of the same length."""
        object.__setattr__(self, "parts", parts)
        object.__setattr__(self, "starts", np.cumsum([0, *map(len, parts)], dtype=np.int64))

    parts: Sequence[PackedDataset]
    starts: np.ndarray

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def sequence_length(self) -> int:
        return self.parts[0].sequence_length

    def take(self, rows: np.ndarray) -> PackedDataset:
        part_of_row = np.searchsorted(self.starts, rows, side="right") - 1
        chosen = [np.flatnonzero(part_of_row == number) for number in range(len(self.parts))]
        read = [part.take(rows[here] - start) for part, here, start in zip(self.parts, chosen, self.starts, strict=False)]
        return PackedDataset.concatenate(read).take(np.argsort(np.concatenate(chosen)))

    @property
    def corpus_ids(self) -> np.ndarray | None:  # type: ignore[override]
        return None if any(part.corpus_ids is None for part in self.parts) else np.asarray(self._all("corpus_ids"))

    @property
    def targets_per_row(self) -> np.ndarray:
        return np.concatenate([part.targets_per_row for part in self.parts])


def pack(documents: TokenizedDocuments, sequence_length: int) -> tuple[PackedDataset, int]:
    """(rows, documents split): documents in their order, each put into the first of the open rows it fits in.

    A document longer than `sequence_length` is cut into pieces, each then a document of its own. Rows are in the order in
    which they were opened.
    """
    starts, sizes = split_long_documents(documents.offsets, sequence_length)
    rows, columns, numbers = place_first_fit(sizes, sequence_length)
    count = int(rows.max()) + 1 if len(rows) else 0
    input_ids = scratch_zeros((count, sequence_length), documents.tokens.dtype)
    document_ids = scratch_zeros((count, sequence_length), np.min_scalar_type(sequence_length))
    supervised = scratch_zeros((count, sequence_length), bool)
    for start, size, row, column, number in zip(starts, sizes, rows, columns, numbers, strict=True):
        here = slice(column, column + size)
        input_ids[row, here] = documents.tokens[start : start + size]
        document_ids[row, here] = number
        supervised[row, here] = documents.loss_mask[start : start + size]
    for start in range(0, count, COUNTED_ROWS):
        here = slice(start, start + COUNTED_ROWS)
        supervised[here] &= ~is_document_start(document_ids[here])
    return PackedDataset(input_ids, document_ids, supervised), int((np.diff(documents.offsets) > sequence_length).sum())


def pack_validation(documents: TokenizedDocuments, data: DataConfig) -> PackedDataset:
    """The first `data.validation_sequences` rows of held-out documents; 0: all. Raises UserError where they are fewer."""
    rows, _ = pack(documents, data.sequence_length)
    if len(rows) < data.validation_sequences:
        filled, remedy = ("data.validation fills", "; 0 takes all") if data.validation else ("the corpora fill", "")
        raise UserError(
            f"data.validation_sequences: {filled} only {len(rows)} of {data.validation_sequences} sequences{remedy}"
        )
    return rows.take(np.arange(data.validation_sequences or len(rows)))


def split_long_documents(offsets: np.ndarray, sequence_length: int) -> tuple[np.ndarray, np.ndarray]:
    """(starts, sizes) of the pieces of at most `sequence_length` tokens, in order. offsets: (documents + 1,)."""
    lengths = np.diff(offsets)
    pieces = -(-lengths // sequence_length)
    owner = np.repeat(np.arange(len(lengths)), pieces)
    number = np.arange(len(owner)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    return offsets[owner] + number * sequence_length, np.minimum(sequence_length, lengths[owner] - number * sequence_length)


def place_first_fit(sizes: np.ndarray, sequence_length: int, open_rows: int = OPEN_ROWS) -> tuple[np.ndarray, ...]:
    """(row, column, number within the row from 1) of each piece. When more than `open_rows` rows are open, the fullest
    is closed, so the work is linear in the pieces."""
    free: dict[int, int] = {}  # open row: places left, in the order of opening
    documents_in_row: list[int] = []
    assignment = np.zeros((3, len(sizes)), dtype=np.int64)
    for i, size in enumerate(sizes.tolist()):
        row = next((r for r, room in free.items() if room >= size), len(documents_in_row))
        if row == len(documents_in_row):
            documents_in_row.append(0)
            free[row] = sequence_length
        documents_in_row[row] += 1
        assignment[:, i] = row, sequence_length - free[row], documents_in_row[row]
        free[row] -= size
        if not free[row] or len(free) > open_rows:
            del free[min(free, key=free.__getitem__)]
    return tuple(assignment)


def split_train_validation(
    documents: TokenizedDocuments, sequence_length: int, validation_sequences: int, max_tokens: int
) -> tuple[TokenizedDocuments, TokenizedDocuments]:
    """(validation, training): the first documents that hold `validation_sequences` × `sequence_length` tokens, and those
    after them until `max_tokens` tokens (0: all; at least one document)."""
    ends = documents.offsets[1:]
    num_validation_documents = min(int(np.searchsorted(ends, validation_sequences * sequence_length)) + 1, len(ends))
    return _between(documents, 0, num_validation_documents), take_tokens(documents, max_tokens, num_validation_documents)


def take_tokens(documents: TokenizedDocuments, max_tokens: int, first: int = 0) -> TokenizedDocuments:
    """The documents from number `first` on that fit into `max_tokens` tokens (0: all; at least one where there is one)."""
    last = len(documents.offsets) - 1
    if max_tokens:
        fitting = int(np.searchsorted(documents.offsets[1:], documents.offsets[first] + max_tokens, side="right"))
        last = min(last, max(fitting, first + 1))
    return _between(documents, first, last)


def _between(documents: TokenizedDocuments, first: int, last: int) -> TokenizedDocuments:
    start, end = documents.offsets[first], documents.offsets[last]
    return TokenizedDocuments(
        documents.tokens[start:end], documents.offsets[first : last + 1] - start, documents.loss_mask[start:end]
    )
