"""Which models a hypothesis compares, found among the groups of the results by what it says of them."""

from collections.abc import Mapping
from typing import Any

from distill_lit.analysis.model_groups import ModelGroup, baseline_of
from distill_lit.analysis.scores import Contrast
from distill_lit.config.grid_points import comparable_text
from distill_lit.config.hypotheses import BASELINE_OF, ROLE, STUDENT, HypothesisConfig, axis_named, values_of
from distill_lit.config.schema import GRID_VALUE_SEPARATOR

Pair = tuple[int, int]  # numbers of two groups: one, and what it is compared with
Facts = dict[str, str]  # {student, role or key of the grid: value, by `comparable_text`}
ShortTexts = Mapping[str, Mapping[str, str]]  # as `Results.short_grid_values`
NULL = comparable_text(None)  # what a distilled student has of a key that is not in its row


class NotTestable(Exception):
    """Results cannot decide a hypothesis; the message says why."""


def compared_pairs(groups: list[ModelGroup], hypothesis: HypothesisConfig, short: ShortTexts | None = None) -> list[Pair]:
    """Every group that it is about, with its opponent. Raises NotTestable where there is none."""
    facts = [_facts(group) for group in groups]
    keys = [STUDENT, ROLE, *dict.fromkeys(key for one in facts for key in one)]

    def texts(name: Any, value: Any) -> tuple[str, list[str]]:
        key = axis_named(str(name), keys) or str(name)
        known, shown = {own[key] for own in facts if key in own}, (short or {}).get(f"grid.{key}", {})
        every = [comparable_text(one) for one in values_of(value, known)]
        return key, [shown.get(text, text) for text in every]

    wanted = {ROLE: ["distilled"]} | dict(texts(*item) for item in hypothesis.models.items())
    chosen = [g for g, own in enumerate(facts) if groups[g].models and all(_has(own, k, v) for k, v in wanted.items())]
    if not chosen:
        raise NotTestable("no model that it is about has results")
    if isinstance(hypothesis.against, dict):
        changes = {key: every[0] for key, every in (texts(*item) for item in hypothesis.against.items())}
        found = [(g, _changed(groups, facts, g, changes)) for g in chosen]
    else:
        role = BASELINE_OF[hypothesis.against]
        found = [(g, _number(groups, baseline_of(groups[g], role, groups))) for g in chosen]
    pairs = [(g, other) for g, other in found if other is not None and other != g]
    if not pairs:
        raise NotTestable("nothing that its models are compared with has results")
    return pairs


def mean_contrast(groups: list[ModelGroup], pairs: list[Pair], measure: str) -> Contrast:
    """The mean over pairs of one less the other; measure `gain`: of what each has above itself without teacher. Raises
    NotTestable where one has no results without teacher, or where nothing is left."""
    weights: dict[int, float] = {}
    for sign, side in ((1.0, 0), (-1.0, 1)):
        for pair in pairs:
            parts = {pair[side]: sign}
            if measure == "gain":
                without = _number(groups, baseline_of(groups[pair[side]], "ce_only", groups))
                if without is None:
                    raise NotTestable(f"{groups[pair[side]].label} has no results without teacher")
                parts[without] = parts.get(without, 0.0) - sign
            for g, weight in parts.items():
                weights[g] = weights.get(g, 0.0) + weight / len(pairs)
    left = {g: weight for g, weight in weights.items() if abs(weight) > 1e-12}
    if not left:
        raise NotTestable("both sides are the same models")
    return left


def _has(own: Facts, key: str, values: list[str]) -> bool:
    """Whether a group has one of these values, or stands for it: baselines have no value of a key that does not matter to
    them, or several."""
    if own[ROLE] == "distilled" or key in (STUDENT, ROLE):
        return own.get(key, NULL) in values
    return key not in own or any(text in values for text in _values(own[key]))


def _values(text: str) -> list[str]:
    return [text, *map(comparable_text, text.split(GRID_VALUE_SEPARATOR))]


def _changed(groups: list[ModelGroup], facts: list[Facts], g: int, changes: Mapping[str, str]) -> int | None:
    """The group that differs from another one by these values alone."""
    wanted = facts[g] | dict(changes)

    def fits(own: Facts) -> bool:
        if own[ROLE] == "distilled":
            return all(own.get(key, NULL) == wanted.get(key, NULL) for key in own | wanted)
        return all(wanted.get(key, text) in _values(text) for key, text in own.items())

    return next((number for number, own in enumerate(facts) if groups[number].models and fits(own)), None)


def _number(groups: list[ModelGroup], group: ModelGroup | None) -> int | None:
    return None if group is None else groups.index(group)


def _facts(group: ModelGroup) -> Facts:
    point = {axis.removeprefix("grid."): comparable_text(value) for axis, value in group.grid_point}
    return {STUDENT: comparable_text(group.student), ROLE: group.role, **point}
