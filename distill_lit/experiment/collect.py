"""Gathers what the runs of an experiment left into `results/<experiment>/`: everything a report is drawn from."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from distill_lit import data
from distill_lit.analysis.declarations import DECLARATIONS_FILE
from distill_lit.analysis.document_axes import content_words
from distill_lit.analysis.records_file import INDEX, RECORDS_FILE, ExperimentRecords, write_records
from distill_lit.analysis.results import VALIDATION_TEACHER
from distill_lit.config import ExperimentConfig, to_yaml
from distill_lit.config.grid_points import value_text
from distill_lit.config.roles import Role
from distill_lit.data.loader import optimizer_steps, rows_per_step
from distill_lit.experiment.execution import run as work
from distill_lit.experiment.execution.run_data import prepare_run_data, resolve_generated_data
from distill_lit.experiment.planning.fingerprint import validation_data_fingerprint
from distill_lit.experiment.planning.pipeline import learns_from_teacher, referred_models
from distill_lit.experiment.planning.planned_run import Run
from distill_lit.experiment.planning.requirements import student_base_folder
from distill_lit.experiment.state.completion import SURPRISAL_FILE, is_run_complete
from distill_lit.models import load_tokenizer, model_folder
from distill_lit.teachers import teacher_capabilities
from distill_lit.utils.exceptions import UserError
from distill_lit.utils.files import atomic_write, read_json, read_jsonl, read_mapping, write_json, write_text

if TYPE_CHECKING:
    from distill_lit.experiment.experiment import Experiment

MANIFEST_COLUMNS = (
    "parameters",
    "non_embedding_parameters",
    "num_layers",
    "flops_per_token",
    "kv_cache_bytes_per_token",
    "training_tokens",
    "student_training_flops",
    "teacher_training_flops",
)
TRAINING_COLUMNS = MANIFEST_COLUMNS[-3:]  # sums over the stages of a student
MAX_TOKENS_TO_COUNT = 1 << 24  # of training, whose words are counted in a minute
VALIDATION_COLUMNS = {
    "val_kl": "validation/teacher_kl",
    "val_ce": "validation/student_nll",
    "val_agreement": "validation/agreement",
    "val_draft_acceptance": "validation/draft_acceptance",
    "val_teacher_nll": "validation/teacher_nll",
}


def collect_results(experiment: "Experiment", failed: dict[str, str]) -> Path:
    """Writes runs.csv, plan.yaml, curves.csv, records.parquet and provenance.json; returns the folder. Missing runs stay in
    the table."""
    target, runs_dir = experiment.results_folder, experiment.runs_folder
    models = experiment.models
    done = [run for run in models if is_run_complete(run, runs_dir / run.name)]
    declared = experiment.declare_hypotheses()  # before there is a plan, which may be from before declarations
    write_text(target / "plan.yaml", to_yaml(experiment.resolved_config))
    teacher = next((run.model_reference for run in models if run.role == Role.TEACHER), "")
    rows = [_row(run, runs_dir / run.name, run in done, failed, teacher) for run in models]
    rows = [row | (_costs(run, experiment) if run in done else {}) for run, row in zip(models, rows, strict=True)]
    _write_frame(target / "runs.csv", pd.DataFrame(rows))
    _write_frame(target / "curves.csv", _curves(done, experiment))
    _collect_records(experiment, done, target / RECORDS_FILE)
    if declared:
        write_json(target / DECLARATIONS_FILE, {digest: one._asdict() for digest, one in declared.items()})
    write_json(target / "provenance.json", {run.label: _provenance(run, experiment) for run in done})
    return target


def _provenance(run: Run, experiment: "Experiment") -> dict[str, Any]:
    """Where the result of a run comes from, and what was to be known of its models before and while it trained."""
    manifest = read_mapping(experiment.folder_of(run) / "manifest.json")
    shared = read_json(experiment.notes_path) if experiment.notes_path.is_file() else []
    notes = [*(shared if run.student else []), *manifest.get("notes", [])]
    return {**manifest.get("provenance", {}), "command": experiment.command, **({"notes": notes} if notes else {})}


def _row(run: Run, folder: Path, is_done: bool, failed: dict[str, str], teacher: str) -> dict[str, Any]:
    manifest = read_mapping(folder / "manifest.json") if is_done else {}
    metrics, other = manifest.get("metrics", {}), _other_teacher(run.config, teacher)
    return {
        "model": run.label,
        "role": run.role,
        "student": run.student,
        "seed": run.seed,
        **{f"grid.{key}": _cell(value) for key, value in run.grid_values.items()},
        **{name: manifest.get(name) for name in MANIFEST_COLUMNS},
        "bytes": manifest.get("bytes"),
        **_exported_step(manifest),
        "validation_data_fingerprint": validation_data_fingerprint(run.config)[:8] if run.student else None,
        **{name: metrics.get(metric) for name, metric in VALIDATION_COLUMNS.items()},
        **({VALIDATION_TEACHER: other} if other and "validation/teacher_nll" in metrics else {}),
        "status": "done" if is_done else "failed" if run.name in failed else "missing",
        "reason": failed.get(run.name, ""),
    }


def _other_teacher(config: ExperimentConfig, evaluated: str) -> str:
    """What a student is validated against, by its name, where it is not the model that is evaluated as the teacher; else
    empty, as where none is evaluated."""
    if config.teacher.mixture.teachers:
        return "mixture"
    if not teacher_capabilities(config.teacher).needs_model:
        return config.teacher.source
    return "" if evaluated in ("", config.teacher.model) else config.teacher.model


def _exported_step(manifest: dict[str, Any]) -> dict[str, Any]:
    """Which step's weights a student has, and how many its last stage took, where it was not simply the last step."""
    exported = manifest.get("exported")
    return {"exported_step": exported["step"], "training_steps": manifest["steps"]} if exported else {}


def _cell(value: Any) -> Any:
    """A value of the grid in runs.csv: numbers with all their digits, mappings and lists as YAML has them."""
    return value if value is None or isinstance(value, bool) else value_text(value)


def _costs(run: Run, experiment: "Experiment") -> dict[str, Any]:
    """Of a run with stages before it, tokens and arithmetic of all of them; of one that is made from other models, also the
    arithmetic of all training behind it, each model's once."""
    if not run.sources:
        return {}
    runs = {one.name: one for one in experiment.runs}
    stages, behind = _stages(run, runs), {run.name}
    for one in reversed(experiment.runs):  # each stands after what it is made from
        behind.update(_made_from(one) if one.name in behind else ())
    spent = {name: read_mapping(experiment.runs_folder / name / "manifest.json") for name in behind}
    sums = {column: sum(spent[one.name].get(column) or 0 for one in stages) for column in TRAINING_COLUMNS}
    total = sum(facts.get(column) or 0 for facts in spent.values() for column in TRAINING_COLUMNS[1:])
    return {**sums, "pipeline_training_flops": total}


def _made_from(run: Run) -> list[str]:
    """The names of the runs that make what a run begins as, learns from and reads. A student that does not begin with the
    teacher's weights and learns nothing from it is only validated against it."""
    shape = run.config.students.get(run.student)
    needs_teacher = shape is None or shape.begins_with_teacher or (run.is_trained and learns_from_teacher(run.config))
    references = referred_models(run.config).items()
    used = {reference for key, reference in references if needs_teacher or key != "teacher.model"}
    return [made for name, made in run.sources.items() if name in used]


def _stages(run: Run, runs: dict[str, Run]) -> list[Run]:
    """The stages of a student, the first one first."""
    before = _stages(runs[run.previous_stage], runs) if run.previous_stage else []
    return [*before, run]


def _collect_records(experiment: "Experiment", done: list[Run], path: Path) -> None:
    """records.parquet of the models that are evaluated; none where there is no such model."""
    if not done:
        path.unlink(missing_ok=True)
        return
    folders = {run.label: experiment.runs_folder / run.name / "records" for run in done}
    frames = [pd.read_parquet(folder / "documents.parquet") for folder in folders.values()]
    documents = pd.concat(frames, ignore_index=True).drop_duplicates(INDEX).set_index(INDEX)
    surprisal = [folder / SURPRISAL_FILE for folder in folders.values() if (folder / SURPRISAL_FILE).is_file()]
    counts, words, read = _corpus_words(experiment), _words_of(documents), _read_words(experiment)
    content = ExperimentRecords(
        documents,
        {model: pd.read_parquet(folder / "records.parquet").set_index(INDEX) for model, folder in folders.items()},
        {model: read_json(folder / "meta.json") for model, folder in folders.items()},
        pd.read_parquet(surprisal[-1]).set_index(INDEX) if surprisal else None,
        {word: counts[word] for word in words if word in counts},
        sum(counts.values()),
        {word: read[word] for word in words if word in read},
        sum(read.values()),
    )
    write_records(path, content)


def _curves(done: list[Run], experiment: "Experiment") -> pd.DataFrame:
    """One row per logged step of every trained model, in all its stages: steps count on from one to the next."""
    runs = {run.name: run for run in experiment.runs}
    rows = []
    for run in done:
        for stage in _stages(run, runs):
            folder = experiment.runs_folder / stage.name
            points = read_jsonl(folder / "metrics.jsonl") if (folder / "metrics.jsonl").is_file() else []
            first_step = read_mapping(folder / "manifest.json").get("first_step", 0)
            rows += [{"model": run.label, **point, "step": point["step"] + first_step} for point in points]
    return pd.DataFrame(rows)


def _words_of(documents: pd.DataFrame) -> list[str]:
    """The content words of prompts and choices."""
    texts = [*documents["prompt"], *(choice for choices in documents["choices"] for choice in choices)]
    return sorted({word for text in texts for word in content_words(text)})


def _first_student(experiment: "Experiment") -> Run | None:
    """The first student that is trained, with the folders of the models that are made here."""
    trained = (run for run in experiment.runs if run.role in (Role.DISTILLED, Role.CE_ONLY) and run.is_trained)
    return next((work.with_source_folders(run, experiment.runs_folder) for run in trained), None)


def _corpus_words(experiment: "Experiment") -> Counter[str]:
    """Words of what the first student may read; none where its generated corpora were not written."""
    student = _first_student(experiment)
    config = student.config if student else experiment.resolve(experiment.points[0].config)
    try:
        return data.word_counts(resolve_generated_data(config), config.dataset_source)
    except UserError:
        return Counter()


def _read_words(experiment: "Experiment") -> Counter[str]:
    """Words that the first student reads in training, over all its passes, in the stages before it too that read the same
    text; of others with the same data only the order differs. None where counting takes long, or the teacher's tokenizer
    is gone."""
    student = _first_student(experiment)
    if student is None:
        return Counter()
    config, runs = student.config, {run.name: run for run in experiment.runs}
    *before, last = _stages(runs[student.name], runs)
    alike = [last.config, *(one.config for one in before if one.is_trained and one.config.data == last.config.data)]
    rows = sum(optimizer_steps(one.training, one.data.sequence_length) * rows_per_step(one.training) for one in alike)
    if rows * config.data.sequence_length > MAX_TOKENS_TO_COUNT:
        return Counter()
    try:
        base = student_base_folder(config, model_folder(config.teacher.model))
        return data.read_word_counts(prepare_run_data(config, base), load_tokenizer(base), rows, config.seed)
    except (UserError, OSError):
        return Counter()


def _write_frame(path: Path, frame: pd.DataFrame) -> None:
    with atomic_write(path) as temporary:
        frame.to_csv(temporary, index=False, float_format="%.6g")
