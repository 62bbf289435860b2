"""Everything in a results folder that is drawn: tables, figures, pages. From the records alone, in seconds."""

import os
from pathlib import Path
from typing import Any

import pandas as pd

from distill_lit.analysis.pareto import cost_axes, pareto_frontier
from distill_lit.analysis.scaling_law import ScalingLaw, has_scaling_curve
from distill_lit.report.bundle import ReportBundle
from distill_lit.report.figures.calibration import calibration_figure
from distill_lit.report.figures.long_tail import long_tail_figure
from distill_lit.report.figures.pareto import pareto_figure
from distill_lit.report.figures.ranking import is_crowded, ranking_figure
from distill_lit.report.figures.scaling import scaling_figure
from distill_lit.report.figures.style import save_figure, variant_numbers
from distill_lit.report.figures.training_curves import curves_figure
from distill_lit.report.formats.latex_table import to_latex
from distill_lit.report.formats.markdown_table import (
    escape_markdown,
    escape_markdown_cell,
    markdown_paragraphs,
    to_markdown,
)
from distill_lit.report.formats.table import to_csv
from distill_lit.report.loss_report import loss_report_frame, loss_report_markdown
from distill_lit.report.tables.efficiency_claim import claim_table
from distill_lit.report.tables.footnotes import sample_limit_notes
from distill_lit.report.tables.generation import generation_table, variance_table
from distill_lit.report.tables.inference_cost import cost_table
from distill_lit.report.tables.long_tail import baseline_uses_other_data
from distill_lit.report.tables.scaling import scaling_table
from distill_lit.report.tables.scores import csv_frame, detail_table, score_table
from distill_lit.report.web.index_page import write_index_page
from distill_lit.report.web.report_page import write_report_page
from distill_lit.report.written_examples import side_by_side, side_by_side_markdown
from distill_lit.utils.files import write_json, write_text


def render_report(folder: Path, result: ReportBundle, all_formats: bool = False) -> list[Path]:
    """Draws what was analyzed into `folder`, and the index of all experiments beside it; returns the paths written.

    all_formats: figures as PDF and tables as TeX too. Those that are there already are drawn again in any case."""
    figures = [
        *write_pareto_files(folder, result, all_formats),
        *write_long_tail_files(folder, result, all_formats),
        *write_training_curves(folder, result, all_formats),
    ]
    figures += write_scaling_files(folder, result.scaling_data, result.scaling_law, all_formats)
    return [
        *write_score_tables(folder, result, all_formats),
        *write_generation_files(folder, result),
        *figures,
        write_report_page(folder, result),
        write_summary_json(folder, result),
        *([write_index_page(folder.parent)] if os.access(folder.parent, os.W_OK) else []),
    ]


def write_score_tables(folder: Path, result: ReportBundle, all_formats: bool = False) -> list[Path]:
    """table.md, table.csv and, as in `render_report`, table.tex, from one frame."""
    main = score_table(result.scores, result.score_frame, result.title)
    claim, cost = claim_table(result.scores), cost_table(result.scores)
    detail = detail_table(result.scores, result.score_frame, "Every task, with differences")
    page = [
        f"# {escape_markdown(result.name)}",
        "",
        *markdown_paragraphs([result.question] if result.question else []),
        f"**{escape_markdown_cell(result.headline)}**",
        "",
        *markdown_paragraphs(result.verdict),
        to_markdown(main, with_provenance=False),
        "![Frontier](frontier.png)",
        "",
        *(["![Training](curves.png)", ""] if (folder / "curves.png").exists() else []),
        *(["![Scaling](scaling.png)", ""] if (folder / "scaling.png").exists() else []),
        to_markdown(claim),
        to_markdown(cost),
        to_markdown(detail),
    ]
    texts = {"table.md": "\n".join(page), "table.csv": to_csv(csv_frame(result.score_frame))}
    if all_formats or (folder / "table.tex").exists():
        named = {"main": main, "cost": cost, "detail": detail}
        tables = [to_latex(table, f"{_label(result.name)}-{name}") for name, table in named.items()]
        texts["table.tex"] = "\n".join(["% Needs \\usepackage{booktabs,graphicx} in the preamble.", *tables])
    for name, text in texts.items():
        write_text(folder / name, text)
    return [folder / name for name in texts]


def _label(name: str) -> str:
    return "".join(c if c.isascii() and c.isalnum() else "-" for c in name)


def write_pareto_files(folder: Path, result: ReportBundle, all_formats: bool = False) -> list[Path]:
    """frontier.png (against parameters, or one below the other where many have the same) and .csv (against every
    cost axis)."""
    analysis = result.scores.analysis
    known = cost_axes(result.scores) or ["parameters"]
    frames = {axis: pareto_frontier(result.scores, axis) for axis in known}
    mark = " ".join(sample_limit_notes(result.scores))
    first = frames[known[0]]
    figure = (
        ranking_figure(first, analysis.claim_min_quality, analysis.confidence_level, mark)
        if is_crowded(first)
        else pareto_figure(
            first,
            known[0],
            analysis.claim_min_quality,
            analysis.confidence_level,
            mark,
            variant_numbers(result.scores.groups),
        )
    )
    table = pd.concat([frame.assign(axis=axis) for axis, frame in frames.items()], ignore_index=True)
    write_text(folder / "frontier.csv", to_csv(table[["axis", *(c for c in table if c != "axis")]]))
    return [*save_figure(figure, folder / "frontier.png", all_formats), folder / "frontier.csv"]


def write_long_tail_files(folder: Path, result: ReportBundle, all_formats: bool = False) -> list[Path]:
    """longtail.md, .csv, and its figure when a teacher and a distilled student have records."""
    ce_only_label = "without teacher, on other data" if baseline_uses_other_data(result.scores) else "without teacher"
    figures = {
        "longtail.png": long_tail_figure(result.long_tail, " ".join(sample_limit_notes(result.scores)), ce_only_label),
        "calibration.png": calibration_figure(result.scores),
    }
    drawn = [path for name, figure in figures.items() for path in _save_or_remove(figure, folder / name, all_formats)]
    has_calibration = figures["calibration.png"] is not None
    page = loss_report_markdown(result.scores, result.long_tail, result.title, result.loss_statements, has_calibration)
    write_text(folder / "longtail.md", page)
    write_text(folder / "longtail.csv", to_csv(loss_report_frame(result.long_tail)))
    return [folder / "longtail.md", folder / "longtail.csv", *drawn]


def write_training_curves(folder: Path, result: ReportBundle, all_formats: bool = False) -> list[Path]:
    """curves.png, where trained models have left curves.csv."""
    try:
        curves = pd.read_csv(folder / "curves.csv")
    except (OSError, ValueError):
        curves = pd.DataFrame()
    return _save_or_remove(curves_figure(result.scores, curves), folder / "curves.png", all_formats)


def _save_or_remove(figure: Any, path: Path, all_formats: bool) -> list[Path]:
    """Saves a figure; where there is none, removes that of an earlier drawing, which had something to show."""
    if figure is not None:
        return save_figure(figure, path, all_formats)
    for old in (path, path.with_suffix(".pdf")):
        old.unlink(missing_ok=True)
    return []


def write_summary_json(folder: Path, result: ReportBundle) -> Path:
    """Writes summary.json: name, question, verdict, tasks and sample limits, for the index and for other programs."""
    summary = {
        "name": result.name,
        "question": result.question,
        "headline": result.headline,
        "verdict": result.verdict,
        "tasks": result.scores.tasks,
        "models": sum(len(group.models) for group in result.scores.groups),
        "sample_limit_notes": sample_limit_notes(result.scores),
    }
    write_json(folder / "summary.json", summary)
    return folder / "summary.json"


def write_scaling_files(folder: Path, runs: pd.DataFrame, law: ScalingLaw | None, all_formats: bool = False) -> list[Path]:
    """scaling.md, .csv and .png in `folder`; nothing, and what was there goes, where there is no curve to draw."""
    page, table, figure = (folder / f"scaling{suffix}" for suffix in (".md", ".csv", ".png"))
    if not has_scaling_curve(runs):
        for path in (page, table, figure, figure.with_suffix(".pdf")):
            path.unlink(missing_ok=True)
        return []
    write_text(page, "\n".join([to_markdown(scaling_table(runs, law)), "![Scaling](scaling.png)", ""]))
    write_text(table, to_csv(runs if law is None else runs.assign(law=law.predict(runs))))
    return [page, table, *save_figure(scaling_figure(runs, law), figure, all_formats)]


def write_generation_files(folder: Path, result: ReportBundle) -> list[Path]:
    """generation.md and .csv: what models wrote; nothing, and what was there goes, where they wrote nothing."""
    page, table = folder / "generation.md", folder / "generation.csv"
    if not result.written_answers:
        for path in (page, table):
            path.unlink(missing_ok=True)
        return []
    frame = result.generation_frame
    tables = [generation_table(result.scores, frame), variance_table(frame)]
    examples = side_by_side_markdown(side_by_side(result.scores, result.written_answers))
    lines = [f"# What they wrote: {escape_markdown(result.title)}", "", *(to_markdown(each) for each in tables if each)]
    write_text(page, "\n".join([*lines, *examples]))
    write_text(table, to_csv(frame))
    return [page, table]
