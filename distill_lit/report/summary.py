"""The answer in plain sentences, computed: whether the teacher helped, by how much, how surely, what is excluded."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from distill_lit.analysis import scores as sc
from distill_lit.analysis.pareto import CLAIM_HOLDS, CLAIM_UNDECIDED, COST_AXES, efficiency_claims
from distill_lit.analysis.results import SAME_TEACHER_NATS
from distill_lit.analysis.score_table import MACRO_AVERAGE, find_baselines
from distill_lit.analysis.scores import Scores
from distill_lit.report.number_format import (
    format_number,
    format_p_value,
    format_points,
    format_with_interval,
    join_words,
    percent_with_interval,
)
from distill_lit.report.tables.scores import earned_bold
from distill_lit.report.verdict import (
    HARMED,
    HELPED,
    MIXED,
    NOT_SHOWN,
    UNKNOWN,
    StudentVerdict,
    outcome,
)

MAX_NAMED = 4  # students that a sentence names; of more it gives the range
ANSWERS = {
    HARMED: "The teacher did not help",
    MIXED: "The teacher helped some students and harmed others",
    NOT_SHOWN: "The teacher did not measurably help",
}


def headline(scores: Scores, effects: list[StudentVerdict]) -> str:
    """The answer: whether the teacher helped, by how much, with which certainty, and what is excluded."""
    if not any(group.role == "distilled" for group in scores.groups):
        return "No distilled student is in this experiment."
    if not effects:
        return "No distilled student has a result yet."
    known = [effect for effect in effects if effect.is_known]
    if outcome(effects) == UNKNOWN:
        return f"Whether the teacher helped is unknown: {_why_unknown(scores, effects)}."
    sure = [effect for effect in known if effect.is_significant]
    gained = [effect for effect in sure if effect.delta.value > 0]
    answer = ANSWERS.get(outcome(effects), "The teacher helped")
    if outcome(effects) == HELPED and len(gained) < len(known):
        answer += f" {len(gained)} of {len(known)} students"
    harmed = [effect for effect in sure if effect.delta.value <= 0]
    answer += ", it harmed" if len(harmed) == len(known) else ""
    open_ = [effect for effect in known if not effect.is_significant]
    parts = [_sure(part, len(known)) for part in (gained, harmed) if part]
    parts += [_not_significant(open_, len(known))] if open_ else []
    seeds = " One seed each." if all(effect.num_seeds == 1 for effect in known) else ""
    size = " and by ".join(parts)
    return f"{answer}: against {_baseline_words(scores, known)}, distillation changed the score by {size}.{seeds}"


def verdict(scores: Scores, frame: pd.DataFrame, effects: list[StudentVerdict]) -> list[str]:
    """What else a reader asks at once, a sentence each: what is kept, what the teacher knows of the text, the claim."""
    if not effects:
        return []
    return [sentence for sentence in (_kept(scores, frame, effects), _text(effects), claim_sentence(scores)) if sentence]


def _why_unknown(scores: Scores, effects: list[StudentVerdict]) -> str:
    if scores.teacher is None:
        return "the teacher has no result"
    groups = [scores.group_index(effect.label) for effect in effects]
    reasons = [why_no_average(scores, g) for g in groups]
    for g in groups:
        other = find_baselines(scores, g).get("ce_only")
        reasons += [] if other is None else [why_no_average(scores, other)]
    if any(reasons):
        return next(filter(None, reasons))
    trained = any(group.role == "ce_only" and group.models for group in scores.groups)
    return "those trained without it were trained in another way" if trained else "no student was trained without it"


def _baseline_words(scores: Scores, known: list[StudentVerdict]) -> str:
    words = {describe_ce_only_baseline(scores, effect.label) for effect in known}
    text = words.pop() if len(words) == 1 else "the same student trained without the teacher, partly on other data"
    return text.replace("without the teacher", "without it")


def _sure(effects: list[StudentVerdict], of: int) -> str:
    """`−2.9 [−4.6, −1.2] points for d24 (significant, p <.001)`."""
    if len(effects) > MAX_NAMED:
        highest = max(effect.p for effect in effects)
        return f"{_range([e.delta.value for e in effects])} points for {len(effects)} students (significant, {_p(highest)})"
    return join_words([f"{_value(effect)}{_for([effect], of)} ({_certainty(effect)})" for effect in effects])


def _value(effect: StudentVerdict) -> str:
    return f"{format_with_interval(*effect.delta, signed=True)} points"


def _certainty(effect: StudentVerdict) -> str:
    carried = f", due to {join_words(list(effect.carried_by))}" if effect.carried_by else ""
    return f"significant{carried}, {_p(effect.p)}"


def _p(value: float) -> str:
    text = format_p_value(value)
    return f"p {text}" if text.startswith("<") else f"p = {text}"


def _not_significant(effects: list[StudentVerdict], of: int) -> str:
    """`−0.1 to +1.0 points for d18 and d12 (not significant; gains above 2.2 are excluded)`."""
    excluded = max(effect.excluded_gain for effect in effects)
    what = "any gain is excluded" if excluded < 0 else f"gains above {format_points(excluded)} are excluded"
    value = _range([effect.delta.value for effect in effects])
    if len(effects) == 1:
        value = format_with_interval(*effects[0].delta, signed=True)
    return f"{value} points{_for(effects, of)} (not significant; {what})"


def _for(effects: list[StudentVerdict], of: int) -> str:
    """Which students, where there are several."""
    if of == 1:
        return ""
    if len(effects) > MAX_NAMED:
        return f" for {'all' if len(effects) == of else 'the other'} {len(effects)} distilled students"
    return f" for {join_words([effect.name for effect in effects])}"


def _range(values: Sequence[float], signed: bool = True, digits: int = 1) -> str:
    low, high = (format_points(value, digits, signed) for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def _kept(scores: Scores, frame: pd.DataFrame, effects: list[StudentVerdict]) -> str:
    """What of the teacher's score is kept, with the winner only where there is one."""
    if scores.teacher is None:
        return "The teacher has no result, so nothing can be said about what is retained of it."
    known = [effect for effect in effects if np.isfinite(effect.retention.value)]
    if not known:
        reasons = [why_no_average(scores, scores.group_index(effect.label)) for effect in effects]
        why = next(filter(None, reasons), "the teacher's average is too close to chance")
        return f"What is retained of the teacher's score cannot be said, because {why}."
    if len(known) > MAX_NAMED:
        equal = "; none is significantly below the highest" if _are_equals(frame, known) else ""
        share = _range([effect.retention.value for effect in known], signed=False, digits=0)
        return f"{len(known)} distilled students retain {share}% of the teacher's score above chance{_size(known)}{equal}."
    shares = join_words([percent_with_interval(*effect.retention) for effect in known])
    who = f"{join_words([effect.name for effect in known])} {'retains' if len(known) == 1 else 'retain'}"
    return f"{who} {shares} of the teacher's score above chance{_size(known)}."


def _size(effects: list[StudentVerdict]) -> str:
    sizes = {format_points(effect.relative_size, 0) for effect in effects}
    if "—" in sizes or (len(sizes) > 1 and len(effects) > MAX_NAMED):
        return ""
    each = list(dict.fromkeys(format_points(effect.relative_size, 0) for effect in effects))
    return f", with {join_words([f'{size}%' for size in each])} of its parameters"


def _are_equals(frame: pd.DataFrame, effects: list[StudentVerdict]) -> bool:
    bold = earned_bold(frame)[frame["task"] == MACRO_AVERAGE]
    return not bold.any() or bool(bold[frame["model"].isin([effect.label for effect in effects])].all())


def _text(effects: list[StudentVerdict]) -> str:
    """The teacher's own loss on the training text beside that of the students without it, and whether it can help there."""
    known = [e for e in effects if np.isfinite(e.teacher_loss) and np.isfinite(e.ce_only_loss)]
    if not known or np.ptp([effect.teacher_loss for effect in known]) > SAME_TEACHER_NATS:
        return ""
    losses = list(dict.fromkeys(format_number(effect.ce_only_loss, 2) for effect in known))
    shown = join_words(losses) if len(losses) <= MAX_NAMED else f"{min(losses)} to {max(losses)}"
    text = (
        f"On held-out training text the teacher's own loss is {format_number(known[0].teacher_loss, 2)} nats per token, "
        f"that of the student{'s' if len(losses) > 1 else ''} trained without it {shown}"
    )
    worse = [effect for effect in known if effect.teacher_is_worse_on_the_text]
    if not worse:
        return f"{text}."
    whom = "" if len(worse) == len(known) else f" {join_words([effect.name for effect in worse])}"
    return f"{text}: it cannot help{whom} inside this corpus."


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
    return f"{scores.groups[g].label} has no result on {join_words(lacking)}" if lacking else ""


def finding(effects: list[StudentVerdict]) -> str:
    """The answer as the title of a figure: what was found, in a line."""
    known = [effect for effect in effects if effect.is_known]
    if not known:
        return ""
    sure = [effect for effect in known if effect.is_significant]
    if not sure:
        best = max(effect.excluded_gain for effect in known)
        return f"The teacher adds nothing measurable (gains above {format_points(best)} points are excluded)"
    if len(sure) > MAX_NAMED:
        size = _range([effect.delta.value for effect in sure])
        return f"With the teacher {size} points, significant for {len(sure)} of {len(known)} students"
    parts = [f"{format_points(effect.delta.value, signed=True)} points{_for([effect], len(known))}" for effect in sure]
    rest = "; no other difference is significant" if len(sure) < len(known) else ""
    return f"With the teacher {join_words(parts)}{rest}"
