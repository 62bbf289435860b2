"""A weight or temperature as a function of the share of training that is done."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from distill_lit.utils.exceptions import UserError, suggest

SCHEDULE_SHAPES = ("linear", "cosine", "piecewise")


@dataclass(frozen=True)
class Schedule:
    """Values at points of training: `points` are (share done in [0, 1], value) in rising order, joined by `shape`.

    linear and cosine interpolate between points; piecewise holds a value until the next point.
    """

    points: tuple[tuple[float, float], ...]
    shape: str = "linear"

    def facts(self) -> dict[str, Any]:
        """What identifies it, as plain values."""
        return {"shape": self.shape, "points": [list(point) for point in self.points]}

    def __call__(self, progress: float) -> float:
        """The value when the share `progress` of all steps has been taken."""
        if progress <= self.points[0][0]:
            return self.points[0][1]
        for (start, a), (end, b) in pairwise(self.points):
            if progress < end:
                return a if self.shape == "piecewise" else a + (b - a) * self._ease((progress - start) / (end - start))
        return self.points[-1][1]

    def scaled(self, factor: float) -> "Schedule":
        """The same course, every value times `factor`."""
        return Schedule(tuple((share, factor * value) for share, value in self.points), self.shape)

    def _ease(self, x: float) -> float:
        return 0.5 - 0.5 * math.cos(math.pi * x) if self.shape == "cosine" else x

    @property
    def is_zero(self) -> bool:
        """Whether it is 0 throughout."""
        return all(value == 0 for _, value in self.points)


def linear(start: float, end: float, begin: float = 0.0, until: float = 1.0) -> Schedule:
    """From `start` to `end`, in a straight line between the shares `begin` and `until` of the optimizer steps.

    Example:
        >>> losses.linear(1.0, 0.2) * losses.CrossEntropy()
    """
    return Schedule(((begin, start), (until, end)), "linear")


def cosine(start: float, end: float, begin: float = 0.0, until: float = 1.0) -> Schedule:
    """From `start` to `end` along half a cosine, between the shares `begin` and `until` of the optimizer steps."""
    return Schedule(((begin, start), (until, end)), "cosine")


def piecewise(points: Mapping[float, float]) -> Schedule:
    """{share of the optimizer steps: the value from there on}."""
    return Schedule(tuple(sorted(points.items())), "piecewise")


def scale_weight(weight: Any, factor: float) -> Any:
    """A weight as a config has it, a number or a schedule's mapping, times `factor`; to 12 digits, as 0.1 · 3 is 0.3."""
    if isinstance(weight, dict):
        scaled = {name: round(factor * weight[name], 12) for name in ("start", "end") if name in weight}
        points = {share: round(factor * value, 12) for share, value in weight.get("points", {}).items()}
        return weight | scaled | ({"points": points} if points else {})
    return round(factor * weight, 12)


def parse_schedule(key: str, value: Any, *, low: float, exclusive: bool = False) -> Schedule:
    """A number, a `Schedule`, {shape: linear | cosine, start, end[, from, until]}, or {shape: piecewise, points: {share:
    value}}.

    `key` names the argument in errors; values must be ≥ `low`, or > `low` when `exclusive`.
    """
    schedule = value if isinstance(value, Schedule) else _parse(key, value)
    shares = [share for share, _ in schedule.points]
    if not shares or shares != sorted(set(shares)) or shares[0] < 0 or shares[-1] > 1:
        raise UserError(f"{key}: its points must rise within [0, 1], got {shares}")
    for _, number in schedule.points:
        if not math.isfinite(number) or number < low or (exclusive and number == low):
            raise UserError(f"{key}: {number} must be a number {'above' if exclusive else 'of at least'} {low}")
    return schedule


def _parse(key: str, value: Any) -> Schedule:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return Schedule(((0.0, float(value)),))
    if not isinstance(value, dict):
        raise UserError(f"{key}: {value!r} is neither a number nor a schedule")
    shape = value.get("shape", "linear")
    if shape not in SCHEDULE_SHAPES:
        raise UserError(f"{key}.shape: unknown value {shape!r}{suggest(str(shape), SCHEDULE_SHAPES)}")
    allowed = {"shape", "points"} if shape == "piecewise" else {"shape", "start", "end", "from_", "from", "until"}
    if unknown := set(value) - allowed:
        raise UserError(f"{key}: unknown key {min(unknown)!r}{suggest(min(unknown), allowed)}")
    try:
        if shape == "piecewise":
            points = tuple(sorted((float(share), float(number)) for share, number in value["points"].items()))
        else:
            until = value.get("until")
            begin, until = float(value.get("from_") or value.get("from") or 0.0), 1.0 if until is None else float(until)
            points = ((begin, float(value["start"])), (until, float(value["end"])))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{key}: incomplete schedule: {error}") from error
    return Schedule(points, shape)
