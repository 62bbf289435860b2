"""Corpora → documents → tokens → packed rows, made once and cached by everything they depend on."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from distill_lit.config import DataConfig, TeacherPromptConfig, non_default_fields
from distill_lit.data.corpora import (
    TRAINING_SECTION,
    VALIDATION_SECTION,
    Document,
    PromptRenderer,
    check_corpora,
    check_first_row,
    check_validation_corpora,
    corpora_fingerprint,
    corpus_names,
    read_documents,
)
from distill_lit.data.corpus_mixture import corpus_shares, tokenize_mixture
from distill_lit.data.packing import (
    PACKED_ARRAYS,
    PackedDataset,
    pack,
    pack_validation,
    split_train_validation,
    take_tokens,
)
from distill_lit.data.prepared import PreparedData
from distill_lit.data.teacher_prompts import NOT_IN_TEACHER, TeacherDocuments, make_teacher_documents, prompt_renderer
from distill_lit.data.templates import read_template, set_chat_template
from distill_lit.data.token_pipeline import (
    check_token_corpora,
    prepare_token_rows,
    reads_token_files,
    token_rows_statistics,
)
from distill_lit.data.tokenization import (
    TokenizedDocuments,
    hash_tokenizer,
    tokenization_metadata,
    tokenize,
)
from distill_lit.models import load_model_config, load_tokenizer
from distill_lit.models.vocabulary import check_ids
from distill_lit.utils.array_store import Arrays, open_or_make
from distill_lit.utils.exceptions import UserError
from distill_lit.utils.files import cache_root, fingerprint, read_json

DATA_CACHE_VERSION = 4  # raise it when the same input becomes other documents, tokens or rows
TEACHER_PROMPT_VERSION = 1  # raise it when the same prompt becomes other tokens for the teacher
TOKENIZED_ARRAYS = ("tokens", "offsets", "loss_mask", "corpus_ids")  # what is kept of tokenized documents


def check_data_config(data: DataConfig, dataset_source: str) -> None:
    """Raises UserError for a config that cannot work, as far as that shows before anything is fetched or loaded: no
    corpora, no source or two, a wrong template, an unknown type, a missing file. `dataset_source`: pypi or hub."""
    if reads_token_files(data):
        check_token_corpora(data, dataset_source)
        return
    check_corpora(data.corpora, dataset_source)
    check_validation_corpora(data, dataset_source)
    read_template(data.chat_template)


def check_first_rows(data: DataConfig) -> None:
    """Raises UserError as `check_first_row` does, of the text to train and to validate on. Files of tokens have no rows."""
    texts = {VALIDATION_SECTION: data.validation}
    if not reads_token_files(data):
        texts[TRAINING_SECTION] = data.corpora
    for section, corpora in texts.items():
        for name, corpus in corpora.items():
            check_first_row(section, name, corpus)


def prepare_datasets(
    data: DataConfig,
    tokenizer_folder: Path,
    dataset_source: str,
    with_corpus_ids: bool = False,
    prompt: TeacherPromptConfig | None = None,
) -> PreparedData:
    """Packed rows of `data`, from the cache when nothing they depend on has changed.

    with_corpus_ids: the rows say of every token which corpus it is of; they are the same rows without. prompt: the
    teacher's own; the rows are the same without, too.

    Raises UserError when a source cannot be read, there are too few documents, nothing is supervised, or the teacher's
    prompt does not leave a response as it is.
    """
    check_data_config(data, dataset_source)
    if reads_token_files(data):
        return prepare_token_rows(data, tokenizer_folder, dataset_source, with_corpus_ids, prompt)
    tokens_key, key = _keys(data, tokenizer_folder, dataset_source)

    def make_tokens() -> tuple[Arrays, dict[str, Any]]:
        parts, statistics = _tokenize_both(data, _tokenizer(data, tokenizer_folder), dataset_source)
        if _keys(data, tokenizer_folder, dataset_source)[0] != tokens_key:  # of files that are hashed once, the dates tell
            raise UserError("data.corpora: files have changed, come or gone while they were read; run again")
        return _stored([tokens for tokens, _ in parts]), tokenization_metadata(parts[0][0], statistics)

    def open_tokens() -> tuple[Arrays, dict[str, Any]]:
        return open_or_make(cache_root() / "tokens" / tokens_key, make_tokens)

    def make_rows() -> tuple[Arrays, dict[str, Any]]:
        arrays, manifest = open_tokens()
        return _pack_both(data, arrays, manifest)

    def make_corpus_ids() -> tuple[Arrays, dict[str, Any]]:
        tokens, _ = open_tokens()
        if "corpus_ids" not in tokens:  # a cache from before they were noted
            tokens, _ = open_or_make(cache_root() / "tokens" / f"{tokens_key}-corpora", make_tokens)
        return _pack_corpus_ids(data, tokens), {"corpora": corpus_names(data)}

    arrays, manifest = open_or_make(cache_root() / "packed" / key, make_rows)
    if with_corpus_ids:  # beside the rows, which are those of experiments that do not ask
        arrays = arrays | open_or_make(cache_root() / "packed" / f"{key}-corpora", make_corpus_ids)[0]
    _check_readable([arrays["train_input_ids"], arrays["validation_input_ids"]], tokenizer_folder)
    train, validation, statistics = _packed(arrays, "train"), _packed(arrays, "validation"), manifest["statistics"]
    if prompt is None or not prompt.is_set:
        return PreparedData(train, validation, key, statistics)
    teacher, counts = _prepare_teacher_documents(data, tokenizer_folder, dataset_source, prompt, _teacher_key(key, prompt))
    return PreparedData(train, validation, key, {**statistics, **counts}, teacher)


def _tokenizer(data: DataConfig, folder: Path) -> Any:
    return set_chat_template(load_tokenizer(folder), read_template(data.chat_template))


def _prepare_teacher_documents(
    data: DataConfig, tokenizer_folder: Path, dataset_source: str, prompt: TeacherPromptConfig, key: str
) -> tuple[TeacherDocuments, dict[str, Any]]:
    """(what the teacher reads of the rows of `prepare_datasets`, counts of it), from the cache of this key or made."""
    most_tokens = prompt.sequence_length or data.sequence_length

    def make() -> tuple[Arrays, dict[str, Any]]:
        tokenizer = _tokenizer(data, tokenizer_folder)
        parts, _ = _tokenize_both(data, tokenizer, dataset_source, prompt_renderer(prompt))
        read = [(tokens, [items[i] for i in np.asarray(tokens.numbers)]) for tokens, items in parts]
        tokens, positions, counts = make_teacher_documents(read, tokenizer, data.sequence_length, most_tokens)
        train, validation, _ = _split_and_pack(data, _stored(positions))
        for name, packed in (("train", train), ("validation", validation)):
            tokens[f"{name}_positions"] = np.where(packed.document_ids > 0, packed.input_ids, NOT_IN_TEACHER)
        return tokens, {"statistics": counts}

    arrays, manifest = open_or_make(cache_root() / "teacher_documents" / key, make)
    _check_readable([arrays["tokens"]], tokenizer_folder)
    return TeacherDocuments(**arrays, sequence_length=most_tokens, fingerprint=key), manifest["statistics"]


def _teacher_key(rows_key: str, prompt: TeacherPromptConfig) -> str:
    return fingerprint([rows_key, TEACHER_PROMPT_VERSION, non_default_fields(prompt)])


def _check_readable(arrays: list[np.ndarray], folder: Path) -> None:
    """Raises UserError for a token of the data that the model beside the tokenizer has no embedding for."""
    if (folder / "config.json").is_file():
        rows = load_model_config(folder).get_text_config().vocab_size
        largest = max(int(array.max(initial=0)) for array in arrays)
        if largest >= rows:
            try:
                check_ids([largest], load_tokenizer(folder), rows)
            except UserError as error:
                raise UserError(f"data.corpora: {error}") from error


def cached_statistics(
    data: DataConfig, tokenizer_folder: Path, dataset_source: str, prompt: TeacherPromptConfig | None = None
) -> dict[str, Any]:
    """`PreparedData.statistics` of data that are prepared already; empty for others."""
    if reads_token_files(data):
        return token_rows_statistics(data)
    _, key = _keys(data, tokenizer_folder, dataset_source)
    folders = [cache_root() / "packed" / key]
    if prompt is not None and prompt.is_set:
        folders.append(cache_root() / "teacher_documents" / _teacher_key(key, prompt))
    found: dict[str, Any] = {}
    for folder in folders:
        try:
            found |= read_json(folder / "manifest.json")["statistics"]
        except (OSError, ValueError, KeyError, TypeError):
            return {}
    return found


def _keys(data: DataConfig, tokenizer_folder: Path, dataset_source: str) -> tuple[str, str]:
    """(of the tokens, of the packed rows)."""
    corpus, capped = corpus_fingerprint_inputs(data, dataset_source), data.max_tokens > 0
    parts = [
        corpus,
        hash_tokenizer(tokenizer_folder),
        data.max_tokens,
        data.validation_sequences * data.sequence_length if capped or data.validation or corpus_shares(data.corpora) else 0,
    ]
    parts += [read_template(data.chat_template)] if data.chat_template else []
    parts += [corpora_fingerprint(data.validation, dataset_source, VALIDATION_SECTION)] if data.validation else []
    tokens_key = fingerprint(parts)
    return tokens_key, fingerprint([tokens_key, data.sequence_length, data.validation_sequences])


def corpus_fingerprint_inputs(data: DataConfig, dataset_source: str) -> list[Any]:
    """What decides the documents of `data.corpora`."""
    return [DATA_CACHE_VERSION, data.seed, dataset_source, corpora_fingerprint(data.corpora, dataset_source)]


def _tokenize_both(
    data: DataConfig, tokenizer: Any, dataset_source: str, render_prompt: PromptRenderer | None = None
) -> tuple[list[tuple[TokenizedDocuments, Sequence[Document]]], dict[str, Any]]:
    """([(tokens, the documents, by whose `numbers` they are)], statistics): of the corpora, the held-out documents first,
    and of `data.validation` where it is given."""
    rows, own, names = data.validation_sequences * data.sequence_length, None, corpus_names(data)
    read = partial(read_documents, seed=data.seed, dataset_source=dataset_source, render_prompt=render_prompt)
    if data.validation:
        own = read(data.validation, section=VALIDATION_SECTION)
    documents = read(data.corpora, validation=own)
    shares, held_out, statistics = corpus_shares(data.corpora), 0 if own else rows, documents.statistics()
    if shares:
        made, mixture = tokenize_mixture(
            documents.items, tokenizer, data.seed, held_out, data.max_tokens, shares, names, data.workers
        )
        statistics |= {"mixture": mixture}
    else:
        made = tokenize(documents.items, tokenizer, data.seed, held_out, data.max_tokens, names, data.workers)
    found = [(made, documents.items)]
    if own:
        found.append((tokenize(own.items, tokenizer, data.seed, 0, rows, names), own.items))
    return found, statistics


def _stored(parts: list[TokenizedDocuments]) -> Arrays:
    """The arrays of the documents of the corpora, and of `data.validation` where there are two parts."""
    arrays = {
        f"{prefix}{name}": getattr(part, name)
        for prefix, part in zip(("", "validation_"), parts, strict=False)
        for name in TOKENIZED_ARRAYS
    }
    return {name: array for name, array in arrays.items() if array is not None}


def _documents(arrays: Arrays, prefix: str = "") -> TokenizedDocuments:
    return TokenizedDocuments(**{name: arrays.get(f"{prefix}{name}") for name in TOKENIZED_ARRAYS})  # type: ignore[arg-type]


def _split(data: DataConfig, arrays: Arrays) -> tuple[TokenizedDocuments, TokenizedDocuments]:
    """Documents to (validate on, train on)."""
    tokens = _documents(arrays)
    limit = 0 if corpus_shares(data.corpora) else data.max_tokens  # a mixture has its size already
    if data.validation:
        return _documents(arrays, "validation_"), take_tokens(tokens, limit)
    return split_train_validation(tokens, data.sequence_length, data.validation_sequences, limit)


def _pack_corpus_ids(data: DataConfig, arrays: Arrays) -> Arrays:
    """{train_corpus_ids, validation_corpus_ids}: packed as the tokens are, with each token's corpus in its place."""
    parts = ("", "validation_") if data.validation else ("",)
    corpus_of_token = {f"{part}tokens": _documents(arrays, part).corpora_as_tokens().tokens for part in parts}
    train, validation, _ = _split_and_pack(data, arrays | corpus_of_token)
    return {"train_corpus_ids": train.input_ids, "validation_corpus_ids": validation.input_ids}


def _split_and_pack(data: DataConfig, arrays: Arrays) -> tuple[PackedDataset, PackedDataset, int]:
    """(training rows, rows to validate on, training documents that were split)."""
    validation_documents, train_documents = _split(data, arrays)
    if len(train_documents.offsets) < 2:
        raise UserError(
            f"data.validation_sequences: {data.validation_sequences} sequences of {data.sequence_length} tokens need all "
            f"{len(arrays['offsets']) - 1} documents; none is left to train on"
        )
    validation = pack_validation(validation_documents, data)
    train, split = pack(train_documents, data.sequence_length)
    return train, validation, split


def _pack_both(data: DataConfig, arrays: Arrays, manifest: Mapping[str, Any]) -> tuple[Arrays, dict[str, Any]]:
    train, validation, split = _split_and_pack(data, arrays)
    for name, packed in (("training", train), ("validation", validation)):
        if not packed.targets_per_row.any():
            raise UserError(f"data.corpora: no token of the {name} sequences is supervised")
    packed_arrays = {
        f"{name}_{field}": getattr(packed, field)
        for name, packed in (("train", train), ("validation", validation))
        for field in PACKED_ARRAYS
    }
    return packed_arrays, {"statistics": _statistics(manifest["corpus"], train, validation, split)}


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
    rows = PackedDataset(*(arrays[f"{name}_{field}"] for field in PACKED_ARRAYS))
    return replace(rows, corpus_ids=arrays.get(f"{name}_corpus_ids"))
