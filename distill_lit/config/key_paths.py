"""Plain trees of a config under the keys that users write, guided by the dataclasses that they will become."""

import dataclasses
import functools
import types
import typing
from typing import Any

from distill_lit.config.yaml_text import YamlScalar

# `from` is a word of Python, so the dataclass field has an underscore that no user should see
FIELD_OF_KEY = {"from": "from_"}
KEY_OF_FIELD = {field: key for key, field in FIELD_OF_KEY.items()}


@functools.cache
def _types_by_key(schema: Any) -> dict[str, Any]:
    """{key: type} of a dataclass."""
    return {KEY_OF_FIELD.get(name, name): _strip_optional(kind) for name, kind in typing.get_type_hints(schema).items()}


def _strip_optional(kind: Any) -> Any:
    """The type itself where it is optional."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return next(part for part in typing.get_args(kind) if part is not type(None))
    return kind


def _type_below(kind: Any, name: str) -> Any:
    """The type of what stands below a name in a value of `kind`."""
    if dataclasses.is_dataclass(kind):
        return _types_by_key(typing.cast(typing.Hashable, kind)).get(name, Any)
    return _strip_optional(typing.get_args(kind)[1]) if typing.get_origin(kind) is dict else Any


def type_at_path(kind: Any, parts: list[str]) -> Any:
    """The type of the value at a path; a name in it may have dots."""
    if not parts:
        return kind
    most = len(parts) if typing.get_origin(kind) is dict else 1
    found = (type_at_path(_type_below(kind, ".".join(parts[:n])), parts[n:]) for n in range(1, most + 1))
    return next((one for one in found if one is not Any), Any)


def resolve_scalars(kind: Any, value: Any, root: Any) -> Any:
    """A tree as it was read with each `YamlScalar` as its key wants it: as text, or as its value. root: what the keys of
    `grid` and `variants` begin at."""
    if isinstance(value, YamlScalar):
        return value.source if kind is str else value.value
    if isinstance(value, list):
        item = _strip_optional(typing.get_args(kind)[0]) if typing.get_origin(kind) is list else Any
        return [resolve_scalars(item, one, root) for one in value]
    if not isinstance(value, dict):
        return value
    if kind is root:
        value = value | {name: _resolve_by_path(value[name], name, root) for name in ("grid", "variants") if name in value}
    return {name: resolve_scalars(_type_below(kind, name), item, root) for name, item in value.items()}


def _resolve_by_path(value: Any, name: str, root: Any) -> Any:
    """The values of `grid`, or of every one of `variants`, each as the key at its path wants it."""
    if not isinstance(value, dict):
        return value
    if name == "variants":
        return {variant: _resolve_by_path(changes, "", root) for variant, changes in value.items()}
    listed = [(key, type_at_path(root, key.split(".")), item) for key, item in value.items()]
    if name == "grid":
        return {
            key: [resolve_scalars(kind, one, root) for one in item]
            if isinstance(item, list)
            else resolve_scalars(kind, item, root)
            for key, kind, item in listed
        }
    return {key: resolve_scalars(kind, item, root) for key, kind, item in listed}


def deep_merge(base: Any, more: Any) -> Any:
    """`base` with what `more` says on top: mappings key by key, anything else as a whole."""
    if not isinstance(base, dict) or not isinstance(more, dict):
        return more
    return {**base, **{name: deep_merge(base.get(name), item) for name, item in more.items()}}


def nest_key(kind: Any, tree: Any, key: str, value: Any) -> dict[str, Any]:
    """{a: {b: value}} for the dotted key a.b. A name in it may have dots where `tree` has that name, or where whatever
    follows is a name, as below `rivals` and `grid`."""
    for name in reversed(_split(kind, tree, key.split("."))):
        value = {name: value}
    found: dict[str, Any] = value
    return found


def _split(kind: Any, tree: Any, parts: list[str]) -> list[str]:
    count = 1
    if typing.get_origin(kind) is dict:
        inner = _type_below(kind, "")
        if inner is str or typing.get_origin(inner) is list:
            return [".".join(parts)]
        known = tree if isinstance(tree, dict) else {}
        count = next((n for n in range(len(parts), 1, -1) if ".".join(parts[:n]) in known), 1)
    name, rest = ".".join(parts[:count]), parts[count:]
    inside = tree.get(name) if isinstance(tree, dict) else None
    return [name, *(_split(_type_below(kind, name), inside, rest) if rest else [])]


def keys_to_field_names(kind: Any, value: Any) -> Any:
    """A tree with the names of fields for the keys that users write."""
    if isinstance(value, list):
        return [keys_to_field_names(Any, item) for item in value]
    if not isinstance(value, dict):
        return value
    names = FIELD_OF_KEY if dataclasses.is_dataclass(kind) else {}
    return {names.get(name, name): keys_to_field_names(_type_below(kind, name), item) for name, item in value.items()}
