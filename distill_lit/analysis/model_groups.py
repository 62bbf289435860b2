"""Model groups: the same role, student and grid point over all its seeds. A row of a paper's table."""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from distill_lit.analysis.results import ROLES, VALIDATION_TEACHER, Results
from distill_lit.config.derivation import STAGE_MODEL
from distill_lit.config.grid_points import shortest_names
from distill_lit.config.report import ReportConfig
from distill_lit.config.schema import GRID_VALUE_SEPARATOR
from distill_lit.utils.exceptions import UserError

ROLE_LABELS = {
    "quantized": "int8",
    "external": "external",
    "derived": "",
    "untrained": "before training",
    "ce_only": "without teacher",
    "distilled": "distilled",
}
REFERENCE_ROLES = ("teacher", "quantized", "external")  # roles of models that no run trains or prunes
NAMED_ROLES = (*REFERENCE_ROLES, "derived")  # roles of models that are no student of the grid, and bear names of their own
NON_VARIANT_AXES = ("grid.student", "grid.seed")  # columns of their own


@dataclass(frozen=True)
class ModelGroup:
    """One row of a table. `models` holds the ids that have records; `num_planned` counts all its runs. constant_axes: keys
    of the grid that have one value in all runs, of which labels say nothing."""

    role: str  # derived for earlier stages of students, with and without teacher
    student: str
    grid_point: tuple[tuple[str, str], ...]  # grid key: value
    models: tuple[str, ...]
    seeds: tuple[int, ...]  # of `models`; empty for models without a seed
    num_planned: int
    label: str
    reason: str = ""  # why runs are missing
    variant: str = ""  # what varies of the grid point, in words, empty without it
    constant_axes: frozenset[str] = frozenset()
    other_data: bool = False  # without teacher, and trained on other data than the distilled students of this shape

    @property
    def varied_point(self) -> tuple[tuple[str, str], ...]:
        """The grid point without `constant_axes`."""
        return tuple((axis, value) for axis, value in self.grid_point if axis not in self.constant_axes)


def short_axis_names(runs: pd.DataFrame) -> dict[str, str]:
    """{grid.KEY: the key's shortest name} of what the grid of runs.csv varies."""
    varied = [c.removeprefix("grid.") for c in runs.columns if c.startswith("grid.") and runs[c].notna().any()]
    return {f"grid.{key}": name for key, name in shortest_names(varied).items()}


def groups_of(results: Results) -> list[ModelGroup]:
    """All groups, teacher first, then by student size and role, but those of `report.order` before; groups without any
    record are kept. Raises UserError where `report.labels` calls two of them alike."""
    runs = results.runs.copy()
    short = short_axis_names(runs)
    axes = [axis for axis in short if axis not in NON_VARIANT_AXES]
    constant = frozenset(axis for axis in axes if runs[axis].dropna().astype(str).nunique() == 1)
    size = runs.groupby("student")["parameters"].max() if "parameters" in runs else pd.Series(dtype=float)
    depths = _stage_depths(runs)
    found: dict[tuple, list[int]] = {}
    for row in runs.index:
        point = tuple((a, str(runs.at[row, a])) for a in axes if pd.notna(runs.at[row, a]))
        name = runs.at[row, "model" if runs.at[row, "role"] in REFERENCE_ROLES[1:] else "student"]
        found.setdefault((runs.at[row, "role"], name, point), []).append(row)
    distilled_data = runs[runs["role"] == "distilled"].groupby("student")["validation_data_fingerprint"].agg(set)
    groups = [
        _group(
            results,
            runs.loc[rows],
            key,
            short,
            constant,
            key[0] == "ce_only" and _trained_on_other_data(runs.loc[rows], distilled_data.get(key[1])),
            depths.get(key[1]),
        )
        for key, rows in found.items()
    ]
    if results.display.labels:
        _check_labels(groups)
    return _sorted(groups, results.display, size, axes)


def _sorted(groups: list[ModelGroup], display: ReportConfig, size: pd.Series, axes: list[str]) -> list[ModelGroup]:
    """As `report.order` says, else references first, then by student size and role. size: {student: parameters}."""
    default = {role: i for i, role in enumerate(ROLES)}
    first = {group.label: i for i, group in enumerate(groups)}

    def sort_key(group: ModelGroup) -> tuple:
        is_reference = group.role in REFERENCE_ROLES
        place = display.rank(group.label, group.student, *([group.role] if is_reference else []))
        top = default[group.role] if is_reference else len(ROLES)
        biggest = size.get(group.student, float("nan"))
        point = dict(group.grid_point)
        return (
            -1 if is_reference and math.isinf(place) else place,
            top,
            -biggest if biggest == biggest else 0.0,
            group.student,
            display.rank(group.role),
            default.get(group.role, 9),
            *(display.rank(point.get(axis, "")) for axis in axes),
            first[group.label],
        )

    return sorted(groups, key=sort_key)


def _check_labels(groups: list[ModelGroup]) -> None:
    known: dict[str, ModelGroup] = {}
    for group in groups:
        other = known.setdefault(group.label, group)
        if other is not group:
            both = [" ".join([one.role, one.student, *(value for _, value in one.grid_point)]) for one in (other, group)]
            raise UserError(f"report.labels: {group.label!r} would be the name of two models: {both[0]}, and {both[1]}")


def _trained_on_other_data(rows: pd.DataFrame, distilled_fingerprints: set[str] | None) -> bool:
    """Whether models read other data than each of those that distilled students read."""
    data, distilled_data = set(rows["validation_data_fingerprint"]), distilled_fingerprints or set()
    return bool(distilled_data) and "" not in data | distilled_data and not data & distilled_data


def _stage_depths(runs: pd.DataFrame) -> dict[str, str]:
    """{earlier stage of a student: `22 layers`, or empty where it has as many as the student in the end}."""
    distilled = set(runs.loc[runs["role"] == "distilled", "student"])
    students = set(runs.loc[runs["role"].isin(["untrained", "ce_only", "distilled"]), "student"])
    layers = runs.groupby("student")["num_layers"].max() if "num_layers" in runs else pd.Series(dtype=float)
    found = {}
    for name in set(runs["student"]) - distilled:
        ends = [student for student in students if name.startswith(STAGE_MODEL.format(student=student, stage=""))]
        for student in ends:
            depth = layers.get(name, np.nan)
            found[name] = f"{depth:.0f} layers" if np.isfinite(depth) and depth != layers[student] else ""
    return found


def _group(
    results: Results,
    rows: pd.DataFrame,
    key: tuple,
    short: dict[str, str],
    constant_axes: frozenset[str],
    other_data: bool,
    depth: str | None,
) -> ModelGroup:
    """depth: of an earlier stage, in words or empty; None for all other models."""
    role, student, point = key
    models = tuple(m for m in rows["model"] if m in results.records)
    seeds = rows.loc[rows["model"].isin(models), "seed"].tolist() if "seed" in rows else []
    missing_runs = rows[~rows["model"].isin(models)]
    reason = "; ".join(
        dict.fromkeys(
            f"{s}: {r}" if r else str(s) for s, r in zip(missing_runs["status"], missing_runs["reason"], strict=True)
        )
    )
    named = [
        describe_grid_value(results.display, short[axis], axis, value) for axis, value in point if axis not in constant_axes
    ]
    variant = ", ".join([*named, *(["other data"] if other_data else []), *([depth] if depth else [])])
    known = tuple(int(s) for s in seeds if s == s)
    return ModelGroup(
        role=role if depth is None else "derived",
        student=student,
        grid_point=point,
        models=models,
        seeds=known if len(known) == len(models) else (),
        num_planned=len(rows),
        label=group_label(results.display, role, student, variant),
        reason=reason,
        variant=variant,
        constant_axes=constant_axes,
        other_data=other_data,
    )


def group_label(display: ReportConfig, role: str, student: str, variant: str) -> str:
    """`d18 distilled (temperature=2)`, or as labels call it. variant: the grid point in words, or empty."""
    if role == "teacher":  # frames know it by this name; tables ask for its label
        return f"teacher ({variant})" if variant else "teacher"
    base = display.label("teacher" if role == "quantized" else student)
    word = role_words(display).get(role, "")
    if not word and not variant:
        return base
    label = " ".join(part for part in (base, word) if part)
    return display.label(f"{label} ({variant})" if variant else label)


def role_words(display: ReportConfig) -> dict[str, str]:
    """{role: what a model of it is called beside its student}, as labels call it."""
    return {role: display.labels.get(role, display.label(word)) for role, word in ROLE_LABELS.items()}


def describe_grid_value(display: ReportConfig, short_name: str, axis: str, value: str) -> str:
    """`temperature=2`, or as labels call the two; the value alone where the label of the key is empty."""
    name, shown = grid_key_label(display, short_name, axis), grid_value_label(display, axis, value)
    return f"{name}={shown}" if name else shown


def grid_key_label(display: ReportConfig, short_name: str, axis: str) -> str:
    """What a key of the grid is called: empty where its values stand alone."""
    return display.labels.get(axis.removeprefix("grid."), display.label(short_name))


def grid_value_label(display: ReportConfig, axis: str, value: str) -> str:
    """What a value of the grid is called: labels may be of `key=value`, by any ending of the key, or of the value."""
    parts = axis.removeprefix("grid.").split(".")
    named = (f"{'.'.join(parts[start:])}={value}" for start in range(len(parts)))
    return next((display.labels[name] for name in named if name in display.labels), display.label(value))


def baseline_of(group: ModelGroup, role: str, groups: list[ModelGroup]) -> ModelGroup | None:
    """The group of that role a distilled `group` is compared with: same student, and it stands for its grid point."""
    point = dict(group.grid_point)
    for other in groups:
        same = role == "teacher" or other.student == group.student
        here = all(point.get(key, value) in (value, *value.split(GRID_VALUE_SEPARATOR)) for key, value in other.grid_point)
        if other.role == role and other.models and same and here:
            return other
    return None


def validation_teacher(group: ModelGroup, results: Results) -> str:
    """What a group is validated against where it is not the model of the row `teacher`; else empty."""
    runs = results.runs
    named = runs.loc[runs["model"].isin(group.models), VALIDATION_TEACHER] if VALIDATION_TEACHER in runs else []
    return ", ".join(dict.fromkeys(name for name in named if name))


def group_cost(group: ModelGroup, results: Results, column: str) -> float:
    """Mean of a numeric column of runs.csv over the group's finished models; NaN when unknown."""
    if column not in results.runs:
        return float("nan")
    pairs = zip(results.runs["model"], results.runs[column], strict=True)
    known = [value for model, value in pairs if model in group.models and value == value]
    return float(np.mean(known)) if known else float("nan")
