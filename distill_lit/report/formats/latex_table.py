"""A table as LaTeX, for papers that load booktabs, and its provenance as a list for their appendix."""

import itertools
import re
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
    "²": "$^2$",
}
# as Unicode calls them; the others look like Latin letters
GREEK_CAPITALS = ("GAMMA", "DELTA", "THETA", "LAMDA", "XI", "PI", "SIGMA", "UPSILON", "PHI", "PSI", "OMEGA")
GREEK_LETTERS = (
    *GREEK_CAPITALS,
    "ALPHA",
    "BETA",
    "EPSILON",
    "ZETA",
    "ETA",
    "IOTA",
    "KAPPA",
    "MU",
    "NU",
    "RHO",
    "TAU",
    "CHI",
)
SPREAD = re.compile(r"(± \S+|\[[^\[\]]*\])\S?")  # what may follow a number, with a mark of significance


def escape_latex(text: str) -> str:
    """`text` so that pdflatex sets it literally; letters it has no font for become ASCII or [U+…]."""
    return "".join(LATEX_ESCAPES.get(c) or _latin(c) for c in " ".join(str(text).split()))


def _latin(character: str) -> str:
    if character.isascii():
        return character if character.isprintable() else ""
    kind, _, greek = unicodedata.name(character, "").partition(" LETTER ")
    if greek in GREEK_LETTERS and kind == "GREEK SMALL":
        return rf"$\{greek.replace('LAMDA', 'LAMBDA').lower()}$"
    if greek in GREEK_CAPITALS and kind == "GREEK CAPITAL":
        return rf"$\{greek.replace('LAMDA', 'LAMBDA').capitalize()}$"
    plain = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    return "".join(LATEX_ESCAPES.get(c, c) for c in plain) or f"{{[}}U+{ord(character):04X}{{]}}"


def latex_cell(text: str, bold: bool = False, is_number: bool = True) -> str:
    r"""A cell, with what follows its number, `± 0.3` or `[1.2, 3.4]`, in small print, and only the number in bold."""
    value, _, rest = text.partition(" ")
    if not is_number or not SPREAD.fullmatch(rest):
        value, rest = text, ""
    shown = rf"\textbf{{{escape_latex(value)}}}" if bold and value else escape_latex(value)
    return rf"{shown} {{\scriptsize {escape_latex(rest)}}}" if rest else shown


def _group_head(groups: list[str]) -> list[str]:
    """The line above the columns, each group over all of its columns, with rules below; nothing without groups."""
    spans = [(name, len(list(same))) for name, same in itertools.groupby(groups)]
    if not any(groups):
        return []
    starts = itertools.accumulate([1, *(width for _, width in spans)])
    heads = [rf"\multicolumn{{{width}}}{{c}}{{{escape_latex(name)}}}" if name else " & ".join([""] * width)
             for name, width in spans]  # fmt: skip
    rules = [rf"\cmidrule(lr){{{start}-{start + width - 1}}}"
             for (name, width), start in zip(spans, starts, strict=False) if name]  # fmt: skip
    return [" & ".join(heads) + r" \\", "".join(rules)]


def provenance_to_latex(lines: list[str], label: str) -> str:
    r"""Where the numbers of a table come from, as a paragraph for an appendix that refers to it."""
    known = "\n".join(rf"\par {escape_latex(line)}" for line in lines)
    head = rf"{{\raggedright\scriptsize\noindent\textbf{{Provenance of Table~\ref{{tab:{label}}}.}}"
    return f"{head}\n{known}\\par}}\n"


def to_latex(table: Table, label: str) -> str:
    r"""A `table` environment for a document that loads booktabs and graphicx; wide ones shrink to the text width.

    Hashes and versions are not in it: `provenance_to_latex` has them, for an appendix."""

    def row(cells: list[str]) -> str:
        return " & ".join(cells) + r" \\"

    body = []
    for number, cells in enumerate(table.rows):
        if number in table.rules_before:
            body.append(r"\midrule")
        if number in table.headings_before:
            heading = escape_latex(table.headings_before[number])
            body.append(row([rf"\textbf{{{heading}}}"] + [""] * (len(cells) - 1)))
        body.append(row([latex_cell(c.text, c.bold, i >= table.num_text_columns) for i, c in enumerate(cells)]))
    align = "".join("l" if i < table.num_text_columns else "r" for i in range(len(table.columns)))
    notes = [rf"\par\smallskip {escape_latex(text)}" for text in (*table.warnings, *table.footnotes)]
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
            *_group_head(table.column_groups),
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
