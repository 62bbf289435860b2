"""One cell, from its config to a student folder and its evaluation records, each stage done once."""

import shutil
from pathlib import Path
from typing import Any

from distill_lit import assets
from distill_lit.config import to_yaml
from distill_lit.evaluation.evaluator import evaluate_model, main_scores
from distill_lit.evaluation.surprisal import measure_surprisal
from distill_lit.experiment.fingerprint import CE_ONLY, DISTILLED, GENERATED, RIVAL, SIGNAL, TEACHER, evaluation_identity
from distill_lit.experiment.plan import Cell
from distill_lit.experiment.provenance import provenance
from distill_lit.experiment.requirements import references_of
from distill_lit.experiment.student import build_student, student_hashes, take_model
from distill_lit.experiment.teacher import write_generated, write_signal
from distill_lit.generation.corpus import is_written
from distill_lit.models import model_fingerprint, model_folder
from distill_lit.models.loading import allow_code, weight_bytes
from distill_lit.teachers.offline import is_complete
from distill_lit.training.tensorboard_summary import Session, write_final
from distill_lit.training.trainer import Report
from distill_lit.utils import hardware
from distill_lit.utils.distributed.ranks import this_rank
from distill_lit.utils.distributed.spawn import together
from distill_lit.utils.files import hashes_of, read_json, write_json, write_text, writing

SURPRISAL = "surprisal.parquet"  # beside the teacher's records: axes of the long tail that need a model


def run_cell(cell: Cell, folder: Path, report: Report) -> None:
    """Does whatever of a cell is not done: builds its model, evaluates it. Each stage ends with its manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "config.yaml", to_yaml(cell.config))
    allow_own_code(cell, folder)
    if not is_built(cell, folder):
        count = cell.config.training.devices if cell.role in (CE_ONLY, DISTILLED) else 1
        if count > 1:
            together(count, build_rank, cell, folder, report=report)
        else:
            build(cell, folder, report)
    if cell.is_model and not is_evaluated(cell, folder):
        evaluate(cell, folder, report)


def build_rank(cell: Cell, folder: Path, report: Report) -> None:
    """Builds a cell as one of several ranks, in a process of its own."""
    allow_own_code(cell, folder)
    build(cell, folder, report)


def allow_own_code(cell: Cell, folder: Path) -> None:
    """Lets the models of a cell run the code they bring, in this process, where a reference ends with `+code`."""
    for reference in references_of(cell.config):
        if assets.parse(reference).code:  # the student is of the same classes
            allow_code(model_folder(reference))
            allow_code(folder / "student")


def is_done(cell: Cell, folder: Path) -> bool:
    """Whether a cell needs nothing more, judged by what is on disk."""
    if cell.role in (TEACHER, RIVAL) and is_evaluated(cell, folder):  # a model that is asked nothing more may be gone
        return bool(read_manifest(folder / "manifest.json").get("identity") == cell.identity)
    return is_built(cell, folder) and (not cell.is_model or is_evaluated(cell, folder))


def is_built(cell: Cell, folder: Path) -> bool:
    """Whether the manifest says so and every file it lists has the hash it lists."""
    manifest = read_manifest(folder / "manifest.json")
    try:
        return manifest.get("identity") == cell.identity and _has_made(cell, folder, manifest)
    except (KeyError, TypeError, AttributeError):  # whoever damaged it left it JSON
        return False


def _has_made(cell: Cell, folder: Path, manifest: dict[str, Any]) -> bool:
    if cell.role == SIGNAL:
        return is_complete(Path(manifest["signal"]), manifest["rows"])
    if cell.role == GENERATED:
        return all(is_written(Path(facts["corpus"])) for facts in manifest["corpora"].values())
    if cell.role in (TEACHER, RIVAL):
        return Path(manifest["model"]).is_dir()
    return bool(student_hashes(folder) == manifest["files"])


def model_place(folder: Path, manifest: dict[str, Any]) -> Path:
    """The transformers folder of a built cell: its own student, or the model that it took as it was."""
    return Path(manifest.get("model", folder / "student"))


def is_evaluated(cell: Cell, folder: Path) -> bool:
    """Whether records of this model under these questions are on disk and intact."""
    manifest = read_manifest(folder / "evaluation.json")
    return (
        manifest.get("evaluation") == evaluation_identity(cell.config)
        and manifest.get("model") == read_manifest(folder / "manifest.json").get("fingerprint")
        and hashes_of(folder / "records") == manifest.get("files")
        and (cell.role != TEACHER or SURPRISAL in manifest.get("files", ()))
    )


def read_manifest(path: Path) -> dict[str, Any]:
    """What a manifest says; empty where there is none or it cannot be read."""
    try:
        found = read_json(path)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def build(cell: Cell, folder: Path, report: Report) -> None:
    """Makes a cell's model or signal, and then its manifest. Of several ranks the first writes; the others only train."""
    teacher = model_folder(cell.config.teacher.model)
    if cell.reference:
        facts: dict[str, Any] = take_model(cell, folder)
    elif cell.role == SIGNAL:
        facts = write_signal(cell.config, teacher, report)
    elif cell.role == GENERATED:
        facts = {"corpora": write_generated(cell.config, report)}
    else:
        facts = build_student(cell, folder, teacher, report)
        if this_rank():
            return
    if cell.is_model:
        place = model_place(folder, facts)
        facts |= {"fingerprint": model_fingerprint(place), "bytes": weight_bytes(place)}
    made = provenance(cell.config, references_of(cell.config))
    write_json(
        folder / "manifest.json",
        {"identity": cell.identity, "role": cell.role, "label": cell.label, **facts, "provenance": made},
    )
    if not cell.config.training.keep_checkpoints:  # only now: without a manifest the cell would begin anew
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def evaluate(cell: Cell, folder: Path, report: Report) -> None:
    """Asks a cell's model the experiment's questions; writes records, then `evaluation.json`."""
    manifest = read_json(folder / "manifest.json")
    result = evaluate_model(
        model_place(folder, manifest),
        cell.config.evaluation,
        cell.config.benchmarks,
        device=str(hardware.device_for(cell.config.training.accelerator)),
        progress=lambda done, total, task: report(f"evaluate {task}", done, total, "requests", {}),
    )
    records = folder / "records"
    with writing(records / "documents.parquet") as path:
        result.documents.to_parquet(path, compression="zstd", index=False)
    with writing(records / "records.parquet") as path:
        result.records.to_parquet(path, compression="zstd", index=False)
    write_json(records / "meta.json", result.meta)
    if cell.role == TEACHER:
        surprisal = measure_surprisal(
            model_place(folder, manifest),
            result.documents,
            cell.config.evaluation,
            cell.config.benchmarks,
            device=str(hardware.device_for(cell.config.training.accelerator)),
            progress=lambda done, total, task: report(f"surprisal {task}", done, total, "requests", {}),
        )
        with writing(records / SURPRISAL) as path:
            surprisal.to_parquet(path, compression="zstd", index=False)
    has_curves = (folder / "metrics.jsonl").is_file()
    write_final(folder, session_of(cell, folder), to_yaml(cell.config), has_curves)
    write_json(
        folder / "evaluation.json",
        {"evaluation": evaluation_identity(cell.config), "model": manifest["fingerprint"], "files": hashes_of(records)},
    )


def session_of(cell: Cell, folder: Path) -> Session:
    """(knobs, final scores) of an evaluated cell, for TensorBoard's table of hyperparameters."""
    metrics = read_json(folder / "manifest.json").get("metrics", {})
    validation = {name: value for name, value in metrics.items() if name.startswith("validation/")}
    scores = main_scores(read_json(folder / "records" / "meta.json"))
    return _hyperparameters(cell), {**validation, **{f"final/{task}": value for task, value in scores.items()}}


def _hyperparameters(cell: Cell) -> dict[str, Any]:
    training = cell.config.training
    return {
        "role": cell.role,
        "student": cell.student,
        "seed": cell.config.seed,
        **cell.axes,
        "learning_rate": training.learning_rate,
        "tokens": training.tokens,
    }
