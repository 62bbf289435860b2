"""Token sequences to prefix trees: each distinct prefix is one node, and is computed once.

A pack is a forest of such nodes in one row. A node attends to its ancestors, its position is its depth, and the model's
head is applied only where a token is scored. Exact for decoders with full attention. Rows are kept short, and several go
through the model together: attention costs the square of a row, everything else only its length.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TypeAlias

import torch

Tokens: TypeAlias = tuple[int, ...]


@dataclass
class Scored:
    """One sequence in a pack: its number, the nodes that predict its last tokens, and these tokens."""

    number: int
    nodes: list[int]
    targets: list[int]


@dataclass
class Pack:
    """Nodes in depth-first order. `parents`: index of the node before, -1 at a root."""

    tokens: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    scored: list[Scored] = field(default_factory=list)


def pack_sequences(sequences: Sequence[tuple[list[int], int]], size: int, most: int | None = None) -> Iterator[Pack]:
    """Packs of about `size` nodes. `sequences`: (tokens, how many of the last ones are scored, at least one). A shared
    context is not cut until the pack has `most` nodes, by default four times that size."""
    most = most or 4 * size
    pack, path, previous = Pack(), [], []  # type: Pack, list[int], list[int]
    for number in sorted(range(len(sequences)), key=lambda n: sequences[n][0]):
        tokens, count = sequences[number]
        read = tokens[:-1]  # the last token is predicted, never read
        shared = common_prefix(previous, read)
        grown = len(pack.tokens) + len(read) - shared
        if pack.scored and grown > size and (2 * shared < len(read) or grown > most):
            yield pack
            pack, path, shared = Pack(), [], 0
        path = path[:shared]
        for depth in range(shared, len(read)):
            pack.parents.append(path[-1] if path else -1)
            path.append(len(pack.tokens))
            pack.tokens.append(read[depth])
            pack.depths.append(depth)
        pack.scored.append(Scored(number, path[len(read) - count :], tokens[-count:]))
        previous = read
    if pack.scored:
        yield pack


def split_runs(sequences: Sequence[tuple[list[int], int]], least: int, worth: int) -> list[tuple[list[int], list[int]]]:
    """[(prefix, numbers of the sequences that begin with it)] where a prefix of `least` tokens or more is shared and at
    least `worth` different nodes follow it; no token of the prefix is scored. As arguments of `pack_sequences`."""
    order = sorted(range(len(sequences)), key=lambda n: sequences[n][0])
    runs, start = [], 0
    while start < len(order):
        first, count = sequences[order[start]]
        length, end, nodes = len(first) - count - 1, start + 1, len(first) - 1
        while end < len(order):
            tokens, count = sequences[order[end]]
            shared = common_prefix(sequences[order[end - 1]][0], tokens)
            if min(length, shared, len(tokens) - count - 1) < least:
                break
            length, nodes = min(length, shared, len(tokens) - count - 1), nodes + max(0, len(tokens) - 1 - shared)
            end += 1
        if length >= least and nodes - length >= worth:
            runs.append((first[:length], order[start:end]))
        start = end
    return runs


def find_branch(sequences: Iterable[Tokens], enough: int, wanted: Tokens) -> tuple[int, list[Tokens]]:
    """(tokens shared, at most `enough`; two sequences of which neither begins with the other, the earlier in order first),
    with the most shared; of those with the same, with `wanted` in it, or the shortest. (0, []) where there are no two."""
    pairs = [
        (min(shared, enough), wanted in (one, other), -len(one) - len(other), [one, other])
        for one, other in pairwise(sorted(set(sequences)))
        if (shared := common_prefix(one, other)) < len(one)
    ]
    best = max(pairs, default=(0, False, 0, []))
    return best[0], best[-1]


def batch_packs(packs: Iterable[Pack], size: int) -> Iterator[list[Pack]]:
    """Packs of about the same length together, largest first, so that they fill at most `size` nodes with their padding
    (one that is larger stands alone)."""
    batch: list[Pack] = []
    for pack in sorted(packs, key=lambda pack: -len(pack.tokens)):
        if batch and len(batch[0].tokens) * (len(batch) + 1) > size:
            yield batch
            batch = []
        batch.append(pack)
    if batch:
        yield batch


def ancestor_mask(parents: Sequence[int]) -> torch.Tensor:
    """(N, N) booleans: whether node i attends to node j, which is itself or one of its ancestors."""
    count = len(parents)
    mask = torch.zeros(count, count, dtype=torch.bool)
    start = 0
    while start < count:  # a run of nodes, each the child of the one before, is filled at once
        end = start + 1
        while end < count and parents[end] == end - 1:
            end += 1
        if parents[start] >= 0:
            mask[start:end] = mask[parents[start]]
        mask[start:end, start:end] = torch.ones(end - start, end - start, dtype=torch.bool).tril()
        start = end
    return mask


def common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two sequences begin with alike."""
    length = 0
    for a, b in zip(first, second, strict=False):
        if a != b:
            break
        length += 1
    return length
