"""HTML in which nothing from data can become markup or script."""

import base64
import json
import math
import zlib
from importlib import resources
from typing import Any

from distill_lit.report.formats.html_table import escape_html

# no source but the page itself: even a mistake above could not call out
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src 'self' data:; base-uri 'none'"
)


def embed_json(value: Any) -> str:
    """JSON for a script element: no `<`, so no `</script>` or `<!--`; NaN and infinities are null, other
    numbers have six digits, for processors differ in the last ones."""
    text = json.dumps(_finite(value), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e").replace("\u2028", "\\u2028")


def pack_json(value: Any) -> str:
    """JSON as a compressed block for a script element: zlib, then base64, which the page's script unpacks."""
    text = json.dumps(_finite(value), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(zlib.compress(text.encode(), 9)).decode()


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    if hasattr(value, "item"):
        return _finite(value.item())
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


SCRIPTS = ("drawing.js", "frontier.js", "long_tail.js", "curves.js", "page.js")  # in the order in which they are run


def page_script() -> str:
    """The script of the page, one text of several files."""
    return "".join(read_web_asset(name) for name in SCRIPTS)


def read_web_asset(name: str) -> str:
    """A file that lies beside this module."""
    return resources.files("distill_lit.report.web").joinpath(name).read_text(encoding="utf-8")


def html_document(title: str, body: str) -> str:
    """A complete page that needs no network."""
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{CONTENT_SECURITY_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape_html(title)}</title>\n<style>\n{read_web_asset('page.css')}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )
