"""What the teacher tells the cells of an experiment: generated corpora, caches, and the signal that a training reads."""

import dataclasses
from pathlib import Path
from typing import Any

import torch

from distill_lit import data
from distill_lit.config import DataConfig, ExperimentConfig, TeacherConfig
from distill_lit.evaluation.evaluator import document_texts
from distill_lit.experiment.requirements import base_of
from distill_lit.generation.corpus import Evaluation, Writer, resolve_corpora, write_corpus
from distill_lit.losses.lm_head import head_of
from distill_lit.models import load_config, load_model, load_tokenizer, model_fingerprint
from distill_lit.models.vocabulary import count_tokens
from distill_lit.teachers import CachedTeacher, ForeignTeacher, LiveTeacher, SparseTeacher, TeacherSignal
from distill_lit.teachers.compression import HIDDEN, SAMPLED, TOP_K, Form
from distill_lit.teachers.offline import bytes_per_token, cache_facts, cache_folder, is_complete, write_cache
from distill_lit.training.trainer import Report
from distill_lit.utils import hardware
from distill_lit.utils.files import hashes_of


def write_generated(config: ExperimentConfig, report: Report) -> dict[str, Any]:
    """Writes the generated corpora; {corpus: what was written, kept and left out}."""
    return {
        name: write_corpus(
            name,
            corpus.generated,
            _writer(config),
            config.benchmarks,
            lambda stage, done, total: report(stage, done, total, "answers", {}),
        )
        for name, corpus in config.data.corpora.items()
        if corpus.generated is not None
    }


def readable_data(config: ExperimentConfig) -> DataConfig:
    """The data of an experiment with every generated corpus as the file it was written to."""
    return resolve_corpora(config.data, _writer(config), config.benchmarks)


def prepare_data(config: ExperimentConfig, tokenizer_folder: Path) -> data.PreparedData:
    """Packed rows of an experiment, the generated ones among them. Raises UserError for what is not written yet."""
    return data.prepare(readable_data(config), tokenizer_folder, config.benchmarks)


def write_signal(config: ExperimentConfig, teacher: Path, report: Report) -> dict[str, Any]:
    """Writes the teacher's cache; {signal: its folder, rows, bytes_per_token}."""
    prepared, form = prepare_data(config, teacher), cache_form(config.teacher)
    facts = _cache_facts(config, teacher, prepared)
    place, per_row = cache_folder(facts), prepared.train.length
    model = load_model(teacher, dtype_of(config.teacher.dtype)).to(hardware.device_for(config.training.accelerator))
    write_cache(
        place,
        model.requires_grad_(False),
        prepared.train,
        prepared.validation,
        config.training.batch,
        form,
        real_tokens(teacher),
        facts,
        lambda done, total: report("cache", done * per_row, total * per_row, "tokens", {}),
    )
    rows = len(prepared.train) + len(prepared.validation)
    return {"signal": str(place), "rows": rows, "bytes_per_token": bytes_per_token(place, prepared.train, form)}


def cache_form(teacher: TeacherConfig) -> Form:
    """What the cache of a teacher keeps."""
    widths = {HIDDEN: 0, TOP_K: teacher.k, SAMPLED: teacher.draws}
    temperature = teacher.draw_temperature if teacher.cache == SAMPLED else 1.0
    layers = sorted(set(teacher.layers)) if teacher.cache == HIDDEN else []
    return Form(teacher.cache, widths[teacher.cache], temperature, tuple(layers))


def real_tokens(tokenizer_folder: Path) -> int:
    """Columns of the logits that are tokens: heads are often padded."""
    rows = load_config(tokenizer_folder).get_text_config().vocab_size
    return count_tokens(load_tokenizer(tokenizer_folder), rows)


def open_signal(
    config: ExperimentConfig, teacher: Path, prepared: data.PreparedData, vocabulary: int
) -> TeacherSignal | None:
    """The signal that a training reads; None for `teacher.source: none`. vocabulary: real tokens of the student."""
    if config.teacher.source == "none":
        return None
    model = load_model(teacher, dtype_of(config.teacher.dtype))
    if config.teacher.source == "live":
        own = config.launcher.teacher_device
        return LiveTeacher(model, vocabulary, config.training.compile, torch.device(own) if own else None)
    if config.teacher.source == "foreign":
        tokenizers = load_tokenizer(teacher), load_tokenizer(base_of(config, teacher))
        return ForeignTeacher(model, real_tokens(teacher), *tokenizers)
    head, form = head_of(model.requires_grad_(False), vocabulary), cache_form(config.teacher)
    facts, held_out = _cache_facts(config, teacher, prepared), len(prepared.validation)
    folder = cache_folder(facts)
    if not is_complete(folder, len(prepared.train) + held_out):
        # damaged, or of a teacher that has changed behind its path, since the signal's own cell was done
        model = model.to(hardware.device_for(config.training.accelerator))
        rows, tokens = (prepared.train, prepared.validation), real_tokens(teacher)
        write_cache(folder, model, *rows, config.training.batch, form, tokens, facts)
    if form.kind == HIDDEN:
        return CachedTeacher(folder, len(prepared.train) + held_out, head)
    return SparseTeacher(folder, prepared.train, held_out, form, head)


def dtype_of(name: str) -> torch.dtype:
    """The number format that a settled knob names."""
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def _writer(config: ExperimentConfig) -> Writer:
    device = hardware.device_for(config.training.accelerator)
    tasks = dataclasses.replace(config.evaluation, limit=0)  # every document, whichever are drawn
    own = hashes_of(Path(tasks.include_path).expanduser()) if tasks.include_path else ""
    asked = Evaluation([sorted(tasks.tasks), own, config.benchmarks], lambda: document_texts(tasks, config.benchmarks))
    return Writer(config.teacher.model, dtype_of(config.teacher.dtype), device, asked)


def _cache_facts(config: ExperimentConfig, teacher: Path, prepared: data.PreparedData) -> dict[str, Any]:
    dtype = dtype_of(config.teacher.dtype)
    return cache_facts(model_fingerprint(teacher), prepared.fingerprint, dtype, cache_form(config.teacher))
