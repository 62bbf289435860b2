"""A table as HTML."""

import html
from collections.abc import Iterable

from distill_lit.report.formats.table import Table


def escape(text: object) -> str:
    """`text` for element content and quoted attributes."""
    return html.escape(str(text), quote=True)


def paragraphs(lines: Iterable[str], kind: str = "") -> str:
    """Plain lines as paragraphs."""
    mark = f' class="{kind}"' if kind else ""
    return "\n".join(f"<p{mark}>{escape(line)}</p>" for line in lines)


def to_html(table: Table) -> str:
    """A table with caption, header cells with their scope, its watermark above and its notes below."""

    def cell(number: int, text: str, bold: bool) -> str:
        side = ' class="left"' if number < table.left else ""
        body = f"<strong>{escape(text)}</strong>" if bold and text else escape(text)
        return f'<th scope="row"{side}>{body}</th>' if number == table.left - 1 else f"<td{side}>{body}</td>"

    heads = [
        f'<th scope="col"{" class=left" if i < table.left else ""}>{escape(c)}</th>' for i, c in enumerate(table.columns)
    ]
    rows = []
    for number, row in enumerate(table.rows):
        rule = ' class="rule"' if number in table.rules else ""
        rows.append(f"<tr{rule}>{''.join(cell(i, c.text, c.bold) for i, c in enumerate(row))}</tr>")
    return (
        f"{paragraphs(table.above, 'watermark')}\n"
        f'<div class="scroll"><table><caption>{escape(table.caption)}</caption><thead><tr>{"".join(heads)}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>\n{paragraphs(table.below, 'note')}"
    )
