"""Whether the teacher could have helped inside the training text, in one or two sentences of plain text."""

import pandas as pd

from distill_lit.analysis.scores import Scores
from distill_lit.analysis.teacher_ceiling import teacher_ceiling_frame
from distill_lit.report.number_format import format_number, join_words


def teacher_ceiling_sentences(scores: Scores) -> list[str]:
    """One sentence for each teacher: its own loss on the held-out training text beside that of the students without it;
    none where these were not logged."""
    frame = teacher_ceiling_frame(scores)
    if frame.empty:
        return []
    once = frame.assign(teacher=frame["teacher_nll"].round(2)).drop_duplicates(["student", "teacher"])
    return [_sentence(rows, teacher) for teacher, rows in once.groupby("teacher", sort=False)]


def _sentence(rows: pd.DataFrame, teacher: float) -> str:
    beyond, within = (_students(rows[rows["can_help"] == can]) for can in (False, True))
    start = f"Teacher {format_number(teacher, 2)} nats per token on held-out training text"
    if not within:
        return f"{start}, the student without it {beyond}: it cannot help inside this corpus."
    if not beyond:
        return f"{start}, the student without it {within}: it may help inside this corpus."
    return f"{start}, the student without it {beyond}: there it cannot help inside this corpus; it may for {within}."


def _students(rows: pd.DataFrame) -> str:
    pairs = zip(rows["student"], rows["ce_only_nll"], strict=True)
    return join_words([f"{format_number(nll, 2)} ({name})" for name, nll in pairs])
