"""The loss statement: what a student lost against its teacher, in plain words, for its model card. Plain text."""

import numpy as np
import pandas as pd

from distill_lit.analysis.long_tail import INSUFFICIENT, LongTail, averaged_flips
from distill_lit.analysis.results import has_other_teacher
from distill_lit.analysis.score_table import MACRO_AVERAGE
from distill_lit.analysis.scores import Scores
from distill_lit.report.number_format import (
    format_number,
    format_points,
    format_with_interval,
    join_words,
    percent_with_interval,
)
from distill_lit.report.summary import describe_ce_only_baseline, why_no_average
from distill_lit.report.tables.footnotes import tasks_in_words
from distill_lit.report.tables.long_tail import KEY_AXES, stratum_fraction, with_adjusted_p

SLICES_NAMED = 3
CONFIDENCE_SOURCE = "by the tasks' own metrics"


def loss_statement(scores: Scores, score_frame: pd.DataFrame, long_tail: LongTail, label: str) -> list[str]:
    """Sentences about the distilled group `label`, grouped in paragraphs; `score_frame` is `score_frame(scores)`."""
    if scores.teacher is None:
        return ["The teacher was not evaluated, so nothing can be said about what was lost."]
    if label not in long_tail.flips or long_tail.flips[label].empty:
        return ["This student has no result to compare with its teacher's."]
    sentences = [
        _kept(scores, score_frame, label),
        _flips(scores, long_tail, label),
        _tail(scores, long_tail, label),
        _worst(long_tail, label),
        _slices(long_tail, label),
    ]
    deployer = [_confidence(long_tail, label), _coverage(long_tail, label)]
    tasks = tasks_in_words(scores, [scores.tasks[t] for t in scores.averaged])
    limits = f"Measured on {tasks} only; text it writes, other languages and safety were not measured." if tasks else ""
    return [" ".join(s for s in part if s) for part in (sentences, deployer, [limits]) if any(part)]


def _kept(scores: Scores, frame: pd.DataFrame, label: str) -> str:
    macro = frame[(frame["model"] == label) & (frame["task"] == MACRO_AVERAGE)].iloc[0]
    if pd.isna(macro["retention"]):
        why = why_no_average(scores, scores.group_index(label)) or "the teacher's average is too close to chance"
        return f"No average against the teacher can be given, because {why}."
    tasks = len(scores.averaged)
    retention = percent_with_interval(macro["retention"], macro["retention_low"], macro["retention_high"])
    is_other = _learns_from_others(scores)
    score = "the score above chance of the teacher as released" if is_other else "its teacher's score above chance"
    documents = f"{tasks} task{'s' if tasks > 1 else ''} with {int(macro['n'])} documents"
    return f"On {documents} this student retains {retention} of {score}."


def _learns_from_others(scores: Scores) -> bool:
    """Whether students may learn from other teachers than the one whose answers theirs are compared with."""
    return has_other_teacher(scores.results.runs) or any(group.role == "derived" for group in scores.groups)


def _flips(scores: Scores, report: LongTail, label: str) -> str:
    flips = averaged_flips(scores, report.flips[label])
    right = int(flips["teacher_correct"].sum())
    lost, gained = int((flips["flip"] == "lost").sum()), int((flips["flip"] == "gained").sum())
    share = f" ({format_points(lost / right, 0)}%)" if right else ""
    teacher = "the teacher as released" if _learns_from_others(scores) else "its teacher"
    return (
        f"Of the {right} documents {teacher} answers correctly it gets {lost} wrong{share}; it answers {gained} "
        f"correctly that {teacher} gets wrong."
    )


def _tail(scores: Scores, report: LongTail, label: str) -> str:
    """Whether rare words cost more than common ones, and what of that the distillation did."""
    rows = with_adjusted_p(report.tail_contrasts)
    rows = rows[rows["model"] == label].set_index("axis")
    known = [axis for axis in KEY_AXES if axis in rows.index and rows.loc[axis].get("note") != INSUFFICIENT]
    if not known:
        return "There are too few documents to tell whether questions with rare words lose more."
    return " ".join(
        _contrast_sentence(scores, rows.loc[axis], axis, label) for axis in known if pd.notna(rows.loc[axis, "tail_loss"])
    )


def _contrast_sentence(scores: Scores, row: pd.Series, axis: str, label: str) -> str:
    what = KEY_AXES[axis].removeprefix("rare ")
    end = stratum_fraction(scores)
    size = larger_or_smaller(row["tail_loss"], row["tail_loss_low"], row["tail_loss_high"])
    sure = row.get("tail_loss_p_adjusted", np.nan) <= scores.analysis.false_discovery_rate
    text = f"The loss on the rarest {end} of {what} is {size} than on the most common {end}"
    if not sure:
        is_sure_alone = row["tail_loss_low"] > 0 or row["tail_loss_high"] < 0
        return f"{text}: {'not significant after correction' if is_sure_alone else 'undecided'}."
    if pd.isna(row.get("excess")):
        return f"{text}."
    excess = larger_or_smaller(row["excess"], row["excess_low"], row["excess_high"])
    beyond = row.get("excess_p_adjusted", np.nan) <= scores.analysis.false_discovery_rate
    known = "significant" if beyond else "not significant"
    baseline = describe_ce_only_baseline(scores, label)
    return f"{text}; the additional loss is {excess} than that of {baseline} ({known})."


def larger_or_smaller(contrast: float, low: float, high: float) -> str:
    """`5.5 points larger [12.2 larger, 1.7 smaller]`: the tail's loss beside the head's; a negative contrast is larger."""
    return _directed((contrast, low, high), "larger", "smaller")


def _directed(interval: tuple[float, float, float], below: str, above: str, after: str = "") -> str:
    """An estimate and its bounds in points without signs, each with the word of its direction. below: of what is not
    positive; after: what follows the word of the estimate."""

    def words(value: float, unit: str = "") -> str:
        return f"{format_points(abs(value))}{unit} {below if value <= 0 else above}"

    value, *bounds = interval
    shown = f" [{', '.join(map(words, bounds))}]" if pd.notna(bounds).all() else ""
    return f"{words(value, ' points')}{after}{shown}"


def _worst(report: LongTail, label: str) -> str:
    """The group that loses more than its tasks do, where one stands out of all that were looked at."""
    rows = report.worst_strata[report.worst_strata["model"] == label]
    if rows.empty or not rows.iloc[0]["stands_out"]:
        return ""
    row = rows.iloc[0]
    excess = format_with_interval(-row["excess"], -row["excess_high"], -row["excess_low"])
    name = f"{report.axis_title(row['axis'])}: {row['label']}"
    return (
        f'Of {row["num_groups"]} groups of documents "{name}" stands out: it loses {excess} points more than its tasks do '
        "(the interval holds for all groups at once)."
    )


def _slices(report: LongTail, label: str) -> str:
    found = report.slices.get(label, pd.DataFrame())
    if found.empty:
        return ""
    confirmed = found[found["confirmed"].astype(bool)].head(SLICES_NAMED)
    if confirmed.empty:
        return "A search for groups of documents with higher loss confirmed none on held-out documents."
    named = [
        f'"{r["slice"]}" (loses {format_points(r["inside_loss_rate"], 0)}% of what the teacher has, elsewhere '
        f"{format_points(r['outside_loss_rate'], 0)}%)"
        for _, r in confirmed.iterrows()
    ]
    return f"Groups with higher loss, confirmed on held-out documents: {join_words(named)}."


def _confidence(report: LongTail, label: str) -> str:
    rows = report.calibration[report.calibration["model"] == label] if not report.calibration.empty else pd.DataFrame()
    if rows.empty or "ece_all" not in rows or pd.isna(rows.iloc[0]["ece_all"]):
        return ""
    row, teacher = rows.iloc[0], report.calibration[report.calibration["model"] == "teacher"].iloc[0]
    tail = f" ({format_points(row['ece_tail'])} on the rarest questions)" if pd.notna(row.get("ece_tail")) else ""
    error = format_with_interval(row["ece_all"], row["ece_low"], row["ece_high"])
    return (
        f"{_cost_of_right_answers(row['excess_bits_per_byte'], row['cvar_bits_per_byte'])}Calibration error (ECE, "
        f"{CONFIDENCE_SOURCE}): {error} points{tail}; teacher {format_points(teacher['ece_all'])}."
    )


def _cost_of_right_answers(mean: float, worst: float) -> str:
    """Bits per byte beside the teacher's; empty where records have none."""
    if pd.isna(mean):
        return ""
    tenth = "" if pd.isna(worst) else f", in the worst tenth of documents {_more_or_less(worst)}"
    return f"The right answer costs {_more_or_less(mean)} than under the teacher{tenth}. "


def _more_or_less(value: float) -> str:
    return f"{format_number(abs(value), 2)} bits per byte {'less' if value < 0 else 'more'}"


def _coverage(report: LongTail, label: str) -> str:
    rows = report.calibration[report.calibration["model"] == label] if not report.calibration.empty else pd.DataFrame()
    if rows.empty or pd.isna(rows.iloc[0].get("coverage")):
        return ""
    row = rows.iloc[0]
    interval = row["coverage_gain"], row["coverage_gain_low"], row["coverage_gain_high"]
    gain = _directed(interval, "less", "more", " often")
    if row["coverage"] == 0:
        return "No threshold on its confidence was found above which it could answer in the teacher's place without loss."
    return (
        "A threshold on its confidence, chosen on one half of the documents so that answering above it costs nothing "
        f"against the teacher, lets it answer {format_points(row['coverage'], 0)}% of the other half; there the two are "
        f"right {gain} than the teacher alone."
    )


def calibration_finding(scores: Scores, long_tail: LongTail) -> str:
    """The calibration errors of teacher and distilled students as the title of a figure."""
    if long_tail.calibration.empty or "ece_all" not in long_tail.calibration:
        return ""
    error = long_tail.calibration.set_index("model")["ece_all"]
    students = [error[group.label] for group in scores.groups if group.role == "distilled" and group.label in error]
    known = sorted(value for value in students if pd.notna(value))
    if not known or pd.isna(error.get("teacher")):
        return ""
    ours = " to ".join(dict.fromkeys(format_points(value) for value in (known[0], known[-1])))
    return (
        f"Calibration error (ECE, {CONFIDENCE_SOURCE}): distilled {ours} points, teacher {format_points(error['teacher'])}"
    )
