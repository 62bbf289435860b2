"""Numbers of a table: looked up in the score frame and in runs.csv, with their uncertainty, and as text."""

import math
from dataclasses import dataclass, replace

import pandas as pd

from distill_lit.analysis.model_groups import group_cost
from distill_lit.analysis.score_table import MACRO_AVERAGE
from distill_lit.analysis.scores import Scores
from distill_lit.report.number_format import (
    MISSING_VALUE,
    format_bytes,
    format_count,
    format_interval,
    format_number,
    format_retention,
)
from distill_lit.report.paper.quantities import (
    ABOVE_CHANCE,
    BYTES,
    NUMBER,
    PERCENT,
    POINTS,
    QUANTITIES,
    RETAINED,
    SCORE,
    Quantity,
)
from distill_lit.report.tables.score_notes import FDR_MARK, HOLM_MARK
from distill_lit.utils.exceptions import UserError, suggest

_NO_QUANTITIES = ("chance", "limit", "n", "num_fewshot", "num_planned", "seed")  # numbers of a task or a run


def find_quantity(scores: Scores, frame: pd.DataFrame, name: str) -> Quantity:
    """The quantity of this name: one of QUANTITIES, or any other numeric column of the score frame or of runs.csv. Raises
    UserError for a name that is none."""
    if name in QUANTITIES:
        return QUANTITIES[name]
    if name in other_quantities(scores, frame):
        return Quantity(name, name.replace("_", " "), name, NUMBER, 3)
    raise UserError(f"{name}: no quantity{suggest(name, [*QUANTITIES, *other_quantities(scores, frame)])}")


def other_quantities(scores: Scores, frame: pd.DataFrame) -> list[str]:
    """Numeric columns that have no entry in QUANTITIES, bounds and p values left out."""
    runs = scores.results.runs
    numeric = [*frame.select_dtypes("number"), *runs.select_dtypes("number")]
    known = {quantity.column for quantity in QUANTITIES.values()} | set(_NO_QUANTITIES)
    endings = ("_low", "_high", "_p", "_p_adjusted", "_ratio")
    return [name for name in dict.fromkeys(numeric) if name not in known and not name.endswith(endings)]


LARGE = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))


@dataclass(frozen=True)
class Value:
    """A number of a table with what is known of its uncertainty; NaN where nothing is."""

    quantity: Quantity
    value: float
    low: float = math.nan
    high: float = math.nan
    std: float = math.nan
    bold: bool = False
    mark: str = ""
    absent: str = MISSING_VALUE  # what stands in place of NaN

    def text(self, digits: int | None, uncertainty: str) -> str:
        """`21.3 ± 0.4`, `57% [47, 67]`, `92M`. uncertainty: one of UNCERTAINTIES; digits: None for the usual ones."""
        if not math.isfinite(self.value):
            return self.absent
        unit, usual = self.quantity.unit, self.quantity.usual
        if usual is None:
            return _large(self.value, unit, digits)
        shown = usual if digits is None else digits
        scale = 100.0 if unit in (POINTS, PERCENT) else 1.0
        text = format_number(self.value * scale, shown, self.quantity.signed) + ("%" if unit == PERCENT else "")
        wanted = self.quantity.uncertainty if uncertainty == "auto" else uncertainty
        if wanted == "std" and math.isfinite(self.std):
            text += f" ± {format_number(self.std * scale, shown)}"
        if wanted == "interval":
            text += f" {format_interval(self.low * scale / 100, self.high * scale / 100, shown, self.quantity.signed)}"
        return text.strip() + self.mark


def _large(value: float, unit: str, digits: int | None) -> str:
    """A count or a number of bytes in short, with as many digits after the point: 134.5M, 269.0 MB. digits: None for three
    figures."""
    if digits is None:
        return format_bytes(value) if unit == BYTES else format_count(value)
    size, letter = next(((size, letter) for size, letter in LARGE if abs(value) >= size), (1.0, ""))
    text = format_number(value / size, digits)
    return f"{text} {letter.replace('B', 'G')}B" if unit == BYTES else f"{text}{letter}"


def value_of(scores: Scores, frame: pd.DataFrame, g: int, quantity: Quantity, task: str = MACRO_AVERAGE) -> Value:
    """A quantity of group `g`, on a task or, as ever where none is named, on the macro average. frame: indexed by
    (model, task)."""
    group = scores.groups[g]
    row = frame.loc[(group.label, task)]

    def number(column: str) -> float:
        if column in row.index:
            return float(pd.to_numeric(row[column], errors="coerce"))
        return group_cost(group, scores.results, column) if column in scores.results.runs else math.nan

    if quantity.name == SCORE and task == MACRO_AVERAGE:
        quantity = QUANTITIES[ABOVE_CHANCE]
    stem = "" if quantity.column == "score" else f"{quantity.column}_"
    found = Value(quantity, number(quantity.column), number(f"{stem}low"), number(f"{stem}high"), number(quantity.std))
    absent = format_retention(row) if quantity.name == RETAINED and not math.isfinite(found.value) else MISSING_VALUE
    return replace(found, mark=_significance_mark(scores, row, quantity), absent=absent)


def _significance_mark(scores: Scores, row: pd.Series, quantity: Quantity) -> str:
    """That of a difference which stays significant among its family of comparisons, as in the detailed table."""
    p = row.get(f"{quantity.column.removesuffix('_delta')}_p_adjusted", math.nan)
    if not quantity.column.endswith("_delta") or pd.isna(p):
        return ""
    is_declared = row.name[1] == MACRO_AVERAGE and row["role"] == "distilled"
    level = scores.analysis.alpha if is_declared else scores.analysis.false_discovery_rate
    return (HOLM_MARK if is_declared else FDR_MARK) if p <= level else ""


def decimals_of(scores: Scores, quantity: Quantity) -> int | None:
    """The digits that `report.decimals` asks for; None where it does not."""
    return scores.results.display.decimals.get(quantity.name)
