"""Everything in a results folder that is drawn: tables, figures, pages. From the records alone, in seconds."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from distill_lit.analysis.endpoints import ACCURACY
from distill_lit.analysis.model_groups import role_words
from distill_lit.analysis.power import variances_to_json
from distill_lit.analysis.probe_long_tail import probe_long_tail_frame
from distill_lit.analysis.scaling_law import ScalingLaw, has_scaling_curve
from distill_lit.analysis.task_variances import task_variances
from distill_lit.report.bundle import ReportBundle
from distill_lit.report.figures.calibration import calibration_figure
from distill_lit.report.figures.long_tail import long_tail_figure
from distill_lit.report.figures.pareto import panel_frames, pareto_figure, with_labels
from distill_lit.report.figures.ranking import is_crowded, ranking_figure
from distill_lit.report.figures.scaling import scaling_figure
from distill_lit.report.figures.style import save_figure, variant_numbers
from distill_lit.report.figures.training_curves import curves_figure
from distill_lit.report.formats.latex_table import provenance_to_latex, to_latex
from distill_lit.report.formats.markdown_table import (
    escape_markdown,
    escape_markdown_cell,
    markdown_paragraphs,
    to_markdown,
)
from distill_lit.report.formats.table import Table, to_csv
from distill_lit.report.loss_report import loss_report_frame, loss_report_markdown, tail_answer
from distill_lit.report.loss_statement import calibration_finding
from distill_lit.report.paper.pivot import write_pivot_files
from distill_lit.report.primary_endpoint import primary_outcome
from distill_lit.report.summary import finding
from distill_lit.report.tables.endpoints import endpoint_name, endpoint_sentence, endpoint_table
from distill_lit.report.tables.footnotes import sample_limit_notes
from distill_lit.report.tables.generation import generation_table, variance_table
from distill_lit.report.tables.hypotheses import hypothesis_table
from distill_lit.report.tables.inference_cost import cost_table
from distill_lit.report.tables.long_tail import baseline_uses_other_data
from distill_lit.report.tables.scaling import scaling_table
from distill_lit.report.tables.scores import csv_frame, score_table, task_table
from distill_lit.report.verdict import verdict_numbers
from distill_lit.report.web.index_page import write_index_page
from distill_lit.report.web.report_page import write_report_page
from distill_lit.report.written_examples import side_by_side, side_by_side_markdown
from distill_lit.utils.files import write_json, write_text

_PAGE_FIGURES = {"frontier.png": "Frontier", "curves.png": "Training", "scaling.png": "Scaling", "pivot.png": "Heat map"}


def render_report(folder: Path, result: ReportBundle, all_formats: bool = False) -> list[Path]:
    """Draws what was analyzed into `folder`, and the index of all experiments beside it; returns the paths written.

    all_formats: figures as PDF and tables as TeX too. Those that are there already are drawn again in any case."""
    figures = [
        *write_pareto_files(folder, result, all_formats),
        *write_long_tail_files(folder, result, all_formats),
        *write_training_curves(folder, result, all_formats),
    ]
    figures += write_scaling_files(folder, result.scaling_data, result.scaling_law, all_formats)
    figures += write_pivot_files(folder, result, all_formats)
    return [
        *write_score_tables(folder, result, all_formats),
        *write_generation_files(folder, result),
        *figures,
        write_report_page(folder, result),
        write_summary_json(folder, result),
        *write_index_page(folder.parent),
    ]


def write_score_tables(folder: Path, result: ReportBundle, all_formats: bool = False) -> list[Path]:
    """table.md, table.csv and, as in `render_report`, table.tex, from one frame; endpoints.csv, with probes probes.csv."""
    main = score_table(result.scores, result.score_frame, "Did the teacher help?")
    tasks, cost = task_table(result.scores, result.score_frame), cost_table(result.scores)
    endpoints = endpoint_table(result.scores, result.endpoint_frame)
    is_declared = result.scores.analysis.primary_endpoint != ACCURACY
    texts = {
        "table.md": _table_page(folder, result, main, [tasks, *([endpoints] if is_declared else []), cost]),
        "table.csv": to_csv(csv_frame(result.score_frame)),
        "endpoints.csv": to_csv(result.endpoint_frame.drop(columns="title")),
        **({"probes.csv": to_csv(probe_long_tail_frame(result.probe_long_tail))} if result.scores.results.probes else {}),
    }
    if all_formats or (folder / "table.tex").exists():
        named = {"main": replace(main, caption=result.title), "tasks": tasks, "cost": cost}
        tables = [to_latex(table, f"{_label(result.name)}-{name}") for name, table in named.items()]
        texts["table.tex"] = "\n".join(["% Needs \\usepackage{booktabs,graphicx} in the preamble.", *tables])
        texts["table_provenance.tex"] = provenance_to_latex(main.provenance, f"{_label(result.name)}-main")
    for name, text in texts.items():
        write_text(folder / name, text)
    return [folder / name for name in texts]


def _table_page(folder: Path, result: ReportBundle, main: Table, others: list[Table]) -> str:
    """The answer, the table that shows it, what else is asked at once; then the other tables and provenance."""
    figures = [f"![{words}]({name})\n" for name, words in _PAGE_FIGURES.items() if (folder / name).exists()]
    page = [
        f"# {escape_markdown(result.name)}\n",
        *markdown_paragraphs([result.question] if result.question else []),
        f"**{escape_markdown_cell(result.headline)}**\n",
        *(f"> {escape_markdown_cell(text)}\n" for text in main.header_notes),
        to_markdown(replace(main, header_notes=[]), with_provenance=False),
        *(to_markdown(table) for table in [_hypotheses(result)] if table.rows),
        *markdown_paragraphs([*result.verdict, *_some(endpoint_sentence(result.scores, result.endpoint_frame))]),
        *figures,
        *(to_markdown(replace(table, header_notes=[])) for table in others),
        "Every task with intervals and differences is in [table.csv](table.csv) and on the page (report.html); what was "
        "lost where, in [longtail.md](longtail.md).\n",
        *markdown_paragraphs(main.provenance),
    ]
    return "\n".join(page)


def _hypotheses(result: ReportBundle) -> Table:
    return hypothesis_table(result.hypotheses, result.scores.analysis.confidence_level)


def _some(sentence: str) -> list[str]:
    return [sentence] if sentence else []


def _label(name: str) -> str:
    return "".join(c if c.isascii() and c.isalnum() else "-" for c in name)


def write_pareto_files(folder: Path, result: ReportBundle, all_formats: bool = False) -> list[Path]:
    """frontier.png (against parameters, and bytes and speed where they say more; or one below the other, with these beside
    their names, where many models have the same) and .csv (against every cost axis)."""
    analysis, groups = result.scores.analysis, result.scores.groups
    frames = result.frontiers
    declared = result.endpoint_frame.query("is_primary and endpoint != @ACCURACY")
    title = finding(result.students, endpoint_name(declared.iloc[0]) if len(declared) else "")
    mark = " ".join(sample_limit_notes(result.scores))
    display, levels = result.scores.results.display, (analysis.claim_min_quality, analysis.confidence_level)
    shown = {axis: with_labels(frame, display) for axis, frame in frames.items()}
    panels = panel_frames(shown)
    figure = (
        ranking_figure(panels, *levels, mark, title)
        if is_crowded(next(iter(shown.values())))
        else pareto_figure(panels, *levels, mark, variant_numbers(groups), title, role_words(display))
    )
    table = pd.concat([frame.assign(axis=axis) for axis, frame in frames.items()], ignore_index=True)
    write_text(folder / "frontier.csv", to_csv(table[["axis", *(c for c in table if c != "axis")]]))
    return [*save_figure(figure, folder / "frontier.png", all_formats), folder / "frontier.csv"]


def write_long_tail_files(folder: Path, result: ReportBundle, all_formats: bool = False) -> list[Path]:
    """longtail.md, .csv, and its figure when a teacher and a distilled student have records."""
    scores, long_tail = result.scores, result.long_tail
    without = role_words(scores.results.display)["ce_only"]
    ce_only_label = f"{without}, on other data" if baseline_uses_other_data(scores) else without
    mark = " ".join(sample_limit_notes(scores))
    figures = {
        "longtail.png": long_tail_figure(long_tail, mark, ce_only_label, tail_answer(scores, long_tail, 1)),
        "calibration.png": calibration_figure(scores, calibration_finding(scores, long_tail)),
    }
    drawn = [path for name, figure in figures.items() for path in _save_or_remove(figure, folder / name, all_formats)]
    has_calibration = figures["calibration.png"] is not None
    page = loss_report_markdown(scores, long_tail, result.name, result.loss_statements, has_calibration, _probes(result))
    write_text(folder / "longtail.md", page)
    write_text(folder / "longtail.csv", to_csv(loss_report_frame(long_tail), digits=4))
    return [folder / "longtail.md", folder / "longtail.csv", *drawn]


def _probes(result: ReportBundle) -> list[str]:
    """Markdown of held-out text for longtail.md; nothing without probes."""
    found = result.held_out_text
    if found is None:
        return []
    tables = [to_markdown(one) for one in (found.models, found.words) if one.rows]
    return ["## Held-out text", "", *markdown_paragraphs([found.answer] if found.answer else []), *tables]


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
        **verdict_numbers(result.students),
        "outcome": primary_outcome(result.scores, result.endpoint_frame, result.students),
        "hypotheses": {one.test.name: one.test.outcome for one in result.hypotheses},
        "tasks": result.scores.tasks,
        "models": sum(len(group.models) for group in result.scores.groups),
        "sample_limit_notes": sample_limit_notes(result.scores),
        "task_variances": variances_to_json(task_variances(result.scores)),
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
