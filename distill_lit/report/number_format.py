"""Numbers as a reader wants them: points are hundredths of the score, bounds stand in brackets."""

import math
from collections.abc import Mapping
from typing import Any

MINUS_SIGN = "−"
MISSING_VALUE = "—"
NOT_AVAILABLE = "n/a"
NEAR_CHANCE = "teacher near chance"


def format_number(value: float, digits: int = 1, signed: bool = False) -> str:
    """A number with a true minus sign, or a dash for NaN. Never −0."""
    if value is None or not math.isfinite(value):
        return MISSING_VALUE
    text = f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("+-")
    return text.replace("-", MINUS_SIGN)


def format_points(value: float, digits: int = 1, signed: bool = False) -> str:
    """A score or difference in [−1, 1] in points (hundredths)."""
    return format_number(value * 100, digits, signed)


def format_interval(low: float, high: float, digits: int = 1, signed: bool = False) -> str:
    """`[low, high]` in points; empty when unknown."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return ""
    return f"[{format_points(low, digits, signed)}, {format_points(high, digits, signed)}]"


def format_with_interval(value: float, low: float, high: float, digits: int = 1, signed: bool = False) -> str:
    """`value [low, high]` in points."""
    return f"{format_points(value, digits, signed)} {format_interval(low, high, digits, signed)}".strip()


def format_count(value: float) -> str:
    """A large count in short: 134.5M, 1.2B, 200k."""
    if value is None or not math.isfinite(value):
        return MISSING_VALUE
    for size, letter in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            scaled = value / size
            return f"{scaled:.0f}{letter}" if scaled >= 999.5 or scaled == int(scaled) else f"{scaled:.3g}{letter}"
    return f"{value:.0f}" if value == int(value) or value >= 100 else f"{value:.3g}"


def format_bytes(value: float) -> str:
    """A number of bytes in short: 1.31 GB, 538 MB, 23 kB, 576 B."""
    text = format_count(value)
    if not text[-1].isalpha():
        return text if text == MISSING_VALUE else f"{text} B"
    return f"{text[:-1]} {text[-1].replace('B', 'G')}B"


def format_p_value(value: float) -> str:
    """A p value with three digits, never 0."""
    if value is None or not math.isfinite(value):
        return MISSING_VALUE
    return "<.001" if value < 0.001 else f"{value:.3f}".replace("0.", ".", 1)


def p_in_words(value: float) -> str:
    """`p = .010`, `p <.001`."""
    text = format_p_value(value)
    return f"p {text}" if text.startswith("<") else f"p = {text}"


def join_words(words: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else ""


def format_percent(value: float, digits: int = 0) -> str:
    """`93%` of a share in [0, 1], or a dash for NaN."""
    text = format_points(value, digits)
    return text if text == MISSING_VALUE else f"{text}%"


def percent_with_interval(value: float, low: float, high: float, digits: int = 0) -> str:
    """`93% [90, 96]` of shares in [0, 1]."""
    return f"{format_percent(value, digits)} {format_interval(low, high, digits)}".strip()


def format_retention(row: Mapping[str, Any], digits: int = 0) -> str:
    """The share of the teacher's score above chance that a row of scores keeps, by the one rule of all tables: it is given
    where the teacher's lower bound leaves room for a share of it, with its interval where there is one."""
    if row["role"] == "teacher":
        return ""
    if math.isfinite(row["retention"]):
        return percent_with_interval(row["retention"], row["retention_low"], row["retention_high"], digits)
    return NEAR_CHANCE if math.isfinite(row["teacher_delta"]) else MISSING_VALUE
