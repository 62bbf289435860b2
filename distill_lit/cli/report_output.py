"""What a terminal shows of a report: the files drawn, and the table."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from distill_lit.report.bundle import ReportBundle


def print_report(bundle: "ReportBundle", folder: Path, console: Console, paths: Sequence[Path] = ()) -> None:
    """Prints where the report is, and its table. paths: the files drawn, each on a line."""
    from distill_lit.report import TerminalTable

    for path in paths or (folder / "report.html",):
        console.print(f"  {path}", highlight=False, soft_wrap=True)
    console.print(TerminalTable(bundle))
