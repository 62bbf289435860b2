"""report.html: the whole experiment on one self-contained page, to be opened from disk."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from distill_lit.analysis.pareto import cost_axes
from distill_lit.analysis.scaling_law import has_scaling_curve
from distill_lit.report.bundle import ReportBundle
from distill_lit.report.formats.html_table import escape_html, html_paragraphs, to_html
from distill_lit.report.formats.table import Table
from distill_lit.report.tables.efficiency_claim import claim_table
from distill_lit.report.tables.footnotes import evaluation_footnotes, sample_limit_notes
from distill_lit.report.tables.inference_cost import cost_table
from distill_lit.report.tables.long_tail import contrast_table, flip_table
from distill_lit.report.tables.scaling import scaling_table
from distill_lit.report.tables.scores import detail_table, score_table
from distill_lit.report.web.generation_section import generation_section
from distill_lit.report.web.html_page import embed_json, html_document, page_script
from distill_lit.report.web.page_data import curve_lines, frontiers, packed_long_tail, page_data
from distill_lit.utils.files import read_json, write_text

MAX_PAGE_BYTES = 400_000  # beyond which changed documents are left out
MAX_OPEN_VERDICTS = 3  # paragraphs of the verdict that are open at once


def write_report_page(folder: Path, result: ReportBundle) -> Path:
    """Writes report.html into `folder`; returns its path."""
    placed = frontiers(result)
    curves = curve_lines(result.scores, folder / "curves.csv")
    parts = [_head(result), "<main id='main'>", _results(result), _frontier_section(result, placed), _tail_section(result)]
    parts += [generation_section(result), _curves_section(curves), _scaling_section(result), _statements(result)]
    parts += ["</main>", _footer(folder, result)]
    parts.append(f"<script>\n{page_script()}</script>")
    data = page_data(result, placed) | curves

    def page(packed: str, omitted: int) -> str:
        embedded = embed_json(data | {"omitted_documents": omitted})
        scripts = [f'<script type="application/json" id="data">{embedded}</script>',
                   f'<script type="text/plain" id="packed-long-tail">{packed}</script>']  # fmt: skip
        return html_document(result.title, "\n".join([*(part for part in parts[:-1] if part), *scripts, parts[-1]]))

    room = MAX_PAGE_BYTES - len(page("", 0).encode())
    write_text(folder / "report.html", page(*packed_long_tail(result, room)))
    return folder / "report.html"


def _head(result: ReportBundle) -> str:
    question = f'<p class="question">{escape_html(result.question)}</p>' if result.question else ""
    return (
        '<a class="skip" href="#main">To the results</a>\n<header>'
        f"<h1>{escape_html(result.name)}</h1>{question}\n"
        f"{html_paragraphs(sample_limit_notes(result.scores), 'sample-limit')}\n"
        f"{html_paragraphs([result.headline], 'verdict')}\n{_in_words(result.verdict)}\n</header>"
    )


def _in_words(verdict: list[str]) -> str:
    """The verdict on every student; of many students folded away."""
    paragraphs = html_paragraphs(verdict)
    return (
        paragraphs
        if len(verdict) <= MAX_OPEN_VERDICTS
        else f"<details><summary>Every student in words</summary>{paragraphs}</details>"
    )


def _results(result: ReportBundle) -> str:
    main = score_table(result.scores, result.score_frame, "Scores")
    detail = detail_table(result.scores, result.score_frame, "Every task, with differences")
    return (
        f'<section aria-labelledby="h-scores"><h2 id="h-scores">Scores</h2>{to_html(main)}'
        f"<details><summary>Every task, with intervals and differences</summary>{to_html(detail)}</details></section>"
    )


def _frontier_section(result: ReportBundle, placed: dict[str, pd.DataFrame]) -> str:
    if not cost_axes(result.scores):
        return ""
    plot = _frontier_plot(result) if placed else "<p>No model has both a score and a cost.</p>"
    return f"""<section aria-labelledby="h-frontier"><h2 id="h-frontier">Quality against cost</h2>
{plot}
{to_html(claim_table(result.scores))}{to_html(cost_table(result.scores))}</section>"""


def _frontier_plot(result: ReportBundle) -> str:
    return f"""<div class="controls"><label for="cost">cost axis<select id="cost"></select></label>
<div id="legend" class="controls"></div></div>
<figure><div id="frontier"></div>
<figcaption>Score above chance, mean over tasks, with {result.scores.analysis.confidence_level:.0%} intervals.
Point at a model, or reach it with the tab key, to read its numbers.{_sample_limit_paragraphs(result)}</figcaption></figure>
<div class="tip" id="tip" aria-live="polite">No model selected.</div>
<details><summary>The same as a table</summary>{_sample_limit_paragraphs(result)}
<div id="frontier-table" class="scroll"></div></details>"""


def _sample_limit_paragraphs(result: ReportBundle) -> str:
    return html_paragraphs(sample_limit_notes(result.scores), "sample-limit")


def _table_with_limit_note(result: ReportBundle, table: Table) -> str:
    return to_html(replace(table, header_notes=sample_limit_notes(result.scores)))


def _tail_section(result: ReportBundle) -> str:
    if result.long_tail.stratum_scores.empty:
        return ""
    boxes = "".join(
        f'<label for="{name}">{words}<select id="{name}"></select></label>'
        for name, words in (("student", "student"), ("task", "task"), ("axis", "axis"), ("stratum", "stratum"),
                            ("flip", "answer change"))
    )  # fmt: skip
    return f"""<section aria-labelledby="h-tail"><h2 id="h-tail">The long tail</h2>
{_table_with_limit_note(result, contrast_table(result.scores, result.long_tail))}
<details><summary>Changed answers per task</summary>{_table_with_limit_note(result, flip_table(result.long_tail))}</details>
<h3>Read what was lost</h3><div class="controls">{boxes}</div>
<p class="note">Probabilities are the softmax over the choices' log-likelihoods, mean over seeds; the chosen answer
follows the task's metric, which may divide by length.</p>
<div class="split"><figure><div id="strata"></div>
<figcaption><span id="axis-about"></span>{_sample_limit_paragraphs(result)}</figcaption></figure>
<div><p id="count" class="note" aria-live="polite"></p><div id="documents"></div>
<button id="more" type="button" hidden>Show more</button></div></div></section>"""


def _curves_section(curves: dict[str, Any]) -> str:
    if not curves["curves"]:
        return ""
    return """<section aria-labelledby="h-curves"><h2 id="h-curves">Training</h2>
<div class="controls"><label for="curve">quantity<select id="curve"></select></label></div>
<figure><div id="curves"></div><figcaption>Mean over seeds.</figcaption></figure>
<div class="controls note" id="curve-legend"></div></section>"""


def _scaling_section(result: ReportBundle) -> str:
    if not has_scaling_curve(result.scaling_data):
        return ""
    table = to_html(scaling_table(result.scaling_data, result.scaling_law))
    return f'<section aria-labelledby="h-scaling"><h2 id="h-scaling">Size and tokens</h2>{table}</section>'


def _statements(result: ReportBundle) -> str:
    parts = [
        f"<h3>{escape_html(label)}</h3>{html_paragraphs(paragraphs)}"
        for label, paragraphs in result.loss_statements.items()
    ]
    title = '<section aria-labelledby="h-loss"><h2 id="h-loss">Loss statement</h2>'
    return f"{title}{''.join(parts)}</section>" if parts else ""


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
    files = "".join(f'<a href="{name}">{name}</a> ' for name in ("table.md", "table.csv", "longtail.md", "plan.yaml"))
    return f'<footer><h2 id="h-source">Provenance</h2>{html_paragraphs(lines)}<p>{files}</p></footer>'


def _flat(value: Any) -> str:
    return ", ".join(f"{k} {v}" for k, v in value.items() if v) if isinstance(value, dict) else str(value)
