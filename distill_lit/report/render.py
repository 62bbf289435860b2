"""Everything in a results folder that is drawn: tables, figures, pages. From the records alone, in seconds."""

import os
from pathlib import Path
from typing import Any

import pandas as pd

from distill_lit.analysis.pareto import cost_axes, frontier
from distill_lit.analysis.scaling_law import Law, is_grid
from distill_lit.report.bundle import Analysed
from distill_lit.report.figures.calibration import confidence_figure
from distill_lit.report.figures.long_tail import longtail_figure
from distill_lit.report.figures.pareto import frontier_figure
from distill_lit.report.figures.ranking import is_crowded, ranking_figure
from distill_lit.report.figures.scaling import scaling_figure
from distill_lit.report.figures.style import save_figure, variant_numbers
from distill_lit.report.figures.training_curves import curves_figure
from distill_lit.report.formats.latex_table import to_latex
from distill_lit.report.formats.markdown_table import cell_markdown, escape_markdown, paragraphs, to_markdown
from distill_lit.report.formats.table import to_csv
from distill_lit.report.loss_report import longtail_frame, longtail_markdown
from distill_lit.report.tables.efficiency_claim import claim_table
from distill_lit.report.tables.footnotes import watermark
from distill_lit.report.tables.inference_cost import cost_table
from distill_lit.report.tables.long_tail import reads_other_text
from distill_lit.report.tables.scaling import scaling_table
from distill_lit.report.tables.scores import csv_frame, detail_table, main_table
from distill_lit.report.web.index_page import draw_index
from distill_lit.report.web.report_page import draw_page
from distill_lit.utils.files import write_json, write_text


def draw_analysed(folder: Path, result: Analysed) -> list[Path]:
    """Draws what was analysed into `folder`, and the index of all experiments beside it; returns the paths written."""
    figures = [*draw_frontier(folder, result), *draw_longtail(folder, result), *draw_curves(folder, result)]
    figures += draw_scaling(folder, result.runs, None)  # a law needs several teachers
    return [
        *draw_tables(folder, result),
        *figures,
        draw_page(folder, result),
        draw_summary(folder, result),
        *([draw_index(folder.parent)] if os.access(folder.parent, os.W_OK) else []),
    ]


def draw_tables(folder: Path, result: Analysed) -> list[Path]:
    """table.md, table.tex and table.csv, from one frame."""
    main = main_table(result.scores, result.frame, result.title)
    claim, cost = claim_table(result.scores), cost_table(result.scores)
    detail = detail_table(result.scores, result.frame, "Every task, with differences")
    page = [
        f"# {escape_markdown(result.name)}",
        "",
        *paragraphs([result.question] if result.question else []),
        f"**{cell_markdown(result.headline)}**",
        "",
        *paragraphs(result.verdict),
        to_markdown(main, source=False),
        "![Frontier](frontier.png)",
        "",
        *(["![Training](curves.png)", ""] if (folder / "curves.png").exists() else []),
        *(["![Scaling](scaling.png)", ""] if (folder / "scaling.png").exists() else []),
        to_markdown(claim),
        to_markdown(cost),
        to_markdown(detail),
    ]
    head = "% Needs \\usepackage{booktabs,graphicx} in the preamble.\n"
    texts = {
        "table.md": "\n".join(page),
        "table.tex": head
        + to_latex(main, f"{_label(result.name)}-main")
        + "\n"
        + to_latex(cost, f"{_label(result.name)}-cost")
        + "\n"
        + to_latex(detail, f"{_label(result.name)}-detail"),
        "table.csv": to_csv(csv_frame(result.frame)),
    }
    for name, text in texts.items():
        write_text(folder / name, text)
    return [folder / name for name in texts]


def _label(name: str) -> str:
    return "".join(c if c.isascii() and c.isalnum() else "-" for c in name)


def draw_frontier(folder: Path, result: Analysed) -> list[Path]:
    """frontier.png, .pdf (against parameters, or one below the other where many have the same) and .csv (against every
    cost axis)."""
    analysis = result.scores.analysis
    known = cost_axes(result.scores) or ["parameters"]
    frames = {axis: frontier(result.scores, axis) for axis in known}
    mark = " ".join(watermark(result.scores))
    first = frames[known[0]]
    figure = (
        ranking_figure(first, analysis.claim_quality, analysis.confidence, mark)
        if is_crowded(first)
        else frontier_figure(
            first, known[0], analysis.claim_quality, analysis.confidence, mark, variant_numbers(result.scores.groups)
        )
    )
    table = pd.concat([frame.assign(axis=axis) for axis, frame in frames.items()], ignore_index=True)
    write_text(folder / "frontier.csv", to_csv(table[["axis", *(c for c in table if c != "axis")]]))
    return [*save_figure(figure, folder / "frontier.png"), folder / "frontier.csv"]


def draw_longtail(folder: Path, result: Analysed) -> list[Path]:
    """longtail.md, .csv, and its figure when a teacher and a distilled student have records."""
    without = "without teacher, on other text" if reads_other_text(result.scores) else "without teacher"
    figures = {
        "longtail.png": longtail_figure(result.longtail, " ".join(watermark(result.scores)), without),
        "confidence.png": confidence_figure(result.scores),
    }
    drawn = [path for name, figure in figures.items() for path in _save_or_remove(figure, folder / name)]
    has_confidence = figures["confidence.png"] is not None
    page = longtail_markdown(result.scores, result.longtail, result.title, result.statements, has_confidence)
    write_text(folder / "longtail.md", page)
    write_text(folder / "longtail.csv", to_csv(longtail_frame(result.longtail)))
    return [folder / "longtail.md", folder / "longtail.csv", *drawn]


def draw_curves(folder: Path, result: Analysed) -> list[Path]:
    """curves.png and .pdf, where trained models have left curves.csv."""
    try:
        curves = pd.read_csv(folder / "curves.csv")
    except (OSError, ValueError):
        curves = pd.DataFrame()
    return _save_or_remove(curves_figure(result.scores, curves), folder / "curves.png")


def _save_or_remove(figure: Any, path: Path) -> list[Path]:
    """Saves a figure; where there is none, removes that of an earlier drawing, which had something to show."""
    if figure is not None:
        return save_figure(figure, path)
    for old in (path, path.with_suffix(".pdf")):
        old.unlink(missing_ok=True)
    return []


def draw_summary(folder: Path, result: Analysed) -> Path:
    """Writes summary.json: name, question, verdict, tasks and watermark, for the index and for other programs."""
    summary = {
        "name": result.name,
        "question": result.question,
        "headline": result.headline,
        "verdict": result.verdict,
        "tasks": result.scores.tasks,
        "models": sum(len(group.models) for group in result.scores.groups),
        "watermark": watermark(result.scores),
    }
    write_json(folder / "summary.json", summary)
    return folder / "summary.json"


def draw_scaling(folder: Path, runs: pd.DataFrame, law: Law | None) -> list[Path]:
    """scaling.md, .csv, .png and .pdf in `folder`; nothing, and what was there goes, where there is no curve to draw."""
    names = [folder / f"scaling{suffix}" for suffix in (".md", ".csv", ".png", ".pdf")]
    if not is_grid(runs):
        for path in names:
            path.unlink(missing_ok=True)
        return []
    write_text(names[0], "\n".join([to_markdown(scaling_table(runs, law)), "![Scaling](scaling.png)", ""]))
    write_text(names[1], to_csv(runs if law is None else runs.assign(law=law.predict(runs))))
    save_figure(scaling_figure(runs, law), names[2])
    return names
