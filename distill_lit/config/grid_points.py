"""The points of a grid, as of a matrix in GitHub Actions: every combination of the axes, less `exclude`, then `include`.

An axis is a dotted key with its values, or several keys between commas, whose values go together (zipped axes):

    grid:
      "student, training.learning_rate": [[d24, 1.0e-4], [d6, 3.0e-4]]
      seed: [0, 1, 2]
      exclude: [{student: d6, seed: 2}]
      include: [{student: d6, training.learning_rate: 1.0e-3, seed: 0}]
"""

import copy
import itertools
from collections.abc import Iterable, Mapping
from typing import Any

from distill_lit.utils.exceptions import UserError, suggest

EXCLUDE, INCLUDE = "exclude", "include"
Grid = Mapping[str, list[Any]]
Point = dict[str, Any]  # {dotted key: value}


def zipped_keys(axis: str) -> list[str]:
    """The dotted keys of an axis, whose values go together; usually one."""
    return [key.strip() for key in axis.split(",")]


def axis_keys(grid: Grid) -> list[str]:
    """The dotted keys that every combination has."""
    return [key for axis in _axes(grid) for key in zipped_keys(axis)]


def grid_keys(grid: Grid) -> list[str]:
    """All dotted keys that a grid varies, in its order."""
    keys = axis_keys(grid)
    keys += [key for entry in grid.get(INCLUDE, ()) if isinstance(entry, dict) for key in entry]
    return list(dict.fromkeys(keys))


def check_grid(grid: Grid) -> None:
    """Raises UserError for a key with two axes, zipped values that are not as many as their keys, an exclusion or inclusion
    of what is no axis."""
    axis_of: dict[str, str] = {}
    for axis, rows in _axes(grid).items():
        keys = zipped_keys(axis)
        for key in keys:
            if not key:
                raise UserError(f"grid: {axis!r} has a comma with no key beside it")
            if key in axis_of:
                raise UserError(
                    f"grid: {key} is in two axes, {axis_of[key]!r} and {axis!r}; take it out of one of them, or replace "
                    "the whole grid with grid={…}"
                )
            axis_of[key] = axis
        for row in rows if len(keys) > 1 else ():
            if not isinstance(row, list) or len(row) != len(keys):
                raise UserError(f"grid.{axis}: {_shown(row)} is not a list of {len(keys)} values, one for each key")
    for name in (EXCLUDE, INCLUDE):
        for entry in grid.get(name, ()):
            _check_entry(name, entry, list(axis_of))


def _check_entry(name: str, entry: Any, keys: list[str]) -> None:
    if not isinstance(entry, dict) or not entry:
        raise UserError(f"grid.{name}: {_shown(entry)} is not a mapping of keys of the grid to values, as in {{seed: 2}}")
    unknown = [key for key in entry if key not in keys]
    if name == EXCLUDE and unknown:
        raise UserError(f"grid.exclude: {unknown[0]!r} is no key of the grid{suggest(unknown[0], keys)}")


def grid_points(grid: Grid) -> list[Point]:
    """{dotted key: value} of every point, in the order of the file: the combinations, then what `include` adds. Points
    share no value.

    As in GitHub Actions, an inclusion gives its further keys to the points that have all its other values; one that no
    point has is a point of its own. Raises UserError where that point lacks a key, and where no point is left.
    """
    axes, exclude, include = _axes(grid), grid.get(EXCLUDE, []), grid.get(INCLUDE, [])
    points = [_combined(axes, rows) for rows in itertools.product(*axes.values())] if axes or not include else []
    points = [point for point in points if not any(_agrees(point, entry, entry) for entry in exclude)]
    added: list[Point] = []
    for entry in include:
        matching = [point for point in points if _agrees(point, entry, set(entry) & set(axis_keys(grid)))]
        for point in matching:
            point.update(copy.deepcopy(entry))
        added += [] if matching else [copy.deepcopy(_whole_point(entry, axis_keys(grid)))]
    points += added
    if not points:
        raise UserError("grid.exclude: it leaves no point of the grid")
    return points


def check_exclusions(grid: Grid) -> None:
    """Raises UserError for an exclusion that leaves nothing out, as one with a misspelt value."""
    axes = _axes(grid)
    points = [_combined(axes, rows) for rows in itertools.product(*axes.values())] if grid.get(EXCLUDE) else []
    for entry in grid.get(EXCLUDE, ()):
        if any(_agrees(point, entry, entry) for point in points):
            continue
        for key, value in entry.items():
            known = {value_text(point[key]) for point in points}
            if all(point[key] != value for point in points):
                raise UserError(f"grid.exclude: {key} is never {value!r}{suggest(value_text(value), known)}")
        raise UserError(f"grid.exclude: no point of the grid has all of {value_text(entry)}")


def _axes(grid: Grid) -> dict[str, list[Any]]:
    return {axis: values for axis, values in grid.items() if axis not in (EXCLUDE, INCLUDE)}


def _combined(axes: Mapping[str, list[Any]], rows: tuple[Any, ...]) -> Point:
    point: Point = {}
    for axis, row in zip(axes, rows, strict=True):
        keys = zipped_keys(axis)
        point |= dict(zip(keys, copy.deepcopy(row) if len(keys) > 1 else [copy.deepcopy(row)], strict=True))
    return point


def _agrees(point: Point, entry: Mapping[str, Any], keys: Iterable[str]) -> bool:
    return all(key in point and point[key] == entry[key] for key in keys)


def _whole_point(entry: Point, keys: list[str]) -> Point:
    missing = [key for key in keys if key not in entry]
    if missing:
        raise UserError(f"grid.include: {_shown(entry)} fits no point, and a point of its own needs {missing[0]} too")
    return entry


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:120]}…"


def shortest_names(keys: Iterable[str]) -> dict[str, str]:
    """{dotted key: its shortest ending that no other key has, as `beta` of `objective.terms.kl.options.beta`}; a key with
    which another one ends is itself."""
    parts = {key: key.split(".") for key in keys}
    names = {}
    for key, own in parts.items():
        endings = [own[-length:] for length in range(1, len(own) + 1)]
        others = [other for name, other in parts.items() if name != key]
        unique = (end for end in endings if all(other[-len(end) :] != end for other in others))
        names[key] = ".".join(next(unique, own))
    return names


def value_text(value: Any) -> str:
    """A value of the grid as a YAML file has it: of a mapping `{model: run:big, dtype: float32}`, without quotes."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {value_text(part)}" for key, part in value.items()) + "}"
    if isinstance(value, list) and any(isinstance(part, Mapping) for part in value):
        return "[" + ", ".join(map(value_text, value)) + "]"
    return str(value)


def comparable_text(value: Any) -> str:
    """`value_text`, but 1, 1.0 and the text 1.0 are one value."""
    text = value_text(value)
    try:
        return text if isinstance(value, bool) else str(float(text))
    except ValueError:
        return text


def short_texts(values: Iterable[Any]) -> list[str]:
    """`value_text` of the values of one axis, mappings without what they all have alike; of a single key that differs its
    value alone, where that tells them apart."""
    every = list(values)
    mappings = [value for value in every if isinstance(value, Mapping)]
    if len(mappings) < len(every) or len(every) < 2:
        return [value_text(value) for value in every]
    keys = dict.fromkeys(key for value in every for key in value)
    varied = [key for key in keys if any(value.get(key, keys) != every[0].get(key, keys) for value in every)]
    if len(varied) == 1 and all(varied[0] in value for value in every):
        return [value_text(value[varied[0]]) for value in every]
    return [value_text({key: value[key] for key in varied if key in value}) for value in every]
