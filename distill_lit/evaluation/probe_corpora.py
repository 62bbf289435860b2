"""The probes of an experiment as corpora: which text, and how much of it."""

from collections.abc import Collection
from dataclasses import fields

from distill_lit.config import CorpusConfig, EvaluationConfig, ProbeConfig
from distill_lit.config.generation import DatasetConfig
from distill_lit.data.corpora import check_corpus, read_documents
from distill_lit.utils.exceptions import UserError

PROBES_SECTION = "evaluation.probes"  # of the config
WINDOW_TOKENS = 1024  # of a passage that are read at once, where the model has as many positions


def check_probes(settings: EvaluationConfig, dataset_source: str, task_names: Collection[str]) -> None:
    """Raises UserError for a probe that cannot be read, as far as that shows without fetching, or has the name of a
    task."""
    for name in settings.probes:
        if name in task_names:
            raise UserError(f"{PROBES_SECTION}.{name}: a task has this name; choose another")
    for name, corpus in probe_corpora(settings).items():
        check_corpus(f"{PROBES_SECTION}.{name}", corpus, dataset_source)


def prepare_probes(settings: EvaluationConfig, dataset_source: str) -> None:
    """Fetches the text of all probes. Raises UserError for what is not there, or leaves no passage to score."""
    for name, corpus in probe_corpora(settings).items():
        read_documents({name: corpus}, settings.seed, dataset_source, section=PROBES_SECTION)


def probe_corpora(settings: EvaluationConfig) -> dict[str, CorpusConfig]:
    """The probes as corpora, with as many documents as are scored."""
    return {name: _corpus(probe, settings.limit) for name, probe in settings.probes.items()}


def _corpus(probe: ProbeConfig, limit: int) -> CorpusConfig:
    most = min((count for count in (probe.max_documents, limit) if count), default=0)
    rows = {field.name: getattr(probe, field.name) for field in fields(DatasetConfig)}  # type: ignore[arg-type]
    return CorpusConfig(**{**rows, "text": probe.text, "max_documents": most})
