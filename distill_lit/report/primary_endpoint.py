"""The answer by a declared endpoint that is not accuracy."""

import numpy as np
import pandas as pd

from distill_lit.analysis.answer import HARMED, HELPED, NOT_SHOWN, overall_outcome
from distill_lit.analysis.declarations import Declaration, describe_declaration
from distill_lit.analysis.endpoints import ACCURACY
from distill_lit.analysis.scores import Scores
from distill_lit.report.number_format import join_words, p_in_words
from distill_lit.report.summary import MAX_NAMED, helped_or_harmed
from distill_lit.report.tables.endpoints import endpoint_title, format_change, primary_first
from distill_lit.report.verdict import StudentVerdict, outcome


def primary_headline(
    scores: Scores, frame: pd.DataFrame, students: list[StudentVerdict], declared: Declaration | None = None
) -> str:
    """Whether the teacher helped by the declared endpoint; empty where that is accuracy, or has no result. frame:
    `endpoint_frame`; declared: the first record of it."""
    if scores.analysis.primary_endpoint == ACCURACY or not len(frame):
        return ""
    names = {student.label: student.name for student in students}
    rows = _declared_rows(frame, students)
    if rows.empty:
        return f"The declared endpoint, {scores.analysis.primary_endpoint}, has no result to compare."
    sure, better = _sure_and_better(scores, rows)
    parts = [
        f"{format_change(row)} for {names[str(row['model'])]} ({'significant' if is_sure else 'not significant'}, "
        f"{p_in_words(row['ce_only_p_adjusted'])})"
        for (_, row), is_sure in zip(rows.iterrows(), sure, strict=True)
    ]
    shown = join_words(parts) if len(parts) <= MAX_NAMED else _range(rows, int(sure.sum()))
    answer = helped_or_harmed(int((sure & better).sum()), int((sure & ~better).sum()), len(rows))
    what = f"By {endpoint_title(rows.iloc[0])}, {_when(declared)}, the teacher {answer}"
    return f"{what}: against the same student trained without it, {shown}."


def primary_outcome(scores: Scores, frame: pd.DataFrame, students: list[StudentVerdict]) -> str:
    """Of all students together, as `verdict.outcome`, by the declared endpoint. frame: `endpoint_frame`."""
    if scores.analysis.primary_endpoint == ACCURACY:
        return outcome(students)
    sure, better = _sure_and_better(scores, _declared_rows(frame, students))
    return overall_outcome(np.where(sure, np.where(better, HELPED, HARMED), NOT_SHOWN).tolist())


def _declared_rows(frame: pd.DataFrame, students: list[StudentVerdict]) -> pd.DataFrame:
    """The averages of students that are compared by the declared endpoint."""
    rows = primary_first(frame)
    labels = [student.label for student in students]
    return rows[rows["is_primary"] & rows["model"].isin(labels) & rows["ce_only_delta"].notna()]


def _sure_and_better(scores: Scores, rows: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    """Which differences are significant, and which are in favor of the teacher."""
    is_better = (rows["ce_only_delta"] > 0) == rows["higher_is_better"].astype(bool)
    return rows["ce_only_p_adjusted"] <= scores.analysis.alpha, is_better


def _when(declared: Declaration | None) -> str:
    if declared is None:
        return "the primary endpoint (when it was declared is not on record)"
    return f"declared {describe_declaration(declared)}"


def _range(rows: pd.DataFrame, sure: int) -> str:
    lowest, highest = rows.loc[rows["ce_only_delta"].idxmin()], rows.loc[rows["ce_only_delta"].idxmax()]
    return f"from {format_change(lowest)} to {format_change(highest)}, significant for {sure} of {len(rows)} students"
