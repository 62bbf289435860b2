"""HTML in which nothing from data can become markup or script."""

import html
import json
import math
from collections.abc import Iterable
from importlib import resources
from typing import Any

from distill_lit.report.formats.table import Table

# no source but the page itself: even a mistake above could not call out
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src 'self' data:; base-uri 'none'"


def escape(text: object) -> str:
    """`text` for element content and quoted attributes."""
    return html.escape(str(text), quote=True)


def embed_json(value: Any) -> str:
    """JSON for a script element: no `<`, so no `</script>` or `<!--`; NaN and infinities are null."""
    text = json.dumps(_finite(value), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e").replace("\u2028", "\\u2028")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    if hasattr(value, "item"):
        return _finite(value.item())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def asset(name: str) -> str:
    """A file that lies beside this module."""
    return resources.files("distill_lit.report").joinpath(name).read_text(encoding="utf-8")


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


def document(title: str, body: str) -> str:
    """A complete page that needs no network."""
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{asset('page.css')}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )
