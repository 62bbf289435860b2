"""The answer by a declared endpoint that is not accuracy."""

import pandas as pd

from distill_lit.analysis.declarations import Declaration, describe_declaration
from distill_lit.analysis.endpoints import ACCURACY
from distill_lit.analysis.scores import Scores
from distill_lit.report.number_format import join_words, p_in_words
from distill_lit.report.summary import MAX_NAMED, helped_or_harmed
from distill_lit.report.tables.endpoints import endpoint_title, format_change, primary_first
from distill_lit.report.verdict import StudentVerdict


def primary_headline(
    scores: Scores, frame: pd.DataFrame, students: list[StudentVerdict], declared: Declaration | None = None
) -> str:
    """Whether the teacher helped by the declared endpoint; empty where that is accuracy, or has no result. frame:
    `endpoint_frame`; declared: the first record of it."""
    if scores.analysis.primary_endpoint == ACCURACY or not len(frame):
        return ""
    names = {student.label: student.name for student in students}
    rows = primary_first(frame)
    rows = rows[rows["is_primary"] & rows["model"].isin(names) & rows["ce_only_delta"].notna()]
    if rows.empty:
        return f"The declared endpoint, {scores.analysis.primary_endpoint}, has no result to compare."
    sure = rows["ce_only_p_adjusted"] <= scores.analysis.alpha
    better = (rows["ce_only_delta"] > 0) == rows["higher_is_better"]
    parts = [
        f"{format_change(row)} for {names[str(row['model'])]} ({'significant' if is_sure else 'not significant'}, "
        f"{p_in_words(row['ce_only_p_adjusted'])})"
        for (_, row), is_sure in zip(rows.iterrows(), sure, strict=True)
    ]
    shown = join_words(parts) if len(parts) <= MAX_NAMED else _range(rows, int(sure.sum()))
    answer = helped_or_harmed(int((sure & better).sum()), int((sure & ~better).sum()), len(rows))
    what = f"By {endpoint_title(rows.iloc[0])}, {_when(declared)}, the teacher {answer}"
    return f"{what}: against the same student trained without it, {shown}."


def _when(declared: Declaration | None) -> str:
    if declared is None:
        return "the primary endpoint (when it was declared is not on record)"
    return f"declared {describe_declaration(declared)}"


def _range(rows: pd.DataFrame, sure: int) -> str:
    lowest, highest = rows.loc[rows["ce_only_delta"].idxmin()], rows.loc[rows["ce_only_delta"].idxmax()]
    return f"from {format_change(lowest)} to {format_change(highest)}, significant for {sure} of {len(rows)} students"
