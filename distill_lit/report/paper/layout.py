"""Which models and numbers stand in which row and column: the request, made out on what the experiments hold."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import pandas as pd

from distill_lit.analysis.model_groups import REFERENCE_ROLES
from distill_lit.analysis.score_table import MACRO_AVERAGE
from distill_lit.analysis.scores import Scores
from distill_lit.report.paper.quantities import ABOVE_CHANCE, RETAINED, SCORE, Quantity
from distill_lit.report.paper.request import (
    EXPERIMENT,
    MODEL,
    ROLE,
    TASKS,
    TableRequest,
    axis_names,
    group_keys,
    resolve_key,
    select_groups,
)
from distill_lit.report.paper.values import find_quantity
from distill_lit.utils.exceptions import UserError

KeyValues = tuple[str, ...]


class Column(NamedTuple):
    """What a column shows: a quantity, on a task or on the macro average, of the models with these values of
    `Layout.across` (empty: of the row's model)."""

    quantity: Quantity
    task: str
    at: KeyValues = ()


@dataclass(frozen=True)
class Layout:
    """down: keys of which each row has values, in `rows`; across: keys whose values are in the columns; `cells` names the
    group of a row and of the column's values of `across`."""

    keys: pd.DataFrame
    down: list[str]
    across: list[str]
    rows: list[KeyValues]
    columns: list[Column]
    cells: dict[tuple[KeyValues, KeyValues], int]

    def group(self, row: KeyValues, column: Column) -> int | None:
        """The group number of a cell, None where there is no such model."""
        return self.cells.get((row, column.at))


def make_layout(scores: Scores, frame: pd.DataFrame, request: TableRequest) -> Layout:
    """Raises UserError for a name that is unknown, and where two models would stand in one cell."""
    keys = group_keys(scores)
    chosen = select_groups(scores, keys, request.where)
    if request.pivot:
        down, across, chosen = _pivot_keys(scores, keys, chosen, request)
    else:
        down = [resolve_key(scores.results, keys, name, "--rows") for name in request.rows]
        down = down or [*([EXPERIMENT] if keys[EXPERIMENT].any() else []), MODEL]
        across = _column_keys(scores, frame, keys, request)
    whole = [*down, *across]
    chosen = [g for g in chosen if not across or all(keys.at[g, key] for key in whole)]
    if not chosen:
        raise UserError(f"no model has all of {', '.join(whole)}")
    cells = _cells(scores, keys, chosen, down, across)
    rows = _sorted_values(scores, keys, chosen, down)
    columns = _columns(scores, frame, request, _sorted_values(scores, keys, chosen, across) if across else [()])
    return Layout(keys, down, across, rows, columns, cells)


def _pivot_keys(
    scores: Scores, keys: pd.DataFrame, chosen: list[int], request: TableRequest
) -> tuple[list[str], list[str], list[int]]:
    """Keys of rows and columns of a pivot table, and its models: distilled students, unless a role is asked for. Keys that
    vary beside the two axes come first in the rows."""
    if len(request.pivot) != 2 or request.rows or request.columns:
        raise UserError("--pivot: two keys of the grid, ROWS,COLUMNS, without --rows and --columns")
    first, second = (resolve_key(scores.results, keys, name, "--pivot") for name in request.pivot)
    if first == second:
        raise UserError(f"--pivot: {first!r} twice; name two keys of the grid")
    if not any(condition.key == ROLE for condition in request.where):
        chosen = [g for g in chosen if keys.at[g, ROLE] == "distilled"]
    chosen = [g for g in chosen if keys.at[g, first] and keys.at[g, second]]
    others = [key for key in keys if key not in (MODEL, first, second)]
    varying = [key for key in others if keys.loc[chosen, key].nunique() > 1]
    return [*varying, first], [second], chosen


def _column_keys(scores: Scores, frame: pd.DataFrame, keys: pd.DataFrame, request: TableRequest) -> list[str]:
    """The keys among the columns; raises UserError where other things stand beside them."""
    is_key = {name: not _is_number(scores, frame, name) for name in request.columns}
    if not any(is_key.values()):
        return []
    names = [resolve_key(scores.results, keys, name, "--columns") for name in request.columns if is_key[name]]
    if beside := [name for name, key in is_key.items() if not key]:
        raise UserError(f"--columns: the values of {names[0]} become columns, so {beside[0]} goes into --values")
    return names


def _is_number(scores: Scores, frame: pd.DataFrame, name: str) -> bool:
    """Whether a column is called like tasks or a quantity."""
    if name == TASKS or name in scores.tasks:
        return True
    try:
        find_quantity(scores, frame, name)
    except UserError:
        return False
    return True


def _columns(scores: Scores, frame: pd.DataFrame, request: TableRequest, across: list[KeyValues]) -> list[Column]:
    """Every column from the left. across: values of the keys that become columns, or one empty tuple."""
    if across != [()]:
        shown = [_number(scores, frame, name) for name in request.values or [ABOVE_CHANCE]]
        return [column._replace(at=at) for at in across for column in shown]
    values = [find_quantity(scores, frame, name) for name in request.values or [SCORE]]
    columns: list[Column] = []
    for name in request.columns or [TASKS, ABOVE_CHANCE, RETAINED]:
        tasks = scores.results.display.ordered(scores.tasks) if name == TASKS else [name] if name in scores.tasks else []
        columns += [Column(quantity, task) for task in tasks for quantity in values]
        columns += [] if tasks else [_number(scores, frame, name)]
    return columns


def _number(scores: Scores, frame: pd.DataFrame, name: str) -> Column:
    """The score on a task, or a quantity of the model as a whole."""
    if name in scores.tasks:
        return Column(find_quantity(scores, frame, SCORE), name)
    return Column(find_quantity(scores, frame, ABOVE_CHANCE if name == SCORE else name), MACRO_AVERAGE)


def _cells(
    scores: Scores, keys: pd.DataFrame, chosen: list[int], down: list[str], across: list[str]
) -> dict[tuple[KeyValues, KeyValues], int]:
    """{(values of `down`, values of `across`): group}. Raises UserError where two groups have the same."""
    found: dict[tuple[KeyValues, KeyValues], int] = {}
    for g in chosen:
        place = (_values(keys, g, down), _values(keys, g, across))
        other = found.setdefault(place, g)
        if other != g:
            differing = [
                key for key in keys if key not in (*down, *across, MODEL) and keys.at[g, key] != keys.at[other, key]
            ]
            names = ", ".join(value for value in (*place[0], *place[1]) if value) or f"no {', '.join(down)}"
            told = " or ".join(differing) or MODEL
            raise UserError(
                f"{names}: two models in one cell, {scores.groups[other].label!r} and "
                f"{scores.groups[g].label!r}; add {told} to --rows, or choose with --where "
                f"{differing[0] if differing else MODEL}=…"
            )
    return found


def _values(keys: pd.DataFrame, g: int, names: list[str]) -> KeyValues:
    return tuple(str(keys.at[g, name]) for name in names)


def _sorted_values(scores: Scores, keys: pd.DataFrame, chosen: list[int], names: list[str]) -> list[KeyValues]:
    """The combinations of values that there are, by each key from the left: as `report.order` says, else numbers by size
    and texts as they come in the grid; models as in every table."""
    found = list(dict.fromkeys(_values(keys, g, names) for g in chosen))
    first = {name: list(dict.fromkeys(keys[name])) for name in names}
    is_number = {name: name in axis_names(scores.results).values() and _all_numbers(first[name]) for name in names}
    experiments = list(dict.fromkeys(scores.results.runs.get("grid.experiment", pd.Series(dtype=object)).dropna()))

    def place(name: str, value: str) -> tuple[float, float]:
        if name == MODEL:
            return (0.0, first[name].index(value))
        natural = float(value) if is_number[name] and value else first[name].index(value)
        if name == EXPERIMENT:
            natural = experiments.index(value) if value else -1
        rank = scores.results.display.rank(value)
        return (-1.0 if not value and math.isinf(rank) else rank, natural)

    return sorted(found, key=lambda values: [place(*pair) for pair in zip(names, values, strict=True)])


def _all_numbers(values: list[str]) -> bool:
    return bool(pd.to_numeric(pd.Series([value for value in values if value]), errors="coerce").notna().all())


def is_reference(scores: Scores, g: int | None) -> bool:
    """Whether a group is the teacher or another model that no run trains."""
    return g is not None and scores.groups[g].role in REFERENCE_ROLES
