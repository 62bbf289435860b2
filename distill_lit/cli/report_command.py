"""Results drawn again from records alone: nothing here imports torch or Lightning, so it starts at once."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from distill_lit import report
from distill_lit.config import ExperimentConfig
from distill_lit.utils.exceptions import UserError

if TYPE_CHECKING:
    from distill_lit.report.bundle import ReportBundle


def render_and_print_report(folder: Path, config: ExperimentConfig, console: Console) -> "ReportBundle":
    """Draws everything into a results folder and shows its table; returns what was analysed."""
    if not os.access(folder, os.W_OK):
        raise UserError(f"{folder} cannot be written to; copy it to a folder that can be, and draw its report there")
    result: ReportBundle = report.build_report_bundle(folder, config.analysis, config.name, config.question)
    for path in report.render_report(folder, result):
        console.print(f"  {path}", highlight=False, soft_wrap=True)
    console.print(report.terminal_table(result))
    return result


def render_and_print_scaling(folders: list[Path], out: Path, console: Console) -> None:
    """Draws how the students of several experiments scale."""
    lines, paths = report.render_scaling_report(folders, out)
    for part in lines:
        console.print(part, highlight=False, markup=False)
    for path in paths:
        console.print(f"  {path}", highlight=False, soft_wrap=True)
