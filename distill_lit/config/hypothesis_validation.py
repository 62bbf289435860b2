"""Whether the results of an experiment could decide what its hypotheses claim."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from distill_lit.config.grid_points import Point, comparable_text, grid_points, shortest_names, value_text
from distill_lit.config.hypotheses import (
    BASELINE_OF,
    COMPARED_ROLES,
    ROLE,
    STUDENT,
    VALIDATION_ENDPOINTS,
    HypothesisConfig,
    axis_named,
    endpoint_of,
    margin_of,
    values_of,
)
from distill_lit.config.schema import ExperimentConfig
from distill_lit.config.variants import choose_variants
from distill_lit.utils.exceptions import UserError, suggest

SEED = "seed"
Known = dict[str, dict[str, str]]  # {key of the grid, student or role: {`comparable_text` of a value: the value in words}}


def untestable_hypotheses(config: ExperimentConfig) -> dict[str, str]:
    """{name: why} of those that no result of the experiment could decide."""
    points = [_with_student(config, point) for point in grid_points(config.grid)] if config.hypotheses else []
    known: Known = {ROLE: {role: role for role in COMPARED_ROLES}}
    for point in points:
        for key, value in point.items():
            known.setdefault(key, {})[comparable_text(value)] = value_text(value)
    known.pop(SEED, None)
    found = {}
    for name, hypothesis in config.hypotheses.items():
        try:
            _check(f"hypotheses.{name}", hypothesis, config, known)
            _check_points(f"hypotheses.{name}", hypothesis, points, known)
        except UserError as error:
            found[name] = str(error)
    return found


def _with_student(config: ExperimentConfig, point: Point) -> Point:
    """A point with the student that it has, which a variant may name too."""
    named = [variant.changes[STUDENT] for variant in choose_variants(config, point) if STUDENT in variant.changes]
    return {STUDENT: named[0] if named else config.student, **point}


def refuse_untestable(
    untestable: dict[str, str], overrides: Sequence[str], of_file: Callable[[list[str]], dict[str, str]]
) -> None:
    """Raises UserError for the first of {name of a hypothesis: why it cannot be tested}, but where overrides have taken
    away what it is about: then it is not tested. of_file: the same of the file with overrides of hypotheses alone, which
    may be no experiment without the others."""
    if untestable and overrides:
        with contextlib.suppress(UserError):
            written = of_file([override for override in overrides if override.startswith("hypotheses")])
            untestable = {name: problem for name, problem in written.items() if name in untestable}
    for problem in untestable.values():
        raise UserError(problem)


def _check(where: str, hypothesis: HypothesisConfig, config: ExperimentConfig, known: Known) -> None:
    if not hypothesis.claim.strip():
        raise UserError(f"{where}.claim: it is required and has no value")
    _check_selection(f"{where}.models", hypothesis.models, known)
    if isinstance(hypothesis.against, dict):
        _check_changes(f"{where}.against", hypothesis.against, known)
    # a point of the grid may be without teacher too: that of ce_only is seen in the runs
    missing = sorted(needed_baselines(hypothesis) - {"ce_only", *config.baselines})
    if missing:
        raise UserError(f"{where}: it needs {missing[0]} in baselines")
    _check_opponent(where, hypothesis)
    _check_endpoint(where, hypothesis, config)
    try:
        margin_of(hypothesis, config.analysis)
    except UserError as error:
        raise UserError(f"{where}.{error}") from None


def needed_baselines(hypothesis: HypothesisConfig) -> set[str]:
    """The roles that it compares, but distilled students."""
    needed = {"ce_only"} if hypothesis.measure == "gain" else set()
    roles = [*values_of(hypothesis.models.get(ROLE, []))]
    if isinstance(hypothesis.against, dict):
        roles += values_of(hypothesis.against.get(ROLE, []))
    else:
        needed.add(BASELINE_OF[hypothesis.against])
    return (needed | {str(role) for role in roles}) - {"distilled"}


def _check_opponent(where: str, hypothesis: HypothesisConfig) -> None:
    """Refuses what would compare models with themselves, or the teacher by what it has not."""
    if isinstance(hypothesis.against, dict):
        return
    roles = values_of(hypothesis.models.get(ROLE, ["distilled"]))
    if all(role == BASELINE_OF[hypothesis.against] for role in roles):
        raise UserError(f"{where}.against: {hypothesis.against} is what its models are, so each would be its own opponent")
    if hypothesis.against == "teacher" and hypothesis.measure == "gain":
        raise UserError(f"{where}.measure: the teacher has no gain, as nothing is trained without itself")


def _check_selection(where: str, selection: Mapping[str, Any], known: Known) -> None:
    for name, value in selection.items():
        if name == SEED:
            raise UserError(f"{where}: every hypothesis is about the average over seeds")
        axis = axis_named(str(name), known)
        if axis is None:
            raise UserError(f"{where}: {name!r} is no key of the grid{suggest(str(name), shortest_names(known).values())}")
        if value == []:
            raise UserError(f"{where}.{name}: [] is no value{suggest('', known[axis].values())}")
        for one in values_of(value, known[axis]):
            if comparable_text(one) not in known[axis]:
                raise UserError(f"{where}.{name}: no model has {one!r}{suggest(str(one), known[axis].values())}")


def _check_changes(where: str, changes: Mapping[str, Any], known: Known) -> None:
    if not changes:
        raise UserError(f"{where}: {{}} changes nothing, so each model would be compared with itself")
    _check_selection(where, changes, known)
    if any(len(values) > 1 for values in _wanted(changes, known).values()):
        raise UserError(f"{where}: one value for each key, since each model has one opponent")


def _wanted(selection: Mapping[str, Any], known: Known) -> dict[str, list[str]]:
    """{key of the grid, student or role: the values that are wanted of it}."""
    axes = {axis_named(str(name), known): value for name, value in selection.items()}
    return {axis: [comparable_text(one) for one in values_of(value, known[axis])] for axis, value in axes.items() if axis}


def _check_points(where: str, hypothesis: HypothesisConfig, points: list[Point], known: Known) -> None:
    """Refuses distilled models and opponents that the grid does not plan, as combinations that it excludes."""
    against = hypothesis.against if isinstance(hypothesis.against, dict) else {}
    wanted, changes = _wanted(hypothesis.models, known), _wanted(against, known)
    roles = {*wanted.pop(ROLE, ["distilled"]), *changes.pop(ROLE, ["distilled"])}
    if roles != {"distilled"}:
        return
    keys = {key for point in points for key in point} - {SEED}
    texts = [{key: comparable_text(point.get(key)) for key in keys} for point in points]
    chosen = [own for own in texts if all(own[key] in values for key, values in wanted.items())]
    if not chosen:
        raise UserError(f"{where}.models: no point of the grid has all of these values")
    changed = [own | {key: values[0] for key, values in changes.items()} for own in chosen]
    if against and changed == chosen:
        raise UserError(f"{where}.against: its models have these values, so each would be compared with itself")
    if against and not any(other in texts for own, other in zip(chosen, changed, strict=True) if own != other):
        raise UserError(f"{where}.against: no point of the grid differs by this alone; name all that differs")


def _check_endpoint(where: str, hypothesis: HypothesisConfig, config: ExperimentConfig) -> None:
    endpoint = endpoint_of(hypothesis, config.analysis)
    if endpoint in VALIDATION_ENDPOINTS:
        if hypothesis.tasks:
            raise UserError(f"{where}.tasks: {endpoint} is of the corpus, not of tasks")
        if hypothesis.against == "teacher":
            raise UserError(f"{where}.endpoint: {endpoint} is measured on students, not on the teacher")
        return
    is_probe = endpoint.startswith("probe_")
    known = list(config.evaluation.probes if is_probe else config.evaluation.tasks)
    if not known:
        raise UserError(f"{where}: {endpoint} needs evaluation.{'probes' if is_probe else 'tasks'}, and there are none")
    if len(set(hypothesis.tasks)) < len(hypothesis.tasks):
        raise UserError(f"{where}.tasks: {max(hypothesis.tasks, key=hypothesis.tasks.count)} stands there twice")
    for task in hypothesis.tasks:
        if task not in known:
            raise UserError(f"{where}.tasks: nothing that is evaluated is called {task!r}{suggest(task, known)}")
