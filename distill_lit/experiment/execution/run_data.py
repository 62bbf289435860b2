"""The text that runs of an experiment read: corpora that a model writes for it, and packed rows of all."""

import dataclasses
from pathlib import Path
from typing import Any

from distill_lit import data
from distill_lit.config import DataConfig, ExperimentConfig
from distill_lit.evaluation.evaluator import evaluation_document_texts
from distill_lit.experiment.planning.asked_teachers import routed_corpora
from distill_lit.generation.corpus import EvaluationTexts, GenerationContext, generate_corpus, resolve_generated_corpora
from distill_lit.models.loading import torch_dtype
from distill_lit.utils import hardware
from distill_lit.utils.files import hashes_of
from distill_lit.utils.path_variables import expand_path
from distill_lit.utils.plugins import plugin_hash
from distill_lit.utils.progress import ProgressCallback


def write_generated_corpora(config: ExperimentConfig, progress_callback: ProgressCallback) -> dict[str, Any]:
    """Writes the generated corpora; {corpus: what was written, kept and left out}."""
    return {
        name: generate_corpus(
            name,
            corpus.generated,
            generation_context(config),
            config.dataset_source,
            progress_callback,
        )
        for name, corpus in config.data.corpora.items()
        if corpus.generated is not None
    }


def resolve_generated_data(config: ExperimentConfig) -> DataConfig:
    """The data of an experiment with every generated corpus as the file it was written to."""
    return resolve_generated_corpora(config.data, generation_context(config), config.dataset_source)


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


def generation_context(config: ExperimentConfig) -> GenerationContext:
    """Who writes generated corpora that name nobody, and what their filters compare with."""
    device = hardware.device_for(config.training.accelerator)
    tasks = dataclasses.replace(config.evaluation, limit=0)  # every document, whichever are drawn
    own = _hashes_below(tasks.include_path) if tasks.include_path else ""
    asked = EvaluationTexts(
        [sorted(tasks.tasks), own, config.dataset_source], lambda: evaluation_document_texts(tasks, config.dataset_source)
    )
    return GenerationContext(
        config.teacher.model,
        torch_dtype(config.teacher.dtype),
        device,
        config.generation,
        asked,
        list(map(plugin_hash, config.plugins)),
    )


def _hashes_below(include_path: str) -> dict[str, str]:
    """{file below the folder: sha256}, but for what Python keeps of code that it has imported."""
    found = hashes_of(expand_path(include_path, "evaluation.include_path"))
    return {name: digest for name, digest in found.items() if "__pycache__" not in Path(name).parts}
