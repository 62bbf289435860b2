"""What a table is asked for: rows, columns, values, conditions. Names are checked against what the experiments hold."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import pandas as pd

from distill_lit.analysis.merging import EXPERIMENT_AXIS
from distill_lit.analysis.model_groups import (
    NON_VARIANT_AXES,
    REFERENCE_ROLES,
    ModelGroup,
    describe_grid_value,
    group_label,
    short_axis_names,
)
from distill_lit.analysis.results import ROLES, Results
from distill_lit.analysis.scores import Scores
from distill_lit.config.report import ReportConfig
from distill_lit.utils.exceptions import UserError, suggest

EXPERIMENT, MODEL, STUDENT, ROLE, TASK, TASKS = "experiment", "model", "student", "role", "task", "tasks"
GROUP_KEYS = (EXPERIMENT, MODEL, STUDENT, ROLE)


@dataclass(frozen=True)
class Condition:
    """`key=value,value`: what rows must have; a value may be a pattern such as `d1*`, and `!=` turns it round."""

    key: str
    patterns: list[str]
    is_excluded: bool = False

    @classmethod
    def parse(cls, text: str) -> "Condition":
        """Raises UserError for what is none."""
        key, sign, values = text.partition("=")
        patterns = split_list(values)
        if not sign or not key.rstrip("!") or not patterns:
            raise UserError(f"--where {text!r}: not KEY=VALUE, KEY=VALUE,VALUE or KEY!=VALUE")
        return cls(key.removesuffix("!").strip(), patterns, key.endswith("!"))

    def accepts(self, value: str) -> bool:
        """Whether a value fits."""
        return any(matches_pattern(value, pattern) for pattern in self.patterns) != self.is_excluded


@dataclass(frozen=True)
class TableRequest:
    """rows: keys, of which each combination is a row; columns: tasks, quantities, or keys whose values become columns with
    `values` below; pivot: the last row key and the column key of a grid with two axes."""

    rows: list[str] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)
    values: list[str] = field(default_factory=list)
    where: list[Condition] = field(default_factory=list)
    pivot: list[str] = field(default_factory=list)
    sort: str = ""
    is_ascending: bool = False
    uncertainty: str = "auto"

    def task_patterns(self) -> list[str]:
        """The tasks that the table is restricted to; empty for all."""
        conditions = [condition for condition in self.where if condition.key == TASK]
        if any(condition.is_excluded for condition in conditions):
            raise UserError("--where task!=…: name the tasks that are wanted")
        return [pattern for condition in conditions for pattern in condition.patterns]


def matches_pattern(value: str, pattern: str) -> bool:
    """Whether a value is a pattern, or fits it."""
    return value == pattern or fnmatchcase(value, pattern)


def split_list(text: str) -> list[str]:
    """What stands between commas, those inside brackets left alone: `a,[1, 2]` is two."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "[{(") - (character in "]})")
        if character == "," and depth <= 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts if part.strip()]


def axis_names(results: Results) -> dict[str, str]:
    """{column of runs.csv: the grid key as tables call it}: its shortest name, in full where a key of every table is called
    so."""
    short = short_axis_names(results.runs)
    axes = [axis for axis in short if axis not in (*NON_VARIANT_AXES, EXPERIMENT_AXIS)]
    return {axis: axis.removeprefix("grid.") if short[axis] in GROUP_KEYS else short[axis] for axis in axes}


def group_keys(scores: Scores) -> pd.DataFrame:
    """A row per model group: GROUP_KEYS, and a column per grid key. Empty text where a group has none."""
    results, rows = scores.results, []
    short, axes = short_axis_names(results.runs), axis_names(results)
    for group in scores.groups:
        point = dict(group.grid_point)
        row = {EXPERIMENT: point.get(EXPERIMENT_AXIS, ""), MODEL: model_label(results.display, group, short)}
        row |= {STUDENT: "" if group.role in REFERENCE_ROLES else group.student, ROLE: group.role}
        rows.append(row | {name: point.get(axis, "") for axis, name in axes.items()})
    return pd.DataFrame(rows)


def model_label(display: ReportConfig, group: ModelGroup, short: dict[str, str]) -> str:
    """The label of a group without its experiment, which is a key of its own."""
    named = [describe_grid_value(display, short[axis], axis, value) for axis, value in group.varied_point
             if axis != EXPERIMENT_AXIS]  # fmt: skip
    variant = ", ".join([*named, *(["other data"] if group.other_data else [])])
    label = group_label(display, group.role, group.student, variant)
    return display.label(label) if group.role == "teacher" else label


def resolve_key(results: Results, keys: pd.DataFrame, name: str, option: str) -> str:
    """The column of `keys` that a user means by a name: a grid key may be written in full, or by any ending that it alone
    has. Raises UserError."""
    if name in keys:
        return name
    full = {axis.removeprefix("grid."): key for axis, key in axis_names(results).items()}
    ending = [key for whole, key in full.items() if whole == name or whole.endswith(f".{name}")]
    if len(ending) == 1:
        return ending[0]
    known = [key for key in keys if key != EXPERIMENT or keys[EXPERIMENT].any()]
    raise UserError(f"{option} {name!r}: no key of these experiments{suggest(name, known)}")


def select_groups(scores: Scores, keys: pd.DataFrame, where: Iterable[Condition]) -> list[int]:
    """Numbers of the groups that all conditions accept. Raises UserError for a condition that no group meets."""
    chosen = [g for g, group in enumerate(scores.groups) if group.models]
    for condition in where:
        if condition.key == TASK:
            continue
        key = resolve_key(scores.results, keys, condition.key, "--where")
        known = list(dict.fromkeys(value for value in keys[key] if value))
        for pattern in condition.patterns:
            if not any(matches_pattern(value, pattern) for value in known):
                choices = [role for role in ROLES if role in known] if key == ROLE else known
                raise UserError(f"--where {condition.key}={pattern}: there is none{suggest(pattern, choices)}")
        chosen = [g for g in chosen if condition.accepts(str(keys.at[g, key]))]
    if not chosen:
        raise UserError("--where: no model meets all of it")
    return chosen


def numeric_axes(scores: Scores) -> list[str]:
    """Short names of the grid keys whose values are numbers for every distilled group, at least two different ones each."""
    keys = group_keys(scores)
    distilled = keys[keys[ROLE] == "distilled"]
    found = []
    for name in keys.columns.drop(list(GROUP_KEYS)):
        numbers = pd.to_numeric(distilled[name], errors="coerce")
        if len(numbers) and numbers.notna().all() and numbers.nunique() > 1:
            found.append(str(name))
    return found
