"""The score frame, from which all tables come: one row per task and model group, one per group for the average."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from distill_lit.analysis import scores as sc
from distill_lit.analysis.model_groups import NAMED_ROLES, baseline_of, group_cost
from distill_lit.analysis.retention import retention
from distill_lit.analysis.scores import Scores
from distill_lit.analysis.significance import Interval, benjamini_hochberg, gated_holm, holm

MACRO_AVERAGE = "macro average"
# the same student without teacher, which is the question; then, where that is answered, the teacher; itself before training
BASELINE_ROLES = ("ce_only", "teacher", "untrained")
COSTS = (
    "parameters",
    "non_embedding_parameters",
    "bytes",
    "flops_per_token",
    "training_tokens",
    "student_training_flops",
    "teacher_training_flops",
    "pipeline_training_flops",
    "val_kl",
    "val_ce",
    "val_agreement",
    "val_draft_acceptance",
    "val_teacher_nll",
)


def score_frame(scores: Scores, costs: Sequence[str] = COSTS) -> pd.DataFrame:
    """Long frame. Scores are in [0, 1]; `score` is the task's metric, for the macro rows the centered average.

    costs: columns of runs.csv.

    Columns: task, metric, num_fewshot, limit, n, chance, teacher_at_chance, model, role, student, variant, num_seeds,
    num_planned, status, reason, score, low, high, document_se, seed_std, retention(_low, _high),
    minimum_detectable_effect (the smallest difference to the student without teacher, else to the
    teacher, that this many documents and seeds show with 80% power), best, costs, and for each of BASELINE_ROLES:
    <who>_delta, _delta_low, _delta_high, _p, _p_adjusted. These are, on the macro average of distilled students,
    `gated_holm` in the order of BASELINE_ROLES; else Benjamini–Hochberg over the comparisons with the same opponent.
    """
    rows = []
    for g in range(len(scores.groups)):
        shared = _shared(scores, g, costs)
        rows += [_task_row(scores, t, g, shared) for t in range(len(scores.tasks))]
        rows.append(_macro_row(scores, g, shared))
    frame = pd.DataFrame(rows)
    if "pipeline_training_flops" in costs and frame["pipeline_training_flops"].isna().all():  # no model is made of another
        frame = frame.drop(columns="pipeline_training_flops")
    frame["best"] = _best(scores, frame)
    return _adjust_comparisons(frame)


def _shared(scores: Scores, g: int, costs: Sequence[str]) -> dict[str, Any]:
    """The columns that all rows of a group share."""
    group = scores.groups[g]
    done = len(group.models)
    state = "done" if done == group.num_planned else "missing" if not done else "partial"
    return {
        "model": group.label,
        "role": group.role,
        "student": group.student,
        "variant": group.variant,
        "num_seeds": done,
        "num_planned": group.num_planned,
        "status": state,
        "reason": group.reason,
        **{name: group_cost(group, scores.results, name) for name in costs},
    }


def find_baselines(scores: Scores, g: int) -> dict[str, int]:
    """{one of BASELINE_ROLES: group number} of whom group `g` is compared with; empty without records of its own."""
    group, found = scores.groups[g], {}
    if not group.models:
        return {}
    for role in BASELINE_ROLES:
        if role == "teacher":
            if scores.teacher not in (None, g):
                found[role] = scores.teacher
            continue
        other = baseline_of(group, role, scores.groups) if group.role == "distilled" else None
        if other is not None:
            found[role] = scores.groups.index(other)
    return found


def declared_comparisons(scores: Scores) -> list[tuple[int, int]]:
    """(distilled group, the same student without teacher), of all that have both: what an experiment asks first."""
    return [(g, other) for g, group in enumerate(scores.groups) if group.role == "distilled"
            for other in [find_baselines(scores, g).get("ce_only")] if other is not None]  # fmt: skip


def _task_row(scores: Scores, t: int, g: int, shared: dict[str, Any]) -> dict[str, Any]:
    task, settings = scores.responses.tasks[t], scores.results.settings(scores.tasks[t])
    value = sc.task_score(scores, t, g)
    row = {
        "task": task.task,
        "metric": task.metric,
        "num_fewshot": settings.get("num_fewshot", 0),
        "limit": int(settings.get("limit") or 0),
        "n": task.n,
        "chance": float(task.chance.mean()),
        "teacher_at_chance": scores.excluded_tasks.get(task.task) == sc.EXCLUDED_AT_CHANCE,
        **shared,
        "score": value.value,
        "low": value.low,
        "high": value.high,
        "document_se": sc.document_standard_error(scores, g, t),
        "seed_std": sc.seed_std(scores, g, t),
    }
    for who, other in find_baselines(scores, g).items():
        row |= _difference(who, *sc.task_difference(scores, t, g, other))
    opponent = _declared_opponent(scores, g)
    if opponent is not None:
        row["minimum_detectable_effect"] = scores.task_estimate(t, g, opponent).detectable(scores.analysis.alpha)
    return row | _retention(scores, g, [t])


def _declared_opponent(scores: Scores, g: int) -> int | None:
    """Whom group `g` is compared with first."""
    return next(iter(find_baselines(scores, g).values()), None)


def _retention(scores: Scores, g: int, tasks: list[int] | None = None) -> dict[str, float]:
    found = retention(scores, g, tasks)
    return {"retention": found.value, "retention_low": found.low, "retention_high": found.high}


def _macro_row(scores: Scores, g: int, shared: dict[str, Any]) -> dict[str, Any]:
    value = sc.macro_score(scores, g)
    row = {
        "task": MACRO_AVERAGE,
        "metric": "above chance",
        "n": sum(scores.responses.tasks[t].n for t in scores.averaged),
        "chance": 0.0,
        "teacher_at_chance": False,
        **shared,
        "score": value.value,
        "low": value.low,
        "high": value.high,
        "seed_std": sc.seed_std(scores, g),
    }
    for who, other in find_baselines(scores, g).items():
        row |= _difference(who, *sc.macro_difference(scores, g, other))
    opponent = _declared_opponent(scores, g)
    if opponent is not None:
        level = scores.analysis.alpha / max(len(declared_comparisons(scores)), 1)
        row["minimum_detectable_effect"] = scores.macro_estimate(g, opponent).detectable(level)
    return row | _retention(scores, g)


def _difference(who: str, delta: Interval, p: float) -> dict[str, float]:
    return {f"{who}_delta": delta.value, f"{who}_delta_low": delta.low, f"{who}_delta_high": delta.high, f"{who}_p": p}


def _best(scores: Scores, frame: pd.DataFrame) -> list[bool]:
    """Best student of each task and every student not significantly different from it (Holm within the task); no student
    where none is significantly behind the best."""
    students = [g for g, group in enumerate(scores.groups) if group.role not in NAMED_ROLES and group.models]
    marks: dict[tuple[str, str], bool] = {}
    for t, task in [*enumerate(scores.tasks), (None, MACRO_AVERAGE)]:
        value = {g: scores.quality(g, t) for g in students}
        known = [g for g in students if np.isfinite(value[g])]
        if not known:
            continue
        top = max(known, key=lambda g: value[g])
        rest = [g for g in known if g != top]
        tests = [sc.macro_difference(scores, g, top) if t is None else sc.task_difference(scores, t, g, top) for g in rest]
        is_behind = holm([p for _, p in tests]) <= scores.analysis.alpha
        if is_behind.any():
            marks |= {(task, scores.groups[g].label): not behind for g, behind in zip(rest, is_behind, strict=True)}
            marks[task, scores.groups[top].label] = True
    return [marks.get(key, False) for key in zip(frame["task"], frame["model"], strict=True)]


def _adjust_comparisons(frame: pd.DataFrame) -> pd.DataFrame:
    """Adjusted p: on the macro average of distilled groups the one without teacher first, the others gated by it; else
    Benjamini–Hochberg for each opponent by itself: that students are behind their teacher must not make other differences
    pass."""
    columns = ("delta", "delta_low", "delta_high", "p", "p_adjusted")
    numbers = [f"{who}_{column}" for who in BASELINE_ROLES for column in columns]
    numbers += ["retention", "retention_low", "retention_high", "minimum_detectable_effect"]
    frame = frame.reindex(columns=[*frame.columns, *(name for name in numbers if name not in frame)])
    frame[numbers] = frame[numbers].astype(float)
    macro = frame["task"] == MACRO_AVERAGE
    declared = macro & (frame["role"] == "distilled")
    before, after = [f"{who}_p" for who in BASELINE_ROLES], [f"{who}_p_adjusted" for who in BASELINE_ROLES]
    frame.loc[declared, after] = gated_holm(frame.loc[declared, before].to_numpy(float))
    for rows in (~macro, macro & ~declared):
        for one, adjusted in zip(before, after, strict=True):
            frame.loc[rows, adjusted] = benjamini_hochberg(frame.loc[rows, one].tolist())
    return frame
