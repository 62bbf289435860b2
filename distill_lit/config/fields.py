"""A knob is a dataclass field that carries its unit or meaning and its range, so that it documents and checks itself."""

import dataclasses
import math
import typing
from collections.abc import Iterable
from typing import Any

from distill_lit.config.yaml_text import is_interpolated
from distill_lit.utils.exceptions import UserError, suggest


def config_field(
    default: Any,
    help: str,
    *,
    ge: float | None = None,
    le: float | None = None,
    gt: float | None = None,
    choices: Iterable[str] | None = None,
) -> Any:
    """A dataclass field. `about`: unit and meaning; `low`, `high`: inclusive bounds; `above`: exclusive lower bound."""
    metadata = {
        "about": help,
        "low": ge,
        "high": le,
        "above": gt,
        "choices": tuple(choices) if choices else None,
    }
    if isinstance(default, (dict, list)):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def check_field_ranges(section: Any, path: str = "") -> None:
    """Raises UserError for the first value outside its range, anywhere below `section`."""
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        key = f"{path}{field.name.rstrip('_')}"
        if dataclasses.is_dataclass(value):
            check_field_ranges(value, f"{key}.")
        elif isinstance(value, dict):
            for name, item in value.items():
                if dataclasses.is_dataclass(item):
                    check_field_ranges(item, f"{key}.{name}.")
        else:
            check_value(key, value, field.metadata)


def check_types(schema: Any, values: Any, path: str = "") -> None:
    """Raises UserError for a number or a truth value that is written as text, which OmegaConf would quietly convert.

    values: the plain tree that will be merged into the dataclass `schema`; other mismatches are left to the merge.
    """
    hints = typing.get_type_hints(schema)
    for name, value in values.items() if isinstance(values, dict) else ():
        kind, key = hints.get(str(name)), f"{path}{str(name).rstrip('_')}"
        inner = [*typing.get_args(kind), kind]
        section = next((t for t in inner if dataclasses.is_dataclass(t)), None)
        is_plain = typing.get_origin(kind) not in (list, dict)
        number = next((t for t in inner if t in (int, float, bool) and is_plain), None)
        if value is None or is_interpolated(value):
            continue
        if (section is not None or typing.get_origin(kind) is dict) and not isinstance(value, dict):
            raise UserError(f"{key}: {value!r} is not a mapping of keys to values")
        if typing.get_origin(kind) is list and not isinstance(value, list):
            raise UserError(f"{key}: {value!r} is not a list")
        if typing.get_origin(kind) in (list, dict) and typing.get_args(kind)[-1] in (str, int, float):
            for item in value.values() if isinstance(value, dict) else value:
                if item is None or isinstance(item, (list, dict)):
                    raise UserError(f"{key}: {item!r} in it is not a single value")
        if section is not None and typing.get_origin(kind) is dict:
            for item, entry in value.items():
                if entry is not None and not isinstance(entry, dict):
                    raise UserError(f"{key}.{item}: {entry!r} is not a mapping of keys to values")
                check_types(section, entry, f"{key}.{item}.")
        elif section is not None:
            check_types(section, value, f"{key}.")
        elif number is not None and isinstance(value, str):
            raise UserError(f"{key}: {value!r} is text; write it without quotes, as a {_WORDS[number]}")
        elif number in (int, float) and isinstance(value, bool):
            raise UserError(f"{key}: {str(value).lower()} is not a number")
        elif kind is str and isinstance(value, (dict, list)):
            raise UserError(f"{key}: {value!r} is not one text; YAML wants one that ends with a colon in quotes")


MAX_UNBOUNDED_INT = 2**32 - 1  # of a whole number whose knob names no bound; the largest seed there is
_WORDS = {int: "whole number", float: "number", bool: "truth value, true or false"}


def check_value(key: str, value: Any, limits: Any) -> None:
    """Raises UserError when `value` breaks the bounds or choices of its knob."""
    if isinstance(value, list):
        for item in value:
            check_value(key, item, limits)
        return
    choices = limits.get("choices")
    if choices and value not in choices:
        raise UserError(f"{key}: unknown value {value!r}{suggest(str(value), choices)}")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return
    low, high, above = limits.get("low"), limits.get("high"), limits.get("above")
    if not math.isfinite(value):
        raise UserError(f"{key}: {value} is not a finite number")
    if low is not None and value < low:
        raise UserError(f"{key}: {value} is below its minimum {low} ({limits['about']})")
    if above is not None and value <= above:
        raise UserError(f"{key}: {value} must be above {above} ({limits['about']})")
    if high is None and isinstance(value, int):
        high = MAX_UNBOUNDED_INT
    if high is not None and value > high:
        raise UserError(f"{key}: {value} is above its maximum {high} ({limits['about']})")
