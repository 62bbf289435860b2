"""One run of every identity, and labels that are file names and tell runs apart."""

import unicodedata
from collections.abc import Container, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from distill_lit.config.grid_points import grid_keys, shortest_names, value_text
from distill_lit.config.on_policy import is_on_policy_enabled
from distill_lit.config.roles import Role
from distill_lit.config.schema import GRID_VALUE_SEPARATOR
from distill_lit.experiment.planning.fingerprint import training_fingerprint_fields
from distill_lit.utils.files import fingerprint

if TYPE_CHECKING:
    from distill_lit.experiment.planning.planned_run import Run

RELABELED_ROLES = (Role.DERIVED, Role.UNTRAINED, Role.CE_ONLY)  # of which one may stand for several points of the grid
Values = dict[str, dict[str, Any]]  # {grid key: {its value as text: the value}}
LABEL_BYTES = 150  # of the 255 that a name may have


def deduplicate_runs(runs: "list[Run]", seedless: dict[str, str], students: Container[str]) -> "list[Run]":
    """One run of every identity. A baseline is often the same at several grid points: of a grid key it has all values it
    stands for, as in `online or top_50`, and does not have the key at all where it stands for every value.

    seedless: {fingerprint: what a model and its like at other seeds have in common}; students: those of the experiment,
    without what they were after earlier stages.
    """
    values_in_group: dict[tuple[Any, ...], Values] = {}
    values_of_run: dict[tuple[str, str], Values] = {}  # as a stage of a student it has others than as a student
    # a grid with exclusions has other points at other seeds, and a baseline is called alike at all of them
    seedless = {run.fingerprint: seedless.get(run.fingerprint, run.fingerprint) for run in runs}
    for run, identity in [*((run, run.fingerprint) for run in runs), *_runs_without_own_baseline(runs)]:
        for key, value in run.grid_values.items():
            own = values_of_run.setdefault((seedless[identity], run.student), {})
            for found in (values_in_group.setdefault(_baseline_group(run), {}), own):
                found.setdefault(key, {})[value_text(value)] = value
    unique_runs: dict[str, Any] = {}
    for run in runs:
        known = unique_runs.setdefault(run.fingerprint, run)
        if _is_student(known, students) < _is_student(run, students):  # a student of the grid is shown as such
            unique_runs[run.fingerprint] = run
    return [
        _with_own_axes(
            run, values_of_run.get((seedless[run.fingerprint], run.student), {}), values_in_group[_baseline_group(run)]
        )
        if run.role in RELABELED_ROLES and run.grid_values
        else run
        for run in unique_runs.values()
    ]


def _is_student(run: "Run", students: Container[str]) -> tuple[bool, bool]:
    return run.role != Role.DERIVED, run.student in students


def _with_own_axes(run: "Run", own: Values, in_group: Values) -> "Run":
    """The run with the grid keys that do not have all their values in it."""
    return _relabel(run, {key: values for key, values in own.items() if len(values) < len(in_group[key])})


def _baseline_group(run: "Run") -> tuple[Any, ...]:
    return "trained" if run.role.is_trained else run.role, run.student


def _runs_without_own_baseline(runs: "list[Run]") -> Iterable["tuple[Run, str]"]:
    """Distilled runs that have no baseline without teacher at their own point, with the identity of the one other point
    that no teacher tells anything and that is trained in the same way, if there is just one."""
    without = [run for run in runs if run.role == Role.CE_ONLY]
    served = {_grid_point_key(run) for run in without}
    for run in runs:
        if without and run.role == Role.DISTILLED and _grid_point_key(run) not in served:
            found = {other.fingerprint for other in without if _is_trained_like(other, run)}
            if len(found) == 1:
                yield run, found.pop()


def _grid_point_key(run: "Run") -> tuple[Any, ...]:
    return run.student, run.seed, tuple(sorted((key, str(value)) for key, value in run.grid_values.items()))


def _is_trained_like(other: "Run", run: "Run") -> bool:
    """Whether a student reads on its own as many tokens in the same way as another."""
    ways = [
        (one.student, one.seed, one.config.data.sequence_length, training_fingerprint_fields(one.config))
        for one in (other, run)
    ]
    return ways[0] == ways[1] and not is_on_policy_enabled(other.config.on_policy)


def _relabel(run: "Run", varies: Values) -> "Run":
    axes = {
        key: GRID_VALUE_SEPARATOR.join(found) if len(found) > 1 else next(iter(found.values()))
        for key, found in varies.items()
    }
    keys = grid_keys(run.config.grid)
    seed = run.seed if "seed" in keys else None
    return replace(run, grid_values=axes, label=run_label(run.role, run.student, axes, seed, keys))


def run_label(role: str, student: str, axes: dict[str, Any], seed: int | None, keys: list[str]) -> str:
    """STUDENT-ROLE-AXIS=VALUE-…-seed=N, without the role of distilled and derived models. keys: all that the grid varies,
    among which an axis is called by its shortest ending."""
    names = shortest_names([*keys, *axes])
    parts = [student, *([] if role in (Role.DISTILLED, Role.DERIVED) else [role])]
    parts += [value_text(v) if key == "variant" else f"{names[key]}={value_text(v)}" for key, v in axes.items()]
    parts += [] if seed is None else [f"seed={seed}"]
    return safe_label("-".join(parts).replace(GRID_VALUE_SEPARATOR, "+").replace(" ", ""))


def safe_label(label: str) -> str:
    """A label that is a file name, with room for what is written before and after it: one that is too long, or holds what
    no terminal shows, ends in ~ and a hash of all of it."""
    plain = label.replace("/", "_")
    clean = "".join(c if c.isprintable() else "_" for c in plain)
    if clean == plain and len(clean.encode()) <= LABEL_BYTES:
        return clean
    return f"{clean.encode()[: LABEL_BYTES - 9].decode(errors='ignore')}~{fingerprint(label)[:8]}"


def make_labels_distinct(runs: "list[Run]") -> "list[Run]":
    """The same runs, with another label where two differ in nothing that every file system tells apart."""
    labels_by_folded: dict[str, str] = {}
    found = []
    for run in runs:
        folded = unicodedata.normalize("NFKC", run.label).casefold()
        if labels_by_folded.setdefault(folded, run.label) != run.label:
            run = replace(run, label=safe_label(f"{run.label[:100]}~{fingerprint(run.label)[:8]}"))
        found.append(run)
    return found
