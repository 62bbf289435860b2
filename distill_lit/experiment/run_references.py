"""Models that another experiment has made: `run:EXPERIMENT/MODEL`, with MODEL as `distill-lit status` calls its run.

A model with seeds may be named without one: `run:teacher_correction/corrected` is for seed 1 of this experiment the one of
seed 1 of that. Its run must be finished. A reference stands for a folder, whose name hashes all that the model depends on.
"""

import re
from pathlib import Path
from typing import Any

from distill_lit.config import ExperimentConfig, to_dict
from distill_lit.config.loading import build_section
from distill_lit.utils.exceptions import UserError, suggest
from distill_lit.utils.files import read_json

RUN_PREFIX = "run:"
SEED = re.compile(r"-seed=(\d+)$")
SECTIONS = ("teacher", "students", "models", "stages", "data", "external_models")  # in which models are referred to


def has_run_references(config: ExperimentConfig) -> bool:
    """Whether a model of another experiment is named anywhere, in the grid and the variants too."""
    return _mentions_run(to_dict(config))


def _mentions_run(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_mentions_run, value.values()))
    return any(map(_mentions_run, value)) if isinstance(value, list) else str(value).startswith(RUN_PREFIX)


def resolve_run_references(config: ExperimentConfig, root: Path) -> ExperimentConfig:
    """The config with the folder of a model in the place of each reference to a run of another experiment below `root`.

    Raises UserError for an experiment, a model or a seed that is not there, or is not finished.
    """
    tree = to_dict(config)
    found = {name: _resolve(tree[name], root, config.seed) for name in SECTIONS}
    return build_section(ExperimentConfig, {**tree, **found}, [])


def _resolve(value: Any, root: Path, seed: int) -> Any:
    if isinstance(value, dict):
        return {name: _resolve(item, root, seed) for name, item in value.items()}
    if isinstance(value, list):
        return [_resolve(item, root, seed) for item in value]
    return f"file:{_folder_of(value, root, seed)}" if isinstance(value, str) and value.startswith(RUN_PREFIX) else value


def _folder_of(reference: str, root: Path, seed: int) -> Path:
    experiment, slash, model = reference.removeprefix(RUN_PREFIX).partition("/")
    runs = root / "runs"
    if not slash or not (runs / experiment).is_dir():
        hint = suggest(experiment, sorted(path.name for path in runs.glob("*") if path.is_dir()))
        raise UserError(f"reference {reference!r}: no experiment {experiment!r} has been run below {runs}{hint}")
    made = _finished_models(runs / experiment)
    for label in (model, f"{model}-seed={seed}"):
        if label in made:
            return made[label]
    seeds = sorted(int(match[1]) for label in made if (match := SEED.search(label)) and label[: match.start()] == model)
    if seeds:
        raise UserError(f"reference {reference!r}: it has no seed {seed}, but {', '.join(map(str, seeds))}")
    names = dict.fromkeys(SEED.sub("", label) for label in made)
    raise UserError(f"reference {reference!r}: no finished model is called so{suggest(model, names)}")


def _finished_models(folder: Path) -> dict[str, Path]:
    """{label: transformers folder} of the runs of an experiment that have made a model."""
    found = {}
    for path in sorted(folder.glob("*/manifest.json")):
        manifest = read_json(path)
        student = Path(manifest.get("model", path.parent / "student"))
        if "fingerprint" in manifest and student.is_dir():
            found[str(manifest["label"])] = student
    return found
