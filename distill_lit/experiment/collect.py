"""Gathers what the runs of an experiment left into `results/<experiment>/`: everything a report is drawn from."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from distill_lit import data
from distill_lit.analysis.document_axes import content_words
from distill_lit.config import ExperimentConfig, to_yaml
from distill_lit.experiment import run as work
from distill_lit.experiment.fingerprint import validation_data_fingerprint
from distill_lit.experiment.plan import Run
from distill_lit.experiment.teacher import resolve_generated_data
from distill_lit.utils.exceptions import UserError
from distill_lit.utils.files import atomic_write, read_json, read_jsonl, write_json, write_text

if TYPE_CHECKING:
    from distill_lit.experiment.experiment import Experiment

MANIFEST_COLUMNS = (
    "parameters",
    "non_embedding_parameters",
    "layers",
    "flops_per_token",
    "kv_bytes_per_token",
    "training_tokens",
    "student_flops",
    "teacher_flops",
)
VALIDATION_COLUMNS = {
    "val_kl": "validation/teacher_kl",
    "val_ce": "validation/student_nll",
    "val_agreement": "validation/agreement",
    "val_teacher_nll": "validation/teacher_nll",
}


def collect_results(experiment: "Experiment", failed: dict[str, str]) -> Path:
    """Writes runs.csv, plan.yaml, curves.csv and records/; returns the folder. Missing runs stay in the table."""
    target, runs_dir = experiment.results_folder, experiment.runs_folder
    models = experiment.models
    done = [run for run in models if work.is_run_complete(run, runs_dir / run.name)]
    write_text(target / "plan.yaml", to_yaml(experiment.resolved_config))
    _write_frame(
        target / "cells.csv", pd.DataFrame([_row(run, runs_dir / run.name, run in done, failed) for run in models])
    )
    _write_frame(target / "curves.csv", _curves(done, runs_dir))
    documents = _copy_records(done, runs_dir, target / "records")
    if documents is not None:
        _write_frame(target / "records" / "frequencies.csv", _frequencies(experiment.points[0].config, documents))
    provenance = {
        run.label: work.read_manifest(runs_dir / run.name / "manifest.json").get("provenance", {}) for run in done
    }
    write_json(
        target / "provenance.json", {label: {**facts, "command": experiment.command} for label, facts in provenance.items()}
    )
    return target


def _row(run: Run, folder: Path, is_done: bool, failed: dict[str, str]) -> dict[str, Any]:
    manifest = work.read_manifest(folder / "manifest.json") if is_done else {}
    metrics = manifest.get("metrics", {})
    axes = {f"axis.{key}": value for key, value in run.grid_values.items()}
    return {
        "model": run.label,
        "role": run.role,
        "student": run.student,
        "seed": run.seed,
        **axes,
        **{name: manifest.get(name) for name in MANIFEST_COLUMNS},
        "bytes": manifest.get("bytes"),
        "held_out": validation_data_fingerprint(run.config)[:8] if run.student else None,
        **{name: metrics.get(metric) for name, metric in VALIDATION_COLUMNS.items()},
        "state": "done" if is_done else "failed" if run.name in failed else "missing",
        "reason": failed.get(run.name, ""),
    }


def _copy_records(done: list[Run], runs_dir: Path, target: Path) -> pd.DataFrame | None:
    """records/<model>.parquet and .json of each model, records/documents.parquet once for all."""
    documents = []
    for run in done:
        source = runs_dir / run.name / "records"
        documents.append(pd.read_parquet(source / "documents.parquet"))
        with atomic_write(target / f"{run.label}.parquet") as path:
            path.write_bytes((source / "records.parquet").read_bytes())
        write_json(target / f"{run.label}.json", read_json(source / "meta.json"))
        if (source / work.SURPRISAL_FILE).is_file():
            with atomic_write(target / work.SURPRISAL_FILE) as path:
                path.write_bytes((source / work.SURPRISAL_FILE).read_bytes())
    if not documents:
        if target.is_dir():
            _remove_stale_records(target, set())
        return None
    documents_once = pd.concat(documents, ignore_index=True).drop_duplicates(["task", "key"])
    with atomic_write(target / "documents.parquet") as path:
        documents_once.to_parquet(path, compression="zstd", index=False)
    _remove_stale_records(target, {run.label for run in done} | {"documents", "frequencies", "surprisal"})
    return documents_once


def _remove_stale_records(folder: Path, known: set[str]) -> None:
    """Records of runs that are no longer in the experiment would mix with those that are."""
    for path in folder.iterdir():
        if path.stem not in known and path.suffix in (".parquet", ".json"):
            path.unlink()


def _curves(done: list[Run], runs_dir: Path) -> pd.DataFrame:
    """One row per logged step of every trained model."""
    rows = []
    for run in done:
        path = runs_dir / run.name / "metrics.jsonl"
        if path.is_file():
            rows += [{"model": run.label, **point} for point in read_jsonl(path)]
    return pd.DataFrame(rows)


def _frequencies(point: ExperimentConfig, documents: pd.DataFrame) -> pd.DataFrame:
    """How often the words of the evaluation documents occur in the distillation corpus, and its number of words."""
    counts = _corpus_words(point)
    texts = [*documents["prompt"], *(choice for choices in documents["choices"] for choice in choices)]
    words = sorted({word for text in texts for word in content_words(text)})
    rows = [("__total__", sum(counts.values())), *((word, counts.get(word, 0)) for word in words)]
    return pd.DataFrame(rows, columns=["word", "count"])


def _corpus_words(point: ExperimentConfig) -> Counter[str]:
    """Words of what the first grid point reads; none where its generated corpora were not written."""
    try:
        return data.word_counts(resolve_generated_data(point), point.dataset_source)
    except UserError:
        return Counter()


def _write_frame(path: Path, frame: pd.DataFrame) -> None:
    with atomic_write(path) as temporary:
        frame.to_csv(temporary, index=False, float_format="%.6g")
