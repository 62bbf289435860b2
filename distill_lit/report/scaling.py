"""How students scale over several experiments, each with a teacher of its own."""

from pathlib import Path
from typing import Any

from distill_lit.analysis.scaling_law import fit_scaling_law, has_scaling_curve
from distill_lit.report.formats.terminal import to_rich_table
from distill_lit.report.render import write_scaling_files
from distill_lit.report.tables.scaling import load_scaling_data, scaling_table
from distill_lit.utils.exceptions import UserError


def render_scaling_report(folders: list[Path], out: Path, all_formats: bool = False) -> tuple[list[Any], list[Path]]:
    """Draws the curves of several results folders, and the law where one can be fitted, into `out`.

    Returns (a rich table and the notes below it, the paths written). Raises UserError where there is no curve to draw.
    """
    runs = load_scaling_data(folders)
    if not has_scaling_curve(runs):
        raise UserError("no student was trained on two numbers of tokens, so there is no curve to draw")
    law = fit_scaling_law(runs)
    table = scaling_table(runs, law)
    return [to_rich_table(table), *table.footnotes], write_scaling_files(out, runs, law, all_formats)
