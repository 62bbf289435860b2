"""results/index.html: every experiment that has been drawn, with its question, its verdict and its frontier."""

from pathlib import Path
from typing import Any

from distill_lit.report.formats.html_table import escape_html, html_paragraphs
from distill_lit.report.web.html_page import html_document
from distill_lit.utils.files import read_json, write_text


def write_index_page(results_root: Path) -> Path:
    """Writes index.html into the folder of all results; returns its path. Folders without a summary are left out."""
    found = [(path.parent, _read(path)) for path in sorted(results_root.glob("*/summary.json"))]
    cards = [_card(folder, summary) for folder, summary in found if summary]
    body = "\n".join([
        '<a class="skip" href="#main">To the experiments</a>', "<header><h1>Experiments</h1></header>",
        f'<main id="main">{"".join(cards) or "<p>No experiment has a report yet.</p>"}</main>',
    ])  # fmt: skip
    write_text(results_root / "index.html", html_document("Experiments", body))
    return results_root / "index.html"


def _read(path: Path) -> dict[str, Any]:
    try:
        found = read_json(path)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) and isinstance(found.get("name"), str) else {}


def _card(folder: Path, summary: dict[str, Any]) -> str:
    page = folder / "report.html"
    # the folder's own name, not what a file inside it claims
    link = f'<a href="{escape_html(folder.name)}/report.html">{escape_html(summary["name"])}</a>'
    title = link if page.exists() else escape_html(summary["name"])
    lines = {key: [str(line) for line in summary.get(key) or []] for key in ("sample_limit_notes", "tasks")}
    facts = f"{summary.get('models', 0)} models on {len(lines['tasks'])} tasks: {', '.join(lines['tasks'])}."
    question = escape_html(summary.get("question", ""))
    return (
        f'<section><h2>{title}</h2><p class="question">{question}</p>'
        f"{html_paragraphs(lines['sample_limit_notes'], 'sample-limit')}{html_paragraphs([summary.get('headline', '')])}"
        f"{html_paragraphs([facts], 'note')}{_picture(folder / 'frontier.png')}</section>"
    )


def _picture(path: Path) -> str:
    """The figure at `path`, from the folder of its experiment; nothing where there is none."""
    if not path.exists():
        return ""
    source = escape_html(f"{path.parent.name}/{path.name}")
    return f'<img src="{source}" alt="Score above chance against parameters" width="720">'
