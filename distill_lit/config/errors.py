"""What pydantic found wrong with a config, in one line that names the dotted key."""

import re
import typing
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from typing_extensions import is_typeddict

from distill_lit.config.key_paths import fields_by_key, is_section, is_text, type_below, union_members
from distill_lit.utils.exceptions import suggest

KeyPath = tuple[str, ...]
MAX_SHOWN_CHARACTERS = 120  # of a wrong value
MAX_KEYS_ELSEWHERE = 3  # that have the name of an unknown one
LARGEST_SHOWN = 1e16  # of floats that are meant for whole numbers
NOT_QUITE_A_NUMBER = re.compile(r"[-+]?(\d+(:\d+)+(\.\d*)?|0\d+)")  # 24:00:00, 010
_EXPECTED = {  # {kind of error, as pydantic names it: what the value should be}
    "bool_type": "true or false",
    "float_type": "a number",
    "int_type": "a whole number",
    "finite_number": "a finite number",
    "list_type": "a list",
    "dict_type": "a mapping of keys to values",
    "dataclass_type": "a mapping of keys to values",
}


class _Place(NamedTuple):
    """Where an error is: path of the key, the section that holds it, its type, and its field."""

    path: KeyPath
    section: Any
    kind: Any
    field: FieldInfo | None


def describe_error(error: ValidationError, section: Any, prefix: str = "") -> tuple[KeyPath, str]:
    """(path of the key, message) of the first thing that pydantic found wrong with the values of a section.

    Args:
        error: what validating a tree against `section` raised.
        section: class of the config section that was validated.
        prefix: what stands before the dotted key in the message.
    """
    first = error.errors(include_url=False)[0]
    place = _locate(section, first["loc"])
    key = prefix + ".".join(place.path)
    if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return place.path, f"unknown key {key!r}{_where_it_belongs(place, section)}"
    message = _explain(first, place)
    return place.path, f"{key}: {message}" if key else message


def _locate(section: Any, location: tuple[int | str, ...]) -> _Place:
    """Follows a location of pydantic's, which also has numbers of list items and tags of union members."""
    path: list[str] = []
    kind, holder, field = section, section, None
    for part in location:
        members = union_members(kind)
        if len(members) > 1:  # the part is the tag of a member
            kind = next((member for member in members if part == _tag(member)), members[0])
            continue
        kind = members[0]
        if typing.get_origin(kind) is list:
            kind = typing.get_args(kind)[0]
        elif part != "[key]":
            path.append(str(part))
            if is_section(kind) or is_typeddict(kind):
                holder = kind
            if is_section(kind):
                field = fields_by_key(kind).get(str(part))
            kind = type_below(kind, str(part))
    return _Place(tuple(path), holder, kind, field)


def _tag(member: Any) -> str:
    """What `fields` calls a member of a union."""
    if is_typeddict(member):
        return "mapping"
    if typing.get_origin(member) is list:
        return "list"
    return "text" if is_text(member) else "number"


def _where_it_belongs(place: _Place, root: Any) -> str:
    """The end of an error about an unknown key: how it is written where it is dotted, which key may be meant, and where a
    key of this name is."""
    name, known = place.path[-1], _known_keys(place.section)
    first, _, rest = name.partition(".")
    if rest and first in known:
        return f"; in a file it is written as {first}: {{{rest.replace('.', ': {')}: …{'}' * (rest.count('.') + 1)}"
    hint, elsewhere = suggest(name, known), sorted(_keys_called(name, root), key=lambda key: key.count("."))
    if "did you mean" in hint or not elsewhere:
        return hint
    return f"; there is {' and '.join(elsewhere[:MAX_KEYS_ELSEWHERE])}{hint}"


def _keys_called(name: str, kind: Any) -> Iterator[str]:
    """The dotted keys below a type that end in this name; NAME stands for any name."""
    for member in union_members(kind):
        if is_section(member):
            for key in fields_by_key(member):
                yield from [key] if key == name else []
                yield from (f"{key}.{below}" for below in _keys_called(name, type_below(member, key)))
        elif typing.get_origin(member) is dict:
            yield from (f"NAME.{below}" for below in _keys_called(name, typing.get_args(member)[1]))


def _known_keys(section: Any) -> list[str]:
    return list(fields_by_key(section) if is_section(section) else section.__annotations__)


def _explain(error: Any, place: _Place) -> str:
    value, limits = error["input"], error.get("ctx", {})
    about = f" ({place.field.description})" if place.field is not None and place.field.description else ""
    messages: dict[str, Callable[[], str]] = {
        "greater_than_equal": lambda: f"{value} is below its minimum {_plain(limits['ge'])}{about}",
        "greater_than": lambda: f"{value} must be above {_plain(limits['gt'])}{about}",
        "less_than_equal": lambda: f"{value} is above its maximum {_plain(limits['le'])}{about}",
        "less_than": lambda: f"{value} must be below {_plain(limits['lt'])}{about}",
        "literal_error": lambda: f"unknown value {_shown(value)}{suggest(str(value), _choices(place.kind))}",
        "too_short": lambda: "has no values",
        "is_instance_of": lambda: _explain_not_text(value),
    }
    if error["type"] in messages:
        return messages[error["type"]]()
    expected = _EXPECTED.get(error["type"])
    if expected is None:
        return f"{_shown(value)}: {' '.join(error['msg'].split())}"
    if isinstance(value, str) and error["type"] in ("bool_type", "float_type", "int_type"):
        if NOT_QUITE_A_NUMBER.fullmatch(value):
            return f"{_shown(value)} is not {expected}{about}"
        return f"{_shown(value)} is text; write it without quotes, as {expected}"
    if error["type"] == "int_type" and isinstance(value, float) and value.is_integer() and abs(value) < LARGEST_SHOWN:
        return f"{_shown(value)} is not {expected}; write {int(value)}"
    return f"{_shown(value)} is not {expected}"


def _explain_not_text(value: Any) -> str:
    remedy = "; write '' for an empty one" if value is None else ""
    if isinstance(value, (dict, list)):
        remedy = "; put it in quotes where it has brackets, or a colon before a blank or at its end"
    return f"{_shown(value)} is not a text{remedy}"


def _choices(kind: Any) -> list[str]:
    """The texts that a type allows."""
    if typing.get_origin(kind) is typing.Literal:
        return [str(choice) for choice in typing.get_args(kind)]
    return [choice for member in union_members(kind) if member is not kind for choice in _choices(member)]


def _plain(limit: float) -> str:
    return str(int(limit)) if limit == int(limit) else str(limit)


def _shown(value: Any) -> str:
    """A value as YAML has it, not at any length."""
    words = {None: "null", True: "true", False: "false"}
    text = words[value] if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= MAX_SHOWN_CHARACTERS else f"{text[:MAX_SHOWN_CHARACTERS]}…"
