"""The grid: every point as a config of its own, expanded once."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from distill_lit.config import ExperimentConfig, ObjectiveConfig, TermConfig, expand_grid, to_dict
from distill_lit.config.fields import with_values
from distill_lit.config.loading import config_at_point
from distill_lit.losses import mix_terms, resolve_preset


class GridPoint(NamedTuple):
    """One point of the grid.

    Args:
        values: {grid key: value}.
        config: the experiment at this point, presets spelled out where it has no stages.
        base: the experiment with the seed of this point, and without what its axes change otherwise: models of `models`
            are made from it.
    """

    values: dict[str, Any]
    config: ExperimentConfig
    base: ExperimentConfig

    def map_configs(self, change: Callable[[ExperimentConfig], ExperimentConfig]) -> "GridPoint":
        """The point with both configs changed."""
        return self._replace(config=change(self.config), base=change(self.base))


def expand_points(config: ExperimentConfig) -> list[GridPoint]:
    """All points of the grid, in the order of the file. Every objective is spelled out, its preset as terms and scaling,
    but where stages change it: what they change is the preset and the alpha, not the terms that these stand for."""
    points, base = [], config_at_point(config, {})
    for values, point in expand_grid(config):
        if not point.stages:
            point.objective = resolve_objective(point.objective)
        points.append(GridPoint(values, point, with_values(base, models=point.models, seed=point.seed)))
    return points


def resolve_objective(objective: ObjectiveConfig) -> ObjectiveConfig:
    """The same objective without a preset, without `alpha`, which becomes the weights of the terms, and without `auto` in
    its scaling. Raises UserError for an unknown preset, and for an alpha with nothing to mix."""
    given: dict[str, Mapping[str, Any] | None] = {
        name: None if term is None else to_dict(term) for name, term in objective.terms.items()
    }
    terms, scaling = resolve_preset(objective.preset, given, objective.temperature_scaling)
    if objective.alpha is not None:
        terms = mix_terms(terms, objective.alpha)
    spelled: dict[str, TermConfig | None] = {name: TermConfig(**fields) for name, fields in terms.items()}
    return replace(objective, preset="", alpha=None, terms=spelled, temperature_scaling=scaling)
