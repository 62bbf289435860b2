"""Which models a hypothesis compares, found among the groups of the results by what it says of them."""

from collections.abc import Mapping
from typing import Any

from distill_lit.analysis.model_groups import ModelGroup, baseline_of
from distill_lit.analysis.scores import Contrast
from distill_lit.config.grid_points import value_text
from distill_lit.config.hypotheses import BASELINE_OF, ROLE, STUDENT, HypothesisConfig, axis_named, values_of
from distill_lit.config.schema import GRID_VALUE_SEPARATOR

Pair = tuple[int, int]  # numbers of two groups: one, and what it is compared with
Facts = dict[str, str]  # {student, role or key of the grid: value}


class NotTestable(Exception):
    """Results cannot decide a hypothesis; the message says why."""


def compared_pairs(groups: list[ModelGroup], hypothesis: HypothesisConfig) -> list[Pair]:
    """Every group that it is about, with its opponent. Raises NotTestable where there is none."""
    facts = [_facts(group) for group in groups]
    keys = [STUDENT, ROLE, *dict.fromkeys(key for one in facts for key in one)]
    wanted = {ROLE: ["distilled"]} | {
        _key(name, keys): [value_text(one) for one in values_of(value)] for name, value in hypothesis.models.items()
    }
    chosen = [g for g, own in enumerate(facts) if groups[g].models and all(own.get(k) in v for k, v in wanted.items())]
    if not chosen:
        raise NotTestable("no model that it is about has results")
    if isinstance(hypothesis.against, dict):
        changes = {_key(name, keys): value_text(value) for name, value in hypothesis.against.items()}
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


def _changed(groups: list[ModelGroup], facts: list[Facts], g: int, changes: Mapping[str, str]) -> int | None:
    """The group that differs from another one by these values alone. Baselines have no value of a key that does not matter
    to them, or several."""
    wanted = facts[g] | dict(changes)

    def fits(own: Facts) -> bool:
        if own[ROLE] == "distilled" and own.keys() != wanted.keys():
            return False
        return all(wanted.get(key, text) in (text, *text.split(GRID_VALUE_SEPARATOR)) for key, text in own.items())

    return next((number for number, own in enumerate(facts) if groups[number].models and fits(own)), None)


def _number(groups: list[ModelGroup], group: ModelGroup | None) -> int | None:
    return None if group is None else groups.index(group)


def _key(name: Any, keys: list[str]) -> str:
    return axis_named(str(name), keys) or str(name)


def _facts(group: ModelGroup) -> Facts:
    point = {axis.removeprefix("grid."): value for axis, value in group.grid_point}
    return {STUDENT: group.student, ROLE: group.role, **point}
