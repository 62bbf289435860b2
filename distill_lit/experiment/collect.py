"""Gathers what the cells of an experiment left into `results/<experiment>/`: everything a report is drawn from."""

from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd

from distill_lit import data
from distill_lit.analysis.document_axes import content_words
from distill_lit.config import ExperimentConfig, expand, to_yaml
from distill_lit.experiment import run as work
from distill_lit.experiment.fingerprint import held_out_identity
from distill_lit.experiment.paths import results_folder, runs_folder
from distill_lit.experiment.plan import Cell
from distill_lit.experiment.teacher import readable_data
from distill_lit.utils.exceptions import UserError
from distill_lit.utils.files import read_json, read_lines, write_json, write_text, writing

FACTS = (
    "parameters",
    "non_embedding_parameters",
    "layers",
    "flops_per_token",
    "kv_bytes_per_token",
    "training_tokens",
    "student_flops",
    "teacher_flops",
)
VALIDATION = {
    "val_kl": "validation/teacher_kl",
    "val_ce": "validation/student_nll",
    "val_agreement": "validation/agreement",
    "val_teacher_nll": "validation/teacher_nll",
}


def collect(config: ExperimentConfig, cells: list[Cell], root: Path, failed: dict[str, str], command: str) -> Path:
    """Writes cells.csv, plan.yaml, curves.csv and records/; returns the folder. Missing cells stay in the table."""
    target, runs = results_folder(root, config), runs_folder(root, config)
    models = [cell for cell in cells if cell.is_model]
    done = [cell for cell in models if work.is_done(cell, runs / cell.name)]
    write_text(target / "plan.yaml", to_yaml(config))
    _write_frame(
        target / "cells.csv", pd.DataFrame([_row(cell, runs / cell.name, cell in done, failed) for cell in models])
    )
    _write_frame(target / "curves.csv", _curves(done, runs))
    documents = _copy_records(done, runs, target / "records")
    if documents is not None:
        _write_frame(target / "records" / "frequencies.csv", _frequencies(config, documents))
    made = {cell.label: work.read_manifest(runs / cell.name / "manifest.json").get("provenance", {}) for cell in done}
    write_json(target / "provenance.json", {label: {**facts, "command": command} for label, facts in made.items()})
    return target


def _row(cell: Cell, folder: Path, is_done: bool, failed: dict[str, str]) -> dict[str, Any]:
    manifest = work.read_manifest(folder / "manifest.json") if is_done else {}
    metrics = manifest.get("metrics", {})
    axes = {f"axis.{key}": value for key, value in cell.axes.items()}
    return {
        "model": cell.label,
        "role": cell.role,
        "student": cell.student,
        "seed": cell.seed,
        **axes,
        **{name: manifest.get(name) for name in FACTS},
        "bytes": manifest.get("bytes"),
        "held_out": held_out_identity(cell.config)[:8] if cell.student else None,
        **{name: metrics.get(metric) for name, metric in VALIDATION.items()},
        "state": "done" if is_done else "failed" if cell.name in failed else "missing",
        "reason": failed.get(cell.name, ""),
    }


def _copy_records(done: list[Cell], runs: Path, target: Path) -> pd.DataFrame | None:
    """records/<model>.parquet and .json of each model, records/documents.parquet once for all."""
    documents = []
    for cell in done:
        source = runs / cell.name / "records"
        documents.append(pd.read_parquet(source / "documents.parquet"))
        with writing(target / f"{cell.label}.parquet") as path:
            path.write_bytes((source / "records.parquet").read_bytes())
        write_json(target / f"{cell.label}.json", read_json(source / "meta.json"))
        if (source / work.SURPRISAL).is_file():
            with writing(target / work.SURPRISAL) as path:
                path.write_bytes((source / work.SURPRISAL).read_bytes())
    if not documents:
        if target.is_dir():
            _remove_strangers(target, set())
        return None
    every = pd.concat(documents, ignore_index=True).drop_duplicates(["task", "key"])
    with writing(target / "documents.parquet") as path:
        every.to_parquet(path, compression="zstd", index=False)
    _remove_strangers(target, {cell.label for cell in done} | {"documents", "frequencies", "surprisal"})
    return every


def _remove_strangers(folder: Path, known: set[str]) -> None:
    """Records of cells that are no longer in the experiment would mix with those that are."""
    for path in folder.iterdir():
        if path.stem not in known and path.suffix in (".parquet", ".json"):
            path.unlink()


def _curves(done: list[Cell], runs: Path) -> pd.DataFrame:
    """One row per logged step of every trained model."""
    rows = []
    for cell in done:
        path = runs / cell.name / "metrics.jsonl"
        if path.is_file():
            rows += [{"model": cell.label, **point} for point in read_lines(path)]
    return pd.DataFrame(rows)


def _frequencies(config: ExperimentConfig, documents: pd.DataFrame) -> pd.DataFrame:
    """How often the words of the evaluation documents occur in the distillation corpus, and its number of words."""
    counts = _corpus_words(config)
    texts = [*documents["prompt"], *(choice for choices in documents["choices"] for choice in choices)]
    words = sorted({word for text in texts for word in content_words(text)})
    rows = [("__total__", sum(counts.values())), *((word, counts.get(word, 0)) for word in words)]
    return pd.DataFrame(rows, columns=["word", "count"])


def _corpus_words(config: ExperimentConfig) -> Counter[str]:
    """Words of what the first grid point reads; none where its generated corpora were not written."""
    _, point = next(expand(config))
    try:
        return data.word_counts(readable_data(point), point.benchmarks)
    except UserError:
        return Counter()


def _write_frame(path: Path, frame: pd.DataFrame) -> None:
    with writing(path) as temporary:
        frame.to_csv(temporary, index=False, float_format="%.6g")
