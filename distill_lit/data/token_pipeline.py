"""Corpora that are tokens already → rows that are read from their files: planned in seconds, whatever their size."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from distill_lit.config import CorpusConfig, DataConfig, TeacherPromptConfig
from distill_lit.data.corpora import (
    TRAINING_SECTION,
    VALIDATION_SECTION,
    check_corpus_weights,
    check_validation_corpora,
    corpora_fingerprint,
    corpus_names,
    read_documents,
)
from distill_lit.data.corpus_mixture import corpus_shares
from distill_lit.data.packing import PackedDataset, pack_validation
from distill_lit.data.prepared import PreparedData
from distill_lit.data.templates import read_template, set_chat_template
from distill_lit.data.token_files import (
    TokenFile,
    check_tokens,
    is_token_corpus,
    token_files,
    vocabulary_fingerprint,
)
from distill_lit.data.token_rows import TokenPool, TokenRows, choose_rows, hold_out
from distill_lit.data.tokenization import tokenize
from distill_lit.models import load_tokenizer
from distill_lit.models.vocabulary import unpadded_vocab_size
from distill_lit.utils.exceptions import UserError
from distill_lit.utils.files import fingerprint

TOKEN_ROWS_VERSION = 1  # raise it when the same files become other rows


def reads_token_files(data: DataConfig) -> bool:
    """Whether any corpus to train on is files of tokens: then all are."""
    return any(is_token_corpus(f"{TRAINING_SECTION}.{name}", corpus) for name, corpus in data.corpora.items())


def check_token_corpora(data: DataConfig, dataset_source: str) -> None:
    """Raises UserError for corpora of tokens that cannot be read, as far as that shows without a tokenizer, or that are
    mixed with text."""
    for name, corpus in data.corpora.items():
        if not is_token_corpus(f"{TRAINING_SECTION}.{name}", corpus):
            raise UserError(
                f"{TRAINING_SECTION}.{name} is text, and others are files of tokens; tokenize it too, or leave one kind out"
            )
    _files(data.corpora)
    check_corpus_weights(data.corpora)
    for name, corpus in data.validation.items():
        if is_token_corpus(f"{VALIDATION_SECTION}.{name}", corpus):
            raise UserError(f"{VALIDATION_SECTION}.{name}: text to validate on is given as text, not as tokens")
    check_validation_corpora(data, dataset_source)
    read_template(data.chat_template)


def check_token_files(data: DataConfig, tokenizer_folder: Path, prompt: TeacherPromptConfig | None = None) -> None:
    """Raises UserError for files of tokens of another tokenizer than the one in the folder, or that a prompt of the
    teacher's own would need the text of. Reads samples of them."""
    if not reads_token_files(data):
        return
    if prompt is not None and prompt.is_set:
        raise UserError("teacher.prompt: documents in files of tokens cannot be rendered for it; give the text")
    tokenizer = load_tokenizer(tokenizer_folder)
    for name, files in _files(data.corpora).items():
        check_tokens(f"{TRAINING_SECTION}.{name}", files, tokenizer, tokenizer_folder)


def prepare_token_rows(
    data: DataConfig,
    tokenizer_folder: Path,
    dataset_source: str,
    with_corpus_ids: bool,
    prompt: TeacherPromptConfig | None,
) -> PreparedData:
    """Rows of files of tokens. Nothing is read but samples of them, and the rows that are held out.

    The last rows of each corpus are held out, from the first document on that begins in them, unless `data.validation` is
    given. Raises UserError for tokens of another tokenizer.
    """
    check_token_files(data, tokenizer_folder, prompt)
    template, corpora = read_template(data.chat_template), _files(data.corpora)
    tokenizer = set_chat_template(load_tokenizer(tokenizer_folder), template)
    pool = TokenPool(corpora, data.sequence_length, tokenizer.eos_token_id, unpadded_vocab_size(tokenizer))
    names = corpus_names(data) if with_corpus_ids else None
    held_out = _held_out(data, pool)
    numbers = choose_rows(pool, held_out, corpus_shares(data.corpora), data.max_tokens, data.seed)
    train = TokenRows(pool, numbers, names)
    if data.validation:
        validation = _read_validation(data, tokenizer, dataset_source, names)
    else:
        validation = _last_rows(pool, held_out, names)
    if not validation.has_targets:
        raise UserError("data.validation_sequences: no token of the validation sequences is supervised")
    key = fingerprint(
        [
            TOKEN_ROWS_VERSION,
            {name: [file.fingerprint() for file in files] for name, files in corpora.items()},
            [data.sequence_length, data.validation_sequences, data.max_tokens, data.seed, corpus_shares(data.corpora)],
            vocabulary_fingerprint(tokenizer),
            corpora_fingerprint(data.validation, dataset_source, VALIDATION_SECTION),
            *([template] if template and data.validation else []),  # tokens to train on are rendered already
        ]
    )
    counts = _statistics(data, pool, numbers, len(validation)) | {"validation_tokens": validation.num_tokens}
    return PreparedData(train, validation, key, counts)


def token_rows_statistics(data: DataConfig) -> dict[str, Any]:
    """`PreparedData.statistics` of files of tokens, by their sizes alone. `targets` counts every token but the first of a
    row: those that begin a document are none, and nobody has counted them."""
    pool = TokenPool(_files(data.corpora), data.sequence_length, -1, 0)
    numbers = choose_rows(pool, _held_out(data, pool), corpus_shares(data.corpora), data.max_tokens, data.seed)
    return _statistics(data, pool, numbers, data.validation_sequences)


def _statistics(data: DataConfig, pool: TokenPool, numbers: np.ndarray, validation_rows: int) -> dict[str, Any]:
    length, used = data.sequence_length, pool.rows_per_corpus
    files = {
        name: {
            "files": len(own),
            "tokens": sum(file.tokens for file in own),
            "left_over": sum(file.tokens for file in own) - used[name] * length,
        }
        for name, own in pool.corpora.items()
    }
    return {
        "corpora": files,
        "tokens": len(numbers) * length,
        "targets": len(numbers) * (length - 1),
        "padding_share": 0.0,
        "train_rows": len(numbers),
        "validation_rows": validation_rows,
        "validation_tokens": validation_rows * length,
    }


def _files(corpora: Mapping[str, CorpusConfig]) -> dict[str, list[TokenFile]]:
    return {name: token_files(f"{TRAINING_SECTION}.{name}", corpus) for name, corpus in sorted(corpora.items())}


def _held_out(data: DataConfig, pool: TokenPool) -> dict[str, int]:
    return hold_out(pool, 0 if data.validation else data.validation_sequences)


def _last_rows(pool: TokenPool, held_out: Mapping[str, int], names: list[str] | None) -> PackedDataset:
    """The last rows of each corpus. What goes on from rows to train on is not supervised, up to its end, if it has one."""
    parts = []
    for name, count in held_out.items():
        if not count:
            continue
        last = pool.rows_of(name)[-count:]
        rows = TokenRows(pool, np.arange(last.start, last.stop), names)
        part = rows.take(np.arange(count))
        ends, targets = np.flatnonzero(part.input_ids == pool.end), part.loss_mask.reshape(-1)
        if len(ends) and not rows.begins_with_document(0) and targets[ends[0] + 1 :].any():
            targets[: ends[0] + 1] = False
        parts.append(part)
    return PackedDataset.concatenate(parts)


def _read_validation(data: DataConfig, tokenizer: Any, dataset_source: str, names: list[str] | None) -> PackedDataset:
    """`data.validation`, packed."""
    read = read_documents(data.validation, data.seed, dataset_source, section=VALIDATION_SECTION).items
    limit = data.validation_sequences * data.sequence_length
    documents = tokenize(read, tokenizer, data.seed, 0, limit, names)
    rows = pack_validation(documents, data)
    if names is None:
        return rows
    return replace(rows, corpus_ids=pack_validation(documents.corpora_as_tokens(), data).input_ids)
