"""records.parquet: what all models of an experiment answered, in one columnar file.

A row is a document. Its columns are facts of the document (prompt, choices, right answer, the teacher's surprisal), then
`<model>/ll` with the log-likelihoods of the choices in nats, in single precision, and whatever else cannot be derived.
`derive_columns` recomputes the rest when the file is read. Settings, provenance and word counts are JSON in the metadata of
its schema, compressed with zlib and in base64.
"""

import base64
import json
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from distill_lit.analysis.derived_columns import derive_columns, is_derivable
from distill_lit.utils.exceptions import UserError
from distill_lit.utils.files import atomic_write

RECORDS_FILE = "records.parquet"
RECORDS_FILE_FORMAT = 1
METADATA_KEY = "distill_lit"
MODEL_SEPARATOR = "/"  # no model's name contains it
MIN_CORPUS_WORDS = 1_000_000  # of a corpus that can tell rare words from those it happens not to hold
REQUIRED_DOCUMENT_COLUMNS = ("task", "key", "doc_id", "prompt", "choices", "gold", "n_choices")
STORED_SURPRISAL_COLUMNS = ("prompt_bits_per_byte", "gold_gain")
SHARED_LIST_COLUMNS = ("tokens", "len_chars", "len_bytes")  # the same for models with the same tokenizer
LIKELIHOODS = "ll"
INDEX = ["task", "key"]
COMPRESSION: dict[str, Any] = {"compression": "zstd", "compression_level": 19}


@dataclass
class ExperimentRecords:
    """The frames of records.parquet, all indexed by (task, key).

    documents: a row per document. records: {model: a row per document it answered}. settings: {model: {task: settings and
    provenance}}. surprisal: the teacher's, or None. word_counts: {word of a document: occurrences in the distillation
    corpus}, empty below MIN_CORPUS_WORDS. corpus_words: words in that corpus, 0 where they were not counted.
    """

    documents: pd.DataFrame
    records: dict[str, pd.DataFrame]
    settings: dict[str, dict[str, dict[str, Any]]]
    surprisal: pd.DataFrame | None = None
    word_counts: dict[str, int] = field(default_factory=dict)
    corpus_words: int = 0
    read_word_counts: dict[str, int] = field(default_factory=dict)
    read_words: int = 0


def write_records(path: Path, content: ExperimentRecords) -> None:
    """Writes records.parquet, whole or not at all."""
    index = content.documents.index
    columns = {name: content.documents[name].tolist() for name in content.documents}
    columns |= _without_derivable_facts(columns, index)
    arrays: dict[str, pa.Array] = {name: pa.array(index.get_level_values(name).tolist(), pa.string()) for name in INDEX}
    arrays |= {name: pa.array(values, from_pandas=True) for name, values in columns.items()}
    if content.surprisal is not None:
        for name in STORED_SURPRISAL_COLUMNS:
            arrays[name] = pa.array(content.surprisal[name].reindex(index), pa.float32(), from_pandas=True)
    shared = _shared_lists(content.records, index)
    arrays |= {name: pa.array(values.tolist(), pa.list_(pa.int32())) for name, values in shared.items()}
    for model, frame in content.records.items():
        own = _own_columns(content.documents, frame, shared, content.settings.get(model, {}))
        arrays |= {f"{model}{MODEL_SEPARATOR}{name}": array for name, array in own.items()}
    metadata = zlib.compress(json.dumps(_metadata(content), ensure_ascii=False).encode(), 9)
    table = pa.table(arrays)
    split = {f"{name}.list.element": "BYTE_STREAM_SPLIT" for name in arrays if name.endswith(MODEL_SEPARATOR + LIKELIHOODS)}
    plain = [name if pa.types.is_primitive(array.type) else f"{name}.list.element" for name, array in arrays.items()]
    dictionary = [name for name in plain if name not in split]
    encoding: dict[str, Any] = {"use_dictionary": dictionary, "column_encoding": split, "store_schema": False}
    with (
        atomic_write(path) as temporary,
        pq.ParquetWriter(temporary, table.schema, **COMPRESSION, **encoding) as writer,
    ):
        writer.write_table(table)
        writer.add_key_value_metadata({METADATA_KEY: base64.b64encode(metadata).decode()})


def _without_derivable_facts(columns: dict[str, list[Any]], index: pd.MultiIndex) -> dict[str, list[Any]]:
    """`cluster` as None where it is the document's own key; `prompt_chars` goes where it is what it says."""
    keys = index.get_level_values("key")
    found: dict[str, list[Any]] = {}
    if "cluster" in columns:
        found["cluster"] = [None if one == key else one for one, key in zip(columns["cluster"], keys, strict=True)]
    if columns.get("prompt_chars") == [len(str(text)) for text in columns["prompt"]]:
        del columns["prompt_chars"]
    return found


def _shared_lists(records: dict[str, pd.DataFrame], index: pd.MultiIndex) -> dict[str, pd.Series]:
    """The list columns that are the same for all models that answered a document."""
    found = {}
    for name in SHARED_LIST_COLUMNS:
        known = [frame[name].map(tuple).reindex(index) for frame in records.values() if name in frame]
        if not known or len(known) < len(records):
            continue
        first = known[0]
        for other in known[1:]:
            first = first.where(first.notna(), other)
        if all(((other == first) | other.isna()).all() for other in known):
            found[name] = first.map(lambda values: list(values) if isinstance(values, tuple) else None).astype(object)
            found[name] = found[name].where(found[name].notna(), None)
    return found


def _own_columns(
    documents: pd.DataFrame, frame: pd.DataFrame, shared: dict[str, pd.Series], settings: dict[str, dict[str, Any]]
) -> dict[str, pa.Array]:
    """The columns that are stored for one model: log-likelihoods, and what does not follow from them."""
    index = documents.index
    single = pd.Series([np.asarray(values, np.float32) for values in frame[LIKELIHOODS]], frame.index, dtype=object)
    own = {LIKELIHOODS: pa.array(_nullable(single.reindex(index)), pa.list_(pa.float32()))}
    derived = derive_columns(documents.loc[frame.index], frame.assign(**{LIKELIHOODS: single}), settings)
    for name in frame:
        if name == LIKELIHOODS or name in shared or (name in derived and is_derivable(frame[name], derived[name])):
            continue
        own[str(name)] = pa.array(_nullable(frame[name].astype(object).reindex(index)), from_pandas=True)
    return own


def _nullable(values: pd.Series) -> list[Any]:
    """Cells for Arrow: None where there is no row, NaN where a number is NaN."""
    return [None if isinstance(value, float) and np.isnan(value) else value for value in values]


def _metadata(content: ExperimentRecords) -> dict[str, Any]:
    """Settings that all models share stand once, by task; the others by model."""
    shared: dict[str, dict[str, Any]] = {}
    for task in dict.fromkeys(task for tasks in content.settings.values() for task in tasks):
        known = [tasks[task] for tasks in content.settings.values() if task in tasks]
        shared[task] = {k: v for k, v in known[0].items() if all(k in other and other[k] == v for other in known)}
    own = {model: {task: {k: v for k, v in facts.items() if k not in shared[task]} for task, facts in tasks.items()}
           for model, tasks in content.settings.items()}  # fmt: skip
    counts = content.word_counts if content.corpus_words >= MIN_CORPUS_WORDS else {}
    found = {"format": RECORDS_FILE_FORMAT, "corpus_words": content.corpus_words,
             "word_counts": {word: count for word, count in counts.items() if count}, "tasks": shared,
             "models": own}  # fmt: skip
    read = {"read_words": content.read_words, "read_word_counts": content.read_word_counts}
    return found | (read if content.read_words else {})


def read_records(path: Path) -> ExperimentRecords:
    """Reads records.parquet and derives what is not in it. Raises UserError where it is absent, damaged or of another
    form."""
    if not path.exists():
        raise UserError(f"{path}: not found; run the experiment first")
    try:
        table = pq.read_table(path, use_threads=False)
        packed = (pq.read_metadata(path).metadata or {}).get(METADATA_KEY.encode())
        metadata = json.loads(zlib.decompress(base64.b64decode(packed))) if packed else None
    except Exception as error:  # what Arrow raises for a damaged file can be anything
        raise UserError(f"{path}: cannot be read ({error}); run the experiment again") from error
    settings = _settings(path, metadata)
    absent = [name for name in REQUIRED_DOCUMENT_COLUMNS if name not in table.column_names]
    absent += [f"{model}{MODEL_SEPARATOR}{LIKELIHOODS}" for model in settings
               if f"{model}{MODEL_SEPARATOR}{LIKELIHOODS}" not in table.column_names]  # fmt: skip
    if absent:
        raise UserError(f"{path}: no column {absent[0]!r}")
    assert isinstance(metadata, dict)
    return _from_table(path, table, settings, metadata)


def _settings(path: Path, metadata: Any) -> dict[str, dict[str, dict[str, Any]]]:
    if not isinstance(metadata, dict) or metadata.get("format") != RECORDS_FILE_FORMAT:
        raise UserError(f"{path}: not the records of an experiment in format {RECORDS_FILE_FORMAT}; run it again")
    tasks, models = metadata.get("tasks"), metadata.get("models")
    known = [tasks, models, *(models.values() if isinstance(models, dict) else [])]
    if not all(isinstance(part, dict) for part in known):
        raise UserError(f"{path}: its settings are no mapping of models and tasks; run the experiment again")
    assert isinstance(models, dict) and isinstance(tasks, dict)
    return {model: {task: {**tasks.get(task, {}), **facts} for task, facts in own.items()} for model, own in models.items()}


def _from_table(
    path: Path, table: pa.Table, settings: dict[str, dict[str, dict[str, Any]]], metadata: dict[str, Any]
) -> ExperimentRecords:
    index = pd.MultiIndex.from_arrays([table[name].to_pylist() for name in INDEX], names=INDEX)
    if index.has_duplicates:
        raise UserError(f"{path}: {index[index.duplicated()][0]} appears twice")
    facts = [name for name in table.column_names if MODEL_SEPARATOR not in name and name not in INDEX]
    lists = [name for name in facts if name in SHARED_LIST_COLUMNS]
    documents = table.select([name for name in facts if name not in (*lists, *STORED_SURPRISAL_COLUMNS)]).to_pandas()
    documents.index = index
    keys = index.get_level_values("key").to_series(index=index)
    documents["cluster"] = documents["cluster"].fillna(keys) if "cluster" in documents else keys
    if "prompt_chars" not in documents:
        documents["prompt_chars"] = documents["prompt"].str.len()
    shared = {name: pd.Series(table[name].to_pandas().tolist(), index, dtype=object) for name in lists}
    surprisal = None
    if set(STORED_SURPRISAL_COLUMNS) <= set(facts):
        surprisal = table.select(list(STORED_SURPRISAL_COLUMNS)).to_pandas().astype(float).set_axis(index)
    return ExperimentRecords(
        documents,
        {model: _model_frame(table, model, documents, shared, facts) for model, facts in settings.items()},
        settings,
        surprisal,
        {str(word): int(count) for word, count in metadata.get("word_counts", {}).items()},
        int(metadata.get("corpus_words", 0)),
        {str(word): int(count) for word, count in metadata.get("read_word_counts", {}).items()},
        int(metadata.get("read_words", 0)),
    )


def _model_frame(
    table: pa.Table,
    model: str,
    documents: pd.DataFrame,
    shared: dict[str, pd.Series],
    settings: dict[str, dict[str, Any]],
) -> pd.DataFrame:
    """The rows of one model, stored columns before derived ones."""
    prefix = f"{model}{MODEL_SEPARATOR}"
    stored = {name.removeprefix(prefix): name for name in table.column_names if name.startswith(prefix)}
    has_row = table[stored[LIKELIHOODS]].is_valid().to_numpy()
    index = documents.index[has_row]
    frame = pd.DataFrame(
        {name: table[column].filter(pa.array(has_row)).to_pandas().to_numpy() for name, column in stored.items()}, index
    )
    frame[LIKELIHOODS] = pd.Series([np.asarray(values, float) for values in frame[LIKELIHOODS]], index, dtype=object)
    for name in {"correct", "correct_norm"} & set(frame):
        frame[name] = frame[name].astype(float)
    for name, values in shared.items():
        frame[name] = values[has_row]
    derived = derive_columns(documents[has_row], frame, settings)
    return frame.assign(**{name: derived[name] for name in derived if name not in frame})
