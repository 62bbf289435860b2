"""A table as LaTeX, for booktabs and siunitx-free papers."""

import unicodedata

from distill_lit.report.formats.table import Table

LATEX_ESCAPES = {
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
    return "".join(LATEX_ESCAPES.get(c) or _latin(c) for c in " ".join(str(text).split()))


def _latin(character: str) -> str:
    if character.isascii():
        return character if character.isprintable() else ""
    plain = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    return "".join(LATEX_ESCAPES.get(c, c) for c in plain) or f"{{[}}U+{ord(character):04X}{{]}}"


def to_latex(table: Table, label: str) -> str:
    r"""A `table` environment for a document that loads booktabs and graphicx; wide ones shrink to the text width."""

    def row(cells: list[str]) -> str:
        return " & ".join(cells) + r" \\"

    body = []
    for number, cells in enumerate(table.rows):
        if number in table.rules_before:
            body.append(r"\midrule")
        if number in table.headings_before:
            heading = escape_latex(table.headings_before[number])
            body.append(row([rf"\textbf{{{heading}}}"] + [""] * (len(cells) - 1)))
        body.append(row([rf"\textbf{{{escape_latex(c.text)}}}" if c.bold else escape_latex(c.text) for c in cells]))
    align = "".join("l" if i < table.num_text_columns else "r" for i in range(len(table.columns)))
    notes = [rf"\par\smallskip {escape_latex(text)}" for text in (*table.warnings, *table.footnotes, *table.provenance)]
    end = "" if table.caption.endswith((".", "?", "!")) else "."
    caption = escape_latex(" ".join([table.caption + end, *table.header_notes]))
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
