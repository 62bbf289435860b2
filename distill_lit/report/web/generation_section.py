"""The page's section on what models wrote: tables, then texts of teacher and students side by side."""

import pandas as pd

from distill_lit.report.bundle import ReportBundle
from distill_lit.report.formats.html_table import escape_html, html_paragraphs, to_html
from distill_lit.report.tables.generation import generation_table, missing_answer_notes, variance_table
from distill_lit.report.written_examples import SideBySide, end_of, side_by_side, start_of

MAX_SECTION_CHARS = 60_000  # of texts


def generation_section(result: ReportBundle) -> str:
    """The section as HTML; only what old records lack where they hold no answers, empty without generative tasks."""
    if not result.written_answers:
        return html_paragraphs(missing_answer_notes(result.scores), "note")
    drawn, room = [], MAX_SECTION_CHARS
    for example in side_by_side(result.scores, result.written_answers):
        article = _article(example)
        room -= len(article)
        if room < 0:
            break
        drawn.append(article)
    tables = (generation_table(result.scores, result.generation_frame), variance_table(result.generation_frame))
    return (
        '<section aria-labelledby="h-generation"><h2 id="h-generation">What they wrote</h2>'
        f"{''.join(to_html(table) for table in tables if table is not None)}"
        f"<details><summary>Teacher and students side by side ({len(drawn)} documents)</summary>"
        f"{''.join(drawn)}</details></section>"
    )


def _article(example: SideBySide) -> str:
    target = f'<p class="gold">Right: {escape_html(start_of(example.target))}</p>' if example.target else ""
    columns = "".join(_answer(*answer) for answer in example.answers)
    return (
        f"<article><h4>{escape_html(example.task)} {example.doc_id}</h4>"
        f"<p>{escape_html(end_of(example.prompt))}</p>{target}"
        f'<div class="answers">{columns}</div></article>'
    )


def _answer(model: str, text: str, score: float) -> str:
    verdict = {1.0: "right", 0.0: "wrong"}.get(score, "" if pd.isna(score) else f"score {score:.2f}")
    kind = {1.0: " gained", 0.0: " lost"}.get(score, "")
    chip = f' <span class="chip{kind}">{escape_html(verdict)}</span>' if verdict else ""
    return f"<div><h4>{escape_html(model)}{chip}</h4><p>{escape_html(start_of(text)) or '<em>nothing</em>'}</p></div>"
