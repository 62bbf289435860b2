"""The heat map of a table whose columns are the values of a key."""

from dataclasses import replace
from typing import Any

import numpy as np

from distill_lit.report.figures.heat_map import HeatMapPanel, heat_map_figure
from distill_lit.report.formats.table import Table
from distill_lit.report.paper.build import PaperTable, key_label, value_label
from distill_lit.utils.exceptions import UserError

NOTES_SHOWN = ("Bold", "No student")  # how those footnotes begin that colors need


def heat_map_of(paper: PaperTable, table: Table) -> Any:
    """A matplotlib figure; table: the same with its notes. Raises UserError unless its columns are values of keys, of one
    quantity."""
    layout, quantities = paper.layout, {column.quantity for column in paper.layout.columns}
    if not layout.across or len(quantities) != 1 or len({column.task for column in layout.columns}) != 1:
        raise UserError("a heat map needs --pivot ROWS,COLUMNS and one of --values")
    (quantity,) = quantities
    is_long = paper.uncertainty == "auto" and quantity.uncertainty == "interval"
    plain = replace(paper, uncertainty="none") if is_long else paper
    columns = [
        ", ".join(value_label(paper.scores, *pair) for pair in zip(layout.across, column.at, strict=True))
        for column in layout.columns
    ]
    names = key_label(paper.scores, layout.down[-1]), ", ".join(key_label(paper.scores, key) for key in layout.across)
    unit = {"points": ", points", "percent": ", %"}.get(quantity.unit, "")
    label = plain.column_label(layout.columns[0]).partition(" [")[0] + unit
    notes = [*table.header_notes, *(note for note in table.footnotes if note.startswith(NOTES_SHOWN))]
    return heat_map_figure(_panels(plain), columns, names, label, quantity.signed, " ".join(notes))


def _panels(paper: PaperTable) -> list[HeatMapPanel]:
    """One per combination of the row keys before the last."""
    found: dict[tuple[str, ...], list[int]] = {}
    for number, row in enumerate(paper.layout.rows):
        found.setdefault(row[:-1], []).append(number)
    labels, panels = paper.rows, []
    scale = 100.0 if paper.layout.columns[0].quantity.unit in ("points", "percent") else 1.0
    for numbers in found.values():
        cells = [paper.values[number] for number in numbers]
        values = np.array([[np.nan if value is None else value.value * scale for value in row] for row in cells])
        bold = [[bool(value and value.bold) for value in row] for row in cells]
        texts = [[paper.text(number, c) for c in range(len(paper.layout.columns))] for number in numbers]
        title = ", ".join(labels[numbers[0]][:-1])
        panels.append(HeatMapPanel(title, [labels[number][-1] for number in numbers], values, texts, bold))
    return panels
