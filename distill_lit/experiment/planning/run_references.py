"""Models that another experiment has made: `run:EXPERIMENT/MODEL`, with MODEL as `distill-lit status` calls its run.

A model with seeds may be named without one: `run:teacher_correction/corrected` is for seed 1 of this experiment the one of
seed 1 of that. Its run must be finished. A reference stands for a folder, whose name hashes all that the model depends on;
where an experiment has been run with other settings since, MODEL is the name of one of its folders. What identifies a run
holds the path of this folder from the root, wherever the root is and however it was written.
"""

import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from distill_lit.config import ExperimentConfig, to_dict
from distill_lit.config.key_paths import holds_paths
from distill_lit.config.loading import build_section
from distill_lit.experiment.planning.planned_run import Run
from distill_lit.utils.exceptions import UserError, suggest
from distill_lit.utils.files import read_mapping

RUN_PREFIX = "run:"
SEED = re.compile(r"-seed=(\d+)$")
HASH = re.compile(r"-[0-9a-f]{8}$")  # at the end of the name of a run
SECTIONS = ("teacher", "students", "models", "stages", "data", "external_models")  # in which models are referred to


def has_run_references(config: ExperimentConfig) -> bool:
    """Whether a model of another experiment is named anywhere, in the grid and the variants too."""
    return _mentions_run(to_dict(config))


def _mentions_run(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_mentions_run, value.values()))
    return any(map(_mentions_run, value)) if isinstance(value, list) else str(value).startswith(RUN_PREFIX)


class RunReferences:
    """The models of other experiments below a root, by the references of configs."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._places: dict[str, str] = {}  # {what identifies a model: its reference} of those in another place

    def resolve(self, config: ExperimentConfig) -> ExperimentConfig:
        """The config with the folder of a model in the place of each reference to a run of another experiment.

        Raises UserError for an experiment, a model or a seed that is not there, or is not finished.
        """
        return _change(config, lambda reference, seed: f"file:{_folder_of(reference, self.root, seed)}")

    def identify(self, config: ExperimentConfig) -> ExperimentConfig:
        """`resolve` with paths from the root, which are the same wherever this is; `place` gives the folders back."""

        def identified(reference: str, seed: int) -> str:
            folder = _folder_of(reference, self.root, seed)
            name = folder.relative_to(self.root) if folder.is_relative_to(self.root) else folder
            if name != folder:
                self._places[f"file:{name}"] = f"file:{folder}"
            return f"file:{name}"

        return _change(config, identified)

    def place(self, run: Run) -> Run:
        """A run that was planned with an identified config, with the folders of models."""
        if not self._places:
            return run
        tree = to_dict(run.config)
        found = {name: _map_texts(tree[name], lambda text: self._places.get(text, text)) for name in SECTIONS}
        config = build_section(ExperimentConfig, {**tree, **found}, [])
        return replace(run, config=config, model_reference=self._places.get(run.model_reference, run.model_reference))


def _change(config: ExperimentConfig, change: Callable[[str, int], str]) -> ExperimentConfig:
    """The config with each reference to a run of another experiment changed, by itself and the seed that asks for it."""
    tree = to_dict(config)
    found = {name: _resolve(tree[name], name, config.seed, change) for name in SECTIONS}
    # one model for all seeds of this experiment is made from those of its own seed
    for name, spec in config.models.items():
        if "seed" in spec:
            found["models"][name] = _resolve(tree["models"][name], f"models.{name}", spec["seed"], change)
    return build_section(ExperimentConfig, {**tree, **found}, [])


def _resolve(value: Any, key: str, seed: int, change: Callable[[str, int], str]) -> Any:
    """A value at a dotted key; only a reference is one, and no other text that begins alike."""
    if isinstance(value, dict):
        return {name: _resolve(item, f"{key}.{name}", seed, change) for name, item in value.items()}
    if isinstance(value, list):
        return [_resolve(item, key, seed, change) for item in value]
    is_reference = isinstance(value, str) and value.startswith(RUN_PREFIX) and holds_paths(ExperimentConfig, key)
    return change(value, seed) if is_reference else value


def _map_texts(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, dict):
        return {name: _map_texts(item, change) for name, item in value.items()}
    if isinstance(value, list):
        return [_map_texts(item, change) for item in value]
    return change(value) if isinstance(value, str) else value


def _folder_of(reference: str, root: Path, seed: int) -> Path:
    experiment, slash, model = reference.removeprefix(RUN_PREFIX).partition("/")
    runs = root / "runs"
    if not slash or not (runs / experiment).is_dir():
        hint = suggest(experiment, sorted(path.name for path in runs.glob("*") if path.is_dir()))
        raise UserError(f"reference {reference!r}: no experiment {experiment!r} has been run below {runs}{hint}")
    made = _finished_models(runs / experiment)
    for label in (model, f"{model}-seed={seed}"):
        if len(made.get(label, ())) > 1:
            folders = " or ".join(folder.parent.name for folder in made[label])
            raise UserError(f"reference {reference!r}: it has been made with several settings; name one folder, {folders}")
        if label in made:
            return made[label][0]
    seeds = sorted(int(match[1]) for label in made if (match := SEED.search(label)) and label[: match.start()] == model)
    if seeds:
        raise UserError(f"reference {reference!r}: it has no seed {seed}, but {', '.join(map(str, seeds))}")
    names = dict.fromkeys(SEED.sub("", label) for label in made)
    raise UserError(f"reference {reference!r}: no finished model is called so{suggest(model, names)}")


def _finished_models(folder: Path) -> dict[str, list[Path]]:
    """{label, or name of a run: transformers folders} of the runs of an experiment that have made a model."""
    found = defaultdict(list)
    for path in sorted(folder.glob("*/manifest.json")):
        manifest = read_mapping(path)
        student = Path(manifest.get("model", path.parent / "student"))
        if "fingerprint" in manifest and student.is_dir():
            # a folder is called anew where the label of its run changes, a manifest is not
            for name in {path.parent.name, HASH.sub("", path.parent.name)}:
                found[name].append(student)
    return found
