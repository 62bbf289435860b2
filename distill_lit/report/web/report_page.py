"""report.html: the whole experiment on one self-contained page, to be opened from disk."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from distill_lit.analysis.pareto import cost_axes
from distill_lit.analysis.scaling_law import is_grid
from distill_lit.report.bundle import Analysed
from distill_lit.report.formats.html_table import escape, paragraphs, to_html
from distill_lit.report.formats.table import Table
from distill_lit.report.tables.efficiency_claim import claim_table
from distill_lit.report.tables.footnotes import provenance, watermark
from distill_lit.report.tables.inference_cost import cost_table
from distill_lit.report.tables.long_tail import contrast_table, flip_table
from distill_lit.report.tables.scaling import scaling_table
from distill_lit.report.tables.scores import detail_table, main_table
from distill_lit.report.web.html_page import asset, document, embed_json
from distill_lit.report.web.page_data import curve_lines, frontiers, payload
from distill_lit.utils.files import read_json, write_text

UNFOLDED = 3  # paragraphs of the verdict that are open at once


def draw_page(folder: Path, result: Analysed) -> Path:
    """Writes report.html into `folder`; returns its path."""
    placed = frontiers(result)
    curves = curve_lines(result.scores, folder / "curves.csv")
    parts = [_head(result), "<main id='main'>", _results(result), _frontier_section(result, placed), _tail_section(result)]
    parts += [_curves_section(curves), _scaling_section(result), _statements(result), "</main>", _footer(folder, result)]
    parts.append(f'<script type="application/json" id="data">{embed_json(payload(result, placed) | curves)}</script>')
    parts.append(f"<script>\n{asset('page.js')}</script>")
    write_text(folder / "report.html", document(result.title, "\n".join(p for p in parts if p)))
    return folder / "report.html"


def _head(result: Analysed) -> str:
    question = f'<p class="question">{escape(result.question)}</p>' if result.question else ""
    return (
        '<a class="skip" href="#main">To the results</a>\n<header>'
        f"<h1>{escape(result.name)}</h1>{question}\n{paragraphs(watermark(result.scores), 'watermark')}\n"
        f"{paragraphs([result.headline], 'verdict')}\n{_in_words(result.verdict)}\n</header>"
    )


def _in_words(verdict: list[str]) -> str:
    """The verdict on every student; of many students folded away."""
    said = paragraphs(verdict)
    return said if len(verdict) <= UNFOLDED else f"<details><summary>Every student in words</summary>{said}</details>"


def _results(result: Analysed) -> str:
    main = main_table(result.scores, result.frame, "Scores")
    detail = detail_table(result.scores, result.frame, "Every task, with differences")
    return (
        f'<section aria-labelledby="h-scores"><h2 id="h-scores">Scores</h2>{to_html(main)}'
        f"<details><summary>Every task, with intervals and differences</summary>{to_html(detail)}</details></section>"
    )


def _frontier_section(result: Analysed, placed: dict[str, pd.DataFrame]) -> str:
    if not cost_axes(result.scores):
        return ""
    plot = _frontier_plot(result) if placed else "<p>No model has both a score and a cost.</p>"
    return f"""<section aria-labelledby="h-frontier"><h2 id="h-frontier">Quality against cost</h2>
{plot}
{to_html(claim_table(result.scores))}{to_html(cost_table(result.scores))}</section>"""


def _frontier_plot(result: Analysed) -> str:
    return f"""<div class="controls"><label for="cost">cost axis<select id="cost"></select></label>
<div id="legend" class="controls"></div></div>
<figure><div id="frontier"></div>
<figcaption>Score above chance, mean over tasks, with {result.scores.analysis.confidence:.0%} intervals.
Point at a model, or reach it with the tab key, to read its numbers.{_mark(result)}</figcaption></figure>
<div class="tip" id="tip" aria-live="polite">No model chosen.</div>
<details><summary>The same as a table</summary>{_mark(result)}<div id="frontier-table" class="scroll"></div></details>"""


def _mark(result: Analysed) -> str:
    return paragraphs(watermark(result.scores), "watermark")


def _marked(result: Analysed, table: Table) -> str:
    return to_html(replace(table, above=watermark(result.scores)))


def _tail_section(result: Analysed) -> str:
    if result.longtail.strata.empty:
        return ""
    boxes = "".join(
        f'<label for="{name}">{words}<select id="{name}"></select></label>'
        for name, words in (("student", "student"), ("task", "task"), ("axis", "axis"), ("stratum", "stratum"),
                            ("flip", "what changed"))
    )  # fmt: skip
    return f"""<section aria-labelledby="h-tail"><h2 id="h-tail">The long tail</h2>
{_marked(result, contrast_table(result.scores, result.longtail))}
<details><summary>Changed answers per task</summary>{_marked(result, flip_table(result.longtail))}</details>
<h3>Read what was lost</h3><div class="controls">{boxes}</div>
<p class="note">Probabilities are the softmax over the choices' log-likelihoods, mean over seeds; the chosen answer
follows the task's metric, which may divide by length.</p>
<div class="split"><figure><div id="strata"></div>
<figcaption><span id="axis-about"></span>{_mark(result)}</figcaption></figure>
<div><p id="count" class="note" aria-live="polite"></p><div id="documents"></div>
<button id="more" type="button" hidden>Show more</button></div></div></section>"""


def _curves_section(curves: dict[str, Any]) -> str:
    if not curves["curves"]:
        return ""
    return """<section aria-labelledby="h-curves"><h2 id="h-curves">Training</h2>
<div class="controls"><label for="curve">quantity<select id="curve"></select></label></div>
<figure><div id="curves"></div><figcaption>Mean over seeds.</figcaption></figure>
<div class="controls note" id="curve-legend"></div></section>"""


def _scaling_section(result: Analysed) -> str:
    if not is_grid(result.runs):
        return ""
    table = to_html(scaling_table(result.runs, None))
    return f'<section aria-labelledby="h-scaling"><h2 id="h-scaling">Size and tokens</h2>{table}</section>'


def _statements(result: Analysed) -> str:
    parts = [f"<h3>{escape(label)}</h3>{paragraphs(said)}" for label, said in result.statements.items()]
    title = '<section aria-labelledby="h-loss"><h2 id="h-loss">What was lost, in words</h2>'
    return f"{title}{''.join(parts)}</section>" if parts else ""


def _footer(folder: Path, result: Analysed) -> str:
    lines = provenance(result.scores)
    try:
        found = read_json(folder / "provenance.json")
    except (OSError, ValueError):
        found = {}
    known = [entry for entry in found.values() if isinstance(entry, dict)] if isinstance(found, dict) else []
    for name in ("commit", "changes", "versions", "hardware"):
        values = list(dict.fromkeys(_flat(entry[name]) for entry in known if entry.get(name)))
        if values:
            lines.append(f"{name.capitalize()}: {' / '.join(values)}.")
    files = "".join(f'<a href="{name}">{name}</a> ' for name in ("table.md", "table.csv", "longtail.md", "plan.yaml"))
    return f'<footer><h2 id="h-source">Where this comes from</h2>{paragraphs(lines)}<p>{files}</p></footer>'


def _flat(value: Any) -> str:
    return ", ".join(f"{k} {v}" for k, v in value.items() if v) if isinstance(value, dict) else str(value)
