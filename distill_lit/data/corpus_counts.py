"""What corpora hold, counted: their bytes and their words, and the words that a student reads of them."""

import re
from collections import Counter
from typing import Any

import numpy as np

from distill_lit.config import DataConfig
from distill_lit.data.corpora import read_documents
from distill_lit.data.loader import shuffled_row_indices
from distill_lit.data.pipeline import check_data_config, corpus_fingerprint_inputs
from distill_lit.data.prepared import PreparedData
from distill_lit.data.sources import FileSource, open_corpus_source
from distill_lit.data.token_pipeline import reads_token_files
from distill_lit.models.document_spans import document_spans
from distill_lit.utils.files import cache_root, fingerprint, read_json, try_write_json

MAX_BYTES_TO_COUNT = 1 << 28  # files that are read in seconds
WORD_PATTERN = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")  # letters, with apostrophes inside


def count_bytes(data: DataConfig, dataset_source: str) -> int | None:
    """Bytes of UTF-8 in all documents, or None where counting would take long. Raises UserError for what cannot be read."""
    if reads_token_files(data):
        return None
    sources = [open_corpus_source(f"data.corpora.{name}", corpus, dataset_source) for name, corpus in data.corpora.items()]
    files = [path for source in sources if isinstance(source, FileSource) for path in source.files]
    if (
        any(not isinstance(source, FileSource) for source in sources)
        or sum(p.stat().st_size for p in files) > MAX_BYTES_TO_COUNT
    ):
        return None
    return sum(len(document.text.encode()) for document in read_documents(data.corpora, data.seed, dataset_source).items)


def word_counts(data: DataConfig, dataset_source: str) -> Counter[str]:
    """How often each lower-case word occurs in all documents of the corpora, cached beside the tokens; nothing of files of
    tokens, which are never read whole."""
    check_data_config(data, dataset_source)
    if reads_token_files(data):
        return Counter()
    path = cache_root() / "tokens" / f"words-{fingerprint(corpus_fingerprint_inputs(data, dataset_source))}.json"
    try:
        return Counter(read_json(path))
    except (OSError, ValueError):
        counts = Counter[str]()
        for document in read_documents(data.corpora, data.seed, dataset_source).items:
            counts.update(_words(document.text))
        try_write_json(path, dict(counts.most_common()))
        return counts


def read_word_counts(prepared: PreparedData, tokenizer: Any, rows: int, seed: int) -> Counter[str]:
    """How often each lower-case word occurs in the first `rows` training rows in the order of `seed`: what a student reads.
    Cached beside the tokens."""
    path = cache_root() / "tokens" / f"words-read-{fingerprint([prepared.fingerprint, rows, seed])}.json"
    try:
        return Counter(read_json(path))
    except (OSError, ValueError):
        words: Counter[str] = Counter()
        numbers, times = np.unique(shuffled_row_indices(len(prepared.train), seed, rows), return_counts=True)
        for number, count in zip(numbers, times, strict=True):
            row = prepared.train.take(np.array([number]))
            for span in document_spans(row.document_ids):
                tokens = row.input_ids[0, span.columns].tolist()
                found = Counter(_words(tokenizer.decode(tokens, skip_special_tokens=True)))
                words.update({word: int(count) * n for word, n in found.items()})
        try_write_json(path, dict(words.most_common()))
        return words


def _words(text: str) -> list[str]:
    """In lower case."""
    return WORD_PATTERN.findall(text.lower())
