"""The numbers behind the verdict, collected in one place: what the teacher did for each distilled student."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from distill_lit.analysis.answer import (
    HARMED,
    HELPED,
    UNKNOWN,
    Answer,
    EndpointEffect,
    TeacherEffect,
    overall_outcome,
)
from distill_lit.analysis.model_groups import ModelGroup, grid_value_label, group_cost, validation_teacher
from distill_lit.analysis.score_table import MACRO_AVERAGE
from distill_lit.analysis.scores import Scores
from distill_lit.analysis.significance import Interval
from distill_lit.analysis.teacher_ceiling import teacher_ceiling_frame
from distill_lit.config.report import ReportConfig


@dataclass(frozen=True)
class StudentVerdict:
    """A distilled student beside the same student trained without the teacher, on the macro average above chance.

    Scores and differences are in [0, 1], losses in nats per token of held-out training text; NaN where unknown.
    """

    label: str
    name: str  # as short as tells the distilled students of this experiment apart
    outcome: str  # HELPED, HARMED, EQUIVALENT, NOT_SHOWN or UNKNOWN
    score: Interval
    retention: Interval
    delta: Interval  # to the student without teacher
    p: float  # adjusted for all declared comparisons
    excluded_gain: float  # gains above it are excluded
    margin: float  # the difference that would matter; one as large is excluded where the outcome is EQUIVALENT
    carried_by: tuple[str, ...]  # tasks without any one of which a significant difference is none
    other_endpoints: tuple[EndpointEffect, ...]  # the difference by other endpoints, not corrected
    num_seeds: int
    relative_size: float  # its parameters over the teacher's
    teacher_loss: float  # cross-entropy on held-out training text, nats per token; NaN where the two do not compare
    ce_only_loss: float  # of the student without teacher
    other_teacher: str = ""  # whose loss that is, where it is not the model that is evaluated as the teacher

    @property
    def is_known(self) -> bool:
        """Whether there is a student without teacher to compare with."""
        return self.outcome != UNKNOWN

    @property
    def is_significant(self) -> bool:
        """Whether the difference is significant after correction."""
        return self.outcome in (HELPED, HARMED)

    @property
    def is_significant_alone(self) -> bool:
        """Whether the interval of the difference, which knows of no other comparison, excludes 0."""
        return bool(self.delta.low > 0 or self.delta.high < 0)

    @property
    def teacher_is_worse_on_the_text(self) -> bool:
        """Whether the student without teacher fits the training text better than the teacher does."""
        return bool(self.ce_only_loss < self.teacher_loss)


def student_verdicts(scores: Scores, frame: pd.DataFrame, answer: Answer) -> list[StudentVerdict]:
    """One per distilled group with records, in the order of the tables. frame: `score_frame(scores)`; answer: of it."""
    groups = [(g, group) for g, group in enumerate(scores.groups) if group.role == "distilled" and group.models]
    macro = frame[frame["task"] == MACRO_AVERAGE].set_index("model")
    names = short_names([group for _, group in groups], scores.results.display)
    effects = {effect.model: effect for effect in answer.effects}
    nats = {row["model"]: (row["teacher_nll"], row["ce_only_nll"]) for _, row in teacher_ceiling_frame(scores).iterrows()}
    return [
        _verdict(scores, g, macro.loc[label], names[label], effects.get(label), nats.get(label, (np.nan, np.nan)))
        for g, label in ((g, group.label) for g, group in groups)
    ]


def short_names(groups: list[ModelGroup], display: ReportConfig) -> dict[str, str]:
    """{label: student and variant, as far as they tell these groups apart}; of one axis of the grid its value alone."""
    students, variants = ({getattr(group, name) for group in groups} for name in ("student", "variant"))
    axes = {axis for group in groups for axis, _ in group.varied_point}
    is_one_axis = len(axes) == 1 and all(group.varied_point for group in groups)
    names = {}
    for group in groups:
        student, variant = display.label(group.student), group.variant
        if is_one_axis:
            ((axis, value),) = group.varied_point
            variant = grid_value_label(display, axis, value)
        both = f"{student} ({variant})" if len(students) > 1 and variant else variant or student
        names[group.label] = student if len(variants) == 1 else both
    return names


def _verdict(
    scores: Scores, g: int, row: pd.Series, name: str, effect: TeacherEffect | None, losses: tuple[float, float]
) -> StudentVerdict:
    teacher_size = np.nan if scores.teacher is None else _cost(scores, scores.teacher, "parameters")
    nothing = Interval(np.nan, np.nan, np.nan)
    return StudentVerdict(
        label=str(row.name),
        name=name,
        outcome=UNKNOWN if effect is None else effect.outcome,
        score=_interval(row, "score", "low", "high"),
        retention=_interval(row, "retention", "retention_low", "retention_high"),
        delta=nothing if effect is None else effect.difference,
        p=np.nan if effect is None else effect.p_adjusted,
        excluded_gain=np.nan if effect is None else effect.excludes.gain,
        margin=np.nan if effect is None else effect.excludes.margin,
        carried_by=() if effect is None else tuple(map(scores.results.display.label, effect.carried_by)),
        other_endpoints=() if effect is None else effect.other_endpoints,
        num_seeds=int(row["num_seeds"]),
        relative_size=_cost(scores, g, "parameters") / teacher_size,
        teacher_loss=losses[0],
        ce_only_loss=losses[1],
        other_teacher=validation_teacher(scores.groups[g], scores.results),
    )


def _interval(row: pd.Series, value: str, low: str, high: str) -> Interval:
    return Interval(*(float(row[name]) for name in (value, low, high)))


def _cost(scores: Scores, g: int, column: str) -> float:
    return group_cost(scores.groups[g], scores.results, column)


def outcome(students: list[StudentVerdict]) -> str:
    """Of all students together."""
    return overall_outcome(student.outcome for student in students)


def verdict_numbers(students: list[StudentVerdict]) -> dict[str, Any]:
    """The verdict for other programs, and for sorting the index: outcome, and of each student score, retention, delta."""
    rows = [
        {
            "model": student.label,
            "seeds": student.num_seeds,
            "outcome": student.outcome,
            "score": _numbers(student.score),
            "retention": _numbers(student.retention),
            "delta_without_teacher": _numbers(student.delta) | {"p": _number(student.p)},
            "excluded_gain": _number(student.excluded_gain),
            "carried_by": list(student.carried_by),
        }
        for student in students
    ]
    return {"outcome": outcome(students), "students": rows}


def _numbers(interval: Interval) -> dict[str, Any]:
    return {name: _number(value) for name, value in interval._asdict().items()}


def _number(value: float) -> float | None:
    """Six digits, for processors differ in the last ones; None where it is unknown."""
    return float(f"{value:.6g}") if np.isfinite(value) else None
