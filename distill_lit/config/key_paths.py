"""Plain trees of a config under the keys that users write, guided by the sections that they will become."""

import functools
import types
import typing
from typing import Any

from pydantic import TypeAdapter
from pydantic.dataclasses import is_pydantic_dataclass
from pydantic.fields import FieldInfo
from typing_extensions import is_typeddict

from distill_lit.config.grid_points import EXCLUDE, INCLUDE, zipped_keys
from distill_lit.config.yaml_text import YamlScalar

NAMED_CHANGES = ("variants", "models", "stages")  # {name: changes to an experiment}
# json_schema_extra of the fields in which $SCRATCH and ${SCRATCH} are environment variables
HOLDS_PATHS: dict[str, Any] = {"format": "path"}


@functools.cache
def type_adapter(section: Any) -> TypeAdapter[Any]:
    """What checks and writes a section."""
    return TypeAdapter(section)


def is_section(kind: Any) -> bool:
    """Whether a type is a section of a config."""
    return isinstance(kind, type) and is_pydantic_dataclass(kind)


@functools.cache
def fields_by_key(section: Any) -> dict[str, FieldInfo]:
    """{key as users write it: field} of a section."""
    return {field.alias or name: field for name, field in section.__pydantic_fields__.items()}


@functools.cache
def _types_by_key(section: Any) -> dict[str, Any]:
    """{key: type} of a section, or of a mapping with known keys."""
    hints = typing.get_type_hints(section)
    if is_typeddict(section):
        return hints
    return {field.alias or name: hints[name] for name, field in section.__pydantic_fields__.items()}


def union_members(kind: Any) -> list[Any]:
    """The members of a union, but for None; of any other type, itself."""
    if typing.get_origin(kind) not in (typing.Union, types.UnionType):
        return [kind]
    return [part for part in typing.get_args(kind) if part is not type(None)]


def _member(kind: Any, value: Any = None) -> Any:
    """Of a union, the member for a value; any other type as it is."""
    members = union_members(kind)
    fitting = members
    if isinstance(value, list):
        fitting = [member for member in members if typing.get_origin(member) is list]
    elif isinstance(value, dict):
        fitting = [member for member in members if is_typeddict(member)]
    return (fitting or members)[0]


def is_text(kind: Any, value: Any = None) -> bool:
    """Whether a key of this type holds a text, or one of several texts, where the value that is given for it is `value`."""
    kind = _member(kind, value)
    return kind is str or (typing.get_origin(kind) is typing.Literal and isinstance(typing.get_args(kind)[0], str))


def type_below(kind: Any, name: str) -> Any:
    """The type of what stands below a name in a value of `kind`."""
    for member in union_members(kind):
        if is_section(member) or is_typeddict(member):
            return _types_by_key(member).get(name, Any)
        if typing.get_origin(member) is dict:
            return typing.get_args(member)[1]
    return Any


def type_at_path(kind: Any, parts: list[str]) -> Any:
    """The type of the value at a path; a name in it may have dots."""
    if not parts:
        return kind
    most = len(parts) if typing.get_origin(kind) is dict else 1
    found = (type_at_path(type_below(kind, ".".join(parts[:n])), parts[n:]) for n in range(1, most + 1))
    return next((one for one in found if one is not Any), Any)


def holds_paths(root: Any, key: str) -> bool:
    """Whether a text at a dotted key, perhaps below `grid`, `variants`, `models` or `stages`, is a path or a reference."""
    section, _, rest = key.partition(".")
    parts = rest.split(".")
    if section == "grid":
        return any(holds_paths(root, one.removeprefix(f"{INCLUDE}.")) for one in zipped_keys(rest))
    if section == "variants":  # variants.NAME.key, or variants.AXIS.NAME.key
        return any(holds_paths(root, ".".join(parts[start:])) for start in (1, 2))
    if section in NAMED_CHANGES:  # of the experiment, or of the student that is made
        return any(holds_paths(root, ".".join([*before, *parts[1:]])) for before in ([], ["students", "NAME"]))
    return _is_path_field(root, key.split("."))


def _is_path_field(kind: Any, parts: list[str]) -> bool:
    for member in union_members(kind) if parts else ():
        if is_section(member) and (field := fields_by_key(member).get(parts[0])) is not None:
            inner = type_below(member, parts[0])
            is_marked = field.json_schema_extra == HOLDS_PATHS and not (is_section(inner) and parts[1:])
            return is_marked or _is_path_field(inner, parts[1:])
        if typing.get_origin(member) is dict:
            inner = typing.get_args(member)[1]
            return any(_is_path_field(inner, parts[names:]) for names in range(1, len(parts)))
    return False


def resolve_scalars(kind: Any, value: Any, root: Any) -> Any:
    """A tree as it was read with each `YamlScalar` as its key wants it: as text, or as its value. root: what the keys of
    `grid` and `variants` begin at."""
    kind = _member(kind, value)
    if isinstance(value, YamlScalar):
        return value.source if is_text(kind) else value.value
    if isinstance(value, list):
        item = typing.get_args(kind)[0] if typing.get_origin(kind) is list else Any
        return [resolve_scalars(item, one, root) for one in value]
    if not isinstance(value, dict):
        return value
    if kind is root:
        named = ("grid", *NAMED_CHANGES)
        value = value | {name: _resolve_by_path(value[name], name, root) for name in named if name in value}
    return {name: resolve_scalars(type_below(kind, name), item, root) for name, item in value.items()}


def _resolve_by_path(value: Any, name: str, root: Any) -> Any:
    """The values of `grid`, or of every one of `variants`, `models` or `stages`, each as the key at its path wants it."""
    if not isinstance(value, dict):
        return value
    if name in ("models", "stages"):
        return {model: _resolve_by_path(changes, "", root) for model, changes in value.items()}
    if name == "grid":
        return {axis: resolve_axis(axis, item, root) for axis, item in value.items()}
    if name == "variants":
        return {
            variant: {choice: _resolve_by_path(changes, "", root) for choice, changes in entry.items()}
            if is_variant_axis(entry, root)
            else _resolve_by_path(entry, "", root)
            for variant, entry in value.items()
        }
    return {key: resolve_scalars(type_at_path(root, key.split(".")), item, root) for key, item in value.items()}


def resolve_axis(axis: str, values: Any, root: Any) -> Any:
    """The values of an axis of the grid, each as its key wants it; of exclusions and inclusions, those below their keys."""
    if not isinstance(values, list):
        return resolve_scalars(Any, values, root)
    if axis in (EXCLUDE, INCLUDE):
        return [
            _resolve_by_path(one, "", root) if isinstance(one, dict) else resolve_scalars(Any, one, root) for one in values
        ]
    kinds = [type_at_path(root, key.split(".")) for key in zipped_keys(axis)]
    if len(kinds) == 1:
        return [resolve_scalars(kinds[0], one, root) for one in values]
    return [
        [resolve_scalars(kind, item, root) for kind, item in zip(kinds, row, strict=True)]
        if isinstance(row, list) and len(row) == len(kinds)
        else resolve_scalars(Any, row, root)
        for row in values
    ]


def is_variant_axis(entry: Any, root: Any) -> bool:
    """Whether an entry of `variants` is an axis, {name: {dotted key: value}}, and not one variant, {dotted key: value}: it
    holds only mappings, below names that are no keys of the experiment."""
    if not isinstance(entry, dict) or not entry:
        return False
    return all(isinstance(item, dict) and key.partition(".")[0] not in fields_by_key(root) for key, item in entry.items())


def deep_merge(base: Any, more: Any) -> Any:
    """`base` with what `more` says on top: mappings key by key, anything else as a whole."""
    if not isinstance(base, dict) or not isinstance(more, dict):
        return more
    return {**base, **{name: deep_merge(base.get(name), item) for name, item in more.items()}}


def nest_key(kind: Any, tree: Any, key: str, value: Any) -> dict[str, Any]:
    """{a: {b: value}} for the dotted key a.b. A name in it may have dots where `tree` has that name, or where whatever
    follows is a name, as below `external_models` and `grid`."""
    for name in reversed(_split(kind, tree, key.split("."))):
        value = {name: value}
    nested: dict[str, Any] = value
    return nested


def _split(kind: Any, tree: Any, parts: list[str]) -> list[str]:
    kind, count = _member(kind), 1
    if typing.get_origin(kind) is dict:
        inner = _member(type_below(kind, ""))
        if inner is str or typing.get_origin(inner) is list:
            return [".".join(parts)]
        known = tree if isinstance(tree, dict) else {}
        count = next((n for n in range(len(parts), 1, -1) if ".".join(parts[:n]) in known), 1)
    name, rest = ".".join(parts[:count]), parts[count:]
    inside = tree.get(name) if isinstance(tree, dict) else None
    return [name, *(_split(type_below(kind, name), inside, rest) if rest else [])]
