"""What a student's model card says of its evaluation: scores beside the teacher's, and the loss statement."""

import pandas as pd

from distill_lit.analysis.score_table import MACRO_AVERAGE
from distill_lit.report.bundle import ReportBundle
from distill_lit.report.formats.markdown_table import markdown_paragraphs, to_markdown
from distill_lit.report.formats.table import Table, TableCell
from distill_lit.report.number_format import format_points
from distill_lit.report.tables.footnotes import evaluation_footnotes, sample_limit_notes


def model_card_sections(result: ReportBundle) -> dict[str, str]:
    """{model id of a student: Markdown}. Seeds of one group share their text, which gives their mean."""
    students = [group for group in result.scores.groups if group.role in ("untrained", "ce_only", "distilled")]
    texts = {group.label: _card(result, group.label, len(group.models)) for group in students if group.models}
    return {model: texts[group.label] for group in students if group.label in texts for model in group.models}


def _card(result: ReportBundle, label: str, seeds: int) -> str:
    frame = result.score_frame
    student, teacher = (_by_task(frame[mask]) for mask in (frame["model"] == label, frame["role"] == "teacher"))
    rows = []
    for task, row in student.iterrows():
        where = "above chance" if task == MACRO_AVERAGE else f"{row['metric']}, {_shots(row['num_fewshot'])}-shot"
        other = format_points(teacher.loc[task, "score"]) if task in teacher.index else "—"
        rows.append(
            [
                TableCell(str(task)),
                TableCell(where),
                TableCell(f"{row['n']:.0f}"),
                TableCell(other),
                TableCell(format_points(row["score"])),
            ]
        )
    shown = Table(
        f"Scores in points, {label}" + (f", mean of {seeds} seeds" if seeds > 1 else ""),
        ["task", "metric", "documents", "teacher", "this student"],
        rows,
        num_text_columns=2,
        header_notes=sample_limit_notes(result.scores),
        provenance=evaluation_footnotes(result.scores),
    )
    return "\n".join([to_markdown(shown), *markdown_paragraphs(result.loss_statements.get(label, []))])


def _shots(number: float | str) -> str:
    """`5`; of a benchmark whose tasks have several numbers all of them, as in `0 / 5`."""
    return number if isinstance(number, str) else f"{number:.0f}"


def _by_task(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.drop_duplicates("task").set_index("task")
