"""Corpora mixed by weight: of each as many tokens as its share of the pool, repeated where it has too few."""

import logging
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from distill_lit.config.schema import CorpusConfig
from distill_lit.data.corpora import TRAINING_SECTION, Document
from distill_lit.data.tokenization import TokenizedDocuments, encode_documents, join_documents, progress_bar, token_dtype
from distill_lit.utils.exceptions import UserError

log = logging.getLogger(__name__)
Encoded = tuple[np.ndarray, np.ndarray, int]  # tokens and loss mask of a document, and its number


def corpus_shares(corpora: Mapping[str, CorpusConfig]) -> dict[str, float]:
    """{corpus: its share of the tokens}, weights in proportion to their sum; empty where corpora have no weights."""
    weights = {name: corpus.weight for name, corpus in corpora.items() if corpus.weight is not None}
    return {name: weight / sum(weights.values()) for name, weight in weights.items()}


def tokenize_mixture(
    documents: list[Document],
    tokenizer: Any,
    seed: int,
    validation_tokens: int,
    max_tokens: int,
    shares: Mapping[str, float],
    corpora: Sequence[str] | None = None,
) -> tuple[TokenizedDocuments, dict[str, dict[str, Any]]]:
    """(documents to hold out, then the mixture; {corpus: what became of it}).

    The documents that hold the first `validation_tokens` tokens are those that `tokenize` has there: they do not depend on
    the weights, so that validation compares. Of the others each corpus gives the documents that fit into its share of
    `max_tokens`, at least one; one that has fewer is read again, each time in another order. `max_tokens` 0: as many tokens
    as there are without reading any document twice. All orders are drawn by `seed`.

    What became of a corpus: share of the tokens, tokens, documents, and repeats, how often one was read again. Raises
    UserError for a corpus of some weight with no document left. corpora: names by which the corpora are numbered; None:
    those of `shares`, sorted.
    """
    corpora = sorted(shares) if corpora is None else corpora
    order = np.random.default_rng(seed).permutation(len(documents)).tolist()
    held_out = _encode(documents, order, tokenizer, validation_tokens)
    rest = order[len(held_out) :]
    encoded: dict[str, list[Encoded]] = {}
    for name, share in shares.items():
        own = [i for i in rest if documents[i].corpus == name] if share else []
        if share and not own:
            raise UserError(f"{TRAINING_SECTION}.{name}.weight: no document of it is left to train on; set it to 0")
        encoded[name] = _encode(documents, own, tokenizer, share * max_tokens if max_tokens else np.inf)
    total = max_tokens or min(_count(encoded[name]) / share for name, share in shares.items() if share)
    chosen = {
        name: _repeated([len(tokens) for tokens, *_ in encoded[name]], round(share * total), name, seed)
        for name, share in shares.items()
        if share
    }
    pool = [encoded[name][i] for name, numbers in chosen.items() for i in numbers]
    shuffled = np.random.default_rng([seed, zlib.crc32(b"mixture")]).permutation(len(pool))
    tokens, masks, read = zip(*held_out, *(pool[i] for i in shuffled), strict=True)
    corpus_ids = [corpora.index(documents[i].corpus) for i in read]
    return join_documents(tokens, masks, corpus_ids, np.array(read)), _statistics(encoded, chosen)


def _encode(documents: list[Document], numbers: Sequence[int], tokenizer: Any, enough: float) -> list[Encoded]:
    """The first documents with these numbers, until they hold `enough` tokens."""
    found: list[Encoded] = []
    total, dtype = 0, token_dtype(tokenizer)
    if not enough:
        return found
    with progress_bar() as bar:
        task = bar.add_task("tokenising", total=len(numbers))
        encoded = encode_documents([documents[i] for i in numbers], tokenizer)
        for number, (ids, supervised) in zip(numbers, encoded, strict=False):
            found.append((np.array(ids, dtype=dtype), np.array(supervised, dtype=bool), number))
            total += len(ids)
            bar.advance(task)
            if total >= enough:
                break
    return found


def _count(documents: list[Encoded]) -> int:
    return sum(len(tokens) for tokens, *_ in documents)


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


def _statistics(encoded: Mapping[str, list[Encoded]], chosen: Mapping[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    lengths = {name: np.array([len(tokens) for tokens, *_ in documents]) for name, documents in encoded.items()}
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
