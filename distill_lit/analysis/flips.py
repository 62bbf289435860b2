"""Flips: answers that changed between teacher and student: lost, gained, wrong both before and after."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from distill_lit.analysis.response_matrix import TaskResponses
from distill_lit.analysis.scores import Scores
from distill_lit.analysis.significance import sign_flip_p

FLIP_COLUMNS = ["teacher_correct", "student_correct", "teacher_choice", "student_choice", "flip", "cluster"]
UNKNOWN_CHOICE = -1
MODAL_SEEDS = 3  # from which a flip of the modal prediction counts as lost in distillation


@dataclass(frozen=True)
class Answers:
    """A group's answer per document: its modal choice over seeds from MODAL_SEEDS on, else its first seed's."""

    choice: NDArray[np.integer]  # (D,)
    correct: NDArray[np.floating]  # (D,) 0 or 1; NaN when the group lacks the task


def modal_answers(task: TaskResponses, model_columns: list[int]) -> Answers:
    """The group's answers; a tie between choices goes to the earliest seed among them."""
    if len(model_columns) < MODAL_SEEDS:
        column = model_columns[0]
        return Answers(task.choice[:, column], task.correct[:, column])
    chosen, correct = task.choice[:, model_columns], task.correct[:, model_columns]
    votes = (chosen[:, :, None] == chosen[:, None, :]).sum(axis=2)
    pick = votes.argmax(axis=1)
    rows = np.arange(task.n)
    return Answers(chosen[rows, pick], correct[rows, pick])


def document_flips(scores: Scores, group_index: int) -> pd.DataFrame:
    """One row per document that teacher and group answered correctly or wrongly, indexed by (task, key).

    Columns: teacher_correct, student_correct (bool), teacher_choice, student_choice (−1 where choices are not known), flip
    (lost, gained, both right, both wrong), cluster (passage).
    """
    frames = []
    teacher = scores.teacher
    if teacher is None or not scores.groups[group_index].models:
        return pd.DataFrame(columns=FLIP_COLUMNS)
    for task in scores.responses.tasks:
        one, two = (
            modal_answers(task, scores.model_columns(teacher)),
            modal_answers(task, scores.model_columns(group_index)),
        )
        if not task.is_binary or np.isnan(one.correct).any() or np.isnan(two.correct).any():
            continue
        teacher_right, student_right = one.correct == 1, two.correct == 1
        flip = np.select(
            [teacher_right & ~student_right, ~teacher_right & student_right, teacher_right],
            ["lost", "gained", "both right"],
            "both wrong",
        )
        frames.append(
            pd.DataFrame(
                {
                    "teacher_correct": teacher_right,
                    "student_correct": student_right,
                    "teacher_choice": one.choice if task.has_choices else UNKNOWN_CHOICE,
                    "student_choice": two.choice if task.has_choices else UNKNOWN_CHOICE,
                    "flip": flip,
                    "cluster": [f"{task.task}:{code}" for code in task.clusters],
                },
                index=task.index,
            )
        )
    return pd.concat(frames) if frames else pd.DataFrame(columns=FLIP_COLUMNS)


def flip_counts(flips: pd.DataFrame, by: pd.Series | pd.Index | None = None) -> pd.DataFrame:
    """Per value of `by` (all documents when None): n, lost, gained, agreement, same_wrong_rate (shares of the documents
    whose chosen answers are known, else NaN), p (exact sign flips of passages; where documents share none, McNemar's test).
    """
    numbers, names = pd.factorize(np.full(len(flips), "all") if by is None else np.asarray(by), sort=True)
    teacher_right, student_right = flips["teacher_correct"].to_numpy(bool), flips["student_correct"].to_numpy(bool)
    both_wrong = ~teacher_right & ~student_right
    known = (flips["teacher_choice"] != UNKNOWN_CHOICE).to_numpy()
    same = known & (flips["teacher_choice"] == flips["student_choice"]).to_numpy()

    def count(is_counted: NDArray[np.bool_]) -> NDArray[np.integer]:
        return np.bincount(numbers, weights=is_counted, minlength=len(names)).astype(int)

    table = pd.DataFrame({"lost": count((flips["flip"] == "lost").to_numpy()),
                          "gained": count((flips["flip"] == "gained").to_numpy()),
                          "n": np.bincount(numbers, minlength=len(names))}, index=names)  # fmt: skip
    table["agreement"] = _share(count(same), count(known))
    table["same_wrong_rate"] = _share(count(same & both_wrong), count(known & both_wrong))
    gain, passages = student_right.astype(int) - teacher_right, pd.factorize(flips["cluster"], sort=True)[0]
    inside = [np.flatnonzero(numbers == number) for number in range(len(names))]
    table["p"] = np.array([sign_flip_p(gain[rows], passages[rows]) for rows in inside], float)
    return table


def _share(part: NDArray[np.integer], whole: NDArray[np.integer]) -> NDArray[np.floating]:
    return np.asarray(part / np.where(whole > 0, whole, np.nan))
