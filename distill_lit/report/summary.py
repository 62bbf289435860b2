"""The result in plain sentences, computed: what is retained, and where the student without a teacher wins. Plain text."""

import numpy as np
import pandas as pd

from distill_lit.analysis import scores as sc
from distill_lit.analysis.score_table import MACRO_AVERAGE, find_baselines
from distill_lit.analysis.scores import Scores
from distill_lit.report.number_format import (
    format_count,
    format_number,
    format_points,
    format_retention,
    format_with_interval,
    join_words,
)


def verdict(scores: Scores, frame: pd.DataFrame) -> list[str]:
    """One paragraph per distilled group. `frame` is `score_frame(scores)`."""
    students = [group for group in scores.groups if group.role == "distilled"]
    if not students:
        return ["No distilled student is in this experiment."]
    paragraphs = []
    for group in students:
        group_frame = frame[frame["model"] == group.label]
        if not group.models:
            paragraphs.append(f"{group.label}: no result ({group.reason or 'missing'}).")
            continue
        sentences = [
            _retention_sentence(scores, group_frame),
            _baseline_sentence(scores, group_frame, "ce_only", describe_ce_only_baseline(scores, group.label)),
            _wins_without_teacher(scores, group_frame),
            _baseline_sentence(scores, group_frame, "untrained", "itself before training"),
        ]
        paragraphs.append(" ".join(s for s in sentences if s))
    return paragraphs


def headline(scores: Scores, frame: pd.DataFrame) -> str:
    """The verdict in a sentence: what the best student retains, and how often the teacher was worth having."""
    macro = frame[(frame["task"] == MACRO_AVERAGE) & (frame["role"] == "distilled") & frame["score"].notna()]
    if macro.empty and not any(group.role == "distilled" for group in scores.groups):
        return "No distilled student is in this experiment."
    if macro.empty:
        return "There is no result: no distilled student has an average above chance."
    best = macro.loc[macro["score"].idxmax()]
    size = ""
    teacher = frame[(frame["task"] == MACRO_AVERAGE) & (frame["role"] == "teacher")]
    if len(teacher) and best["parameters"] > 0 and teacher.iloc[0]["parameters"] > 0:
        size = f" with {format_points(best['parameters'] / teacher.iloc[0]['parameters'], 0)}% of its parameters"
    retention = format_retention(best)
    first = f"{best['model']} retains {retention} of the teacher's score above chance{size}"
    if pd.isna(best["retention"]):
        first = f"{best['model']} scores {format_points(best['score'])} points above chance"
    known = " with an average" if len(macro) < sum(group.role == "distilled" for group in scores.groups) else ""
    highest = f", the highest of {len(macro)} distilled students{known}" if len(macro) > 1 or known else ""
    pairs = macro[macro["ce_only_delta"].notna()]
    seeds = " One seed each." if (macro["num_seeds"] == 1).all() else ""
    return f"{first}{highest}{_before_training(frame, best)}; {_teacher_benefit(scores, pairs)}.{seeds}"


def _before_training(frame: pd.DataFrame, best: pd.Series) -> str:
    """What the student retained before any training, where that is known: pruned students begin with most of it."""
    same = (frame["task"] == MACRO_AVERAGE) & (frame["role"] == "untrained") & (frame["student"] == best["student"])
    retention = frame.loc[same, "retention"].dropna()
    return f" (before any training it retains {format_points(retention.iloc[0], 0)}%)" if len(retention) == 1 else ""


def _teacher_benefit(scores: Scores, pairs: pd.DataFrame) -> str:
    """How many distilled students are ahead of themselves without a teacher, and how many surely."""
    if pairs.empty:
        has_any = any(group.role == "ce_only" and group.models for group in scores.groups)
        why = "those trained without it were trained in another way" if has_any else "no student was trained without it"
        return f"whether the teacher helped is unknown, because {why}"
    ahead, sure = pairs["ce_only_delta"] > 0, pairs["ce_only_p_adjusted"] <= scores.analysis.alpha
    words = {describe_ce_only_baseline(scores, label) for label in pairs["model"]}
    other = words.pop() if len(words) == 1 else "the same student trained without the teacher, partly on other data"
    if len(pairs) == 1:
        only = sum(group.role == "distilled" for group in scores.groups) == 1
        subject = "it" if only else pairs.iloc[0]["model"]
        delta = pairs.iloc[0]["ce_only_delta"]
        way = "ahead of" if delta > 0 else "behind" if delta < 0 else "level with"
        return f"{subject} is {way} {other}, {'' if sure.all() else 'not '}significantly"
    text = f"{int(ahead.sum())} of {len(pairs)} distilled students are ahead of {other}"
    if not sure.any():
        return f"{text}, none of these differences is significant"
    return f"{text}, {int((ahead & sure).sum())} significantly, and {int((~ahead & sure).sum())} significantly behind"


def _retention_sentence(scores: Scores, group_frame: pd.DataFrame) -> str:
    macro = group_frame[group_frame["task"] == MACRO_AVERAGE].iloc[0]
    name = f"{macro['model']} ({format_count(macro['parameters'])} parameters)"
    if scores.teacher is None:
        return f"{name}: the teacher has no result, so nothing can be said about what is retained of it."
    if pd.isna(macro["score"]):
        return f"{name}: no macro average, because {why_no_average(scores, scores.group_index(macro['model']))}."
    if pd.isna(macro["retention"]):
        return f"{name}: the teacher's average is too close to chance for a retention to mean anything."
    retention = format_retention(macro)
    return (
        f"{name} retains {retention} of the teacher's score above chance, averaged over {len(scores.averaged)} "
        f"task{'s' if len(scores.averaged) > 1 else ''}."
    )


def _baseline_sentence(scores: Scores, group_frame: pd.DataFrame, who: str, words: str) -> str:
    macro = group_frame[group_frame["task"] == MACRO_AVERAGE].iloc[0]
    delta, low, high = (macro[f"{who}_{name}"] for name in ("delta", "delta_low", "delta_high"))
    if pd.isna(delta):
        return f"It cannot be compared with {words}: {_why_alone(scores, macro)}." if who == "ce_only" else ""
    if delta == low == high:
        return f"It answers as {words} does."
    sure = macro[f"{who}_p_adjusted"] <= scores.analysis.alpha
    way = "ahead of" if delta > 0 else "behind" if delta < 0 else "level with"
    known = "" if sure else ", which is not decided at this number of documents"
    if not sure and low * high > 0:
        known = ", which is not significant once all comparisons are counted"
    return f"It is {way} {words} by {format_with_interval(abs(delta), *_turned(delta, low, high))} points{known}."


def _why_alone(scores: Scores, macro: pd.Series) -> str:
    """Why a student is not compared with itself without the teacher."""
    g = scores.group_index(macro["model"])
    other = find_baselines(scores, g).get("ce_only")
    if other is not None:
        return why_no_average(scores, g) or f"{scores.groups[other].label}: {why_no_average(scores, other)}"
    alike = [group for group in scores.groups if (group.role, group.student) == ("ce_only", macro["student"])]
    return "those there are were trained in another way" if any(g.models for g in alike) else "that result is missing"


def _turned(delta: float, low: float, high: float) -> tuple[float, float]:
    return (-high, -low) if delta < 0 else (low, high)


def _wins_without_teacher(scores: Scores, group_frame: pd.DataFrame) -> str:
    """Where the student without teacher scores higher, and where that is significant."""
    tasks = group_frame[(group_frame["task"] != MACRO_AVERAGE) & group_frame["ce_only_delta"].notna()]
    if tasks.empty:
        return ""
    wins = tasks[tasks["ce_only_delta"] < 0]
    if wins.empty:
        return f"The student without teacher scores higher on none of the {len(tasks)} tasks."
    named = join_words(
        [f"{t} (by {format_number(-d * 100)})" for t, d in zip(wins["task"], wins["ce_only_delta"], strict=True)]
    )
    sure = list(wins.loc[wins["ce_only_p_adjusted"] <= scores.analysis.false_discovery_rate, "task"])
    known = f"significantly on {join_words(sure)}" if sure else "on none of them significantly"
    return f"The student without teacher scores higher on {len(wins)} of {len(tasks)} tasks: {named}; {known}."


def describe_ce_only_baseline(scores: Scores, label: str) -> str:
    """The student without teacher that the distilled group `label` is compared with, in words."""
    other = find_baselines(scores, scores.group_index(label)).get("ce_only")
    on = " on other data" if other is not None and scores.groups[other].other_data else ""
    return f"the same student trained without the teacher{on}"


def why_no_average(scores: Scores, g: int) -> str:
    """Why a group with records has no macro average, or nothing."""
    if not len(scores.averaged):
        reasons = set(scores.excluded_tasks.values())
        return "no task has the teacher above chance" if reasons == {sc.EXCLUDED_AT_CHANCE} else "no task can be averaged"
    lacking = [scores.tasks[t] for t in scores.averaged if not np.isfinite(scores.raw[t, g])]
    return f"it has no result on {join_words(lacking)}" if lacking else ""
