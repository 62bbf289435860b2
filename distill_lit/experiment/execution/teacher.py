"""The teachers of an experiment: their caches, and the teacher of a training."""

from pathlib import Path
from typing import Any

from distill_lit import data
from distill_lit.config import ExperimentConfig
from distill_lit.config.mixture import MAIN_TEACHER
from distill_lit.experiment.execution.run_data import prepare_run_data
from distill_lit.experiment.planning.asked_teachers import asked_teachers, routed_corpora, teacher_weights, with_teacher
from distill_lit.experiment.planning.requirements import student_base_folder
from distill_lit.models import model_folder
from distill_lit.teachers import MixtureTeacher, Teacher, TeacherContext, cached_teacher_source, teacher_source
from distill_lit.utils.progress import ProgressCallback


def write_teacher_cache_of(
    config: ExperimentConfig, teacher: str, teacher_folder: Path, progress_callback: ProgressCallback
) -> dict[str, Any]:
    """Writes the cache of a teacher, by its name or empty for `teacher.model`, whose folder is `teacher_folder`;
    {teacher_cache: its folder, rows, bytes_per_token}."""
    base = student_base_folder(config, teacher_folder)
    context = _teacher_context(config, teacher, base, prepare_run_data(config, base))
    return cached_teacher_source(context.config.teacher).write_cache(context, progress_callback)


def build_teacher(
    config: ExperimentConfig, teacher_folder: Path, prepared: data.PreparedData, student: Any
) -> Teacher | None:
    """The teacher that a training of `student` asks, several as one; None where it asks none."""
    base = student_base_folder(config, teacher_folder)
    contexts = {name: _teacher_context(config, name, base, prepared, student) for name in asked_teachers(config)}
    built = {name: teacher_source(context.config.teacher).build(context) for name, context in contexts.items()}
    if not config.teacher.mixture.teachers:
        return built[MAIN_TEACHER]
    teachers = {name: teacher for name, teacher in built.items() if teacher is not None}
    weights = teacher_weights(config).values()
    mixed = [{name: weight for name, weight in row.items() if weight} for row in weights]
    return MixtureTeacher(teachers, mixed if routed_corpora(config) else mixed[0], config.teacher.mixture.kind)


def _teacher_context(
    config: ExperimentConfig, teacher: str, base: Path, prepared: data.PreparedData, student: Any = None
) -> TeacherContext:
    alone = with_teacher(config, teacher)
    return TeacherContext(alone, model_folder(alone.teacher.model), base, prepared, student)
