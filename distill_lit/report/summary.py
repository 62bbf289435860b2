"""The answer in plain sentences, computed: whether the teacher helped, by how much, how surely, what is excluded."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from distill_lit.analysis import scores as sc
from distill_lit.analysis.answer import EQUIVALENT, UNKNOWN
from distill_lit.analysis.axis_tests import AxisTest
from distill_lit.analysis.pareto import CLAIM_HOLDS, CLAIM_UNDECIDED, COST_AXES, efficiency_claims
from distill_lit.analysis.results import has_other_teacher
from distill_lit.analysis.score_table import MACRO_AVERAGE, find_baselines
from distill_lit.analysis.scores import Scores
from distill_lit.report.number_format import (
    MISSING_VALUE,
    format_number,
    format_p_value,
    format_points,
    format_with_interval,
    join_words,
    p_in_words,
    percent_with_interval,
)
from distill_lit.report.tables.footnotes import tasks_in_words
from distill_lit.report.tables.score_notes import earned_bold
from distill_lit.report.verdict import StudentVerdict, outcome

MAX_NAMED = 4  # students that a sentence names; of more it gives the range


def headline(scores: Scores, students: list[StudentVerdict], axes: Sequence[AxisTest] = ()) -> str:
    """The answer: whether the teacher helped, by how much, with which certainty, and what is excluded. Of an experiment
    over one axis of the grid, first whether its values differ. axes: the tests of the grid's axes."""
    if not any(group.role == "distilled" for group in scores.groups):
        return "No distilled student is in this experiment."
    if not students:
        return "No distilled student has a result yet."
    known = [student for student in students if student.is_known]
    if outcome(students) == UNKNOWN:
        return f"Whether the teacher helped is unknown: {_why_unknown(scores, students)}."
    sure = [student for student in known if student.is_significant]
    gained = [student for student in sure if student.delta.value > 0]
    harmed = [student for student in sure if student.delta.value <= 0]
    is_none = outcome(students) == EQUIVALENT
    found = "made no difference" if is_none else helped_or_harmed(len(gained), len(harmed), len(known))
    answer = f"The teacher {found}"
    parts = [_sure(part, len(known)) for part in (gained, harmed) if part]
    near = [student for student in known if student.is_significant_alone and not student.is_significant]
    open_ = [student for student in known if not student.is_significant and student not in near]
    for way in ([one for one in near if one.delta.value > 0], [one for one in near if one.delta.value <= 0]):
        parts += [_significant_alone(way, len(known))] if way else []
    parts += [_not_significant(open_, len(known))] if open_ else []
    seeds = " One seed each." if all(student.num_seeds == 1 for student in known) else ""
    size = join_words([parts[0], *(f"by {part}" for part in parts[1:])])
    first = axis_clause(axes[0], scores.analysis.alpha) if len(axes) == 1 else ""
    answer = f"{first}, and {answer[0].lower()}{answer[1:]}" if first else answer
    return f"{answer}: against {_baseline_words(scores, known)}, distillation changed the score by {size}.{seeds}"


def helped_or_harmed(helped: int, harmed: int, of: int) -> str:
    """What the teacher did, of as many students with a significant difference each way, as in `helped 1 of 4 students`."""
    if helped and harmed:
        return f"helped {helped} and harmed {harmed} of {of} students"
    if helped:
        return "helped" if helped == of else f"helped {helped} of {of} students"
    if harmed:
        return "did not help, it harmed" + ("" if harmed == of else f" {harmed} of {of} students")
    return "did not measurably help"


def axis_clause(test: AxisTest, alpha: float, is_of_several: bool = False) -> str:
    """Whether the values of an axis of the grid differ, by one test of them all; empty where that cannot be tested.
    is_of_several: whether other students have tests of their own, so that this one is named."""
    if not np.isfinite(test.p):
        return ""
    student = f" for {test.student}" if is_of_several else ""
    at = f" at {join_words([part for part in (test.student, test.at) if part])}" if test.at else student
    values = f"The {len(test.values)} values of {test.axis}{at}"
    if test.p > alpha:
        found = f"; between two, {format_points(test.detectable)} points would have been found with 80% power"
        return f"{values} do not differ measurably ({p_in_words(test.p)} for all at once{found})"
    best = f"; not surpassed: {join_words(list(test.best))}" if test.best else "; no single pair does"
    return f"{values} differ ({p_in_words(test.p)} for all at once{best})"


def verdict(
    scores: Scores, frame: pd.DataFrame, students: list[StudentVerdict], axes: Sequence[AxisTest] = ()
) -> list[str]:
    """What else a reader asks at once, a sentence each: the axes of the grid, what is kept, the other metric, what the
    teacher knows of the text, the claim."""
    if not students:
        return []
    are_several = len({test.student for test in axes}) > 1
    clauses = [axis_clause(test, scores.analysis.alpha, are_several) for test in axes] if len(axes) > 1 else []
    sentences = [f"{clause}." if clause else "" for clause in clauses]
    sentences += [_kept(scores, frame, students), _other_endpoints(students)]
    sentences += [_text(students, has_other_teacher(scores.results.runs)), claim_sentence(scores)]
    return [sentence for sentence in sentences if sentence]


def _other_endpoints(students: list[StudentVerdict]) -> str:
    """A significant difference by the other metric too, for each student that has one."""
    sure = [student for student in students if student.is_significant]
    parts = []
    for student in sure[:MAX_NAMED]:
        for effect in student.other_endpoints:
            value = format_with_interval(*effect.difference, signed=True)
            parts.append(f"{value} points{_for([student], len(students))} by {effect.endpoint}")
    return f"The same differences by the other metric, not corrected: {join_words(parts)}." if parts else ""


def _why_unknown(scores: Scores, students: list[StudentVerdict]) -> str:
    if scores.teacher is None:
        return "the teacher has no result"
    groups = [scores.group_index(student.label) for student in students]
    reasons = [why_no_average(scores, g) for g in groups]
    for g in groups:
        other = find_baselines(scores, g).get("ce_only")
        reasons += [] if other is None else [why_no_average(scores, other)]
    if any(reasons):
        return next(filter(None, reasons))
    trained = any(group.role == "ce_only" and group.models for group in scores.groups)
    return "those trained without it were trained in another way" if trained else "no student was trained without it"


def _baseline_words(scores: Scores, known: list[StudentVerdict]) -> str:
    words = {describe_ce_only_baseline(scores, student.label) for student in known}
    text = words.pop() if len(words) == 1 else "the same student trained without the teacher, partly on other data"
    return text.replace("without the teacher", "without it")


def _sure(students: list[StudentVerdict], of: int) -> str:
    """`−2.9 [−4.6, −1.2] points for d24 (significant, p <.001)`."""
    if len(students) > MAX_NAMED:
        highest = max(student.p for student in students)
        size = _range([student.delta.value for student in students])
        return f"{size} points for {len(students)} students (significant, {p_in_words(highest).replace('=', '≤')})"
    return join_words([f"{_value(student)}{_for([student], of)} ({_certainty(student)})" for student in students])


def _value(student: StudentVerdict) -> str:
    return f"{format_with_interval(*student.delta, signed=True)} points"


def _certainty(student: StudentVerdict) -> str:
    carried = f", due to {join_words(list(student.carried_by))}" if student.carried_by else ""
    return f"significant{carried}, {p_in_words(student.p)}"


def _significant_alone(students: list[StudentVerdict], of: int) -> str:
    """`−2.9 [−4.9, −0.9] points for d24 (not significant after correction for 4 comparisons, p = .056)`."""
    known = f"not significant after correction for {of} comparisons" if of > 1 else "not significant"
    least = min(student.p for student in students)
    p = p_in_words(least) if len(students) == 1 else f"p ≥ {format_p_value(least)}"
    who = f" for {len(students)} of {of} students" if MAX_NAMED < len(students) < of else _for(students, of)
    return f"{_size_of(students)}{who} ({known}, {p})"


def _not_significant(students: list[StudentVerdict], of: int) -> str:
    """`−0.1 to +1.0 points for d18 and d12 (not significant; gains above 2.2 are excluded)`."""
    excluded = max(student.excluded_gain for student in students)
    if all(student.outcome == EQUIVALENT for student in students):
        margin = format_points(students[0].margin)
        return f"{_size_of(students)}{_for(students, of)} (differences of {margin} points or more are excluded)"
    return f"{_size_of(students)}{_for(students, of)} (not significant; {_exclusion(excluded)})"


def _exclusion(gain: float, unit: str = "") -> str:
    """Which gains are excluded: those above the interval that is shown."""
    if not gain < 1:  # more than there is, or unknown
        return "there are too few documents to exclude any gain"
    return "any gain is excluded" if gain < 0 else f"gains above {format_points(gain)}{unit} are excluded"


def _size_of(students: list[StudentVerdict]) -> str:
    return _value(students[0]) if len(students) == 1 else f"{_range([student.delta.value for student in students])} points"


def _for(students: list[StudentVerdict], of: int) -> str:
    """Which students, where there are several: named, or all that are left."""
    if of == 1:
        return ""
    if len(students) > MAX_NAMED:
        return f" for {'all' if len(students) == of else 'the other'} {len(students)} distilled students"
    return f" for {join_words([student.name for student in students])}"


def _range(values: Sequence[float], signed: bool = True, digits: int = 1) -> str:
    low, high = (format_points(value, digits, signed) for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def _kept(scores: Scores, frame: pd.DataFrame, students: list[StudentVerdict]) -> str:
    """What of the teacher's score is kept, with the winner only where there is one."""
    if scores.teacher is None:
        return "The teacher has no result, so nothing can be said about what is retained of it."
    known = [student for student in students if np.isfinite(student.retention.value)]
    if not known:
        reasons = [why_no_average(scores, scores.group_index(student.label)) for student in students]
        why = next(filter(None, reasons), "the teacher's average is too close to chance")
        return f"What is retained of the teacher's score cannot be said, because {why}."
    if len(known) > MAX_NAMED:
        equal = "; none is significantly below the highest" if _are_equals(frame, known) else ""
        share = _range([student.retention.value for student in known], signed=False, digits=0)
        return f"{len(known)} distilled students retain {share}% of the teacher's score above chance{_size(known)}{equal}."
    shares = join_words([percent_with_interval(*student.retention) for student in known])
    who = f"{join_words([student.name for student in known])} {'retains' if len(known) == 1 else 'retain'}"
    return f"{who} {shares} of the teacher's score above chance{_size(known)}."


def _size(students: list[StudentVerdict]) -> str:
    sizes = [format_points(student.relative_size, 0) for student in students]
    is_one = len(set(sizes)) == 1
    if MISSING_VALUE in sizes or (not is_one and len(students) > MAX_NAMED):
        return ""
    each = sizes[:1] if is_one else sizes  # in the order of the students
    return f", with {join_words([f'{size}%' for size in each])} of its parameters"


def _are_equals(frame: pd.DataFrame, students: list[StudentVerdict]) -> bool:
    bold = earned_bold(frame)[frame["task"] == MACRO_AVERAGE]
    return not bold.any() or bool(bold[frame["model"].isin([student.label for student in students])].all())


def _text(students: list[StudentVerdict], are_several: bool = False) -> str:
    """Each teacher's own loss on the training text, that of the students without it, and whether it fits the text.
    are_several: whether the teacher that is evaluated need not be that of the students."""
    known = [e for e in students if np.isfinite(e.teacher_loss) and np.isfinite(e.ce_only_loss)]
    by_teacher: dict[str, list[StudentVerdict]] = {}
    for student in known:
        by_teacher.setdefault(format_number(student.teacher_loss, 2), []).append(student)
    if (
        len(by_teacher) > 1
        and len(known) == len(by_teacher)
        and len({format_number(e.ce_only_loss, 2) for e in known}) == 1
    ):
        whose = (
            f"teachers of {join_words([student.name for student in known])} have losses of {join_words(list(by_teacher))}"
        )
        losses = f"{_losses_without_teacher(known)}{_little_to_learn(known)}"
        return f"On held-out training text the {whose} nats per token, {losses}."
    sentences = []
    for loss, taught in by_teacher.items():
        others = dict.fromkeys(student.other_teacher for student in taught if student.other_teacher not in student.name)
        whose = (
            f"teacher of {_named_or_counted(taught)}{f' ({join_words(list(others))})' if others else ''} has a loss of"
            if are_several or len(by_teacher) > 1
            else "teacher's own loss is"
        )
        sentences.append(f"{whose} {loss} nats per token, {_losses_without_teacher(taught)}{_little_to_learn(taught)}")
    return f"On held-out training text the {'; the '.join(sentences)}." if sentences else ""


def _little_to_learn(taught: list[StudentVerdict]) -> str:
    worse = [student for student in taught if student.teacher_is_worse_on_the_text]
    whom = "" if len(worse) == len(taught) else f" for {_named_or_counted(worse)}"
    found = (
        "the teacher fits this text no better than the student trained without it, so little is to be learnt from it there"
    )
    return f":{whom} {found}" if worse else ""


def _named_or_counted(students: list[StudentVerdict]) -> str:
    many = len(students) > MAX_NAMED
    return f"{len(students)} students" if many else join_words([student.name for student in students])


def _losses_without_teacher(students: list[StudentVerdict]) -> str:
    losses = list(dict.fromkeys(format_number(student.ce_only_loss, 2) for student in students))
    ends = [format_number(end(student.ce_only_loss for student in students), 2) for end in (min, max)]
    shown = join_words(losses) if len(losses) <= MAX_NAMED else " to ".join(ends)
    whose = "those of the students" if len(losses) > 1 else "that of the student"
    return f"{whose} trained without it {shown}"


def claim_sentence(scores: Scores) -> str:
    """The claim "most of the quality at a fraction of the cost" in one line."""
    claims = efficiency_claims(scores)
    claims = claims[claims["role"] == "distilled"]
    if claims.empty:
        return ""
    what = f"{scores.analysis.claim_min_quality:.0%} of the teacher's score at {scores.analysis.claim_max_cost:.0%} of its"
    held = claims[claims["verdict"] == CLAIM_HOLDS]
    if held.empty:
        unsure = claims[claims["verdict"] == CLAIM_UNDECIDED]
        undecided = join_words([COST_AXES[axis] for axis in dict.fromkeys(unsure["axis"])])
        open_ = f"; undecided on {undecided}" if undecided else ""
        return f"No distilled student is shown to keep {what} cost on any axis{open_}."
    named = [f"{model} in {join_words([COST_AXES[a] for a in rows['axis']])}" for model, rows in held.groupby("model")]
    return f"{what} cost is reached by {join_words(named)}."


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
    return f"{scores.groups[g].label} has no result on {tasks_in_words(scores, lacking)}" if lacking else ""


def finding(students: list[StudentVerdict], declared: str = "") -> str:
    """The answer as the title of a figure of scores above chance: what was found, in a line. declared: the endpoint that
    decides in their place."""
    known = [student for student in students if student.is_known]
    if not known:
        return ""
    found = _found(known)
    return f"By score above chance (declared: {declared}), {found[0].lower()}{found[1:]}" if declared else found


def _found(known: list[StudentVerdict]) -> str:
    sure = [student for student in known if student.is_significant]
    near = [student for student in known if student.is_significant_alone]
    if not sure and not near:
        best = max(student.excluded_gain for student in known)
        return f"The teacher adds nothing measurable ({_exclusion(best, ' points')})"
    named = sure or near
    if len(named) > MAX_NAMED:
        size = f"{_range([student.delta.value for student in named])} points"
        certainty = "" if sure else " before correction"
        return f"With the teacher {size}, significant{certainty} for {len(named)} of {len(known)} students"
    parts = [f"{format_points(student.delta.value, signed=True)} points{_for([student], len(known))}" for student in named]
    rest = "; no other difference is significant" if len(sure) < len(known) else ""
    if not sure:
        rest = f", not significant after correction for {len(known)} comparisons" if len(known) > 1 else ", not significant"
    return f"With the teacher {join_words(parts)}{rest}"
