"""Whether the results of an experiment could decide what its hypotheses claim."""

from collections.abc import Mapping
from typing import Any

from distill_lit.config.grid_points import grid_points, shortest_names, value_text
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
from distill_lit.utils.exceptions import UserError, suggest


def untestable_hypotheses(config: ExperimentConfig) -> dict[str, str]:
    """{name: why} of those that no result of the experiment could decide."""
    known: dict[str, dict[str, None]] = {STUDENT: dict.fromkeys(config.students), ROLE: dict.fromkeys(COMPARED_ROLES)}
    for point in grid_points(config.grid) if config.hypotheses else ():
        for key, value in point.items():
            known.setdefault(key, {})[value_text(value)] = None
    found = {}
    for name, hypothesis in config.hypotheses.items():
        try:
            _check(f"hypotheses.{name}", hypothesis, config, {key: list(values) for key, values in known.items()})
        except UserError as error:
            found[name] = str(error)
    return found


def _check(where: str, hypothesis: HypothesisConfig, config: ExperimentConfig, known: Mapping[str, list[str]]) -> None:
    if not hypothesis.claim:
        raise UserError(f"{where}.claim: it is required and has no value")
    _check_selection(f"{where}.models", hypothesis.models, known)
    if isinstance(hypothesis.against, dict):
        _check_changes(f"{where}.against", hypothesis.against, known)
    missing = sorted(_needed_baselines(hypothesis) - set(config.baselines))
    if missing:
        raise UserError(f"{where}: it needs {missing[0]} in baselines")
    _check_endpoint(where, hypothesis, config)
    try:
        margin_of(hypothesis, config.analysis)
    except UserError as error:
        raise UserError(f"{where}.{error}") from None


def _needed_baselines(hypothesis: HypothesisConfig) -> set[str]:
    needed = {"ce_only"} if hypothesis.measure == "gain" else set()
    roles = [*values_of(hypothesis.models.get(ROLE, []))]
    if isinstance(hypothesis.against, dict):
        roles += values_of(hypothesis.against.get(ROLE, []))
    else:
        needed.add(BASELINE_OF[hypothesis.against])
    return (needed | {str(role) for role in roles}) - {"distilled"}


def _check_selection(where: str, selection: Mapping[str, Any], known: Mapping[str, list[str]]) -> None:
    for name, value in selection.items():
        axis = axis_named(str(name), known)
        if axis is None:
            raise UserError(f"{where}: {name!r} is no key of the grid{suggest(str(name), shortest_names(known).values())}")
        for one in values_of(value):
            if value_text(one) not in known[axis]:
                raise UserError(f"{where}.{name}: no model has {one!r}{suggest(str(one), known[axis])}")


def _check_changes(where: str, changes: Mapping[str, Any], known: Mapping[str, list[str]]) -> None:
    if not changes:
        raise UserError(f"{where}: {{}} changes nothing, so each model would be compared with itself")
    _check_selection(where, changes, known)
    if any(isinstance(value, list) for value in changes.values()):
        raise UserError(f"{where}: one value for each key, since each model has one opponent")


def _check_endpoint(where: str, hypothesis: HypothesisConfig, config: ExperimentConfig) -> None:
    endpoint = endpoint_of(hypothesis, config.analysis)
    if endpoint in VALIDATION_ENDPOINTS:
        if hypothesis.tasks:
            raise UserError(f"{where}.tasks: {endpoint} is of the corpus, not of tasks")
        return
    is_probe = endpoint.startswith("probe_")
    known = list(config.evaluation.probes if is_probe else config.evaluation.tasks)
    if not known:
        raise UserError(f"{where}: {endpoint} needs evaluation.{'probes' if is_probe else 'tasks'}, and there are none")
    for task in hypothesis.tasks:
        if task not in known:
            raise UserError(f"{where}.tasks: nothing that is evaluated is called {task!r}{suggest(task, known)}")
