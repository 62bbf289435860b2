"""Scores of token sequences on packed prefix trees: which sequences share a row, and which contexts are read only once.

`prefix_tree` builds the trees and `scoring` runs them. Sizes are measured in benchmarks/prefix_tree_lm.md.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

from transformers import PreTrainedModel

from distill_lit.evaluation.prefix_tree import batch_packs, group_shared_prefixes, pack_prefix_trees
from distill_lit.evaluation.scoring import compute_kv_prefix, logits_are_head_output, score_batch

TargetSequence: TypeAlias = tuple[list[int], int]  # tokens, and how many of the last ones are scored
MIN_KV_PREFIX_TOKENS = 256  # tokens of a context from which it is read once, if what follows it fills several packs


class TokenScores(NamedTuple):
    """Of each scored token of a sequence: its log-probability in nats, and whether greedy decoding writes it."""

    logprobs: list[float]
    greedy: list[bool]


class PrefixTreeScorer:
    """Scores sequences with a causal language model, every distinct prefix computed once.

    Args:
        model: of transformers, which packing suits: see `packing_support`.
        pack_tokens: nodes of a forward pass.
        row_tokens: nodes of one of its rows, unless one context has more.
    """

    def __init__(self, model: PreTrainedModel, pack_tokens: int, row_tokens: int) -> None:
        self.model, self.pack_tokens, self.row_tokens = model, pack_tokens, min(row_tokens, pack_tokens)
        # a GPU wants large products
        self.in_vocab_blocks = model.device.type == "cpu" and logits_are_head_output(model)

    def shared_prefix_groups(
        self, sequences: Sequence[TargetSequence], min_suffix_nodes: int = 0
    ) -> list[tuple[list[int], list[int]]]:
        """What shares a long context, as `group_shared_prefixes`. `min_suffix_nodes`: nodes after it from which it is read
        once; 0: as many as fill two packs."""
        return group_shared_prefixes(sequences, MIN_KV_PREFIX_TOKENS, min_suffix_nodes or 2 * self.pack_tokens)

    def score(
        self,
        sequences: Sequence[TargetSequence],
        prefix_groups: Sequence[tuple[list[int], list[int]]],
        on_batch: Callable[[int, int], None],
        row_tokens: int = 0,
    ) -> list[TokenScores]:
        """The scores of each sequence, in their order.

        Args:
            sequences: tokens and how many of the last are scored, at most one more than the model has positions.
            prefix_groups: of `shared_prefix_groups`: whose context is read once, its keys and values kept.
            on_batch: is called after each forward pass with (sequences done, tokens read).
            row_tokens: as in the constructor, if not 0.
        """
        scores = [TokenScores([], [])] * len(sequences)
        alone = sorted(set(range(len(sequences))) - {number for _, numbers in prefix_groups for number in numbers})
        for prefix, numbers in [*prefix_groups, ([], alone)]:
            for number, found in self._score_group(sequences, prefix, numbers, row_tokens or self.row_tokens, on_batch):
                scores[number] = found
        return scores

    def _score_group(
        self,
        sequences: Sequence[TargetSequence],
        prefix: list[int],
        numbers: list[int],
        row_tokens: int,
        on_batch: Callable[[int, int], None],
    ) -> Iterator[tuple[int, TokenScores]]:
        """(number, scores) of each of these sequences; `prefix`, which may be empty, is how all of them begin."""
        suffixes = [(sequences[n][0][len(prefix) :], sequences[n][1]) for n in numbers]
        past = compute_kv_prefix(self.model, prefix) if prefix else None
        on_batch(0, len(prefix))
        packs = pack_prefix_trees(suffixes, self.pack_tokens if prefix else row_tokens, 4 * self.pack_tokens)
        for batch in ([pack] for pack in packs) if prefix else batch_packs(packs, self.pack_tokens):
            logprobs, greedy = score_batch(self.model, batch, past, in_vocab_blocks=self.in_vocab_blocks)
            start = 0
            for scored in (scored for pack in batch for scored in pack.scored):
                part = slice(start, start := start + len(scored.targets))
                yield numbers[scored.index], TokenScores(logprobs[part], greedy[part])
            on_batch(sum(len(pack.scored) for pack in batch), sum(len(pack.tokens) for pack in batch))
