"""What the teacher gives to the runs of an experiment: generated corpora, teacher caches, and the teacher of a training."""

import dataclasses
from pathlib import Path
from typing import Any

from distill_lit import data
from distill_lit.config import DataConfig, ExperimentConfig
from distill_lit.config.mixture import MAIN_TEACHER
from distill_lit.evaluation.evaluator import evaluation_document_texts
from distill_lit.experiment.mixture import asked_teachers, routed_corpora, teacher_weights, with_teacher
from distill_lit.experiment.requirements import student_base_folder
from distill_lit.generation.corpus import EvaluationTexts, GenerationContext, generate_corpus, resolve_generated_corpora
from distill_lit.models import model_folder
from distill_lit.models.loading import torch_dtype
from distill_lit.teachers import MixtureTeacher, Teacher, TeacherContext, cached_teacher_source, teacher_source
from distill_lit.utils import hardware
from distill_lit.utils.files import hashes_of
from distill_lit.utils.path_variables import expand_path
from distill_lit.utils.progress import ProgressCallback


def write_generated_corpora(config: ExperimentConfig, progress_callback: ProgressCallback) -> dict[str, Any]:
    """Writes the generated corpora; {corpus: what was written, kept and left out}."""
    return {
        name: generate_corpus(
            name,
            corpus.generated,
            _writer(config),
            config.dataset_source,
            progress_callback,
        )
        for name, corpus in config.data.corpora.items()
        if corpus.generated is not None
    }


def resolve_generated_data(config: ExperimentConfig) -> DataConfig:
    """The data of an experiment with every generated corpus as the file it was written to."""
    return resolve_generated_corpora(config.data, _writer(config), config.dataset_source)


def prepare_run_data(config: ExperimentConfig, tokenizer_folder: Path) -> data.PreparedData:
    """Packed rows of an experiment, the generated ones among them; they say which corpus a token is of where corpora have
    teachers of their own. Raises UserError for what is not written yet."""
    return data.prepare_datasets(
        resolve_generated_data(config),
        tokenizer_folder,
        config.dataset_source,
        bool(routed_corpora(config)),
        config.teacher.prompt,
    )


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


def _writer(config: ExperimentConfig) -> GenerationContext:
    device = hardware.device_for(config.training.accelerator)
    tasks = dataclasses.replace(config.evaluation, limit=0)  # every document, whichever are drawn
    own = _hashes_below(tasks.include_path) if tasks.include_path else ""
    asked = EvaluationTexts(
        [sorted(tasks.tasks), own, config.dataset_source], lambda: evaluation_document_texts(tasks, config.dataset_source)
    )
    return GenerationContext(config.teacher.model, torch_dtype(config.teacher.dtype), device, config.generation, asked)


def _hashes_below(include_path: str) -> dict[str, str]:
    """{file below the folder: sha256}, but for what Python keeps of code that it has imported."""
    found = hashes_of(expand_path(include_path, "evaluation.include_path"))
    return {name: digest for name, digest in found.items() if "__pycache__" not in Path(name).parts}
