"""The runs that one point of the grid needs: its student in all its stages, its baselines, and what these are made from."""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from distill_lit.config import CorpusConfig, ExperimentConfig, TeacherConfig, to_dict
from distill_lit.config.derivation import Recipe, map_model_references, with_one_teacher
from distill_lit.config.grid_points import grid_keys, shortest_names
from distill_lit.config.mixture import MAIN_TEACHER
from distill_lit.config.roles import Role
from distill_lit.experiment.planning.asked_teachers import asked_teachers, with_teacher_beside
from distill_lit.experiment.planning.fingerprint import (
    corpus_fingerprint_fields,
    student_fingerprint_fields,
    teacher_cache_fingerprint_fields,
    versioned_fingerprint,
)
from distill_lit.experiment.planning.grid import GridPoint, resolve_objective
from distill_lit.experiment.planning.pipeline import (
    Pipeline,
    expand_pipeline,
    learns_from_teacher,
    referred_models,
    without_teacher,
)
from distill_lit.experiment.planning.planned_run import Run
from distill_lit.experiment.planning.run_labels import run_label, safe_label
from distill_lit.teachers import cached_teacher_source, teacher_capabilities


class PointRuns:
    """The runs that one point of the grid needs. `depends_on`, `sources` and `previous_stage` hold fingerprints still.

    generated: corpora that are written; teacher_caches; models: of `models`, by what they are made from; students: those of
    the point, {role: its stages, the last one last}; seedless: {fingerprint of a model: what it and its like at other seeds
    have in common}.
    """

    def __init__(self, grid_point: GridPoint, first_teacher: TeacherConfig) -> None:
        """first_teacher: of the first point of the grid."""
        self.values, point, base = grid_point
        self.first_teacher, self.seed = first_teacher, point.seed
        self.axes = {key: value for key, value in self.values.items() if key not in ("student", "seed")}
        self.generated: list[Run] = []
        self.teacher_caches: list[Run] = []
        self.models: list[Run] = []
        self.students: dict[str, list[Run]] = {}
        self.seedless: dict[str, str] = {}
        self._made: dict[str, Run] = {}  # of `models`, by name
        pipeline = expand_pipeline(point, base)
        for name in pipeline.models:
            self._make_model(name, pipeline.models)
        self.models = list(self._made.values())
        own = Role.DISTILLED if pipeline.learns_from_teacher else Role.CE_ONLY
        self._make_student(own, pipeline)
        for role in (Role.UNTRAINED, Role.CE_ONLY):
            # where the teacher wrote the text, plain training on it is no training without the teacher
            if role in point.baselines and role != own and not (role == Role.CE_ONLY and pipeline.reads_generated_text):
                self._make_student(role, expand_pipeline(self._baseline_point(role, point, pipeline), base))

    def _baseline_point(self, role: Role, point: ExperimentConfig, pipeline: Pipeline) -> ExperimentConfig:
        """The point with the student as a baseline has it. One that is not made from the point's own teacher is the same
        beside every teacher, and is validated against the first."""
        shape = point.students[point.student]
        if role == Role.CE_ONLY and pipeline.learns_from_teacher:
            point = without_teacher(point)
        elif role == Role.UNTRAINED:
            students = {**point.students, point.student: replace(shape, quantize="none")}
            point = replace(point, stages={}, students=students, objective=resolve_objective(point.objective))
        point = with_one_teacher(point)  # validated against `teacher.model`, whoever teaches the others
        if teacher_capabilities(point.teacher).copies_student:
            point = replace(point, teacher=replace(point.teacher, source="online"))
        is_shared = bool(shape.from_) and not shape.initializer and point.teacher.model != self.first_teacher.model
        return replace(point, teacher=copy.deepcopy(self.first_teacher)) if is_shared else point

    def _make_model(self, name: str, recipes: Mapping[str, Recipe]) -> None:
        if name not in self._made:
            for reference in referred_models(recipes[name].config).values():
                if reference in recipes:
                    self._make_model(reference, recipes)
            self._made[name] = self._run(Role.DERIVED, name, recipes[name], self._made)

    def _make_student(self, role: Role, pipeline: Pipeline) -> None:
        made = dict(self._made)
        for name, recipe in pipeline.stages.items():
            is_last = name == list(pipeline.stages)[-1]
            made[name] = self._run(Role.DERIVED if role == Role.DISTILLED and not is_last else role, name, recipe, made)
        self.students[role] = [made[name] for name in pipeline.stages]

    def _run(self, role: Role, name: str, recipe: Recipe, made: Mapping[str, Run]) -> Run:
        """The run of a recipe. made: the runs that its names stand for."""
        config = recipe.config
        sources = {ref: made[ref].fingerprint for ref in referred_models(config).values() if ref in made}
        identified = map_model_references(config, lambda _, ref: f"derived:{sources[ref]}" if ref in sources else ref)
        shape = config.students[name]
        if not recipe.is_trained and shape.quantize == "none":  # another name for a model
            return made.get(shape.from_) or self.external_run(name, shape.from_, config)
        needs = self._prerequisites(config, identified, sources)
        is_drawn = recipe.is_trained and role != Role.UNTRAINED
        trained = Role.DISTILLED if learns_from_teacher(config) else Role.CE_ONLY
        learning = trained if is_drawn else Role.UNTRAINED
        reads_on = is_drawn and recipe.previous and made[recipe.previous].is_trained
        order = {"rows": "after those of the stages before"} if reads_on else {}
        fields = student_fingerprint_fields(learning, identified) | order
        identity = versioned_fingerprint(**fields)
        if sources:
            alike = {ref: self.seedless.get(of, of) for ref, of in sources.items()}
            like_others = map_model_references(config, lambda _, ref: f"derived:{alike[ref]}" if ref in alike else ref)
            fields = student_fingerprint_fields(learning, like_others) | order
        seedless = {**fields, "seed": 0} if "seed" in fields else fields
        self.seedless[identity] = f"{name} {versioned_fingerprint(**seedless)}"
        is_seedless = not (is_drawn or shape.draws_weights or any(made[ref].seed is not None for ref in sources))
        seed = None if recipe.has_fixed_seed or is_seedless else config.seed
        keys = grid_keys(config.grid)
        label = run_label(role, name, self.axes, seed if "seed" in self.values else None, keys)
        previous = made[recipe.previous].fingerprint if recipe.previous else ""
        needs = (*needs, *sources.values())
        return Run(role, label, identity, config, name, seed, self.axes, needs, "", sources, previous)

    def external_run(self, name: str, reference: str, config: ExperimentConfig) -> Run:
        """A model as it is. Under `external_models` it may be one that is made here, with the seed of this point."""
        made = self._made.get(reference)
        identity = versioned_fingerprint(external=f"derived:{made.fingerprint}" if made else reference)
        sources = {reference: made.fingerprint} if made else {}
        run = Run(Role.EXTERNAL, safe_label(name), identity, config, model_reference=reference, sources=sources)
        return replace(run, depends_on=tuple(sources.values()))

    def _prerequisites(
        self, config: ExperimentConfig, identified: ExperimentConfig, sources: dict[str, str]
    ) -> tuple[str, ...]:
        """The identities of the runs that write what a student reads: generated corpora, and what its teacher says."""
        seed = self.seed if "seed" in self.values else None
        generated = list(_generated_runs(config, identified, sources, seed))
        self.generated += generated
        needs = tuple(run.fingerprint for run in generated)
        caches = [
            _teacher_cache_run(name, config, identified, sources, needs, seed)
            for name, teacher in asked_teachers(config).items()
            if teacher_capabilities(teacher).needs_cache
        ]
        self.teacher_caches += caches
        return (*needs, *(cache.fingerprint for cache in caches))


def _generated_runs(
    config: ExperimentConfig, identified: ExperimentConfig, sources: dict[str, str], seed: int | None
) -> Iterator[Run]:
    """One run for each corpus that is written; its config holds no other corpus."""
    for name, corpus in config.data.corpora.items():
        if corpus.generated is not None:
            alone = copy.deepcopy(with_one_teacher(_without_made_student(config, sources)))
            alone.data.corpora = {name: alone.data.corpora[name]}
            writer = {"model": identified.teacher.model, "dtype": config.teacher.dtype}
            facts = corpus_fingerprint_fields(identified.data.corpora[name], config)
            identity = versioned_fingerprint(
                corpus={key: value for key, value in facts.items() if key != "weight"},
                writer={} if corpus.generated.remote else writer,
                benchmarks=config.dataset_source,
            )
            used = [config.teacher.model, corpus.generated.model, corpus.generated.filters.perplexity_model]
            own = {ref: sources[ref] for ref in used if ref in sources}
            made = [ref for ref in own if ref == (corpus.generated.model or config.teacher.model)]
            made += [] if seed is None or not own else [f"seed={seed}"]
            label = safe_label("-".join([f"generated-{name}", *_corpus_axes(name, corpus, config.grid), *made]))
            yield Run(Role.GENERATED, label, identity, alone, depends_on=tuple(own.values()), sources=own)


def _corpus_axes(name: str, corpus: CorpusConfig, grid: Mapping[str, list[Any]]) -> list[str]:
    """`key=value` of what the grid varies in how a corpus is written: one run for each. A key is left out where it does not
    apply, as one of `remote` where the writer is a local model."""
    prefix, values = f"data.corpora.{name}.generated.", to_dict(corpus.generated)
    names = shortest_names(grid_keys(grid))
    found = {key: _find(values, key.removeprefix(prefix).split(".")) for key in names if key.startswith(prefix)}
    return [f"{names[key]}={value}" for key, values in found.items() for value in values]


def _find(values: Any, path: list[str]) -> list[Any]:
    """The value at a path, alone in a list; an empty list where the path ends before."""
    for key in path:
        if not isinstance(values, Mapping) or key not in values:
            return []
        values = values[key]
    return [values]


def _teacher_cache_run(
    name: str,
    config: ExperimentConfig,
    identified: ExperimentConfig,
    sources: dict[str, str],
    needs: tuple[str, ...],
    seed: int | None,
) -> Run:
    """The run that writes the cache of one of the teachers, by its name."""
    teacher = config.teacher.members[name]
    identity = versioned_fingerprint(**teacher_cache_fingerprint_fields(name, identified))
    own_name, kind = "" if name == MAIN_TEACHER else name, cached_teacher_source(teacher).cache_label(teacher)
    own = {ref: made for ref, made in sources.items() if ref in (config.teacher.model, teacher.model)}
    named = [ref for ref in own if ref == teacher.model] + ([] if seed is None or not own else [f"seed={seed}"])
    label = safe_label("-".join(dict.fromkeys(part for part in ("teacher-cache", own_name, kind, *named) if part)))
    alone = _without_made_student(with_teacher_beside(name, config), sources)
    return Run(
        Role.TEACHER_CACHE, label, identity, alone, depends_on=(*needs, *own.values()), sources=own, teacher=own_name
    )


def _without_made_student(config: ExperimentConfig, sources: dict[str, str]) -> ExperimentConfig:
    """The config of a run that a student waits for, without what that student begins as, which need not be there yet."""
    shape = config.students[config.student]
    if shape.from_ not in sources:
        return config
    return replace(config, students={**config.students, config.student: shape.with_origin("")})
