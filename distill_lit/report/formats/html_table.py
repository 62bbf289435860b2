"""A table as HTML."""

import html
import re
from collections.abc import Iterable

from distill_lit.report.formats.table import Table


def escape_html(text: object) -> str:
    """`text` for element content and quoted attributes."""
    return html.escape(str(text), quote=True)


def html_paragraphs(lines: Iterable[str], css_class: str = "") -> str:
    """Plain lines as paragraphs."""
    mark = f' class="{css_class}"' if css_class else ""
    return "\n".join(f"<p{mark}>{escape_html(line)}</p>" for line in lines)


def to_html(table: Table) -> str:
    """A table with caption, header cells with their scope, what limits it below it, and how to read it folded away."""

    def cell(number: int, text: str, bold: bool) -> str:
        side = ' class="left"' if number < table.num_text_columns else ""
        shown = (
            re.sub(r"\[[^\[\]<]*\]", r'<span class="whole">\g<0></span>', escape_html(text))
            if number
            else escape_html(text)
        )
        body = f"<strong>{shown}</strong>" if bold and text else shown
        return f"<td{side}>{body}</td>" if number else f'<th scope="row"{side}>{body}</th>'

    heads = [
        f'<th scope="col"{" class=left" if i < table.num_text_columns else ""}>{escape_html(c)}</th>'
        for i, c in enumerate(table.column_names)
    ]
    rows = []
    for number, row in enumerate(table.rows):
        if number in table.headings_before:
            rows.append(_heading(table.headings_before[number], len(table.columns)))
        rule = ' class="rule"' if number in table.rules_before else ""
        rows.append(f"<tr{rule}>{''.join(cell(i, c.text, c.bold) for i, c in enumerate(row))}</tr>")
    return (
        f"{html_paragraphs(table.header_notes, 'sample-limit')}\n"
        f'<div class="scroll"><table><caption>{escape_html(table.caption)}</caption>'
        f"<thead><tr>{''.join(heads)}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>\n{html_paragraphs(table.warnings, 'note')}"
        f"{fold('How to read this table', html_paragraphs(table.footnotes, 'note'))}"
    )


def _heading(text: str, columns: int) -> str:
    rest = f'<td colspan="{columns - 1}"></td>' if columns > 1 else ""
    return f'<tr class="rule"><th scope="rowgroup" class="left"><strong>{escape_html(text)}</strong></th>{rest}</tr>'


def fold(summary: str, body: str) -> str:
    """`body`, which is HTML, behind a line that opens it; nothing where there is nothing to open."""
    return f"<details><summary>{escape_html(summary)}</summary>{body}</details>" if body.strip() else ""
