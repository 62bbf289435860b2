"""What was declared before the run, and what the results say of it."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from distill_lit.analysis.declarations import BEFORE
from distill_lit.analysis.hypotheses import AGREES, CONTRADICTS, NOT_TESTED, UNDECIDED, HypothesisTest
from distill_lit.report.formats.table import Table, TableCell
from distill_lit.report.number_format import MISSING_VALUE, format_number, format_p_value, join_words
from distill_lit.report.tables.endpoints import UNITS_IN_HUNDREDTHS

OUTCOMES = (AGREES, CONTRADICTS, UNDECIDED, NOT_TESTED)
SEVERAL = {AGREES: "agree", CONTRADICTS: "contradict"}  # of several hypotheses
MAX_PAIRS = 4  # of models that are named, one by one
MAX_FACTOR = 100  # times the documents and seeds, beyond which nobody would decide a hypothesis
EXPECTED = {
    "better": "is better",
    "worse": "is worse",
    "equal": "is equal",
    "not_better": "is not better",
    "not_worse": "is not worse",
}


class DeclaredTest(NamedTuple):
    """A test and when its hypothesis was declared, in words. experiment: its name, where a table is of several."""

    test: HypothesisTest
    declared: str
    experiment: str = ""


def hypothesis_table(tests: Sequence[DeclaredTest], confidence_level: float) -> Table:
    """A row per hypothesis: claim and paper, what was found, the verdict, when it was declared."""
    several = any(one.experiment for one in tests)
    rows = []
    for test, declared, experiment in tests:
        claim = f"{test.hypothesis.claim} ({test.hypothesis.paper})" if test.hypothesis.paper else test.hypothesis.claim
        verdict = TableCell(describe_outcome(test), bold=test.outcome in (AGREES, CONTRADICTS))
        texts = [_difference(test), format_p_value(test.p_adjusted), declared]
        names = [*([experiment] if several else []), test.name]
        rows.append([*map(TableCell, names), verdict, *map(TableCell, [claim, *texts])])
    columns = ["hypothesis", "results", "claim", f"difference [{confidence_level:.0%}]", "p", "declared"]
    return Table(
        "What was expected, and what the results say",
        [*(["experiment"] if several else []), *columns],
        rows,
        num_text_columns=len(columns) + several,
        footnotes=[*(f"{one.experiment}/{_compared(one.test)}".removeprefix("/") for one in tests), _rule(confidence_level)]
        if rows
        else [],
    )


def hypothesis_sentence(tests: Sequence[DeclaredTest]) -> str:
    """How many results agree with, contradict or leave undecided; empty without hypotheses."""
    counts = Counter(one.test.outcome for one in tests)
    names = {outcome: join_words([one.test.name for one in tests if one.test.outcome == outcome]) for outcome in counts}
    words = {outcome: SEVERAL.get(outcome, outcome) if counts[outcome] > 1 else outcome for outcome in counts}
    parts = [f"{counts[outcome]} {words[outcome]} ({names[outcome]})" for outcome in OUTCOMES if counts[outcome]]
    late = [one.test.name for one in tests if one.declared != BEFORE]
    when = "All" if not late else "None" if len(late) == len(tests) else f"All but {join_words(late)}"
    return f"Hypotheses: {', '.join(parts)}. {when} declared before the run." if parts else ""


def describe_outcome(test: HypothesisTest) -> str:
    """Whether the results agree; where they do not say, whether they point against the claim and what would decide."""
    if test.outcome != UNDECIDED:
        return f"{test.outcome}: {test.reason}" if test.reason else test.outcome
    found = f"{UNDECIDED}, points against the claim" if _points_against(test) else UNDECIDED
    if test.reason:
        return f"{found}: {test.reason}"
    if not np.isfinite(test.factor):
        return found
    if test.factor > MAX_FACTOR:
        return f"{found}: over {MAX_FACTOR} times the documents and seeds would not decide it"
    return f"{found}: about {max(2, math.ceil(test.factor))} times the documents and seeds would decide it"


def _points_against(test: HypothesisTest) -> bool:
    """Whether the difference that was seen lies outside of what is expected, however surely."""
    better = test.difference.value if test.endpoint.higher_is_better else -test.difference.value
    outside = {
        "better": better < test.margin,
        "worse": better > -test.margin,
        "equal": abs(better) > test.margin,
        "not_better": better > test.margin,
        "not_worse": better < -test.margin,
    }
    return outside[test.hypothesis.expect]


def _difference(test: HypothesisTest) -> str:
    if not np.isfinite(test.difference.value):
        return MISSING_VALUE
    value, low, high = (_in_unit(test, number) for number in test.difference)
    return f"{value} [{low}, {high}] {UNITS_IN_HUNDREDTHS.get(test.endpoint.unit, test.endpoint.unit)}"


def _in_unit(test: HypothesisTest, number: float, signed: bool = True) -> str:
    scale, digits = (100.0, 1) if test.endpoint.unit in UNITS_IN_HUNDREDTHS else (1.0, 3)
    return format_number(scale * number, digits, signed=signed)


def _compared(test: HypothesisTest) -> str:
    """Which models, by what, and what was expected."""
    pairs = [f"{one} less {other}" for one, other in test.pairs]
    what = "gains over the labels of " if test.hypothesis.measure == "gain" else ""
    shown = join_words(pairs) if len(pairs) <= MAX_PAIRS else f"from {pairs[0]} to {pairs[-1]}"
    models = f"{what}{shown}" if pairs else "no models"
    where = f" on {join_words(test.hypothesis.tasks)}" if test.hypothesis.tasks else ""
    probes = "probes, " if test.is_probe else ""
    less = "" if test.endpoint.higher_is_better else " (less is better)"
    margin = f", margin {_in_unit(test, test.margin, signed=False)}" if test.margin else ""
    mean = f"mean of {len(pairs)}: " if len(pairs) > 1 else ""
    expected = EXPECTED[test.hypothesis.expect]
    return f"{test.name}: {mean}{models}, by {probes}{test.endpoint.title}{where}{less}; expected: {expected}{margin}."


def _rule(confidence_level: float) -> str:
    return (
        "Results agree where one-sided tests reject that the difference lies outside of what is expected, and contradict "
        f"where they reject that it lies inside (p doubled, Holm over the hypotheses, {1 - confidence_level:.3g}); a claim "
        "needs three seeds and a difference that the same documents and seeds would find again with 80% power."
    )
