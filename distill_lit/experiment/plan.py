"""An experiment as a list of runs: what each trains, how it is called, and what identifies it."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

from distill_lit.config import ExperimentConfig
from distill_lit.config.derivation import with_one_teacher
from distill_lit.config.models import BASE_TEACHER
from distill_lit.config.roles import Role
from distill_lit.experiment.planning.fingerprint import (
    TEACHER_INT8,
    versioned_fingerprint,
)
from distill_lit.experiment.planning.grid import GridPoint, expand_points
from distill_lit.experiment.planning.planned_run import Run
from distill_lit.experiment.planning.point_runs import PointRuns
from distill_lit.experiment.planning.precision import Dtypes, resolve_auto
from distill_lit.experiment.planning.run_labels import deduplicate_runs, make_labels_distinct
from distill_lit.models import INT8_RECIPE
from distill_lit.utils.exceptions import UserError

if TYPE_CHECKING:
    from distill_lit.experiment.estimates.run_estimate import Estimate


class Plan:
    """What an experiment comes to once it is known what `auto` stands for; each part is made when it is first asked for."""

    def __init__(self, config: ExperimentConfig, plan: Callable[[], list[Run]]) -> None:
        """config: without `auto`; plan: gives all runs, in the order they are run."""
        self.config, self._plan = config, plan

    @cached_property
    def runs(self) -> list[Run]:
        """All runs, in the order they are run."""
        return self._plan()

    @cached_property
    def required_assets(self) -> list[str]:
        """References of all models, wheels and files that they need."""
        from distill_lit.experiment.planning.requirements import required_assets

        return required_assets(self.runs)

    @cached_property
    def estimates(self) -> "dict[str, Estimate | None]":
        """{name of a run: what it will cost}; all models must be here."""
        from distill_lit.experiment.estimates.run_estimate import estimate_runs

        return dict(estimate_runs(self.runs))


def plan_runs(
    config: ExperimentConfig, points: Sequence[GridPoint] | None = None, dtypes: Dtypes | None = None
) -> list[Run]:
    """All runs, each after what it depends on: generated corpora, teacher caches, the teacher, models made from it, the
    baselines, the distilled students. dtypes: what the machines that do the work take for `auto`; None: as this one."""
    resolved = [point.map_configs(lambda one: resolve_auto(one, dtypes)) for point in points or expand_points(config)]
    base = resolved[0].base
    teacher = replace(config.teacher, model=base.teacher.model)  # found, where it is a run of another experiment
    config = resolve_auto(replace(config, teacher=teacher, external_models=base.external_models), dtypes)
    first_teacher = with_one_teacher(resolved[0].config).teacher
    planned = [PointRuns(point, first_teacher) for point in resolved]
    seedless = {identity: like for one in planned for identity, like in one.seedless.items()}
    runs = _link(make_labels_distinct(deduplicate_runs(list(_all_runs(config, planned)), seedless, config.students)))
    label, times = Counter(run.label for run in runs if run.is_model).most_common(1)[0]
    if times > 1:
        raise UserError(f"students: {times} models would be called {label!r}; give a student or a grid value another name")
    return runs


def _link(runs: list[Run]) -> list[Run]:
    """The runs with names instead of fingerprints of those they depend on, in an order in which they can be run."""
    by_identity = {run.fingerprint: run for run in runs}
    names = {identity: run.name for identity, run in by_identity.items()}
    ordered: dict[str, Run] = {}

    def place(run: Run) -> None:
        for identity in run.depends_on if run.name not in ordered else ():
            place(by_identity[identity])
        ordered.setdefault(
            run.name,
            replace(
                run,
                depends_on=tuple(names[identity] for identity in run.depends_on),
                sources={name: names[identity] for name, identity in run.sources.items()},
                previous_stage=names.get(run.previous_stage, ""),
            ),
        )

    for run in runs:
        place(run)
    return list(ordered.values())


def _all_runs(config: ExperimentConfig, planned: Sequence[PointRuns]) -> Iterator[Run]:
    for one in planned:
        yield from one.generated
    for one in planned:
        yield from one.teacher_caches
    yield from _reference_runs(config, planned[0])
    # seed by seed, so that an experiment that is not finished yet has whole comparisons already
    for seed in dict.fromkeys(one.seed for one in planned):
        of_seed = [one for one in planned if one.seed == seed]
        for one in of_seed:
            yield from one.models
        for role in (Role.UNTRAINED, Role.CE_ONLY, Role.DISTILLED):
            for one in of_seed:
                yield from one.students.get(role, ())


def _reference_runs(config: ExperimentConfig, first: PointRuns) -> Iterator[Run]:
    """Models to compare with that no run trains."""
    reference = config.teacher.model
    if Role.TEACHER in config.baselines:
        identity = versioned_fingerprint(teacher=reference)
        yield Run(Role.TEACHER, Role.TEACHER, identity, config, model_reference=reference)
    if TEACHER_INT8 in config.baselines:
        identity = versioned_fingerprint(teacher=reference, form=INT8_RECIPE)
        yield Run(Role.QUANTIZED, TEACHER_INT8, identity, config, model_reference=reference)
    for name, reference in config.external_models.items():
        of_teacher = config.teacher.model if reference == BASE_TEACHER else reference
        yield first.external_run(name, of_teacher, config)
