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

TokenTuple: TypeAlias = tuple[int, ...]


@dataclass
class ScoredSequence:
    """One sequence in a pack: its number, the nodes that predict its last tokens, and these tokens."""

    index: int
    nodes: list[int]
    targets: list[int]


@dataclass
class Pack:
    """Nodes in depth-first order. `parents`: index of the node before, -1 at a root."""

    tokens: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    scored: list[ScoredSequence] = field(default_factory=list)


def pack_prefix_trees(
    sequences: Sequence[tuple[list[int], int]], target_nodes: int, max_nodes: int | None = None
) -> Iterator[Pack]:
    """Packs of about `target_nodes` nodes. `sequences`: (tokens, how many of the last ones are scored, at least one). A
    shared context is not cut until the pack has `max_nodes` nodes, by default four times that size."""
    max_nodes = max_nodes or 4 * target_nodes
    pack, path, previous = Pack(), [], []  # type: Pack, list[int], list[int]
    for number in sorted(range(len(sequences)), key=lambda n: sequences[n][0]):
        tokens, count = sequences[number]
        input_tokens = tokens[:-1]  # the last token is predicted, never read
        shared = common_prefix(previous, input_tokens)
        grown = len(pack.tokens) + len(input_tokens) - shared
        if pack.scored and grown > target_nodes and (2 * shared < len(input_tokens) or grown > max_nodes):
            yield pack
            pack, path, shared = Pack(), [], 0
        path = path[:shared]
        for depth in range(shared, len(input_tokens)):
            pack.parents.append(path[-1] if path else -1)
            path.append(len(pack.tokens))
            pack.tokens.append(input_tokens[depth])
            pack.depths.append(depth)
        pack.scored.append(ScoredSequence(number, path[len(input_tokens) - count :], tokens[-count:]))
        previous = input_tokens
    if pack.scored:
        yield pack


def group_shared_prefixes(
    sequences: Sequence[tuple[list[int], int]], min_prefix_tokens: int, min_suffix_nodes: int
) -> list[tuple[list[int], list[int]]]:
    """[(prefix, numbers of the sequences that begin with it)] where a prefix of `min_prefix_tokens` tokens or more is
    shared and at least `min_suffix_nodes` different nodes follow it; no token of the prefix is scored. As arguments of
    `pack_prefix_trees`."""
    order = sorted(range(len(sequences)), key=lambda n: sequences[n][0])
    groups, start = [], 0
    while start < len(order):
        first, count = sequences[order[start]]
        length, end, nodes = len(first) - count - 1, start + 1, len(first) - 1
        while end < len(order):
            tokens, count = sequences[order[end]]
            shared = common_prefix(sequences[order[end - 1]][0], tokens)
            if min(length, shared, len(tokens) - count - 1) < min_prefix_tokens:
                break
            length, nodes = min(length, shared, len(tokens) - count - 1), nodes + max(0, len(tokens) - 1 - shared)
            end += 1
        if length >= min_prefix_tokens and nodes - length >= min_suffix_nodes:
            groups.append((first[:length], order[start:end]))
        start = end
    return groups


def find_longest_shared_prefix(
    sequences: Iterable[TokenTuple], max_shared_tokens: int, preferred: TokenTuple
) -> tuple[int, list[TokenTuple]]:
    """(tokens shared, at most `max_shared_tokens`; two sequences of which neither begins with the other, the earlier in
    order first), with the most shared; of those with the same, with `preferred` in it, or the shortest. (0, []) where there
    are no
    two."""
    pairs = [
        (min(shared, max_shared_tokens), preferred in (one, other), -len(one) - len(other), [one, other])
        for one, other in pairwise(sorted(set(sequences)))
        if (shared := common_prefix(one, other)) < len(one)
    ]
    best = max(pairs, default=(0, False, 0, []))
    return best[0], best[-1]


def batch_packs(packs: Iterable[Pack], max_nodes: int) -> Iterator[list[Pack]]:
    """Packs of about the same length together, largest first, so that they fill at most `max_nodes` nodes with their
    padding (one that is larger stands alone)."""
    batch: list[Pack] = []
    for pack in sorted(packs, key=lambda pack: -len(pack.tokens)):
        if batch and len(batch[0].tokens) * (len(batch) + 1) > max_nodes:
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
