"""Which training rows ask the same as an evaluation document."""

import re
import unicodedata
from typing import Any

# what a document asks, per column layout: every string that may not be shared with an evaluation document
QUESTION_COLUMNS = ("question", "question_stem", "passage", "goal", "ctx", "text")
JOINED_QUESTION_COLUMNS = (("context", "question"), ("sentence",), ("premise",), ("sentence1", "sentence2"))


def normalize_question(text: str) -> str:
    """Lower-case words only, without HellaSwag's [header] marks: what two spellings of the same text share."""
    text = re.sub(r"\[.*?\]", " ", unicodedata.normalize("NFKC", text)).lower()
    return " ".join(re.findall(r"\w+", text))


def question_texts(row: dict[str, Any]) -> set[str]:
    """The normalized question, passage or context of one row. A question that stands on a short context (Social IQa)
    is joined to it; a passage counts by itself, because its text alone would be half the answer."""
    columns = [c for c in QUESTION_COLUMNS if c in row and not (c == "question" and "context" in row)]
    texts = [row[column] for column in columns]
    texts += [" ".join(row[c] for c in group) for group in JOINED_QUESTION_COLUMNS if all(c in row for c in group)]
    return {text for text in map(normalize_question, texts) if text}


def split_question_texts(rows: Any) -> set[str]:
    """Everything that the rows of a split ask."""
    return {text for row in rows for text in question_texts(row)}


def drop_contaminated_rows(rows: Any, evaluation_texts: set[str]) -> Any:
    """The rows that ask nothing of `evaluation_texts`, in their order."""
    kept = [number for number, row in enumerate(rows) if not question_texts(row) & evaluation_texts]
    return rows.select(kept) if len(kept) < len(rows) else rows
