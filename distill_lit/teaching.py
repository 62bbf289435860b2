"""What the teacher tells the cells of an experiment: generated corpora, caches, and the signal that a training reads."""

from pathlib import Path
from typing import Any

import torch

from distill_lit import data, hardware
from distill_lit.config import DataConfig, ExperimentConfig
from distill_lit.heads import head_of
from distill_lit.models import load_model, model_fingerprint
from distill_lit.signals import CachedTeacher, LiveTeacher, TeacherSignal
from distill_lit.signals.cached import cache_folder, write_cache
from distill_lit.signals.generated import Writer, resolve_corpora, write_corpus
from distill_lit.training import Report


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
    prepared = prepare_data(config, teacher)
    place = _signal_folder(config, teacher, prepared)
    rows = data.Packed.concatenate([prepared.train, prepared.validation])
    model = load_model(teacher, dtype_of(config.teacher.dtype)).to(hardware.device_for(config.training.accelerator))
    per_row = prepared.train.length
    write_cache(
        place,
        model,
        rows,
        config.training.batch,
        lambda done, total: report("cache", done * per_row, total * per_row, "tokens", {}),
    )
    used = sum(path.stat().st_size for path in place.glob("*.safetensors"))
    return {"signal": str(place), "rows": len(rows), "bytes_per_token": used / (len(rows) * per_row)}


def open_signal(
    config: ExperimentConfig, teacher: Path, prepared: data.PreparedData, vocabulary: int
) -> TeacherSignal | None:
    """The signal that a training reads; None for `teacher.source: none`."""
    if config.teacher.source == "none":
        return None
    model = load_model(teacher, dtype_of(config.teacher.dtype))
    if config.teacher.source == "live":
        return LiveTeacher(model, vocabulary)
    head = head_of(model.requires_grad_(False), vocabulary)
    rows = len(prepared.train) + len(prepared.validation)
    return CachedTeacher(_signal_folder(config, teacher, prepared), rows, head)


def dtype_of(name: str) -> torch.dtype:
    """The number format that a settled knob names."""
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def _writer(config: ExperimentConfig) -> Writer:
    device = hardware.device_for(config.training.accelerator)
    return Writer(config.teacher.model, dtype_of(config.teacher.dtype), device)


def _signal_folder(config: ExperimentConfig, teacher: Path, prepared: data.PreparedData) -> Path:
    return cache_folder(model_fingerprint(teacher), prepared.fingerprint, dtype_of(config.teacher.dtype))
