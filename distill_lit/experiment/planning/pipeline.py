"""What is made at one point of the grid: its student, the stages before it, the models that it begins as or learns from.

A reference to a model is one to weights that exist (`assets`), or the name of a model that this experiment makes, or
`teacher`, the experiment's own. Names are followed within one seed: the student of seed 1 learns from the `corrected` of
seed 1, unless that model has a seed of its own.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from distill_lit.config import ExperimentConfig, OnPolicyConfig, TeacherConfig, TermConfig
from distill_lit.config.derivation import (
    Recipe,
    derive_model,
    derive_stages,
    map_model_references,
    with_one_teacher,
)
from distill_lit.config.grid_points import grid_keys
from distill_lit.config.models import BASE_TEACHER
from distill_lit.config.on_policy import is_on_policy_enabled
from distill_lit.experiment.planning.grid import resolve_objective
from distill_lit.losses import build_objective
from distill_lit.teachers import teacher_capabilities
from distill_lit.utils.exceptions import UserError, suggest


class Pipeline(NamedTuple):
    """models: the recipes of `models`, and of stages that these have; stages: those of the point's student, the last one
    under the student's own name."""

    models: dict[str, Recipe]
    stages: dict[str, Recipe]

    @property
    def recipes(self) -> dict[str, Recipe]:
        """All by name."""
        return {**self.models, **self.stages}

    @property
    def learns_from_teacher(self) -> bool:
        """Whether the student learns from a teacher in any of its stages."""
        return any(learns_from_teacher(recipe.config) for recipe in self.stages.values())

    @property
    def reads_generated_text(self) -> bool:
        """Whether a model writes some of the text of any stage."""
        return any(has_generated_corpus(recipe.config) for recipe in self.stages.values())


def expand_pipeline(point: ExperimentConfig, base: ExperimentConfig) -> Pipeline:
    """The pipeline of a grid point, with presets spelled out and no reference left to `teacher`.

    The axes of the grid change the student and its stages, and models only where a key says so, as
    `models.corrected.training.max_tokens`.

    Args:
        point: the experiment at a point of the grid.
        base: the experiment without its axes, see `GridPoint`.

    Raises UserError for names that are unknown or taken, and for models made from themselves.
    """
    if base.teacher.model in point.models:
        name = base.teacher.model
        raise UserError(
            f"teacher.model: {name!r} is made here; let students learn from it with grid: {{teacher: [{name}]}}"
        )
    models: dict[str, Recipe] = {}
    for name in point.models:
        recipe = derive_model(base, name)
        _add(models, _stages_of(recipe) if recipe.is_trained else {name: recipe})
    stages = derive_stages(point)
    _add(dict(models), stages)
    is_staged = bool(point.stages) or len(stages) > 1
    pipeline = Pipeline(
        {name: _spell_out(recipe, base.teacher, is_derived=True) for name, recipe in models.items()},
        {name: _spell_out(recipe, base.teacher, is_derived=is_staged) for name, recipe in stages.items()},
    )
    _check_references(pipeline, point.students)
    _check_full_precision(pipeline.recipes)
    if "seed" in grid_keys(point.grid):
        _check_seeds(pipeline.models)
    return pipeline


def _stages_of(recipe: Recipe) -> dict[str, Recipe]:
    """The stages of a model of `models`, which all have its seed."""
    found = derive_stages(recipe.config)
    return {name: stage._replace(has_fixed_seed=recipe.has_fixed_seed) for name, stage in found.items()}


def _add(recipes: dict[str, Recipe], more: Mapping[str, Recipe]) -> None:
    for name in more:
        if name in recipes or name == BASE_TEACHER:
            raise UserError(f"models.{name}: the name is taken; choose another")
    recipes.update(more)


def _spell_out(recipe: Recipe, base: TeacherConfig, is_derived: bool) -> Recipe:
    """The recipe with its preset as terms and the experiment's teacher under its own reference. A derived one whose
    objective asks no teacher needs neither on-policy text nor a cache, nor several teachers: `teacher.model` is asked in
    validation alone."""
    config = map_model_references(recipe.config, lambda _, name: base.model if name == BASE_TEACHER else name)
    if is_derived:
        config = replace(config, objective=resolve_objective(config.objective))
    learns = recipe.is_trained and learns_from_teacher(config)
    if is_derived and not learns_from_teacher(config):
        config = replace(config, on_policy=OnPolicyConfig())
    if is_derived and not learns:
        config = with_one_teacher(config)
        able = teacher_capabilities(config.teacher)
        if able.copies_student or (able.needs_cache and not learns_from_teacher(config)):
            here = able.copies_student or able.needs_model
            config = replace(config, teacher=replace(config.teacher, source="online" if here else "none"))
    return recipe._replace(config=config)


def _check_references(pipeline: Pipeline, students: Collection[str]) -> None:
    """Raises UserError for the name of a model that nobody makes, or that is made later, and for a model that is made from
    itself."""
    recipes, followed = pipeline.recipes, set[str]()
    for name, recipe in recipes.items() if len(recipes) > 1 else ():
        known = pipeline.models if name in pipeline.models else recipes
        for key, reference in referred_models(recipe.config).items():
            if re.fullmatch(r"[\w-]+", reference) and reference not in known and not Path(reference).exists():
                hint = suggest(reference, [BASE_TEACHER, *known])
                if reference in (*students, *pipeline.stages):
                    hint = ", which is a student; what others are made from is one of `models`, as in {NAME: {student: …}}"
                own_key = key.replace(f"students.{name}.", f"{config_key(name, recipe.config)}.")
                raise UserError(f"{name}: {own_key}: no model is called {reference!r}{hint}")
        _follow(name, recipes, (), followed)


def _check_full_precision(recipes: Mapping[str, Recipe]) -> None:
    """Raises UserError for a model that begins as one whose weights are rounded: they cannot be trained, and rounded twice
    they are another model."""
    for name, recipe in recipes.items():
        shape = recipe.config.students[name]
        origin = shape.from_ or ("" if shape.config else recipe.config.teacher.model)
        if not (recipe.is_trained or shape.quantize != "none") or origin not in recipes:
            continue
        made = recipes[origin].config.students[origin]
        if (made.quantize, made.quantization_aware) != ("none", "none"):
            remedy = "name what it was made from" if shape.from_ else "say what it is cut out of with `from`"
            raise UserError(f"{name}: it begins as {origin!r}, whose weights are rounded; {remedy}")


def _check_seeds(models: Mapping[str, Recipe]) -> None:
    """Raises UserError for a model that is one for all seeds, and made from one that is not."""
    for name, recipe in models.items():
        for reference in referred_models(recipe.config).values() if recipe.has_fixed_seed else ():
            if reference in models and _has_seeds(reference, models):
                raise UserError(
                    f"models.{name}.seed: it is made from {reference!r}, of which there is one for each seed; give "
                    f"models.{reference} a seed too"
                )


def _has_seeds(name: str, models: Mapping[str, Recipe]) -> bool:
    """Whether there is another model of this name at every seed of the experiment."""
    recipe = models[name]
    if recipe.has_fixed_seed or recipe.is_trained:
        return not recipe.has_fixed_seed
    return any(_has_seeds(one, models) for one in referred_models(recipe.config).values() if one in models)


def _follow(name: str, recipes: Mapping[str, Recipe], trail: tuple[str, ...], followed: set[str]) -> None:
    if name in trail:
        raise UserError(f"models: {' → '.join((*trail[trail.index(name) :], name))}: a model cannot be made from itself")
    for reference in referred_models(recipes[name].config).values() if name not in followed else ():
        if reference in recipes:
            _follow(reference, recipes, (*trail, name), followed)
    followed.add(name)


def without_teacher(point: ExperimentConfig) -> ExperimentConfig:
    """The same training on the labels alone, in each of its stages."""
    plain = {"ce": TermConfig(weight=1.0)}
    stages = {
        name: {
            key: value for key, value in spec.items() if key.partition(".")[0] not in ("objective", "on_policy", "teacher")
        }
        for name, spec in point.stages.items()
    }
    objective = replace(point.objective, preset="", alpha=None, terms=dict(plain))
    return replace(point, objective=objective, on_policy=OnPolicyConfig(), stages=stages)


def learns_from_teacher(config: ExperimentConfig) -> bool:
    """Whether the student of a run learns from a teacher: a term compares with it, or it writes some of the text."""
    objective = build_objective(config.objective.terms, config.objective.temperature_scaling)
    is_mixed = is_on_policy_enabled(config.on_policy) and config.on_policy.teacher_mix_fraction > 0
    return objective.needs_teacher or is_mixed or has_generated_corpus(config)


def has_generated_corpus(config: ExperimentConfig) -> bool:
    """Whether a model writes some of the text."""
    return any(corpus.generated is not None for corpus in config.data.corpora.values())


def referred_models(config: ExperimentConfig) -> dict[str, str]:
    """{key: reference} of every model that a run with this config needs."""
    found: dict[str, str] = {}

    def note(key: str, reference: str) -> str:
        found[key] = reference
        return reference

    map_model_references(config, note)
    return found


def config_key(name: str, config: ExperimentConfig) -> str:
    """The key of a model in the config, for messages."""
    return f"models.{name}" if name in config.models else f"students.{name}"
