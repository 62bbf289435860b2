"""A paper's table read from results folders, and written as TeX, Markdown, CSV or a heat map, its provenance beside it."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from distill_lit.analysis.endpoints import PROBE_PREFIX
from distill_lit.analysis.merging import left_out_tasks, merge_results, restrict_tasks
from distill_lit.analysis.results import Results, load_results
from distill_lit.analysis.score_table import score_frame
from distill_lit.analysis.scores import Scores, compute_scores
from distill_lit.config import ExperimentConfig, ReportConfig
from distill_lit.report.figures.style import save_figure
from distill_lit.report.formats.latex_table import provenance_to_latex, to_latex
from distill_lit.report.formats.markdown_table import markdown_paragraphs, to_markdown
from distill_lit.report.formats.table import Table, to_csv
from distill_lit.report.paper.build import PaperTable, build_paper_table, to_frame, to_table
from distill_lit.report.paper.endpoint_columns import with_endpoints
from distill_lit.report.paper.heat_map import heat_map_of
from distill_lit.report.paper.known_names import check_display, check_report_sections
from distill_lit.report.paper.notes import merging_notes, provenance_lines, reading_notes
from distill_lit.report.paper.quantities import FIGURE_FORMATS
from distill_lit.report.paper.request import TableRequest
from distill_lit.report.tables.footnotes import sample_limit_notes
from distill_lit.report.tables.scores import with_training_flops
from distill_lit.utils.exceptions import UserError
from distill_lit.utils.files import write_text


@dataclass(frozen=True)
class PaperSource:
    """The experiments of a table, analyzed as one."""

    configs: dict[str, ExperimentConfig]
    folders: dict[str, Path]
    scores: Scores
    frame: pd.DataFrame
    left_out: dict[str, list[str]]

    @property
    def title(self) -> str:
        """Name and question of one experiment, or the names of several."""
        if len(self.configs) > 1:
            return f"Students of {', '.join(self.configs)}"
        ((name, config),) = self.configs.items()
        return f"{name}: {config.question}" if config.question else name


def load_paper_source(configs: dict[Path, ExperimentConfig], display: ReportConfig, request: TableRequest) -> PaperSource:
    """Reads {results folder: its config}. display: labels, order and decimals beside those of the configs, before them.
    request: what will be asked of it. Raises UserError for what is damaged, cannot be compared, or is named in `display`
    and not there."""
    asked, display = display, combined_display([display, *(config.report for config in configs.values())])
    names, task_patterns = _experiment_names(configs), request.task_patterns()
    parts: dict[str, Results] = {}
    for folder, name in names.items():
        part = load_results(folder, display)
        parts[name] = restrict_tasks(part, task_patterns) if task_patterns else part
    by_name = {names[folder]: config for folder, config in configs.items()}
    teachers = {name: config.teacher.model for name, config in by_name.items()}
    results = merge_results(parts, teachers) if len(parts) > 1 else next(iter(parts.values()))
    asked_probes = [name for name in (*request.columns, *request.values) if name.startswith(PROBE_PREFIX)]
    if len(parts) > 1 and asked_probes and results.probes is None:
        raise UserError(f"{asked_probes[0]}: the experiments share no probe that was scored in the same way")
    scores = compute_scores(results, next(iter(configs.values())).analysis)
    frame = with_endpoints(scores, with_training_flops(score_frame(scores)), {*request.columns, *request.values})
    check_display(scores, frame, asked)
    check_report_sections(scores, frame, configs.values())
    folders = {name: folder for folder, name in names.items()}
    return PaperSource(by_name, folders, scores, frame, left_out_tasks(parts))


def _experiment_names(configs: dict[Path, ExperimentConfig]) -> dict[Path, str]:
    """{folder: name of the experiment}; the folder itself where two experiments have one name."""
    names = [config.name for config in configs.values()]
    return {folder: config.name if names.count(config.name) == 1 else str(folder) for folder, config in configs.items()}


def combined_display(displays: list[ReportConfig]) -> ReportConfig:
    """Labels and decimals of all, the first that names something counts; the orders one after the other."""
    labels: dict[str, str] = {}
    decimals: dict[str, int] = {}
    for display in reversed(displays):
        labels |= display.labels
        decimals |= display.decimals
    order = list(dict.fromkeys(name for display in displays for name in display.order))
    return ReportConfig(labels=labels, order=order, decimals=decimals)


@dataclass(frozen=True)
class PaperOutput:
    """A table with its words, in every format. label: of TeX's references."""

    source: PaperSource
    paper: PaperTable
    caption: str
    label: str
    command: str = ""

    @cached_property
    def table(self) -> Table:
        """Rows of cells, with notes and provenance."""
        notes = reading_notes(self.paper, self.source.frame)
        merging = merging_notes(self.source.configs, self.source.left_out)
        provenance = provenance_lines(self.source.folders, self.paper, self.command)
        return to_table(self.paper, self.caption, sample_limit_notes(self.source.scores), [*notes, *merging], provenance)

    def text(self, kind: str) -> str:
        """As `tex`, `md` or `csv`."""
        if kind == "csv":
            return to_csv(to_frame(self.paper))
        if kind == "md":
            return to_markdown(self.table, with_provenance=False)
        return "% Needs \\usepackage{booktabs,graphicx} in the preamble.\n" + to_latex(self.table, self.label)

    def write(self, path: Path, kind: str) -> list[Path]:
        """Writes the table, and where its numbers come from beside it: NAME_provenance.tex or .md."""
        if kind in FIGURE_FORMATS:
            _save(self.figure(), path, kind)
        else:
            write_text(path, self.text(kind))
        beside = path.with_name(f"{path.stem}_provenance.{'tex' if kind == 'tex' else 'md'}")
        lines = self.table.provenance
        head = f"Where the numbers of {path.stem} come from:"
        text = provenance_to_latex(lines, self.label) if kind == "tex" else "\n".join(markdown_paragraphs([head, *lines]))
        write_text(beside, text)
        return [path, beside]

    def figure(self) -> Any:
        """The heat map. Raises UserError for a table that is none."""
        return heat_map_of(self.paper, self.table)


def _save(figure: Any, path: Path, kind: str) -> None:
    """As PNG, or as PDF without dates."""
    if kind == "png":
        save_figure(figure, path)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="pdf", metadata={"CreationDate": None, "Producer": None, "Creator": None})


def make_paper_output(
    source: PaperSource, request: TableRequest, caption: str = "", label: str = "", command: str = ""
) -> PaperOutput:
    """The table that is asked for. Raises UserError for names that the experiments do not have."""
    paper = build_paper_table(source.scores, source.frame, request)
    name = "-".join(source.configs)
    return PaperOutput(source, paper, caption or source.title, label or _label(name), command)


def _label(name: str) -> str:
    return "".join(c if c.isascii() and c.isalnum() else "-" for c in name)
