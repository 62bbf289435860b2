"""Where the documents of packed rows lie, and which are read together."""

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple, TypeVar

import numpy as np
from torch import Tensor

ArrayT = TypeVar("ArrayT", Tensor, np.ndarray)


class DocumentSpan(NamedTuple):
    """One document of a batch of packed rows. size: tokens; start: column of the first."""

    row: int
    start: int
    size: int

    @property
    def columns(self) -> np.ndarray:
        """(size,) int64: those of its tokens."""
        return np.arange(self.start, self.start + self.size)


def document_ids_of(batch: Mapping[str, Tensor]) -> Tensor:
    """(B, T) int64: 1, 2, … for the documents of packed rows, 0 for padding; without packing one document a row."""
    if "document_ids" in batch:
        return batch["document_ids"]
    ids = batch["input_ids"]
    return batch["attention_mask"].long() if "attention_mask" in batch else ids.new_ones(ids.shape)


def is_document_start(document_ids: ArrayT) -> ArrayT:
    """(B, T) bool: where a document, or the padding, begins. document_ids: (B, T)."""
    is_start: ArrayT = document_ids >= 0  # all of them, as a tensor or an array
    is_start[:, 1:] = document_ids[:, 1:] != document_ids[:, :-1]
    return is_start


def document_spans(document_ids: Tensor | np.ndarray) -> list[DocumentSpan]:
    """Every document, row by row and from left to right. document_ids: (B, T), 0 in padding."""
    ids = document_ids.cpu().numpy() if isinstance(document_ids, Tensor) else document_ids
    rows, starts = np.nonzero(is_document_start(ids))
    sizes = np.diff(rows * ids.shape[1] + starts, append=ids.size)
    is_document = ids[rows, starts] > 0
    places = np.stack([rows, starts, sizes], axis=1)[is_document]
    return [DocumentSpan(*place) for place in places.tolist()]


def group_spans(spans: Iterable[DocumentSpan], max_padding_ratio: float) -> Iterator[list[DocumentSpan]]:
    """Documents that are read together, the longest first: padded to it, they are at most `max_padding_ratio` times their
    tokens."""
    group: list[DocumentSpan] = []
    tokens = 0
    for span in sorted(spans, key=lambda span: -span.size):
        if group and group[0].size * (len(group) + 1) > max_padding_ratio * (tokens + span.size):
            yield group
            group, tokens = [], 0
        group.append(span)
        tokens += span.size
    if group:
        yield group
