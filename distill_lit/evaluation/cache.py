"""Evaluations on disk, addressed by everything that can change them: each model × task × settings is done once ever.

<cache>/evaluations/<key>/records.parquet, meta.json
"""

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from distill_lit.config.evaluation import EvaluationConfig
from distill_lit.evaluation.records import (
    DOCUMENT_COLUMNS,
    OPTIONAL_COLUMNS,
    OPTIONAL_DOCUMENT_COLUMNS,
    RECORD_COLUMNS,
    RECORDS_FORMAT_VERSION,
)
from distill_lit.evaluation.task_index import lm_eval_version
from distill_lit.evaluation.task_metrics import BY_CHOICE
from distill_lit.evaluation.tasks import TaskSpec
from distill_lit.models.drawing import sampling_metadata
from distill_lit.models.loading import model_fingerprint
from distill_lit.utils import files
from distill_lit.utils.files import atomic_write_folder, cache_root, fingerprint, read_json, sha256_of, write_json

GENERATION_VERSION = 1  # raise it when written answers, or what is recorded of them, mean something else


def model_content_hash(folder: Path) -> str:
    """A hash of weights, config and tokenizer; the folder's name and its model card do not count."""
    return fingerprint(model_fingerprint(folder))


def effective_seed(spec: TaskSpec, settings: EvaluationConfig) -> int | None:
    """The seed where documents, examples or answers are drawn with it, else None."""
    is_sampled = spec.generation is not None and spec.generation.do_sample
    return settings.seed if settings.limit or spec.num_fewshot or is_sampled else None


def evaluation_cache_key(
    model: str,
    spec: TaskSpec,
    settings: EvaluationConfig,
    measurement: str = "",
    own_generation_fields: Mapping[str, Any] | None = None,
) -> str:
    """The address of an evaluation, or of what else (`measurement`) is known of the same documents: 16 hexadecimal
    digits. own_generation_fields: of the model, from `generation_config_changes`."""
    return fingerprint({
        "format": RECORDS_FORMAT_VERSION, "model": model, "task": spec.name, "task_digest": spec.digest,
        "data": spec.data_source.fingerprint, "lm_eval": lm_eval_version(), "num_fewshot": spec.num_fewshot,
        "limit": settings.limit, "seed": effective_seed(spec, settings),
        "apply_chat_template": settings.apply_chat_template,
        "dtype": settings.dtype, **({"kind": measurement} if measurement else {}), **_judged_otherwise(spec),
        **({"token_logprobs": True} if settings.token_logprobs else {}),
        **({"system_instruction": settings.system_instruction} if settings.system_instruction else {}),
        **({"generation": [GENERATION_VERSION, spec.generation.to_dict()],
            **({"generation_config": own_generation_fields} if own_generation_fields else {}),
            **sampling_metadata(spec.generation.temperature)} if spec.generation else {}),
    })  # fmt: skip


def _judged_otherwise(spec: TaskSpec) -> dict[str, int]:
    """What belongs to the address of tasks among choices that define neither acc nor acc_norm: both are not what judges."""
    is_other = spec.entry.config["output_type"] == "multiple_choice" and not {*BY_CHOICE} & {*spec.entry.config["metrics"]}
    return {"judged_by_own_metric": 1} if is_other else {}


def read_cached_evaluation(
    key: str, columns: tuple[str, ...] = (*DOCUMENT_COLUMNS, *RECORD_COLUMNS)
) -> tuple[list[dict[str, Any]], dict[str, Any]] | None:
    """(rows, meta) of a stored evaluation, rows with these columns; None when not there, or damaged, which it says."""
    folder = _folder(key)
    if not folder.is_dir():
        return None
    try:
        meta: dict[str, Any] = read_json(folder / "meta.json")
        if sha256_of(folder / "records.parquet") != meta["sha256"]:
            raise ValueError("its hash is not the recorded one")
        return _read_rows(folder / "records.parquet", columns), meta
    except (OSError, ValueError, KeyError, TypeError) as error:
        Console(stderr=True).print(f"stored evaluation {folder} is damaged ({error}) and is done again", soft_wrap=True)
        return None


def write_cached_evaluation(key: str, rows: list[dict[str, Any]], meta: dict[str, Any]) -> None:
    """Stores an evaluation, whole or not at all."""
    with atomic_write_folder(_folder(key)) as folder:
        path = folder / "records.parquet"
        pd.DataFrame(rows).to_parquet(path, compression="zstd", index=False)
        write_json(folder / "meta.json", {**meta, "sha256": sha256_of(path)})


def lock_cached_evaluation(key: str) -> AbstractContextManager[None]:
    """One process at a time does an evaluation; the others wait and find it done."""
    return files.file_lock(_folder(key))


def to_frames(rows: list[dict[str, Any]]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(documents, records): the two halves of the rows."""
    documents, records = (
        pd.DataFrame(
            [{**{name: row[name] for name in columns}, **{name: row.get(name) for name in kept}} for row in rows],
            columns=[*columns, *kept],
        )
        for columns, kept in (
            (DOCUMENT_COLUMNS, [name for name in OPTIONAL_DOCUMENT_COLUMNS if any(name in row for row in rows)]),
            (RECORD_COLUMNS, [name for name in OPTIONAL_COLUMNS if any(name in row for row in rows)]),
        )
    )
    return documents, records


def _folder(key: str) -> Path:
    return cache_root() / "evaluations" / key


def _read_rows(path: Path, columns: tuple[str, ...]) -> list[dict[str, Any]]:
    """Rows as they were written: lists as lists, not as numpy arrays, and NaN where Parquet has null."""
    import pyarrow.parquet

    rows: list[dict[str, Any]] = pyarrow.parquet.read_table(path).to_pylist()
    for row in rows:
        missing = [column for column in columns if column not in row]
        if missing:
            raise ValueError(f"no column {missing[0]!r}")
        row.update({name: math.nan for name, value in row.items() if value is None})
    return rows
