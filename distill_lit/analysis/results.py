"""The records of one experiment, read from its results folder and checked to be comparable."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from distill_lit.analysis.inference_cost import add_costs, read_costs
from distill_lit.analysis.task_groups import merge_documents, merge_frame, merge_meta, task_to_group
from distill_lit.utils.exceptions import UserError
from distill_lit.utils.files import read_json

COMPARABLE_SETTINGS = ("version", "lm_eval_version", "task_hash", "metric", "num_fewshot", "limit", "n", "seed",
              "apply_chat_template", "eval_split", "data")  # fmt: skip
ROLES = ("teacher", "quantized", "external", "untrained", "ce_only", "distilled")
TOTAL_COUNT_KEY = "__total__"
MIN_CORPUS_WORDS = 1_000_000  # words
RUN_TEXT_COLUMNS = ("model", "role", "student", "held_out", "state", "reason")
REQUIRED_DOCUMENT_COLUMNS = ("task", "key", "doc_id", "cluster", "prompt", "choices", "gold", "n_choices", "metadata")
REQUIRED_SURPRISAL_COLUMNS = ("task", "key", "prompt_bits_per_byte", "gold_gain")
REQUIRED_RECORD_COLUMNS = ("task", "key", "ll", "len_chars", "pred", "correct")


@dataclass
class Results:
    """Everything the analysis reads. `records` and `meta` hold only models that finished and left a record."""

    folder: Path
    runs: pd.DataFrame  # one row per planned model; `state` is done, failed or missing
    documents: pd.DataFrame  # one row per (task, key), indexed by them
    records: dict[str, pd.DataFrame]  # model: rows indexed by (task, key), one per document
    meta: dict[str, dict[str, dict[str, Any]]]  # model: task: settings and provenance
    frequencies: dict[str, int] | None = None  # word: occurrences in the distillation corpus
    corpus_words: int = 0  # words in that corpus
    surprisal: pd.DataFrame | None = None  # of the teacher, indexed by (task, key); None where it was not measured
    tasks: list[str] = field(default_factory=list)
    costs: dict[str, Any] = field(default_factory=dict)  # cost.json, empty without measurements

    @property
    def uses_corpus_word_counts(self) -> bool:
        """Whether the distillation corpus is large enough to tell rare words from those it happens not to hold."""
        return self.frequencies is not None and self.corpus_words >= MIN_CORPUS_WORDS

    def to_frame(self) -> pd.DataFrame:
        """A row per model and document: model, task, key, and what its record says."""
        return pd.concat(self.records, names=["model"]).reset_index()

    def teacher(self) -> str | None:
        """The teacher's model id, or None when it has no record."""
        found = self.runs.loc[self.runs["role"] == "teacher", "model"]
        return next((model for model in found if model in self.records), None)

    def settings(self, task: str) -> dict[str, Any]:
        """The settings and provenance of `task`, as the teacher (else the first model) recorded them."""
        models = [m for m in (self.teacher(), *self.records) if m is not None]
        return next((self.meta[m][task] for m in models if task in self.meta[m]), {})


def load_results(folder: Path) -> Results:
    """The results folder of an experiment. Raises UserError when it is incomplete or damaged, or its models are not
    comparable."""
    try:
        return _load_results(folder)
    except UserError:
        raise
    except Exception as error:  # what pandas raises for a damaged file can be anything
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(f"{folder}: cannot be read ({type(error).__name__}: {reason}); run the experiment again") from error


def _load_results(folder: Path) -> Results:
    cells = load_runs_table(folder / "cells.csv")
    documents = _read_parquet(folder / "records" / "documents.parquet", REQUIRED_DOCUMENT_COLUMNS)
    records: dict[str, pd.DataFrame] = {}
    meta: dict[str, dict[str, dict[str, Any]]] = {}
    for row in cells.index[cells["state"] == "done"]:
        model = str(cells.at[row, "model"])
        path = folder / "records" / f"{model}.parquet"
        if not path.exists() or not path.with_suffix(".json").exists():
            cells.loc[row, ["state", "reason"]] = ["missing", "no record of its evaluation"]
            continue
        records[model] = _read_parquet(path, REQUIRED_RECORD_COLUMNS)
        meta[model] = _read_meta(path.with_suffix(".json"))
    if not records:
        raise UserError(f"{folder}: no model has records; run the experiment again")
    frequencies, total = _read_frequencies(folder / "records" / "frequencies.csv")
    costs = read_costs(folder)
    results = Results(folder, add_costs(cells, costs), documents, records, meta, frequencies, total)
    results.costs = costs
    path = folder / "records" / "surprisal.parquet"
    results.surprisal = _read_parquet(path, REQUIRED_SURPRISAL_COLUMNS) if path.exists() else None
    _align(results)
    _merge(results)
    return results


def has_different_validation_data(cells: pd.DataFrame) -> bool:
    """Whether students are validated on text of their own, so that their validation metrics do not compare."""
    return bool(cells.loc[cells["held_out"] != "", "held_out"].nunique() > 1)


def load_runs_table(path: Path) -> pd.DataFrame:
    """cells.csv with text as text and numbers as numbers. Raises UserError when it is absent or malformed."""
    if not path.exists():
        raise UserError(f"{path}: not there; run the experiment first")
    cells = pd.read_csv(path, dtype=str, keep_default_na=False, na_values=[""])
    absent = [name for name in ("model", "role") if name not in cells]
    if absent:
        raise UserError(f"{path}: no column {absent[0]!r}")
    for name in RUN_TEXT_COLUMNS:
        cells[name] = cells[name].astype(object).where(cells[name].notna(), "") if name in cells else ""
    cells.loc[cells["state"] == "", "state"] = "done"
    for name in cells.columns:
        if name not in RUN_TEXT_COLUMNS and not name.startswith("axis."):
            cells[name] = pd.to_numeric(cells[name], errors="coerce")
    for model in cells["model"]:
        if not model or model.startswith(".") or re.search(r"[/\\\x00-\x1f]", model):
            raise UserError(f"{path}: {model!r} cannot be the name of a record file")
    if cells["model"].duplicated().any():
        raise UserError(f"{path}: model {cells.loc[cells['model'].duplicated(), 'model'].iloc[0]!r} stands there twice")
    return cells


def _read_parquet(path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    if not path.exists():
        raise UserError(f"{path}: not there; run the experiment first")
    try:
        frame = pd.read_parquet(path)
    except Exception as error:
        raise UserError(f"{path}: cannot be read ({error}); evaluate again") from error
    absent = [name for name in columns if name not in frame]
    if absent:
        raise UserError(f"{path}: no column {absent[0]!r}")
    frame = frame.set_index(["task", "key"])
    if frame.index.has_duplicates:
        raise UserError(f"{path}: {frame.index[frame.index.duplicated()][0]} stands there twice")
    return frame


def _read_meta(path: Path) -> dict[str, dict[str, Any]]:
    try:
        found = read_json(path)
    except ValueError as error:
        raise UserError(f"{path}: cannot be read ({error}); evaluate again") from error
    if not isinstance(found, dict) or not found or not all(isinstance(task, dict) for task in found.values()):
        raise UserError(f"{path}: not a mapping of tasks to what is known of them; evaluate again")
    return found


def _read_frequencies(path: Path) -> tuple[dict[str, int] | None, int]:
    if not path.exists():
        return None, 0
    table = pd.read_csv(path, keep_default_na=False, dtype={"word": str})
    counts = dict(zip(table["word"], table["count"].astype(int), strict=True))
    total = counts.pop(TOTAL_COUNT_KEY, 0) or sum(counts.values())
    return (counts, total) if total else (None, 0)


def _align(results: Results) -> None:
    """Checks every model against the teacher (else the first model), and puts records in the order of documents."""
    order = [m for m in (results.teacher(), *results.records) if m is not None]
    known = list(dict.fromkeys(results.documents.index.get_level_values("task")))
    results.tasks = [t for t in known if any(t in results.meta[m] for m in order)]
    kept_documents = []
    for task in results.tasks:
        holders = [m for m in order if task in results.meta[m]]
        keys = {m: set(_keys(results.records[m], task)) for m in holders}
        for model in holders[1:]:
            check_comparable(results, task, holders[0], model)
            _check_documents(task, holders[0], model, keys)
        unknown = keys[holders[0]] - set(_keys(results.documents, task)) if holders else set()
        if unknown:
            raise UserError(f"{task}: {len(unknown)} documents of {holders[0]!r} are not in documents.parquet")
        task_documents = results.documents.loc[[task]]
        kept_documents.append(task_documents[task_documents.index.get_level_values("key").isin(keys[holders[0]])])
    results.documents = pd.concat(kept_documents) if kept_documents else results.documents.iloc[:0]
    for model, frame in results.records.items():
        results.records[model] = frame.reindex(results.documents.index)


def _merge(results: Results) -> None:
    """Makes one task of all tasks of a benchmark."""
    into = task_to_group(results.meta)
    if into:
        results.documents = merge_documents(results.documents, into)
        results.records = {model: merge_frame(frame, into) for model, frame in results.records.items()}
        results.meta = {model: merge_meta(meta, into) for model, meta in results.meta.items()}
        results.tasks = list(dict.fromkeys(into.get(task, task) for task in results.tasks))
        if results.surprisal is not None:
            results.surprisal = merge_frame(results.surprisal, into)


def _keys(frame: pd.DataFrame, task: str) -> list[str]:
    return list(frame.index.get_level_values("key")[frame.index.get_level_values("task") == task])


def check_comparable(results: Results, task: str, first: str, second: str) -> None:
    """Raises UserError naming the first setting in which two models were evaluated differently on `task`."""
    one, two = results.meta[first][task], results.meta[second][task]
    roles = dict(zip(results.runs["model"], results.runs["role"], strict=True))
    names = (
        COMPARABLE_SETTINGS
        if {"quantized", "external"} & {roles.get(first), roles.get(second)}
        else (*COMPARABLE_SETTINGS, "dtype")
    )
    for name in names:
        if str(one.get(name)) != str(two.get(name)):
            raise UserError(
                f"{task}: {name} is {one.get(name)!r} for {first!r} and {two.get(name)!r} for {second!r}; "
                "they cannot be compared, evaluate both in the same way"
            )


def _check_documents(task: str, first: str, second: str, keys: dict[str, set[str]]) -> None:
    one, two = keys[first], keys[second]
    if one != two:
        raise UserError(
            f"{task}: {first!r} and {second!r} answered different prompts "
            f"({len(one - two)} only the first, {len(two - one)} only the second); evaluate both in the same way"
        )
