"""The endpoint that was declared before the run: it stays the same, and the answer by one that is not accuracy."""

from pathlib import Path

import pandas as pd
import yaml

from distill_lit.analysis.endpoints import ACCURACY
from distill_lit.analysis.scores import Scores
from distill_lit.config.evaluation import AnalysisConfig
from distill_lit.report.number_format import join_words, p_in_words
from distill_lit.report.summary import MAX_NAMED
from distill_lit.report.tables.endpoints import endpoint_title, format_change, primary_first
from distill_lit.report.verdict import StudentVerdict
from distill_lit.utils.exceptions import UserError


def primary_headline(scores: Scores, frame: pd.DataFrame, students: list[StudentVerdict]) -> str:
    """Whether the teacher helped by the declared endpoint; empty where that is accuracy, or has no result. frame:
    `endpoint_frame`."""
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
    answer = _answer(int((sure & better).sum()), int((sure & ~better).sum()), len(rows))
    what = f"By {endpoint_title(rows.iloc[0])}, declared before the run, the teacher {answer}"
    return f"{what}: against the same student trained without it, {shown}."


def _answer(helped: int, harmed: int, of: int) -> str:
    if helped and harmed:
        return f"helped {helped} and harmed {harmed} of {of} students"
    if helped:
        return "helped" if helped == of else f"helped {helped} of {of} students"
    return "did not help" if harmed else "did not measurably help"


def _range(rows: pd.DataFrame, sure: int) -> str:
    lowest, highest = rows.loc[rows["ce_only_delta"].idxmin()], rows.loc[rows["ce_only_delta"].idxmax()]
    return f"from {format_change(lowest)} to {format_change(highest)}, significant for {sure} of {len(rows)} students"


def check_primary_endpoint(folder: Path, analysis: AnalysisConfig) -> None:
    """Raises UserError where the plan of a results folder declares another one: whoever has seen results could choose."""
    try:
        declared = yaml.safe_load((folder / "plan.yaml").read_text(encoding="utf-8"))["analysis"]["primary_endpoint"]
    except (OSError, ValueError, TypeError, LookupError, yaml.YAMLError):  # no plan, or none that can be read
        return
    if declared != analysis.primary_endpoint:
        raise UserError(
            f"analysis.primary_endpoint: it was declared before the run, as {declared}; all others are in endpoints.csv"
        )
