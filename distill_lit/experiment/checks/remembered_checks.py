"""What has been found of the models of a plan, remembered: their configs and tokenizers take seconds to import and read."""

import importlib.metadata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import distill_lit
from distill_lit import assets
from distill_lit.config import to_dict
from distill_lit.data.templates import read_template
from distill_lit.data.token_pipeline import reads_token_files
from distill_lit.experiment.checks.model_checks import check_against_teacher
from distill_lit.experiment.planning.fingerprint import plugin_fingerprint_fields
from distill_lit.experiment.planning.planned_run import Run
from distill_lit.experiment.planning.requirements import required_models
from distill_lit.generation.corpus import generation_references
from distill_lit.utils.files import cache_root, fingerprint, folder_stamp, read_json, try_write_json

READERS = ("transformers", "tokenizers", "jinja2")  # packages that decide what a config or a chat template means


def remembered_notes(runs: Sequence[Run]) -> list[str]:
    """The notes of `check_against_teacher`, which is asked where these runs, or a file that it reads, are new. Raises
    UserError as it does."""
    if any(reads_token_files(run.config.data) for run in runs):  # samples of them are read
        return check_against_teacher(runs)
    path = cache_root() / "checks" / f"{fingerprint(_what_decides(runs))}.json"
    if path.is_file():
        notes: list[str] = read_json(path)
        return notes
    notes = check_against_teacher(runs)
    try_write_json(path, notes)
    return notes


def _what_decides(runs: Sequence[Run]) -> list[Any]:
    configs = {id(run.config): run.config for run in runs}
    written_by = [name for config in configs.values() for name in generation_references(config.data)]
    templates = {config.data.chat_template for config in configs.values()}
    return [
        [importlib.metadata.version(name) for name in READERS],
        folder_stamp(Path(distill_lit.__file__).parent, lambda name: name.endswith(".py")),
        plugin_fingerprint_fields(runs[0].config),
        [run.to_json() for run in runs],
        [to_dict(config) for config in configs.values()],
        {name: _stamp(name) for name in (*required_models(runs), *written_by)},
        {name: read_template(name) for name in templates},
    ]


def _stamp(reference: str) -> list[Any]:
    """What tells whether the files of a model have changed, or are here now."""
    if not assets.is_fetched(reference):
        return []
    path = assets.fetch(reference)
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return [str(path), [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files if file.is_file()]]
