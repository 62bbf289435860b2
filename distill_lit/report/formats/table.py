"""A table as rows of cells, written as Markdown, LaTeX (booktabs) or CSV. Everything from data is escaped."""

from dataclasses import dataclass, field

import pandas as pd

ROUNDING_NOISE = 1e-12  # what is less than this is 0 on another processor


@dataclass(frozen=True)
class TableCell:
    """What one place of a table shows."""

    text: str
    bold: bool = False


@dataclass
class Table:
    """A table with its caption, the notes above it (sample limits) and below it."""

    caption: str
    columns: list[str]
    rows: list[list[TableCell]]
    num_text_columns: int = 1  # this many first columns are text, set flush left
    header_notes: list[str] = field(default_factory=list)  # sample limits
    warnings: list[str] = field(default_factory=list)  # what is missing, or too little to go by
    footnotes: list[str] = field(default_factory=list)  # how to read it
    provenance: list[str] = field(default_factory=list)  # where the numbers come from
    rules_before: set[int] = field(default_factory=set)  # row numbers before which a thin rule stands
    headings_before: dict[int, str] = field(default_factory=dict)  # row number: heading of the rows from there on
    column_groups: list[str] = field(default_factory=list)  # what stands above each column, equal neighbors joined

    @property
    def column_names(self) -> list[str]:
        """The columns in one line each, their groups before them."""
        groups = self.column_groups or [""] * len(self.columns)
        return [f"{group}: {name}" if group else name for group, name in zip(groups, self.columns, strict=True)]


def table_frame(table: Table) -> pd.DataFrame:
    """The texts of a table, a column each."""
    return pd.DataFrame([[cell.text for cell in row] for row in table.rows], columns=table.column_names)


def to_csv(frame: pd.DataFrame, digits: int = 6) -> str:
    """The frame with so many digits a number; texts that a spreadsheet would run as a formula get a leading quote."""
    safe = frame.copy()
    for name in safe.columns:
        if pd.api.types.is_float_dtype(safe[name]):
            safe[name] = safe[name].mask(safe[name].abs() < ROUNDING_NOISE, 0.0)
        elif not pd.api.types.is_numeric_dtype(safe[name]):
            safe[name] = safe[name].map(lambda v: f"'{v}" if isinstance(v, str) and v[:1] in "=+-@\t\r" and v else v)
    return str(safe.to_csv(index=False, float_format=f"%.{digits}g", lineterminator="\n"))
