"""What stands below the tables of scores: how to read them, what is bold, what is missing or too little to go by."""

import numpy as np
import pandas as pd

from distill_lit.analysis.derived_columns import count_ties
from distill_lit.analysis.model_groups import (
    REFERENCE_ROLES,
    describe_grid_value,
    group_cost,
    short_axis_names,
    validation_teacher,
)
from distill_lit.analysis.results import has_different_validation_data, has_several_teachers
from distill_lit.analysis.score_table import MACRO_AVERAGE
from distill_lit.analysis.scores import Scores
from distill_lit.report.number_format import join_words
from distill_lit.report.tables.footnotes import exported_step_notes, tasks_in_words

FEW_DOCUMENTS, FEW_PASSAGES = 30, 10
HOLM_MARK, FDR_MARK = "‡", "*"  # significant after Holm, after Benjamini–Hochberg


def earned_bold(frame: pd.DataFrame) -> pd.Series:
    """Which rows are bold: the best student of a task and its equals, only where at least one student is excluded."""
    contestants = frame["score"].notna() & ~frame["role"].isin([*REFERENCE_ROLES, "derived"])
    is_excluding = (contestants & ~frame["best"]).groupby(frame["task"]).transform("any")
    return frame["best"] & is_excluding


def bold_note(frame: pd.DataFrame) -> str:
    """What bold marks, or why nothing is bold. frame: with `earned_bold` as its column `best`."""
    if not frame["best"].any():
        return " No student differs significantly from the best, so none is bold."
    return (
        " Bold: the best student and those not significantly different from it (Holm within the column), where a student "
        "is excluded."
    )


def has_other_vocabulary(scores: Scores) -> bool:
    """Whether students' losses per token do not compare with the teacher's: it was asked about the same text, and without a
    KL, so that vocabularies differ."""
    runs = scores.results.runs
    trained = runs[(runs["role"] == "distilled") & (runs["status"] == "done")]
    if not len(trained) or not {"val_kl", "val_teacher_nll"} <= set(trained):
        return False
    return bool(trained["val_kl"].isna().all() and trained["val_teacher_nll"].notna().any())


def _asks_no_teacher(scores: Scores) -> bool:
    """Whether plan.yaml says that nothing is asked while students train, who learn from what a teacher has written."""
    teacher = scores.results.plan.get("teacher")
    return isinstance(teacher, dict) and teacher.get("source") == "none"


def main_notes(scores: Scores, frame: pd.DataFrame) -> list[str]:
    """How to read the main table."""
    averaged = tasks_in_words(scores, [scores.tasks[t] for t in scores.averaged])
    notes = [
        f"Above chance: mean over {averaged or 'no task'} of (score − chance) / (1 − chance), in points; its interval "
        f"is of documents{_seeds_in_words(scores)}. Retained: that average as a share of the teacher's. "
        "Δ without teacher: less the same student trained without the teacher, paired; "
        f"{HOLM_MARK} significant after Holm over all such comparisons at {scores.analysis.alpha:.3g}."
        f"{bold_note(frame[frame['task'] == MACRO_AVERAGE])}"
    ]
    exported = exported_step_notes(scores, range(len(scores.groups)))
    return [*notes, *_constant_notes(scores), *exported, *_validation_notes(scores)]


def _constant_notes(scores: Scores) -> list[str]:
    """What the grid names and does not vary, of which labels say nothing."""
    results = scores.results
    short = short_axis_names(results.runs)
    constant = {axis: value for group in scores.groups for axis, value in group.grid_point if axis in group.constant_axes}
    named = [describe_grid_value(results.display, short[axis], axis, value) for axis, value in constant.items()]
    return [f"The same in all of the grid: {', '.join(named)}."] if named else []


def score_warnings(scores: Scores) -> list[str]:
    """What limits these numbers: results that are missing, too few documents, passages or draws."""
    notes = []
    if scores.teacher is None:
        notes.append("The teacher has no result: nothing is compared with it, and tasks at chance cannot be told.")
    few = [p.task for p in scores.responses.tasks if p.n < FEW_DOCUMENTS or int(p.clusters.max()) + 1 < FEW_PASSAGES]
    if few:
        notes.append(
            f"Fewer than {FEW_DOCUMENTS} documents or {FEW_PASSAGES} passages on {tasks_in_words(scores, few)}: too "
            "few for intervals to be trusted."
        )
    return [*notes, *_missing_notes(scores)]


def _validation_notes(scores: Scores) -> list[str]:
    """What losses and KL on held-out text compare, and what older records lack of them."""
    runs = scores.results.runs
    notes = []
    if has_different_validation_data(runs):
        notes.append(
            "Validation (loss, KL, curves): each student on held-out rows of its own text; other data are another measure."
        )
    if has_several_teachers(runs):
        notes.append(
            "KL: to each student's own teacher, so that it does not compare between teachers; of a student without teacher "
            "that stands beside several, to the first."
        )
    notes += _other_teacher_notes(scores)
    has_losses = "val_ce" in runs and runs["val_ce"].notna().any()
    if has_losses and has_other_vocabulary(scores):
        notes.append("Losses are per token of the student's vocabulary; the teacher's has another, and is not compared.")
    elif has_losses and runs.get("val_teacher_nll", pd.Series(dtype=float)).isna().all():
        why = ": no teacher is asked in training (source: none), so there is no KL to it either"
        notes.append(
            f"The teacher's own loss on the corpus is not in these records{why if _asks_no_teacher(scores) else ''}."
        )
    return notes


def _other_teacher_notes(scores: Scores) -> list[str]:
    """Whose KL and loss they are, where it is not the model in the row `teacher`."""
    asked: dict[str, list[str]] = {}
    for group in scores.groups:
        if np.isfinite(group_cost(group, scores.results, "val_teacher_nll")):
            asked.setdefault(validation_teacher(group, scores.results), []).append(group.label)
    row = f"not of the model in the row {scores.results.display.label('teacher')}"
    if not any(asked):
        return []
    if len(asked) == 1:
        return [f"KL and the teacher's loss on the corpus are of {next(iter(asked))}, {row}."]
    named = [f"of {join_words(labels)} to {name}" for name, labels in asked.items() if name]
    return [f"KL and the teacher's loss on the corpus: {'; '.join(named)}, {row}."]


def ties_note(scores: Scores) -> str:
    """How many answers have two best choices by the task's own metric; the first of them counts."""
    metrics = {panel.task: panel.metric for panel in scores.responses.tasks}
    counted = [count_ties(frame, metrics) for frame in scores.results.records.values()]
    tied, answers = (sum(numbers) for numbers in zip(*counted, strict=True))
    if not tied:
        return ""
    return (
        f"In {tied:,} of {answers:,} answers among choices two or more score best by the task's metric; the first counts."
    )


def _missing_notes(scores: Scores) -> list[str]:
    notes = []
    for g, group in enumerate(scores.groups):
        lacking = [
            task for t, task in enumerate(scores.tasks) if task not in scores.excluded_tasks and np.isnan(scores.raw[t, g])
        ]
        if group.models and lacking:
            notes.append(f"Missing: {group.label} has no result on {tasks_in_words(scores, lacking)}, hence no average.")
        if len(group.models) < group.num_planned:
            done, why = len(group.models), group.reason or "missing"
            notes.append(f"Missing: {group.label}, {group.num_planned - done} of {group.num_planned} ({why}).")
    return notes


def _seeds_in_words(scores: Scores) -> str:
    """What intervals say of other seeds."""
    seeds = {len(group.models) for group in scores.groups if group.role in ("ce_only", "distilled") and group.models}
    if not seeds or max(seeds) > 1:
        one = "; of students with one seed, documents alone" if 1 in seeds else ""
        return f" and seeds together{one}" if seeds else ""
    return "; with one seed each it covers documents alone, and another seed may differ by more"
