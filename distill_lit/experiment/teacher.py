"""What the teacher tells the runs of an experiment: generated corpora, caches, and the signal that a training reads."""

import dataclasses
from pathlib import Path
from typing import Any

import torch

from distill_lit import data
from distill_lit.config import DataConfig, ExperimentConfig, TeacherConfig
from distill_lit.evaluation.evaluator import evaluation_document_texts
from distill_lit.experiment.requirements import student_base_folder
from distill_lit.generation.corpus import EvaluationTexts, GenerationContext, generate_corpus, resolve_generated_corpora
from distill_lit.losses.lm_head import get_lm_head
from distill_lit.models import load_model, load_model_config, load_tokenizer, model_fingerprint
from distill_lit.models.vocabulary import unpadded_vocab_size
from distill_lit.teachers import CrossTokenizerTeacher, OfflineTeacher, OnlineTeacher, SparseOfflineTeacher, Teacher
from distill_lit.teachers.compression import CACHE_HIDDEN_STATES, CACHE_SAMPLED, CACHE_TOP_K, TeacherCacheFormat
from distill_lit.teachers.offline import (
    is_teacher_cache_complete,
    measure_bytes_per_token,
    teacher_cache_folder,
    teacher_cache_metadata,
    write_cache_shards,
)
from distill_lit.training.trainer import ProgressCallback
from distill_lit.utils import hardware
from distill_lit.utils.files import hashes_of


def write_generated_corpora(config: ExperimentConfig, progress_callback: ProgressCallback) -> dict[str, Any]:
    """Writes the generated corpora; {corpus: what was written, kept and left out}."""
    return {
        name: generate_corpus(
            name,
            corpus.generated,
            _writer(config),
            config.dataset_source,
            lambda stage, done, total: progress_callback(stage, done, total, "answers", {}),
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


def build_teacher_cache(
    config: ExperimentConfig, teacher_folder: Path, progress_callback: ProgressCallback
) -> dict[str, Any]:
    """Writes the teacher's cache; {signal: its folder, rows, bytes_per_token}."""
    prepared, form = prepare_run_data(config, teacher_folder), teacher_cache_form(config.teacher)
    facts = _cache_facts(config, teacher_folder, prepared)
    cache_dir, per_row = teacher_cache_folder(facts), prepared.train.sequence_length
    model = load_model(teacher_folder, torch_dtype(config.teacher.dtype)).to(
        hardware.device_for(config.training.accelerator)
    )
    write_cache_shards(
        cache_dir,
        model.requires_grad_(False),
        prepared.train,
        prepared.validation,
        config.training.micro_batch_size,
        form,
        load_unpadded_vocab_size(teacher_folder),
        facts,
        lambda done, total: progress_callback("cache", done * per_row, total * per_row, "tokens", {}),
    )
    rows = len(prepared.train) + len(prepared.validation)
    return {
        "teacher_cache": str(cache_dir),
        "rows": rows,
        "bytes_per_token": measure_bytes_per_token(cache_dir, prepared.train, form),
    }


def teacher_cache_form(teacher: TeacherConfig) -> TeacherCacheFormat:
    """What the cache of a teacher keeps."""
    widths = {CACHE_HIDDEN_STATES: 0, CACHE_TOP_K: teacher.top_k, CACHE_SAMPLED: teacher.num_samples}
    temperature = teacher.sampling_temperature if teacher.cache_format == CACHE_SAMPLED else 1.0
    layers = sorted(set(teacher.hidden_layers)) if teacher.cache_format == CACHE_HIDDEN_STATES else []
    return TeacherCacheFormat(teacher.cache_format, widths[teacher.cache_format], temperature, tuple(layers))


def load_unpadded_vocab_size(tokenizer_folder: Path) -> int:
    """Columns of the logits that are tokens: heads are often padded."""
    rows = load_model_config(tokenizer_folder).get_text_config().vocab_size
    return unpadded_vocab_size(load_tokenizer(tokenizer_folder), rows)


def build_teacher(
    config: ExperimentConfig, teacher_folder: Path, prepared: data.PreparedData, vocab_size: int
) -> Teacher | None:
    """The signal that a training reads; None for `teacher.source: none`. vocabulary: real tokens of the student."""
    if config.teacher.source == "none":
        return None
    model = load_model(teacher_folder, torch_dtype(config.teacher.dtype))
    if config.teacher.source == "online":
        teacher_device = config.launcher.teacher_device
        return OnlineTeacher(
            model, vocab_size, config.training.compile, torch.device(teacher_device) if teacher_device else None
        )
    if config.teacher.source == "cross_tokenizer":
        tokenizers = load_tokenizer(teacher_folder), load_tokenizer(student_base_folder(config, teacher_folder))
        return CrossTokenizerTeacher(model, load_unpadded_vocab_size(teacher_folder), *tokenizers)
    head, form = get_lm_head(model.requires_grad_(False), vocab_size), teacher_cache_form(config.teacher)
    facts, held_out = _cache_facts(config, teacher_folder, prepared), len(prepared.validation)
    folder = teacher_cache_folder(facts)
    if not is_teacher_cache_complete(folder, len(prepared.train) + held_out):
        # damaged, or of a teacher that has changed behind its path, since the signal's own run was done
        model = model.to(hardware.device_for(config.training.accelerator))
        rows, tokens = (prepared.train, prepared.validation), load_unpadded_vocab_size(teacher_folder)
        write_cache_shards(folder, model, *rows, config.training.micro_batch_size, form, tokens, facts)
    if form.kind == CACHE_HIDDEN_STATES:
        return OfflineTeacher(folder, len(prepared.train) + held_out, head)
    return SparseOfflineTeacher(folder, prepared.train, held_out, form, head)


def torch_dtype(name: str) -> torch.dtype:
    """The number format that a settled field names."""
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def _writer(config: ExperimentConfig) -> GenerationContext:
    device = hardware.device_for(config.training.accelerator)
    tasks = dataclasses.replace(config.evaluation, limit=0)  # every document, whichever are drawn
    own = hashes_of(Path(tasks.include_path).expanduser()) if tasks.include_path else ""
    asked = EvaluationTexts(
        [sorted(tasks.tasks), own, config.dataset_source], lambda: evaluation_document_texts(tasks, config.dataset_source)
    )
    return GenerationContext(config.teacher.model, torch_dtype(config.teacher.dtype), device, asked)


def _cache_facts(config: ExperimentConfig, teacher_folder: Path, prepared: data.PreparedData) -> dict[str, Any]:
    dtype = torch_dtype(config.teacher.dtype)
    return teacher_cache_metadata(
        model_fingerprint(teacher_folder), prepared.fingerprint, dtype, teacher_cache_form(config.teacher)
    )
