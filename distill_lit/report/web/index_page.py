"""results/index.html: every experiment that has been drawn, with its question, its verdict and its frontier."""

import os
from pathlib import Path
from typing import Any

from distill_lit.analysis.answer import EQUIVALENT, HARMED, HELPED, MIXED, NOT_SHOWN, UNKNOWN
from distill_lit.report.formats.html_table import escape_html, html_paragraphs
from distill_lit.report.web.html_page import html_document, read_web_asset
from distill_lit.utils.files import read_mapping, write_text

SORT_KEYS = {  # key of a card's numbers: words; all but the name from high to low
    "name": "name",
    "score": "score above chance",
    "retention": "retained",
    "delta": "Δ without teacher",
    "models": "number of models",
}
OUTCOMES = {
    HELPED: "helped",
    HARMED: "harmed",
    MIXED: "helped some, harmed others",
    EQUIVALENT: "no difference",
    NOT_SHOWN: "no measurable help",
    UNKNOWN: "not compared",
}


def write_index_page(results_root: Path) -> list[Path]:
    """Writes index.html into the folder of all results; returns its path, or none where that folder cannot be written to.
    Folders without a summary are left out."""
    if not os.access(results_root, os.W_OK):
        return []
    found = [(path.parent, _read(path)) for path in sorted(results_root.glob("*/summary.json"))]
    cards = [_card(folder, summary) for folder, summary in found if summary]
    body = "\n".join([
        '<a class="skip" href="#main">To the experiments</a>', "<header><h1>Experiments</h1>",
        _controls({str(summary.get("outcome")) for _, summary in found if summary}) if len(cards) > 1 else "", "</header>",
        f'<main id="main">{"".join(cards) or "<p>No experiment has a report yet.</p>"}</main>',
        f"<script>\n{read_web_asset('index.js')}</script>" if len(cards) > 1 else "",
    ])  # fmt: skip
    write_text(results_root / "index.html", html_document("Experiments", body))
    return [results_root / "index.html"]


def _controls(outcomes: set[str]) -> str:
    def box(name: str, words: str, options: dict[str, str]) -> str:
        chosen = "".join(
            f'<option value="{escape_html(key)}">{escape_html(text)}</option>' for key, text in options.items()
        )
        return f'<label for="{name}">{words}<select id="{name}">{chosen}</select></label>'

    known = {"": "all"} | {key: words for key, words in OUTCOMES.items() if key in outcomes}
    return (
        '<div class="controls"><label for="filter">filter<input id="filter" type="search" '
        'size="28" placeholder="words in name, question, tasks"></label>'
        f"{box('outcome', 'the teacher', known)}{box('sort', 'sort by', SORT_KEYS)}</div>"
        '<p id="count" class="note" aria-live="polite"></p>'
    )


def _read(path: Path) -> dict[str, Any]:
    found = read_mapping(path)
    return found if isinstance(found.get("name"), str) else {}


def _card(folder: Path, summary: dict[str, Any]) -> str:
    page = folder / "report.html"
    # the folder's own name, not what a file inside it claims
    link = f'<a href="{escape_html(folder.name)}/report.html">{escape_html(summary["name"])}</a>'
    title = link if page.exists() else escape_html(summary["name"])
    lines = {key: [str(line) for line in summary.get(key) or []] for key in ("sample_limit_notes", "tasks")}
    facts = f"{summary.get('models', 0)} models on {len(lines['tasks'])} tasks: {', '.join(lines['tasks'])}."
    question = escape_html(summary.get("question", ""))
    numbers = "".join(f' data-{key}="{escape_html(value)}"' for key, value in _numbers(summary).items())
    return (
        f'<section class="card"{numbers}><h2>{title}</h2><p class="question">{question}</p>'
        f"{html_paragraphs([summary.get('headline', '')], 'answer')}"
        f"{html_paragraphs([' '.join([facts, *lines['sample_limit_notes']])], 'note')}"
        f"{_picture(folder / 'frontier.png')}</section>"
    )


def _numbers(summary: dict[str, Any]) -> dict[str, Any]:
    """What a card is sorted and filtered by: of its students the best; what an older summary lacks is left out."""
    students = [student for student in summary.get("students") or [] if isinstance(student, dict)]
    found = {"name": summary["name"], "outcome": summary.get("outcome", ""), "models": summary.get("models", 0)}
    for key, column in (("score", "score"), ("retention", "retention"), ("delta", "delta_without_teacher")):
        values = [(student.get(column) or {}).get("value") for student in students]
        known = [value for value in values if isinstance(value, (int, float)) and value == value]
        found |= {key: max(known)} if known else {}
    return found


def _picture(path: Path) -> str:
    """The figure at `path`, from the folder of its experiment; nothing where there is none."""
    if not path.exists():
        return ""
    source = escape_html(f"{path.parent.name}/{path.name}")
    return f'<img src="{source}" alt="Score above chance against cost">'
