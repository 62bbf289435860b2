"""What a report shows of a grid with two numeric axes: a pivot table and its heat map, without being asked."""

from dataclasses import replace
from pathlib import Path

from distill_lit.report.bundle import ReportBundle
from distill_lit.report.figures.style import save_figure
from distill_lit.report.formats.html_table import escape_html, to_html
from distill_lit.report.formats.markdown_table import to_markdown
from distill_lit.report.formats.table import Table, to_csv
from distill_lit.report.number_format import join_words
from distill_lit.report.paper.build import PaperTable, build_paper_table, key_label, to_frame, to_table
from distill_lit.report.paper.heat_map import heat_map_of
from distill_lit.report.paper.notes import reading_notes
from distill_lit.report.paper.request import TableRequest, numeric_axes
from distill_lit.report.tables.footnotes import sample_limit_notes
from distill_lit.utils.exceptions import UserError
from distill_lit.utils.files import write_text

FILES = ("pivot.md", "pivot.csv", "pivot.png", "pivot.pdf")


def pivot_of(result: ReportBundle) -> tuple[PaperTable, Table] | None:
    """The score above chance over the first two numeric axes of the grid, in numbers and in words; None without two."""
    axes = numeric_axes(result.scores)
    if len(axes) < 2:
        return None
    try:
        paper = build_paper_table(result.scores, result.score_frame, TableRequest(pivot=axes[:2]))
    except UserError:  # no student of the grid has a score
        return None
    notes = reading_notes(paper, result.score_frame)
    caption = f"Score above chance by {join_words([key_label(result.scores, axis) for axis in axes[:2]])}"
    return paper, to_table(paper, caption, sample_limit_notes(result.scores), notes, [])


def write_pivot_files(folder: Path, result: ReportBundle, all_formats: bool = False) -> list[Path]:
    """pivot.md, .csv and .png in `folder`; nothing, and what was there goes, without two numeric axes."""
    found = pivot_of(result)
    if found is None:
        for name in FILES:
            (folder / name).unlink(missing_ok=True)
        return []
    paper, table = found
    write_text(folder / "pivot.md", "\n".join([to_markdown(table), "![Heat map](pivot.png)", ""]))
    write_text(folder / "pivot.csv", to_csv(to_frame(paper)))
    figure = save_figure(heat_map_of(paper, table), folder / "pivot.png", all_formats)
    return [folder / "pivot.md", folder / "pivot.csv", *figure]


def pivot_section(result: ReportBundle) -> str:
    """The same for report.html; empty without two numeric axes."""
    found = pivot_of(result)
    if found is None:
        return ""
    title, table = escape_html(found[1].caption), replace(found[1], header_notes=[])  # the page says it once
    return f'<section aria-labelledby="h-pivot"><h2 id="h-pivot">{title}</h2>{to_html(table)}</section>'
