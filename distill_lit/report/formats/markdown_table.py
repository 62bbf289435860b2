"""A table as GitHub-flavoured Markdown."""

import re

from distill_lit.report.formats.table import Table


def escape_markdown(text: str) -> str:
    """`text` so that Markdown and the HTML inside it show it literally, on one line."""
    flat = " ".join(str(text).split())
    safe = flat.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    # an underscore inside a word is literal in Markdown already, and reads better bare
    safe = re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", safe.replace("\\", "\\\\"))
    safe = re.sub(r"([`*{}\[\]|~$])", r"\\\1", safe)
    return re.sub(r"^(#|[+=-](?=[\s=-]|$)|\d+[.)](?=\s|$))", lambda m: m[1][:-1] + "\\" + m[1][-1], safe)


def escape_markdown_cell(text: str) -> str:
    """`escape_markdown` that leaves the brackets of our own intervals readable."""
    return re.sub(r"\\\[([^\[\]\\()]*)\\\](?!\()", r"[\1]", escape_markdown(text))


def to_markdown(table: Table, with_provenance: bool = True) -> str:
    """A GitHub table with its lines above and below; `with_provenance` False leaves its origin to the end of the page."""

    def row(cells: list[str]) -> str:
        return f"| {' | '.join(cells)} |"

    shown = []
    for number, cells in enumerate(table.rows):
        if number in table.headings_before:
            shown.append([f"**{escape_markdown_cell(table.headings_before[number])}**"] + [""] * (len(cells) - 1))
        shown.append(
            [f"**{escape_markdown_cell(c.text)}**" if c.bold and c.text else escape_markdown_cell(c.text) for c in cells]
        )
    ruler = ["---" if i < table.num_text_columns else "---:" for i in range(len(table.columns))]
    lines = [f"**{escape_markdown(table.caption)}**", ""]
    lines += [line for text in table.header_notes for line in (f"> {escape_markdown_cell(text)}", "")]
    lines += [row([escape_markdown_cell(c) for c in table.column_names]), row(ruler), *map(row, shown), ""]
    lines += markdown_paragraphs([*table.warnings, *table.footnotes, *(table.provenance if with_provenance else [])])
    return "\n".join(lines)


def markdown_paragraphs(lines: list[str]) -> list[str]:
    """Plain lines as escaped Markdown paragraphs."""
    return [line for text in lines for line in (escape_markdown_cell(text), "")]
