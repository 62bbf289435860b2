"""report.html: the whole experiment on one self-contained page, to be opened from disk."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from distill_lit.analysis.scaling_law import has_scaling_curve
from distill_lit.report.bundle import ReportBundle
from distill_lit.report.formats.html_table import escape_html, fold, html_paragraphs, to_html
from distill_lit.report.formats.table import Table
from distill_lit.report.loss_report import slice_examples, tail_answer
from distill_lit.report.paper.pivot import pivot_section
from distill_lit.report.tables.answer import leave_one_out_table, pair_table, task_signal_table
from distill_lit.report.tables.efficiency_claim import claim_table
from distill_lit.report.tables.endpoints import endpoint_sentence, endpoint_table
from distill_lit.report.tables.footnotes import evaluation_footnotes, sample_limit_notes
from distill_lit.report.tables.hypotheses import hypothesis_table
from distill_lit.report.tables.inference_cost import cost_table
from distill_lit.report.tables.long_tail import calibration_table, contrast_table, flip_table, slice_table, tail_table
from distill_lit.report.tables.scaling import scaling_table
from distill_lit.report.tables.scores import detail_table, score_table, task_table
from distill_lit.report.web.generation_section import generation_section
from distill_lit.report.web.html_page import embed_json, html_document, pack_json, page_script
from distill_lit.report.web.page_data import changed_rows, curve_lines, frontiers, packed_long_tail, page_data
from distill_lit.utils.files import read_json, write_text

MAX_PAGE_BYTES = 300_000  # beyond which changed documents are left out


def write_report_page(folder: Path, result: ReportBundle) -> Path:
    """Writes report.html into `folder`; returns its path."""
    placed = frontiers(result)
    curves = curve_lines(result.scores, folder / "curves.csv")
    sections = [_hypotheses(result), _results(result), pivot_section(result), _frontier_section(result, placed),
                _tail_section(result), _probe_section(result), generation_section(result), _curves_section(curves),
                _scaling_section(result), _statements(result)]  # fmt: skip
    parts = [_head(result), "<main id='main'>", *(section for section in sections if section), "</main>",
             _footer(folder, result)]  # fmt: skip
    data = page_data(result, placed) | {"curve_styles": curves["curve_styles"]}

    def page(packed: str, omitted: int) -> str:
        embedded = embed_json(data | {"omitted_documents": omitted})
        scripts = [f'<script type="application/json" id="data">{embedded}</script>',
                   f'<script type="text/plain" id="packed-curves">{pack_json(curves["curves"])}</script>',
                   f'<script type="text/plain" id="packed-long-tail">{packed}</script>',
                   f"<script>\n{page_script()}</script>"]  # fmt: skip
        return html_document(result.title, "\n".join([*parts, *scripts]))

    room = MAX_PAGE_BYTES - len(page("", 0).encode())
    write_text(folder / "report.html", page(*packed_long_tail(result, room)))
    return folder / "report.html"


def _table(table: Table) -> str:
    """A table without the banner, which stands once, at the top of the page."""
    return to_html(replace(table, header_notes=[]))


def _folded(summary: str, table: Table) -> str:
    """A table behind a line that opens it; nothing where it has no rows."""
    return fold(summary, _table(table)) if table.rows else ""


def _section(name: str, title: str, *parts: str) -> str:
    body = "\n".join(part for part in parts if part)
    return f'<section aria-labelledby="h-{name}"><h2 id="h-{name}">{escape_html(title)}</h2>\n{body}</section>'


def _head(result: ReportBundle) -> str:
    question = f'<p class="question">{escape_html(result.question)}</p>' if result.question else ""
    return (
        '<a class="skip" href="#main">To the results</a>\n<header>'
        f"<h1>{escape_html(result.name)}</h1>{question}\n"
        f"{html_paragraphs([result.headline], 'verdict')}\n"
        f"{html_paragraphs(sample_limit_notes(result.scores), 'sample-limit')}\n"
        f"{html_paragraphs([*result.verdict, *_endpoints(result)])}\n</header>"
    )


def _endpoints(result: ReportBundle) -> list[str]:
    sentence = endpoint_sentence(result.scores, result.endpoint_frame)
    return [sentence] if sentence else []


def _hypotheses(result: ReportBundle) -> str:
    """What was declared before the run; nothing without hypotheses."""
    table = hypothesis_table(result.hypotheses, result.scores.analysis.confidence_level)
    if not table.rows:
        return ""
    return _section(
        "hypotheses", "Hypotheses", _table(replace(table, footnotes=[])), fold("How they were tested", _notes(table))
    )


def _notes(table: Table) -> str:
    return html_paragraphs(table.footnotes)


def _results(result: ReportBundle) -> str:
    scores, frame = result.scores, result.score_frame
    return _section(
        "scores",
        "Scores",
        _table(score_table(scores, frame, "Did the teacher help?")),
        _folded("Scores by task", task_table(scores, frame)),
        _folded("Other endpoints than accuracy", endpoint_table(scores, result.endpoint_frame)),
        _folded("Every task, with intervals and differences", detail_table(scores, frame, "Every task")),
        _folded("One task left out at a time", leave_one_out_table(scores, result.answer)),
        *(_folded(table.caption, table) for table in (pair_table(scores, test) for test in result.answer.axes)),
        _folded("What each task can tell", task_signal_table(scores)),
    )


def _frontier_section(result: ReportBundle, placed: dict[str, pd.DataFrame]) -> str:
    cost, claim = cost_table(result.scores), claim_table(result.scores)
    if len(cost.columns) < 2:
        return ""
    plot = _frontier_plot(result) if placed else ""
    return _section("frontier", "Quality against cost", plot, _table(cost), _folded(claim.caption, claim))


def _frontier_plot(result: ReportBundle) -> str:
    return f"""<div class="controls"><label for="cost">cost axis<select id="cost"></select></label>
<div id="legend" class="controls"></div></div>
<figure><div id="frontier" class="panels"></div>
<figcaption>Score above chance, mean over tasks, with {result.scores.analysis.confidence_level:.0%} intervals.
Point at a model, or reach it with the tab key, to read its numbers.</figcaption></figure>
<div class="tip" id="tip" aria-live="polite">No model selected.</div>
<details><summary>The same as a table</summary><div id="frontier-table" class="scroll"></div></details>"""


def _tail_section(result: ReportBundle) -> str:
    scores, tail = result.scores, result.long_tail
    if tail.stratum_scores.empty:
        return ""
    return _section(
        "tail",
        "The long tail",
        html_paragraphs([text for text in [tail_answer(scores, tail)] if text], "answer"),
        _table(tail_table(scores, tail)),
        _explorer(result),
        _folded("Every axis", contrast_table(scores, tail)),
        fold("Confirmed slices, with lost documents", _slices(result)),
        _folded("Changed answers per task", flip_table(scores, tail)),
        _folded("Calibration, and when to ask the teacher", calibration_table(scores, tail)),
    )


def _probe_section(result: ReportBundle) -> str:
    """Held-out text; nothing without probes."""
    found = result.held_out_text
    if found is None:
        return ""
    shown = html_paragraphs([found.answer] if found.answer else [], "answer")
    return _section("probes", "Held-out text", shown, _table(found.models), _folded(found.words.caption, found.words))


def _slices(result: ReportBundle) -> str:
    table = slice_table(result.long_tail)
    if not table.rows:
        return html_paragraphs(table.warnings)
    parts = [_table(table)]
    for model in result.long_tail.flips:
        for words, documents in slice_examples(result.scores, result.long_tail, model):
            listed = "".join(f"<li>{escape_html(line)}</li>" for line in documents)
            parts.append(f"<p>{escape_html(f'{model}, {words}')}: lost documents, drawn at random</p><ul>{listed}</ul>")
    return "".join(parts)


def _explorer(result: ReportBundle) -> str:
    """Strata as a plot and the documents whose answers changed; nothing where none did."""
    if not len(changed_rows(result)):
        return ""
    boxes = "".join(
        f'<label for="{name}">{words}<select id="{name}"></select></label>'
        for name, words in (("student", "student"), ("task", "task"), ("axis", "axis"), ("stratum", "stratum"),
                            ("flip", "answer change"))
    )  # fmt: skip
    return f"""<h3>Read what was lost</h3><div class="controls">{boxes}</div>
<p class="note">Beside every choice stands the score that decided, by the task's metric: mean over seeds, while the answer
is the one that most seeds give.</p>
<div class="split"><figure><div id="strata"></div>
<figcaption><span id="axis-about"></span></figcaption></figure>
<div><p id="count" class="note" aria-live="polite"></p><div id="documents"></div>
<button id="more" type="button" hidden>Show more</button></div></div>"""


def _curves_section(curves: dict[str, Any]) -> str:
    if not curves["curves"]:
        return ""
    return _section(
        "curves",
        "Training",
        """<div class="controls"><label for="curve">quantity<select id="curve"></select></label></div>
<figure><div id="curves"></div>
<figcaption>Mean over seeds; bands reach from the lowest to the highest seed.</figcaption></figure>
<div class="controls note" id="curve-legend"></div>""",
    )


def _scaling_section(result: ReportBundle) -> str:
    if not has_scaling_curve(result.scaling_data):
        return ""
    return _section("scaling", "Size and tokens", to_html(scaling_table(result.scaling_data, result.scaling_law)))


def _statements(result: ReportBundle) -> str:
    parts = [fold(label, html_paragraphs(paragraphs)) for label, paragraphs in result.loss_statements.items()]
    return _section("loss", "Loss statements", *parts) if parts else ""


def _footer(folder: Path, result: ReportBundle) -> str:
    lines = evaluation_footnotes(result.scores)
    try:
        found = read_json(folder / "provenance.json")
    except (OSError, ValueError):
        found = {}
    known = [entry for entry in found.values() if isinstance(entry, dict)] if isinstance(found, dict) else []
    for name in ("commit", "changes", "versions", "hardware"):
        values = list(dict.fromkeys(_flat(entry[name]) for entry in known if entry.get(name)))
        if values:
            lines.append(f"{name.capitalize()}: {' / '.join(values)}.")
    notes = [note for entry in known if isinstance(entry.get("notes"), list) for note in entry["notes"]]
    lines += [f"Note: {note}." for note in dict.fromkeys(map(str, notes))]
    names = ["table.md", "table.csv", "longtail.md", *(["probes.csv"] if result.scores.results.probes else []), "plan.yaml"]
    files = "".join(f'<a href="{name}">{name}</a> ' for name in names)
    return f'<footer><h2 id="h-source">Provenance</h2>{html_paragraphs(lines)}<p>{files}</p></footer>'


def _flat(value: Any) -> str:
    return ", ".join(f"{k} {v}" for k, v in value.items() if v) if isinstance(value, dict) else str(value)
