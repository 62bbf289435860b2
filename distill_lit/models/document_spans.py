"""Where the documents of packed rows lie, and which are read together."""

from collections.abc import Iterator
from itertools import groupby
from typing import NamedTuple

from torch import Tensor


class DocumentSpan(NamedTuple):
    """One document of a batch of packed rows. size: tokens; start: column of the first."""

    row: int
    start: int
    size: int


def document_spans(document_ids: Tensor) -> list[DocumentSpan]:
    """Every document, the longest first. document_ids: (B, T), 0 in padding."""
    found = []
    for row, numbers in enumerate(document_ids.tolist()):
        start = 0
        for number, run in groupby(numbers):
            size = sum(1 for _ in run)
            if number > 0:
                found.append(DocumentSpan(row, start, size))
            start += size
    return sorted(found, key=lambda span: -span.size)


def group_spans(spans: list[DocumentSpan], max_padding_ratio: float) -> Iterator[list[DocumentSpan]]:
    """Documents that are read together: padded to the longest, they are at most `max_padding_ratio` times their tokens.
    spans: the longest first, as in each group."""
    group: list[DocumentSpan] = []
    tokens = 0
    for span in spans:
        if group and group[0].size * (len(group) + 1) > max_padding_ratio * (tokens + span.size):
            yield group
            group, tokens = [], 0
        group.append(span)
        tokens += span.size
    if group:
        yield group
