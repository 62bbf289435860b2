"""Number formats of this machine for every auto, and presets spelled out."""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from distill_lit.config import ExperimentConfig, ObjectiveConfig, TermConfig, expand_grid, to_dict
from distill_lit.losses import resolve_preset
from distill_lit.utils import hardware


def resolve_auto(config: ExperimentConfig) -> ExperimentConfig:
    """The same experiment with every `auto` that can change a result replaced by this machine's choice."""
    config = copy.deepcopy(config)
    accelerator = config.training.accelerator
    for section, knob in ((config.training, "precision"), (config.teacher, "dtype"), (config.evaluation, "dtype")):
        setattr(section, knob, resolve_dtype(getattr(section, knob), accelerator))
    return config


def resolve_dtype(dtype: str, accelerator: str = "auto") -> str:
    """The number format itself, or for `auto` the fastest measured on this machine."""
    return hardware.fastest_dtype(hardware.device_for(accelerator)) if dtype == "auto" else dtype


def resolved_grid_points(config: ExperimentConfig) -> Iterable[tuple[dict[str, Any], ExperimentConfig]]:
    """`config.expand`, every objective spelled out: its preset as terms and scaling."""
    for values, point in expand_grid(config):
        point.objective = resolve_objective(point.objective)
        yield values, point


def resolve_objective(objective: ObjectiveConfig) -> ObjectiveConfig:
    """The same objective without a preset and without `auto` in its scaling. Raises UserError for an unknown preset."""
    given: dict[str, Mapping[str, Any] | None] = {
        name: None if term is None else to_dict(term) for name, term in objective.terms.items()
    }
    terms, scaling = resolve_preset(objective.preset, given, objective.temperature_scaling)
    spelled: dict[str, TermConfig | None] = {name: TermConfig(**fields) for name, fields in terms.items()}
    return replace(objective, preset="", terms=spelled, temperature_scaling=scaling)
