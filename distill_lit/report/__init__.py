"""Tables, figures and pages, drawn from a results folder alone. Heavy imports wait until something is drawn."""

from pathlib import Path
from typing import Any

from distill_lit.config.schema import AnalysisConfig


def analyse(folder: Path, analysis: AnalysisConfig, name: str, question: str = "") -> Any:
    """Reads the records in a results folder and computes all that is drawn.

    Raises UserError when records are missing or models cannot be compared.
    """
    from distill_lit.report.analysed import analyse as analysed

    return analysed(folder, analysis, name, question)


def draw(folder: Path, result: Any) -> list[Path]:
    """Draws every table, figure and page of an analysed experiment into its results folder, and the index of all
    beside it; returns the paths written."""
    from distill_lit.report.drawing import draw_analysed

    return draw_analysed(folder, result)


def terminal_table(result: Any) -> Any:
    """A rich renderable of the score table and the verdict, as wide as the console it is printed on."""
    from distill_lit.report.terminal import TerminalTable

    return TerminalTable(result)


def cards(result: Any) -> dict[str, str]:
    """{model id of a student: Markdown of its scores beside its teacher's and what it lost}, for its model card."""
    from distill_lit.report.card import cards as written

    return written(result)
