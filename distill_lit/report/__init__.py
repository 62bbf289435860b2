"""Tables, figures and pages, drawn from a results folder alone. Heavy imports wait until something is drawn."""

from pathlib import Path
from typing import Any

from distill_lit.config.schema import AnalysisConfig


def build_report_bundle(folder: Path, analysis: AnalysisConfig, name: str, question: str = "") -> Any:
    """Reads the records in a results folder and computes all that is drawn.

    Raises UserError when records are missing or models cannot be compared.
    """
    from distill_lit.report.bundle import build_report_bundle as analysed

    return analysed(folder, analysis, name, question)


def render_report(folder: Path, result: Any) -> list[Path]:
    """Draws every table, figure and page of an analysed experiment into its results folder, and the index of all
    beside it; returns the paths written."""
    from distill_lit.report.render import render_report

    return render_report(folder, result)


def render_scaling_report(folders: list[Path], out: Path) -> tuple[list[Any], list[Path]]:
    """(rich table of how the students of several experiments scale and what is said below it, files drawn into `out`).
    Raises UserError where there is no curve to draw."""
    from distill_lit.analysis.scaling_law import fit_scaling_law, has_scaling_curve
    from distill_lit.report.formats.terminal import to_rich_table
    from distill_lit.report.render import write_scaling_files as drawn
    from distill_lit.report.tables.scaling import load_scaling_data, scaling_table
    from distill_lit.utils.exceptions import UserError

    runs = load_scaling_data(folders)
    if not has_scaling_curve(runs):
        raise UserError("no student was trained on two numbers of tokens, so there is no curve to draw")
    law = fit_scaling_law(runs)
    table = scaling_table(runs, law)
    return [to_rich_table(table), *table.footnotes], drawn(out, runs, law)


def terminal_table(result: Any) -> Any:
    """A rich renderable of the score table and the verdict, as wide as the console it is printed on."""
    from distill_lit.report.formats.terminal import TerminalTable

    return TerminalTable(result)


def model_card_sections(result: Any) -> dict[str, str]:
    """{model id of a student: Markdown of its scores beside its teacher's and what it lost}, for its model card."""
    from distill_lit.report.model_card import model_card_sections as written

    return written(result)
