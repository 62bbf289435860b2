"""The records of one experiment, read from its results folder and checked to be comparable."""

import csv
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from distill_lit.analysis.inference_cost import add_costs, read_costs
from distill_lit.analysis.records_file import MIN_CORPUS_WORDS, RECORDS_FILE, ExperimentRecords, read_records
from distill_lit.analysis.task_groups import merge_documents, merge_frame, merge_meta, task_to_group
from distill_lit.config.grid_points import short_texts
from distill_lit.config.report import ReportConfig
from distill_lit.config.schema import GRID_VALUE_SEPARATOR
from distill_lit.utils.exceptions import UserError

COMPARABLE_SETTINGS = ("version", "lm_eval_version", "task_hash", "metric", "num_fewshot", "limit", "n", "seed",
              "apply_chat_template", "eval_split", "data", "generation")  # fmt: skip
ROLES = ("teacher", "quantized", "external", "derived", "untrained", "ce_only", "distilled")
PROBE_OUTPUT_TYPE = "probe"  # in the settings of held-out text, beside the output types of lm-eval's tasks
SAME_TEACHER_NATS = 0.02  # by how much one teacher may differ between number formats
VALIDATION_TEACHER = "val_teacher"  # what answered in validation where it was not the model of the row `teacher`
RUN_TEXT_COLUMNS = ("model", "role", "student", "validation_data_fingerprint", VALIDATION_TEACHER, "status", "reason")


@dataclass
class Results:
    """Everything the analysis reads. `records` and `settings_by_model` hold only models that finished and left a record."""

    folder: Path | None  # None where they were given as a frame
    runs: pd.DataFrame  # one row per planned model; `status` is done, failed or missing
    documents: pd.DataFrame  # one row per (task, key), indexed by them
    records: dict[str, pd.DataFrame]  # model: rows indexed by (task, key), one per document
    settings_by_model: dict[str, dict[str, dict[str, Any]]]  # model: task: settings and provenance
    word_counts: dict[str, int] = field(default_factory=dict)  # word: occurrences in the distillation corpus
    corpus_words: int = 0  # words in that corpus, 0 where they were not counted
    surprisal: pd.DataFrame | None = None  # of the teacher, indexed by (task, key); None where it was not measured
    tasks: list[str] = field(default_factory=list)
    costs: dict[str, Any] = field(default_factory=dict)  # cost.json, empty without measurements
    display: ReportConfig = field(default_factory=ReportConfig)  # how models and tasks are called and ordered
    read_word_counts: dict[str, int] = field(default_factory=dict)  # word: occurrences in what students read in training
    read_words: int = 0  # words in that, 0 where they were not counted
    probes: "Results | None" = None  # held-out text, each probe as a task; None without any

    @classmethod
    def from_frame(cls, frame: pd.DataFrame) -> "Results":
        """Scores of one's own, by any harness: a row per model and document, of which models answered the same.

        Columns: model, task, document (or key), correct (1 right, 0 wrong, or a graded score, which is in no average); and
        where they matter chance (share that guessing gets right; default 0), seed (models of several), role (teacher,
        distilled, ce_only, untrained, external; default: teacher for the model of this name, ce_only for a baseline, else
        distilled), baseline (of a distilled model, the name of the same student without teacher), pred (number of the
        chosen answer, for agreement), cluster (passage that documents share). Raises UserError for what cannot be meant.

        Example:
            >>> scores = compute_scores(Results.from_frame(frame), AnalysisConfig())
            >>> table, flips = score_frame(scores), document_flips(scores, scores.group_index("kd"))
        """
        from distill_lit.analysis.own_scores import results_of_frame

        return results_of_frame(frame)

    @cached_property
    def plan(self) -> Mapping[str, Any]:
        """What plan.yaml says, read once; empty where it cannot be read."""
        if self.folder is None:
            return {}
        try:
            found = yaml.safe_load((self.folder / "plan.yaml").read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError):
            return {}
        return found if isinstance(found, dict) else {}

    @cached_property
    def short_grid_values(self) -> dict[str, dict[str, str]]:
        """{grid.KEY: {its value as runs.csv has it: as the tables call it}} of axes whose values are mappings."""
        if self.folder is None:
            return {}
        runs = pd.read_csv(self.folder / "runs.csv", dtype=str, keep_default_na=False, na_values=[""])
        found = {name: _short_mappings(runs[name]) for name in runs.columns if name.startswith("grid.")}
        return {name: short for name, short in found.items() if short}

    @property
    def uses_corpus_word_counts(self) -> bool:
        """Whether the distillation corpus is large enough to tell rare words from those it happens not to hold."""
        return self.corpus_words >= MIN_CORPUS_WORDS

    def to_frame(self) -> pd.DataFrame:
        """A row per model and document: model, task, key, and what its record says."""
        return pd.concat(self.records, names=["model"]).reset_index()

    def teacher(self) -> str | None:
        """The teacher's model id, or None when it has no record."""
        roles = zip(self.runs["model"], self.runs["role"], strict=True)
        return next((model for model, role in roles if role == "teacher" and model in self.records), None)

    def settings(self, task: str) -> dict[str, Any]:
        """The settings and provenance of `task`, as the teacher (else the first model) recorded them."""
        models = [m for m in (self.teacher(), *self.records) if m is not None]
        return next((self.settings_by_model[m][task] for m in models if task in self.settings_by_model[m]), {})


def load_results(folder: str | Path, display: ReportConfig | None = None) -> Results:
    """The results folder of an experiment. display: how its models and tasks are called.

    Raises UserError when it is incomplete or damaged, or its models are not comparable.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; run the experiment first")
    try:
        results = _load_results(folder)
    except UserError:
        raise
    except Exception as error:  # what pandas raises for a damaged file can be anything
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(f"{folder}: cannot be read ({type(error).__name__}: {reason}); run the experiment again") from error
    return results if display is None else _with_display(results, display)


def _with_display(results: Results, display: ReportConfig) -> Results:
    """The results, and their probes, as `display` calls and orders them."""
    probes = None if results.probes is None else _with_display(results.probes, display)
    return replace(results, display=display, tasks=display.ordered(results.tasks), probes=probes)


def _load_results(folder: Path) -> Results:
    runs = load_runs_table(folder / "runs.csv")
    content = read_records(folder / RECORDS_FILE)
    is_missing = (runs["status"] == "done") & ~runs["model"].isin(list(content.records))
    runs.loc[is_missing, ["status", "reason"]] = ["missing", "no record of its evaluation"]
    models = [str(model) for model in runs.loc[runs["status"] == "done", "model"]]
    if not models:
        raise UserError(f"{folder}: no model has records; run the experiment again")
    costs = read_costs(folder)
    runs = add_costs(runs, costs)
    probe_tasks = {task for facts in content.settings.values() for task in facts if is_probe(facts[task])}
    results = _results_of(folder, runs, content, models, lambda task: task not in probe_tasks)
    if probe_tasks and not results.tasks:
        named = ", ".join(sorted(probe_tasks))
        raise UserError(f"{folder}: its records hold probes alone ({named}); a report needs a task in evaluation.tasks")
    results.costs = costs
    if probe_tasks:
        results.probes = _results_of(folder, runs, content, models, lambda task: task in probe_tasks)
    return results


def is_probe(settings: Mapping[str, Any]) -> bool:
    """Whether these are the settings of a probe, and not of a task."""
    return settings.get("output_type") == PROBE_OUTPUT_TYPE


def _results_of(
    folder: Path, runs: pd.DataFrame, content: ExperimentRecords, models: list[str], is_wanted: Callable[[str], bool]
) -> Results:
    """The results on the tasks that are wanted, checked to be comparable."""

    def rows(frame: pd.DataFrame) -> pd.DataFrame:
        kept = frame.index.get_level_values("task").map(is_wanted).to_numpy(bool)
        return frame if kept.all() else frame[kept]

    settings = {model: {t: facts for t, facts in content.settings[model].items() if is_wanted(t)} for model in models}
    results = Results(
        folder=folder,
        runs=runs,
        documents=rows(content.documents),
        records={model: rows(content.records[model]) for model in models},
        settings_by_model=settings,
        word_counts=content.word_counts,
        corpus_words=content.corpus_words,
        surprisal=content.surprisal,
        read_word_counts=content.read_word_counts,
        read_words=content.read_words,
    )
    align_records(results)
    _merge(results)
    return results


def require_columns(frame: pd.DataFrame, names: tuple[str, ...], what: str) -> None:
    """Raises UserError where documents or records lack what an analysis needs, as those of `Results.from_frame` do."""
    absent = [name for name in names if name not in frame]
    if absent:
        raise UserError(f"{what}: needs {', '.join(absent)} of each document, which only the folder of an experiment has")


def has_different_validation_data(runs: pd.DataFrame) -> bool:
    """Whether students are validated on text of their own, so that their validation metrics do not compare."""
    return bool(runs.loc[runs["validation_data_fingerprint"] != "", "validation_data_fingerprint"].nunique() > 1)


def has_several_teachers(runs: pd.DataFrame) -> bool:
    """Whether students are compared with several teachers on the same text, so that their KLs do not compare."""
    if "val_teacher_nll" not in runs:
        return False
    by_text = runs[runs["val_teacher_nll"].notna()].groupby("validation_data_fingerprint")
    spread = by_text["val_teacher_nll"].agg(lambda nll: nll.max() - nll.min())
    has_several_names = VALIDATION_TEACHER in runs and bool((by_text[VALIDATION_TEACHER].nunique() > 1).any())
    return has_several_names or bool((spread > SAME_TEACHER_NATS).any())


def has_other_teacher(runs: pd.DataFrame) -> bool:
    """Whether students may learn from another teacher than the one whose answers theirs are compared with."""
    return has_several_teachers(runs) or (VALIDATION_TEACHER in runs and bool((runs[VALIDATION_TEACHER] != "").any()))


def load_runs_table(path: Path) -> pd.DataFrame:
    """runs.csv with text as text and numbers as numbers. Raises UserError when it is absent or malformed."""
    if not path.exists():
        raise UserError(f"{path}: not found; run the experiment first")
    runs = pd.read_csv(path, dtype=str, keep_default_na=False, na_values=[""])
    absent = [name for name in ("model", "role") if name not in runs]
    if absent:
        raise UserError(f"{path}: no column {absent[0]!r}")
    with path.open(newline="", encoding="utf-8") as file:
        *_, last = filter(None, csv.reader(file))
    if len(last) < len(runs.columns):  # pandas would fill it up, and leave out the models that stood behind it
        raise UserError(f"{path}: its last line is cut short; copy the results folder again, or run the experiment again")
    for name in RUN_TEXT_COLUMNS:
        runs[name] = runs[name].astype(object).where(runs[name].notna(), "") if name in runs else ""
    runs.loc[runs["status"] == "", "status"] = "done"
    for name in runs.columns:
        if name.startswith("grid."):
            runs[name] = _with_short_mappings(runs[name])
        elif name not in RUN_TEXT_COLUMNS:
            runs[name] = pd.to_numeric(runs[name], errors="coerce")
    for model in runs["model"]:
        if not model or model.startswith(".") or re.search(r"[/\\\x00-\x1f]", model):
            raise UserError(f"{path}: {model!r} cannot be the name of a model")
    if runs["model"].duplicated().any():
        raise UserError(f"{path}: model {runs.loc[runs['model'].duplicated(), 'model'].iloc[0]!r} appears twice")
    return runs


def _with_short_mappings(column: pd.Series) -> pd.Series:
    """An axis of the grid whose values are mappings, by what differs between them."""
    short = _short_mappings(column)
    cells = {cell: cell.split(GRID_VALUE_SEPARATOR) for cell in _mapping_cells(column)}
    return column.replace({cell: GRID_VALUE_SEPARATOR.join(short[text] for text in parts) for cell, parts in cells.items()})


def _short_mappings(column: pd.Series) -> dict[str, str]:
    """{value of an axis: what differs between it and the others}, where it is a mapping."""
    cells = _mapping_cells(column)
    texts = list(dict.fromkeys(text for cell in cells for text in cell.split(GRID_VALUE_SEPARATOR)))
    return dict(zip(texts, short_texts(_from_yaml(text) for text in texts), strict=True))


def _mapping_cells(column: pd.Series) -> list[str]:
    return [cell for cell in column.dropna().unique() if cell.startswith("{")]


def _from_yaml(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def align_records(results: Results) -> None:
    """Checks every model against the teacher (else the first model), and puts records in the order of documents."""
    order = [m for m in (results.teacher(), *results.records) if m is not None]
    task_order = list(dict.fromkeys(results.documents.index.get_level_values("task")))
    results.tasks = [t for t in task_order if any(t in results.settings_by_model[m] for m in order)]
    kept_documents, all_keys = [], {model: _keys_by_task(results.records[model]) for model in order}
    known = _keys_by_task(results.documents)
    for task in results.tasks:
        holders = [m for m in order if task in results.settings_by_model[m]]
        keys = {m: all_keys[m].get(task, set()) for m in holders}
        for model in holders[1:]:
            check_comparable(results, task, holders[0], model)
            _check_documents(task, holders[0], model, keys)
        unknown = keys[holders[0]] - known[task] if holders else set()
        if unknown:
            raise UserError(f"{task}: {len(unknown)} documents of {holders[0]!r} are not among the documents")
        task_documents = results.documents.loc[[task]]
        kept_documents.append(task_documents[task_documents.index.get_level_values("key").isin(keys[holders[0]])])
    results.documents = pd.concat(kept_documents) if kept_documents else results.documents.iloc[:0]
    for model, frame in results.records.items():
        results.records[model] = frame.reindex(results.documents.index)


def _merge(results: Results) -> None:
    """Makes one task of all tasks of a benchmark."""
    into = task_to_group(results.settings_by_model)
    if into:
        results.documents = merge_documents(results.documents, into)
        results.records = {model: merge_frame(frame, into) for model, frame in results.records.items()}
        results.settings_by_model = {model: merge_meta(meta, into) for model, meta in results.settings_by_model.items()}
        results.tasks = list(dict.fromkeys(into.get(task, task) for task in results.tasks))
        if results.surprisal is not None:
            results.surprisal = merge_frame(results.surprisal, into)


def _keys_by_task(frame: pd.DataFrame) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for task, key in frame.index:
        found.setdefault(task, set()).add(key)
    return found


def check_comparable(results: Results, task: str, first: str, second: str) -> None:
    """Raises UserError naming the first setting in which two models were evaluated differently on `task`."""
    one, two = results.settings_by_model[first][task], results.settings_by_model[second][task]
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
