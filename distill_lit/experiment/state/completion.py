"""Whether a run is done, judged by what is on disk. Loads nothing that trains: plans and states ask it."""

from pathlib import Path
from typing import Any

from distill_lit.config.roles import Role
from distill_lit.evaluation.own_questions import own_questions_fingerprint
from distill_lit.experiment.planning.asked_teachers import with_teacher
from distill_lit.experiment.planning.fingerprint import evaluation_fingerprint
from distill_lit.experiment.planning.planned_run import Run
from distill_lit.generation.corpus import is_corpus_complete
from distill_lit.models import MODEL_CARD_FILENAME
from distill_lit.teachers import cached_teacher_source
from distill_lit.utils.files import hashes_of, read_mapping

OWN_QUESTIONS = "own_questions"  # in `evaluation.json`, of what stands in the user's own files
SURPRISAL_FILE = "surprisal.parquet"  # beside the teacher's records: axes of the long tail that need a model


def is_run_complete(run: Run, folder: Path) -> bool:
    """Whether a run needs nothing more, judged by what is on disk."""
    if run.role in (Role.TEACHER, Role.EXTERNAL) and is_run_evaluated(
        run, folder
    ):  # a model that is asked nothing more may be gone
        return bool(read_mapping(folder / "manifest.json").get("identity") == run.fingerprint)
    return is_run_built(run, folder) and (not run.is_model or is_run_evaluated(run, folder))


def is_run_built(run: Run, folder: Path) -> bool:
    """Whether the manifest says so and every file it lists has the hash it lists."""
    manifest = read_mapping(folder / "manifest.json")
    try:
        return manifest.get("identity") == run.fingerprint and _outputs_exist(run, folder, manifest)
    except (KeyError, TypeError, AttributeError):  # whoever damaged it left it JSON
        return False


def _outputs_exist(run: Run, folder: Path, manifest: dict[str, Any]) -> bool:
    if run.role == Role.TEACHER_CACHE:
        return cached_teacher_source(with_teacher(run.config, run.teacher).teacher).is_cache_complete(manifest)
    if run.role == Role.GENERATED:
        return all(is_corpus_complete(Path(facts["corpus"])) for facts in manifest["corpora"].values())
    if run.role in (Role.TEACHER, Role.EXTERNAL):
        return Path(manifest["model"]).is_dir()
    return bool(student_hashes(folder) == manifest["files"])


def run_model_folder(folder: Path, manifest: dict[str, Any]) -> Path:
    """The transformers folder of a built run: its own student, or the model that it took as it was."""
    return Path(manifest.get("model", folder / "student"))


def is_run_evaluated(run: Run, folder: Path) -> bool:
    """Whether records of this model under these questions, as they stand in the user's own files now, are on disk and
    intact."""
    manifest = read_mapping(folder / "evaluation.json")
    return bool(
        manifest
        and manifest.get("evaluation") == evaluation_identity(run)
        and manifest.get("model") == read_mapping(folder / "manifest.json").get("fingerprint")
        and own_questions_fingerprint(run.config.evaluation) in ("", manifest.get(OWN_QUESTIONS))
        and hashes_of(folder / "records") == manifest.get("files")
        and (run.role != Role.TEACHER or SURPRISAL_FILE in manifest.get("files", ()))
    )


def evaluation_identity(run: Run) -> str:
    """What its evaluation is a result of, beside the model itself."""
    is_apart = run.role in (Role.EXTERNAL, Role.QUANTIZED)  # another teacher leaves the run as it is
    return evaluation_fingerprint(run.config, run.config.teacher.model if is_apart else "")


def student_hashes(folder: Path) -> dict[str, str]:
    """Hashes of a student's files but the model card, to which the report adds scores."""
    return {name: digest for name, digest in hashes_of(folder / "student").items() if name != MODEL_CARD_FILENAME}
