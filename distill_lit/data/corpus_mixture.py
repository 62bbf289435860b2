"""Corpora mixed by weight: of each as many tokens as its share of the pool, repeated where it has too few."""

import logging
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from distill_lit.config.data import CorpusConfig
from distill_lit.data.corpora import TRAINING_SECTION, Document
from distill_lit.data.tokenization import TokenizedDocuments, TokenSpool, encode_documents, progress_bar
from distill_lit.utils.exceptions import UserError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EncodedDocuments:
    """Tokenized documents with the numbers of those that were given, (documents,)."""

    documents: TokenizedDocuments
    numbers: Sequence[int]

    @property
    def lengths(self) -> np.ndarray:
        """(documents,): tokens of each."""
        return np.diff(self.documents.offsets)

    def append_to(self, spool: TokenSpool, index: int) -> None:
        """Puts one of them into another."""
        here = slice(*self.documents.offsets[index : index + 2].tolist())
        spool.append(self.documents.tokens[here], self.documents.loss_mask[here])


def corpus_shares(corpora: Mapping[str, CorpusConfig]) -> dict[str, float]:
    """{corpus: its share of the tokens}, weights in proportion to their sum; empty where corpora have no weights."""
    weights = {name: corpus.weight for name, corpus in corpora.items() if corpus.weight is not None}
    return {name: weight / sum(weights.values()) for name, weight in weights.items()}


def tokenize_mixture(
    documents: Sequence[Document],
    tokenizer: Any,
    seed: int,
    validation_tokens: int,
    max_tokens: int,
    shares: Mapping[str, float],
    corpora: Sequence[str] | None = None,
    workers: int = 1,
) -> tuple[TokenizedDocuments, dict[str, dict[str, Any]]]:
    """(documents to hold out, then the mixture; {corpus: what became of it}).

    The documents that hold the first `validation_tokens` tokens are those that `tokenize` has there: they do not depend on
    the weights, so that validation compares. Of the others each corpus gives the documents that fit into its share of
    `max_tokens`, at least one; one that has fewer is read again, each time in another order. `max_tokens` 0: as many tokens
    as there are without reading any document twice. All orders are drawn by `seed`.

    What became of a corpus: share of the tokens, tokens, documents, and repeats, how often one was read again. Raises
    UserError for a corpus of some weight with no document left. corpora: names by which the corpora are numbered; None:
    those of `shares`, sorted. workers: processes that tokenize.
    """
    corpora = sorted(shares) if corpora is None else corpora
    order = np.random.default_rng(seed).permutation(len(documents)).tolist()
    held_out = _encode(documents, order, tokenizer, validation_tokens, workers)
    by_corpus: dict[str, list[int]] = {name: [] for name in shares}
    for i in order[len(held_out.numbers) :]:
        by_corpus[documents[i].corpus].append(i)
    encoded: dict[str, EncodedDocuments] = {}
    for name, share in shares.items():
        own = by_corpus[name] if share else []
        if share and not own:
            raise UserError(f"{TRAINING_SECTION}.{name}.weight: no document of it is left to train on; set it to 0")
        encoded[name] = _encode(documents, own, tokenizer, share * max_tokens if max_tokens else np.inf, workers)
    total = max_tokens or min(int(encoded[name].lengths.sum()) / share for name, share in shares.items() if share)
    chosen = {
        name: _repeated(encoded[name].lengths.tolist(), round(share * total), name, seed)
        for name, share in shares.items()
        if share
    }
    pool = [(encoded[name], i) for name, numbers in chosen.items() for i in numbers]
    shuffled = np.random.default_rng([seed, zlib.crc32(b"mixture")]).permutation(len(pool))
    read = [(held_out, i) for i in range(len(held_out.numbers))] + [pool[i] for i in shuffled]
    spool, numbers = TokenSpool(tokenizer), [part.numbers[i] for part, i in read]
    for part, i in read:
        part.append_to(spool, i)
    corpus_ids = [corpora.index(documents[i].corpus) for i in numbers]
    return spool.finished(corpus_ids, np.array(numbers)), _statistics(encoded, chosen)


def _encode(
    documents: Sequence[Document], numbers: Sequence[int], tokenizer: Any, enough: float, workers: int
) -> EncodedDocuments:
    """The first documents with these numbers, until they hold `enough` tokens."""
    found, total = TokenSpool(tokenizer), 0
    with progress_bar() as bar:
        task = bar.add_task("tokenizing", total=len(numbers))
        encoded = encode_documents((documents[i] for i in numbers if enough), tokenizer, workers)
        for ids, supervised in encoded:
            found.append(ids, supervised)
            total += len(ids)
            bar.advance(task)
            if total >= enough:
                encoded.close()
                break
    return EncodedDocuments(found.finished(None, None), numbers[: len(found.lengths)])


def _repeated(lengths: list[int], target: int, name: str, seed: int) -> np.ndarray:
    """Numbers of the documents that are read: as many, in order, as fit into `target` tokens, at least one; after the last
    all again, in an order of each pass."""
    passes = [np.arange(len(lengths))]
    total = sum(lengths)
    while len(passes) * total < target:
        passes.append(np.random.default_rng([seed, zlib.crc32(name.encode()), len(passes)]).permutation(len(lengths)))
    numbers = np.concatenate(passes)
    fitting = int(np.searchsorted(np.cumsum(np.array(lengths)[numbers]), target, side="right"))
    return numbers[: max(1, fitting)]


def _statistics(encoded: Mapping[str, EncodedDocuments], chosen: Mapping[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    lengths = {name: documents.lengths for name, documents in encoded.items()}
    tokens = {name: int(lengths[name][numbers].sum()) for name, numbers in chosen.items()}
    found = {}
    for name, numbers in chosen.items():
        distinct = len(np.unique(numbers))
        if distinct < len(numbers):
            log.warning(
                "%s.%s: its %d documents are read %.1f times, since its weight asks for more tokens than they hold",
                TRAINING_SECTION, name, distinct, len(numbers) / distinct,
            )  # fmt: skip
        found[name] = {
            "share": tokens[name] / sum(tokens.values()),
            "tokens": tokens[name],
            "documents": distinct,
            "repeats": len(numbers) - distinct,
        }
    return found
