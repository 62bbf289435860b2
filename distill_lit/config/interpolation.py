"""`${key}` in a config stands for the value of another key. The only module that knows OmegaConf."""

import re
import typing
from collections.abc import Iterator
from typing import Any

from distill_lit.config.key_paths import holds_paths, is_section, resolve_scalars, type_adapter, type_below
from distill_lit.config.yaml_text import (
    DOLLAR,
    INTERPOLATED_KEY,
    PARSE_ERRORS,
    YamlScalar,
    is_interpolated,
    mask_literals,
    mask_text,
    unmask_text,
)
from distill_lit.utils.exceptions import UserError, one_line_message
from distill_lit.utils.path_variables import PATH_VARIABLE


def resolve_interpolations(section: Any, tree: dict[str, Any]) -> dict[str, Any]:
    """A tree for a section with the value of another key, or its default, in place of each `${key}`, and `${` in place of
    each `\\${`. Raises UserError where there is no such key."""
    masked = _mask(tree, section)
    if _has_interpolation(tree):
        masked = resolve_scalars(section, _as_read(_resolve(_with_defaults(section, masked))), section)
    resolved: dict[str, Any] = _unmask(masked)
    return resolved


def _resolve(masked: Any) -> Any:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    OmegaConf.clear_resolver("oc.env")  # a file must not be able to read secrets out of the environment into its manifest
    try:
        return OmegaConf.to_container(OmegaConf.create(masked), resolve=True)
    except (OmegaConfBaseException, *PARSE_ERRORS) as error:
        key = unmask_text(str(getattr(error, "full_key", None) or ""))
        message = unmask_text(one_line_message(Exception(str(error).partition("\n")[0])))
        if re.search(r"key '[A-Z_][A-Z0-9_]*' not found", message):
            message += "; environment variables stand in paths only"
        raise UserError(f"{key}: {message}" if key else message) from None


def _with_defaults(kind: Any, value: Any) -> Any:
    """A tree with the defaults of all that it leaves out."""
    if not isinstance(value, dict):
        return value
    if is_section(kind):
        value = _mask(type_adapter(kind).dump_python(kind(), by_alias=True), kind, literal=True) | value
    elif typing.get_origin(kind) is not dict:
        return value
    return {name: _with_defaults(type_below(kind, name), item) for name, item in value.items()}


def _as_read(value: Any) -> Any:
    """A tree whose numbers and truth values are as they are read, so that a key of text can take them as written."""
    if isinstance(value, dict):
        return {key: _as_read(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_as_read(item) for item in value]
    if isinstance(value, bool):
        return YamlScalar(str(value).lower(), value)
    return YamlScalar(str(value), value) if isinstance(value, (int, float)) else value


def _has_interpolation(value: Any) -> bool:
    if isinstance(value, dict):
        return any(_has_interpolation(item) for item in value.values())
    return any(_has_interpolation(item) for item in value) if isinstance(value, list) else is_interpolated(value)


def interpolated_keys(value: Any, where: str = "") -> Iterator[tuple[str, str]]:
    """(key of a text, key whose value stands in it) of every `${key}` in a tree, both dotted from its root."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from interpolated_keys(item, f"{where}.{name}" if where else name)
    elif isinstance(value, list):
        for item in value:
            yield from interpolated_keys(item, where)
    elif isinstance(value, str):
        for dollar in DOLLAR.finditer(value):
            found = INTERPOLATED_KEY.match(value, dollar.end() - 2)
            if found and len(dollar[1]) % 2 == 0:
                name = found[1].lstrip(".")
                levels = len(found[1]) - len(name)  # up from the key of the text
                yield where, ".".join([*(where.split(".")[:-levels] if levels else []), name])


def _mask(value: Any, section: Any, where: str = "", literal: bool = False) -> Any:
    if isinstance(value, dict):
        below = f"{where}." if where else ""
        return {mask_text(key): _mask(item, section, f"{below}{key}", literal) for key, item in value.items()}
    if isinstance(value, list):
        return [_mask(item, section, where, literal) for item in value]
    if not isinstance(value, str):
        return value
    if literal or "${" not in value:
        return mask_text(value)
    return mask_literals(value, where, PATH_VARIABLE if holds_paths(section, where) else None)


def _unmask(value: Any) -> Any:
    if isinstance(value, dict):
        return {unmask_text(key): _unmask(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_unmask(item) for item in value]
    return unmask_text(value) if isinstance(value, str) else value
