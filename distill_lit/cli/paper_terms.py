"""What papers call what is here: the table of docs/reference/paper_terms.md, which wheels carry."""

from typing import NamedTuple

from distill_lit.utils.shipped import shipped_folder


class PaperTerm(NamedTuple):
    """A row of the table. key: what asks for it, in words, `none …` where it is not here; files: to read, or –."""

    term: str
    key: str
    files: str


def paper_terms() -> list[PaperTerm]:
    """All rows, as they are written: Markdown, in the order of the terms."""
    page = shipped_folder("docs") / "reference" / "paper_terms.md"
    lines = [line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    _, *rows = (line.strip("| ").split(" | ") for line in lines)
    return [PaperTerm(*cells) for cells in rows]
