"""What the teacher gives to the runs of an experiment: generated corpora, teacher caches, and the teacher of a training."""

import dataclasses
from pathlib import Path
from typing import Any

from distill_lit import data
from distill_lit.config import DataConfig, ExperimentConfig
from distill_lit.evaluation.evaluator import evaluation_document_texts
from distill_lit.experiment.requirements import student_base_folder
from distill_lit.generation.corpus import EvaluationTexts, GenerationContext, generate_corpus, resolve_generated_corpora
from distill_lit.models.loading import torch_dtype
from distill_lit.teachers import Teacher, TeacherContext, cached_teacher_source, teacher_source
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
    """Packed rows of an experiment, the generated ones among them. Raises UserError for what is not written yet."""
    return data.prepare_datasets(resolve_generated_data(config), tokenizer_folder, config.dataset_source)


def write_teacher_cache_of(
    config: ExperimentConfig, teacher_folder: Path, progress_callback: ProgressCallback
) -> dict[str, Any]:
    """Writes the teacher's cache; {teacher_cache: its folder, rows, bytes_per_token}."""
    base = student_base_folder(config, teacher_folder)
    context = TeacherContext(config, teacher_folder, base, prepare_run_data(config, base))
    return cached_teacher_source(config.teacher).write_cache(context, progress_callback)


def build_teacher(config: ExperimentConfig, teacher_folder: Path, prepared: data.PreparedData) -> Teacher | None:
    """The teacher that a training asks; None where it asks none."""
    context = TeacherContext(config, teacher_folder, student_base_folder(config, teacher_folder), prepared)
    return teacher_source(config.teacher).build(context)


def _writer(config: ExperimentConfig) -> GenerationContext:
    device = hardware.device_for(config.training.accelerator)
    tasks = dataclasses.replace(config.evaluation, limit=0)  # every document, whichever are drawn
    own = hashes_of(expand_path(tasks.include_path, "evaluation.include_path")) if tasks.include_path else ""
    asked = EvaluationTexts(
        [sorted(tasks.tasks), own, config.dataset_source], lambda: evaluation_document_texts(tasks, config.dataset_source)
    )
    return GenerationContext(config.teacher.model, torch_dtype(config.teacher.dtype), device, asked)
