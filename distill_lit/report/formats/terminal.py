"""The score table in the terminal, at the end of a run."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from distill_lit.report.bundle import ReportBundle
from distill_lit.report.formats.table import Table
from distill_lit.report.tables.scores import score_table

NUM_KEY_COLUMNS = 4  # model, above chance, retained, Δ without teacher


@dataclass(frozen=True)
class TerminalTable:
    """A rich renderable: the answer, then the main table fitted to the console, then what else is asked at once."""

    result: ReportBundle

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        from rich.text import Text

        full = score_table(self.result.scores, self.result.score_frame, self.result.title)
        yield Text(f"\n{self.result.headline}\n", style="bold")
        yield from (Text(line, style="yellow") for line in full.header_notes)
        yield to_rich_table(_narrowed(full, options.max_width))
        yield from (Text(line, style="yellow") for line in full.warnings)
        yield from (Text(sentence) for sentence in self.result.verdict)


def _narrowed(table: Table, width: int) -> Table:
    """`table` without its last columns, which are the least needed, until it fits; the answer's columns stay."""
    while len(table.columns) > NUM_KEY_COLUMNS and table_width(table) > width:
        table = replace(table, columns=table.columns[:-1], rows=[row[:-1] for row in table.rows])
    return table


def table_width(table: Table) -> int:
    """Characters of its widest line on a terminal."""
    # three between two columns, one at each edge
    return sum(max(len(c), *(len(r[i].text) for r in table.rows)) + 3 for i, c in enumerate(table.column_names)) - 1


def to_rich_table(table: Table) -> Any:
    """`table` for rich; texts are taken literally, never as markup."""
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    shown = RichTable(title=Text(table.caption), box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    for number, name in enumerate(table.column_names):
        left = number < table.num_text_columns
        shown.add_column(Text(name), justify="left" if left else "right", no_wrap=not left, overflow="fold")
    for number, row in enumerate(table.rows):
        if number in table.rules_before:
            shown.add_section()
        if number in table.headings_before:
            shown.add_row(Text(table.headings_before[number], style="bold"))
        shown.add_row(*(Text(cell.text, style="bold" if cell.bold else "") for cell in row))
    return shown
