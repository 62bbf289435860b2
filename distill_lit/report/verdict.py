"""The numbers behind the verdict, collected in one place: what the teacher did for each distilled student."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from distill_lit.analysis.model_groups import ModelGroup, group_cost
from distill_lit.analysis.results import SAME_TEACHER_NATS
from distill_lit.analysis.score_table import MACRO_AVERAGE, find_baselines
from distill_lit.analysis.scores import Scores
from distill_lit.analysis.significance import Interval

HELPED, HARMED, MIXED, NOT_SHOWN, UNKNOWN = "helped", "harmed", "mixed", "not shown", "unknown"  # outcomes


@dataclass(frozen=True)
class StudentVerdict:
    """A distilled student beside the same student trained without the teacher, on the macro average above chance.

    Scores and differences are in [0, 1], losses in nats per token of held-out training text; NaN where unknown.
    """

    label: str
    name: str  # as short as tells the distilled students of this experiment apart
    score: Interval
    retention: Interval
    delta: Interval  # to the student without teacher
    p: float  # adjusted for all declared comparisons
    is_significant: bool
    excluded_gain: float  # gains above it are excluded
    carried_by: tuple[str, ...]  # tasks without any one of which a significant difference is none
    num_seeds: int
    relative_size: float  # its parameters over the teacher's
    teacher_loss: float
    ce_only_loss: float  # of the student without teacher, NaN where it was validated on other text

    @property
    def is_known(self) -> bool:
        """Whether there is a student without teacher to compare with."""
        return bool(np.isfinite(self.delta.value))

    @property
    def teacher_is_worse_on_the_text(self) -> bool:
        """Whether the student without teacher fits the training text better than the teacher does."""
        return bool(self.ce_only_loss < self.teacher_loss)


def student_verdicts(scores: Scores, frame: pd.DataFrame) -> list[StudentVerdict]:
    """One per distilled group with records, in the order of the tables. frame: `score_frame(scores)`."""
    groups = [(g, group) for g, group in enumerate(scores.groups) if group.role == "distilled" and group.models]
    macro = frame[frame["task"] == MACRO_AVERAGE].set_index("model")
    names = _short_names([group for _, group in groups])
    return [_effect(scores, macro.loc[group.label], g, names[group.label]) for g, group in groups]


def _short_names(groups: list[ModelGroup]) -> dict[str, str]:
    """{label: student and variant, as far as they tell these groups apart}; of one axis of the grid its value alone."""
    students, variants = ({getattr(group, name) for group in groups} for name in ("student", "variant"))
    keys = {variant.partition("=")[0] for variant in variants}
    is_one_axis = len(keys) == 1 and not any("," in variant for variant in variants)
    names = {}
    for group in groups:
        variant = group.variant.partition("=")[2] if is_one_axis else group.variant
        both = f"{group.student} ({variant})" if len(students) > 1 and variant else variant or group.student
        names[group.label] = group.student if len(variants) == 1 else both
    return names


def _effect(scores: Scores, row: pd.Series, g: int, name: str) -> StudentVerdict:
    teacher_loss, ce_only_loss = _losses_without_teacher(scores, g)
    teacher_size = np.nan if scores.teacher is None else _cost(scores, scores.teacher, "parameters")
    return StudentVerdict(
        label=str(row.name),
        name=name,
        score=_interval(row, "score", "low", "high"),
        retention=_interval(row, "retention", "retention_low", "retention_high"),
        delta=_interval(row, "ce_only_delta", "ce_only_delta_low", "ce_only_delta_high"),
        p=float(row["ce_only_p_adjusted"]),
        is_significant=bool(row["ce_only_p_adjusted"] <= scores.analysis.alpha),
        excluded_gain=float(row["ce_only_delta_high"]),
        carried_by=(),
        num_seeds=int(row["num_seeds"]),
        relative_size=_cost(scores, g, "parameters") / teacher_size,
        teacher_loss=teacher_loss,
        ce_only_loss=ce_only_loss,
    )


def _interval(row: pd.Series, value: str, low: str, high: str) -> Interval:
    return Interval(*(float(row[name]) for name in (value, low, high)))


def _losses_without_teacher(scores: Scores, g: int) -> tuple[float, float]:
    """(the teacher's, the student without teacher's) cross-entropy on the text that group `g` was validated on. Without a
    KL the two have different vocabularies, and losses per token do not compare."""
    if not np.isfinite(_cost(scores, g, "val_kl")):
        return np.nan, np.nan
    own, other = _cost(scores, g, "val_teacher_nll"), find_baselines(scores, g).get("ce_only")
    if other is None or not abs(_cost(scores, other, "val_teacher_nll") - own) <= SAME_TEACHER_NATS:
        return own, np.nan
    return own, _cost(scores, other, "val_ce")


def _cost(scores: Scores, g: int, column: str) -> float:
    return group_cost(scores.groups[g], scores.results, column)


def outcome(effects: list[StudentVerdict]) -> str:
    """One of HELPED (at least one student significantly, none harmed), HARMED, MIXED, NOT_SHOWN, UNKNOWN."""
    known = [effect for effect in effects if effect.is_known]
    ways = {effect.delta.value > 0 for effect in known if effect.is_significant}
    if not known:
        return UNKNOWN
    return {0: NOT_SHOWN, 1: HELPED if True in ways else HARMED, 2: MIXED}[len(ways)]


def verdict_numbers(effects: list[StudentVerdict]) -> dict[str, Any]:
    """The verdict for other programs, and for sorting the index: outcome, and of each student score, retention, delta."""
    students = [
        {
            "model": effect.label,
            "seeds": effect.num_seeds,
            "score": _numbers(effect.score),
            "retention": _numbers(effect.retention),
            "delta_without_teacher": _numbers(effect.delta)
            | {"p": _number(effect.p), "significant": effect.is_significant},
        }
        for effect in effects
    ]
    return {"outcome": outcome(effects), "students": students}


def _numbers(interval: Interval) -> dict[str, Any]:
    return {name: _number(value) for name, value in interval._asdict().items()}


def _number(value: float) -> float | None:
    """Six digits, for processors differ in the last ones; None where it is unknown."""
    return float(f"{value:.6g}") if np.isfinite(value) else None
