"""A paper's table from one experiment or several: values, bold where it is earned, notes."""

import math
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from distill_lit.analysis import scores as sc
from distill_lit.analysis.model_groups import NAMED_ROLES, describe_grid_value
from distill_lit.analysis.score_table import MACRO_AVERAGE
from distill_lit.analysis.scores import Scores
from distill_lit.analysis.significance import holm
from distill_lit.report.formats.table import Table, TableCell
from distill_lit.report.number_format import MISSING_VALUE
from distill_lit.report.paper.layout import Column, KeyValues, Layout, is_reference, make_layout
from distill_lit.report.paper.quantities import ABOVE_CHANCE, RETAINED, SCORE
from distill_lit.report.paper.request import MODEL, ROLE, TableRequest, axis_names
from distill_lit.report.paper.values import Value, decimals_of, value_of
from distill_lit.report.tables.footnotes import EXCLUDED_MARK
from distill_lit.utils.exceptions import UserError

CONTESTED = (SCORE, ABOVE_CHANCE, RETAINED)  # quantities in which a student can be the best


@dataclass(frozen=True)
class PaperTable:
    """values: by row and column, None where there is no such model; uncertainty: as in the request."""

    scores: Scores
    layout: Layout
    values: list[list[Value | None]]
    uncertainty: str
    is_pivot: bool = False

    @property
    def rows(self) -> list[list[str]]:
        """The labels of every row, one per key."""
        return [self._row_labels(values) for values in self.layout.rows]

    def _row_labels(self, values: KeyValues) -> list[str]:
        labels = [value_label(self.scores, key, value) for key, value in zip(self.layout.down, values, strict=True)]
        if not any(labels):  # a model that has none of the keys is called by its name
            g = self.layout.cells[values, self.layout.columns[0].at]
            labels[0] = str(self.layout.keys.at[g, MODEL])
        return labels

    @property
    def heads(self) -> list[str]:
        """The labels of the columns of row keys."""
        return [key_label(self.scores, key) for key in self.layout.down]

    def text(self, row: int, column: int) -> str:
        """What a cell shows."""
        value = self.values[row][column]
        if value is None:
            return MISSING_VALUE
        return value.text(decimals_of(self.scores, value.quantity), self.uncertainty)

    def column_group(self, column: Column) -> str:
        """What stands above a column of the values of keys: `kind=reverse_kl`; empty for others."""
        pairs = zip(self.layout.across, column.at, strict=True) if column.at else ()
        return ", ".join(_key_and_value(self.scores, key, value) for key, value in pairs)

    def column_label(self, column: Column) -> str:
        """What a column shows: a task, or a quantity, with the level of its interval."""
        display, quantity = self.scores.results.display, column.quantity
        label = display.labels.get(quantity.name, display.label(quantity.label))
        wanted = quantity.uncertainty if self.uncertainty == "auto" else self.uncertainty
        if column.task != MACRO_AVERAGE:
            mark = f" {EXCLUDED_MARK}" if column.task in self.scores.excluded_tasks else ""
            task = f"{display.label(column.task)}{mark}"
            return task if quantity.name == SCORE else f"{task} {label}"
        cells = [value for row in self.values for value in row if value and value.quantity == quantity]
        if wanted == "interval" and any(math.isfinite(value.low) for value in cells):
            return f"{label} [{self.scores.analysis.confidence_level:.0%}]"
        return label


def build_paper_table(scores: Scores, frame: pd.DataFrame, request: TableRequest) -> PaperTable:
    """The table that is asked for. frame: of `with_training_flops(score_frame(scores))`. Raises UserError."""
    layout = make_layout(scores, frame, request)
    by_model = frame.set_index(["model", "task"])
    values = [
        [None if (g := layout.group(row, column)) is None else value_of(scores, by_model, g, column.quantity, column.task)
         for column in layout.columns]
        for row in layout.rows
    ]  # fmt: skip
    if not any(value is not None and math.isfinite(value.value) for row in values for value in row):
        names = ", ".join(dict.fromkeys(column.quantity.name for column in layout.columns))
        raise UserError(f"no model of the table has a value of {names}")
    table = PaperTable(scores, layout, values, request.uncertainty, bool(request.pivot))
    return _sorted(_with_bold(table), request)


def _with_bold(table: PaperTable) -> PaperTable:
    """Bold: the best student and those not significantly behind it, where others are. Students compete within a column, or,
    where the values of keys stand in columns, in all columns of one quantity (of a pivot table, within a panel)."""
    layout = table.layout
    contests: dict[tuple, dict[tuple[int, int], int]] = {}
    for r, row in enumerate(layout.rows):
        for c, column in enumerate(layout.columns):
            g = layout.group(row, column)
            if g is not None and column.quantity.name in CONTESTED and table.scores.groups[g].role not in NAMED_ROLES:
                panel = row[:-1] if table.is_pivot else ()
                contests.setdefault((panel, column.task, column.quantity.name), {})[r, c] = g
    values = [list(row) for row in table.values]
    for (_, task, _), places in contests.items():
        best = best_groups(table.scores, list(dict.fromkeys(places.values())), task)
        for (r, c), g in places.items():
            value = values[r][c]
            values[r][c] = replace(value, bold=True) if value is not None and g in best else value
    return replace(table, values=values)


def best_groups(scores: Scores, groups: list[int], task: str) -> set[int]:
    """The best of the groups on a task (or MACRO_AVERAGE) and all that are not significantly behind it after Holm; empty
    where that is all of them: then nobody is excluded, and nobody is the best."""
    t = None if task == MACRO_AVERAGE else scores.tasks.index(task)
    value = {g: scores.quality(g, t) for g in groups}
    known = [g for g in groups if np.isfinite(value[g])]
    if len(known) < 2:
        return set()
    top = max(known, key=lambda g: value[g])
    rest = [g for g in known if g != top]
    tests = [sc.macro_difference(scores, g, top) if t is None else sc.task_difference(scores, t, g, top) for g in rest]
    behind = {g for g, p in zip(rest, holm([p for _, p in tests]), strict=True) if p <= scores.analysis.alpha}
    return set(known) - behind if behind else set()


def _sorted(table: PaperTable, request: TableRequest) -> PaperTable:
    """With the rows sorted by a column, references first. Raises UserError for a column that is none."""
    if not request.sort:
        return table
    layout = table.layout
    names = [column.task if column.task != MACRO_AVERAGE else column.quantity.name for column in layout.columns]
    if layout.across or request.sort not in names:
        shown = "nothing, since columns are values of a key" if layout.across else ", ".join(names)
        raise UserError(f"--sort {request.sort!r}: no column of the table; it can be sorted by {shown}")
    place = names.index(request.sort)

    def key(number: int) -> tuple[bool, bool, float]:
        g = layout.group(layout.rows[number], layout.columns[place])
        value = table.values[number][place]
        size = math.nan if value is None else value.value
        signed = size if request.is_ascending else -size
        return (not is_reference(table.scores, g), math.isnan(size), 0.0 if math.isnan(size) else signed)

    order = sorted(range(len(layout.rows)), key=key)
    rows = [layout.rows[number] for number in order]
    return replace(table, layout=replace(layout, rows=rows), values=[table.values[number] for number in order])


def key_label(scores: Scores, key: str) -> str:
    """What a key is called above its column."""
    display = scores.results.display
    full = {name: axis.removeprefix("grid.") for axis, name in axis_names(scores.results).items()}.get(key, key)
    return display.labels.get(full, display.label(key))


def value_label(scores: Scores, key: str, value: str) -> str:
    """What the value of a key is called; a role as in the labels of models."""
    display = scores.results.display
    if key == MODEL or not value:
        return value
    words = {"ce_only": "without teacher", "untrained": "before training"} if key == ROLE else {}
    return display.labels.get(f"{key}={value}", display.labels.get(value, display.label(words.get(value, value))))


def _key_and_value(scores: Scores, key: str, value: str) -> str:
    axes = {name: axis for axis, name in axis_names(scores.results).items()}
    if key in axes:
        return describe_grid_value(scores.results.display, key, axes[key], value)
    return value_label(scores, key, value)


def to_table(
    paper: PaperTable, caption: str, header_notes: list[str], footnotes: list[str], provenance: list[str]
) -> Table:
    """For Markdown, TeX, HTML and the terminal. Columns of the values of keys have these as `column_groups`."""
    layout, rows, rules = paper.layout, [], set()
    last: list[str] = []
    for number, labels in enumerate(paper.rows):
        if last and _changes(paper, number):
            rules.add(number)
        shown = [
            "" if labels[: place + 1] == last[: place + 1] and place + 1 < len(labels) else label
            for place, label in enumerate(labels)
        ]
        last = labels
        numbers = [TableCell(paper.text(number, c), bool(value and value.bold))
                   for c, value in enumerate(paper.values[number])]  # fmt: skip
        rows.append([*map(TableCell, shown), *numbers])
    quantities = {column.quantity for column in layout.columns}
    groups = [paper.column_group(column) for column in layout.columns]
    labels = [paper.column_label(column) for column in layout.columns]
    if layout.across and len(quantities) == 1:
        labels, groups = groups, [""] * len(labels)
    return Table(
        caption,
        [*paper.heads, *labels],
        rows,
        num_text_columns=len(layout.down),
        header_notes=header_notes,
        footnotes=footnotes,
        provenance=provenance,
        rules_before=rules,
        column_groups=["" for _ in layout.down] + groups if any(groups) else [],
    )


def _changes(paper: PaperTable, number: int) -> bool:
    """Whether a row begins another block: another first key, or of models another student."""
    layout = paper.layout
    before, here = layout.rows[number - 1], layout.rows[number]
    if len(layout.down) > 1:
        return before[0] != here[0]
    groups = [layout.group(row, layout.columns[0]) for row in (before, here)]
    if layout.down != [MODEL] or None in groups:
        return False
    references = [is_reference(paper.scores, g) for g in groups]
    if any(references):
        return references[0] != references[1]
    students = [paper.scores.groups[g].student for g in groups if g is not None]
    every = [paper.scores.groups[g].student for g in layout.cells.values() if not is_reference(paper.scores, g)]
    return students[0] != students[1] and len(set(every)) < len(every)


def to_frame(paper: PaperTable) -> pd.DataFrame:
    """The same as numbers, for CSV: in the units of the table, not rounded, with `low`, `high` and `std` beside a value
    where they are known."""
    columns: dict[str, list] = {head: [] for head in paper.heads}
    for labels in paper.rows:
        for head, label in zip(paper.heads, labels, strict=True):
            columns[head].append(label)
    for c, column in enumerate(paper.layout.columns):
        name = " ".join(filter(None, [paper.column_group(column), paper.column_label(column).partition(" [")[0]]))
        scale = 100.0 if column.quantity.unit in ("points", "percent") else 1.0
        for part in ("value", "low", "high", "std"):
            numbers = [math.nan if row[c] is None else getattr(row[c], part) * scale for row in paper.values]
            if part == "value" or not all(map(math.isnan, numbers)):
                columns[name if part == "value" else f"{name} {part}"] = numbers
    return pd.DataFrame(columns)
