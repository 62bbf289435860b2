"""A table as rows of cells, written as Markdown, LaTeX (booktabs) or CSV. Everything from data is escaped."""

import re
import unicodedata
from dataclasses import dataclass, field

import pandas as pd


@dataclass(frozen=True)
class Cell:
    """What one place of a table shows."""

    text: str
    bold: bool = False


@dataclass
class Table:
    """A table with its caption, the lines above it (watermark) and below it (footer)."""

    caption: str
    columns: list[str]
    rows: list[list[Cell]]
    left: int = 1  # this many first columns are text, set flush left
    above: list[str] = field(default_factory=list)  # watermark
    below: list[str] = field(default_factory=list)  # how to read it
    source: list[str] = field(default_factory=list)  # where the numbers come from
    rules: set[int] = field(default_factory=set)  # row numbers before which a thin rule stands


def escape_markdown(text: str) -> str:
    """`text` so that Markdown and the HTML inside it show it literally, on one line."""
    flat = " ".join(str(text).split())
    safe = flat.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    # an underscore inside a word is literal in Markdown already, and reads better bare
    safe = re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", safe.replace("\\", "\\\\"))
    safe = re.sub(r"([`*{}\[\]|~$])", r"\\\1", safe)
    return re.sub(r"^(#|[+=-](?=[\s=-]|$)|\d+[.)](?=\s|$))", lambda m: m[1][:-1] + "\\" + m[1][-1], safe)


def cell_markdown(text: str) -> str:
    """`escape_markdown` that leaves the brackets of our own intervals readable."""
    return re.sub(r"\\\[([^\[\]\\()]*)\\\](?!\()", r"[\1]", escape_markdown(text))


LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "`": r"\textasciigrave{}",
    "[": "{[}",
    "]": "{]}",
    "*": "{*}",
    "−": "$-$",
    "±": r"$\pm$",
    "×": r"$\times$",
    "Δ": r"$\Delta$",
    "≥": r"$\ge$",
    "≤": r"$\le$",
    "—": "---",
    "–": "--",
    "·": r"$\cdot$",
    "…": r"\dots{}",
    "†": r"$\dagger$",
    "‡": r"$\ddagger$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "→": r"$\to$",
    "’": "'",
    "“": "``",
    "”": "''",
    "√": r"$\surd$",
    "β": r"$\beta$",
    "α": r"$\alpha$",
    "λ": r"$\lambda$",
    "τ": r"$\tau$",
    "²": "$^2$",
}


def escape_latex(text: str) -> str:
    """`text` so that pdflatex sets it literally; letters it has no font for become ASCII or [U+…]."""
    return "".join(LATEX.get(c) or _latin(c) for c in " ".join(str(text).split()))


def _latin(character: str) -> str:
    if character.isascii():
        return character if character.isprintable() else ""
    plain = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    return "".join(LATEX.get(c, c) for c in plain) or f"{{[}}U+{ord(character):04X}{{]}}"


def paragraphs(lines: list[str]) -> list[str]:
    """Plain lines as escaped Markdown paragraphs."""
    return [line for text in lines for line in (cell_markdown(text), "")]


def to_markdown(table: Table, source: bool = True) -> str:
    """A GitHub table with its lines above and below; `source` False leaves its origin to the end of the page."""

    def row(cells: list[str]) -> str:
        return f"| {' | '.join(cells)} |"

    shown = [
        [f"**{cell_markdown(c.text)}**" if c.bold and c.text else cell_markdown(c.text) for c in r] for r in table.rows
    ]
    ruler = ["---" if i < table.left else "---:" for i in range(len(table.columns))]
    lines = [f"**{escape_markdown(table.caption)}**", ""]
    lines += [line for text in table.above for line in (f"> {cell_markdown(text)}", "")]
    lines += [row([cell_markdown(c) for c in table.columns]), row(ruler), *map(row, shown), ""]
    lines += paragraphs([*table.below, *(table.source if source else [])])
    return "\n".join(lines)


def to_latex(table: Table, label: str) -> str:
    r"""A `table` environment for a document that loads booktabs and graphicx; wide ones shrink to the text width."""

    def row(cells: list[str]) -> str:
        return " & ".join(cells) + r" \\"

    body = []
    for number, cells in enumerate(table.rows):
        if number in table.rules:
            body.append(r"\midrule")
        body.append(row([rf"\textbf{{{escape_latex(c.text)}}}" if c.bold else escape_latex(c.text) for c in cells]))
    align = "".join("l" if i < table.left else "r" for i in range(len(table.columns)))
    notes = [rf"\par\smallskip {escape_latex(text)}" for text in (*table.below, *table.source)]
    end = "" if table.caption.endswith((".", "?", "!")) else "."
    caption = escape_latex(" ".join([table.caption + end, *table.above]))
    return "\n".join(
        [
            r"\begin{table}[t]",
            r"\centering\setlength{\tabcolsep}{3pt}",
            rf"\caption{{{caption}}}",
            rf"\label{{tab:{label}}}",
            r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
            rf"\begin{{tabular}}{{{align}}}",
            r"\toprule",
            row([escape_latex(c) for c in table.columns]),
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}}",
            r"\begin{minipage}{\linewidth}\scriptsize",
            *notes,
            r"\end{minipage}",
            r"\end{table}",
            "",
        ]
    )


def to_csv(frame: pd.DataFrame) -> str:
    """The frame with full precision; texts that a spreadsheet would run as a formula get a leading quote."""
    safe = frame.copy()
    for name in safe.columns:
        if not pd.api.types.is_numeric_dtype(safe[name]):
            safe[name] = safe[name].map(lambda v: f"'{v}" if isinstance(v, str) and v[:1] in "=+-@\t\r" and v else v)
    return str(safe.to_csv(index=False, float_format="%.6g", lineterminator="\n"))
