"""YAML files + `defaults` + `key=value` overrides → a checked experiment, and its grid of cells."""

import copy
import dataclasses
import functools
import itertools
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar, cast

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from distill_lit.config.fields import check_field_ranges, check_types
from distill_lit.config.key_paths import (
    KEY_OF_FIELD,
    deep_merge,
    keys_to_field_names,
    nest_key,
    resolve_scalars,
    type_at_path,
)
from distill_lit.config.schema import ExperimentConfig
from distill_lit.config.validation import validate_config
from distill_lit.config.yaml_text import dump_yaml, mask_literals, mask_text, parse_yaml, unmask_text
from distill_lit.utils.exceptions import UserError, one_line_message, suggest

Section = TypeVar("Section")
Tree = dict[str, Any]  # plain values under the keys that users write
# what OmegaConf and PyYAML raise beside their own kinds where a value has a shape they did not expect
PARSE_ERRORS = (TypeError, ValueError, AttributeError, AssertionError, LookupError, RecursionError, yaml.YAMLError)
# an experiment file must not be able to read secrets out of the environment into its manifest
OmegaConf.clear_resolver("oc.env")


def load_experiment(path: Path, overrides: list[str] | None = None) -> ExperimentConfig:
    """The checked experiment in `path` with `key=value` overrides. Raises UserError for anything wrong in it."""
    return resolve_config(_compose(path, ()), overrides or [])


def load_section(schema: type[Section], overrides: list[str]) -> Section:
    """One checked section of the config from `key=value` overrides alone."""
    section = _build_section(schema, _apply_overrides(schema, {}, overrides), mask_literals)
    check_field_ranges(section)
    return section


def resolve_config(tree: Tree, overrides: list[str]) -> ExperimentConfig:
    """Merges a composed tree and `key=value` overrides into the schema, and checks every value."""
    config = _build_section(ExperimentConfig, _apply_overrides(ExperimentConfig, tree, overrides), mask_literals)
    validate_config(config)
    return config


def _apply_overrides(schema: Any, tree: Tree, overrides: list[str]) -> Tree:
    """The tree with what overrides say on top."""
    override_tree: Tree = {}
    for override in overrides:
        if not re.match(r"[\w.-]+=", override):
            raise UserError(f"override {override!r} is not key=value")
        key, _, raw_value = override.partition("=")
        override_tree = deep_merge(
            override_tree, nest_key(schema, deep_merge(tree, override_tree), key, _parse_override(schema, key, raw_value))
        )
    _check_null_corpora("", override_tree, tree)
    for part in (tree, override_tree):
        check_types(schema, keys_to_field_names(schema, part))
    return _drop_null_corpora(deep_merge(tree, override_tree))


def _parse_override(schema: Any, key: str, raw_value: str) -> Any:
    """The value of an override: YAML, and for a key of text whatever is no single value there, as `{{ text }}`."""
    kind = type_at_path(schema, key.split("."))
    try:
        value = parse_yaml(raw_value)
    except PARSE_ERRORS as error:
        if kind is str:
            return raw_value
        raise UserError(f"{key}: {raw_value[:120]!r} is not YAML: {one_line_message(error)}") from error
    return raw_value if kind is str and isinstance(value, (dict, list)) else resolve_scalars(kind, value, schema)


def _build_section(schema: type[Section], tree: Tree, mask: Callable[[str, str], str]) -> Section:
    """The dataclass of a tree; `mask_literals` decides which of its texts stand for the value of another key."""
    with _raising_user_errors():
        given = OmegaConf.create(_masked(keys_to_field_names(schema, tree), mask))
        config = _unmasked(OmegaConf.to_object(OmegaConf.merge(_structured(cast(Any, schema)), given)))
    assert isinstance(config, schema)
    return config


def _mask_everything(value: str, _: str) -> str:
    return mask_text(value)


def _masked(value: Any, mask: Callable[[str, str], str], where: str = "") -> Any:
    if isinstance(value, dict):
        below = f"{where}." if where else ""
        return {mask_text(key): _masked(item, mask, f"{below}{key}") for key, item in value.items()}
    if isinstance(value, list):
        return [_masked(item, mask, where) for item in value]
    return mask(value, where) if isinstance(value, str) else value


def _unmasked(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            setattr(value, field.name, _unmasked(getattr(value, field.name)))
    elif isinstance(value, dict):
        return {unmask_text(key): _unmasked(item) for key, item in value.items()}
    elif isinstance(value, list):
        return [_unmasked(item) for item in value]
    return unmask_text(value) if isinstance(value, str) else value


def _corpora(tree: Any) -> dict[str, Any]:
    data = tree.get("data")
    found = data.get("corpora") if isinstance(data, dict) else None
    return found if isinstance(found, dict) else {}


def _drop_null_corpora(tree: Tree) -> Tree:
    """The tree without corpora that are null, which is how one takes away what a default or the base has."""
    corpora = _corpora(tree)
    if None not in corpora.values():
        return tree
    corpora_left = {name: corpus for name, corpus in corpora.items() if corpus is not None}
    return {**tree, "data": {**tree["data"], "corpora": corpora_left}}


def _check_null_corpora(where: str, changes: Tree, base: Tree) -> None:
    """Raises UserError for a null corpus in `changes` that `base` does not have: a name misspelt would remove nothing."""
    known = _corpora(base)
    for name, corpus in _corpora(changes).items():
        if corpus is None and name not in known:
            raise UserError(f"{where}data.corpora.{name}: null, and there is no corpus of this name{suggest(name, known)}")


@functools.cache
def _structured(schema: Any) -> Any:
    return OmegaConf.structured(schema)


@contextmanager
def _raising_user_errors() -> Iterator[None]:
    """Inside, whatever OmegaConf raises becomes a UserError."""
    try:
        yield
    except MissingMandatoryValue as error:
        raise UserError(f"{error.full_key}: a value is needed and there is none") from error
    except OmegaConfBaseException as error:
        raise UserError(_explain(error)) from error
    except PARSE_ERRORS as error:
        message = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"a value does not have the form that its key needs: {unmask_text(message)}") from error


def expand_grid(config: ExperimentConfig) -> Iterator[tuple[dict[str, Any], ExperimentConfig]]:
    """({grid key: value}, the experiment with these values) for every cell of the grid, in the order of the file."""
    key = json.dumps(dataclasses.asdict(config), default=str)
    if key not in _expanded:
        base = to_dict(config)
        points = [dict(zip(config.grid, values, strict=True)) for values in itertools.product(*config.grid.values())]
        if len(_expanded) == MAX_CACHED_EXPANSIONS:
            _expanded.clear()
        _expanded[key] = [(point, _config_at_point(base, point, config)) for point in points]
    yield from copy.deepcopy(_expanded[key])


# a point takes OmegaConf 25 ms, and an experiment is expanded by whoever looks at all its cells
MAX_CACHED_EXPANSIONS = 8
_expanded: dict[str, list[tuple[dict[str, Any], ExperimentConfig]]] = {}


def _config_at_point(base: Tree, point: dict[str, Any], config: ExperimentConfig) -> ExperimentConfig:
    tree, changes = base, {}
    variant = point.get("variant", config.variant)
    if variant:
        if variant not in config.variants:
            raise UserError(f"variant: unknown value {variant!r}{suggest(str(variant), config.variants)}")
        changes = _nest_changes(base, config.variants[variant])
        _check_null_corpora(f"variants.{variant}.", changes, tree)
        tree = deep_merge(tree, changes)
    for key, value in point.items():
        tree = deep_merge(tree, nest_key(ExperimentConfig, tree, key, value))
    check_types(ExperimentConfig, keys_to_field_names(ExperimentConfig, tree))
    resolved = _build_section(ExperimentConfig, _drop_null_corpora(tree), _mask_everything)
    validate_config(resolved)
    return resolved


def _nest_changes(base: Tree, changes: dict[str, Any]) -> Tree:
    """{'a.b': 1, 'c': {…}} → {a: {b: 1}, c: {…}}."""
    tree: Tree = {}
    for key, value in changes.items():
        tree = deep_merge(tree, nest_key(ExperimentConfig, deep_merge(base, tree), key, value))
    return tree


def to_dict(config: Any) -> dict[str, Any]:
    """A config section as plain values under the keys users write."""

    def plainly(value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            fields = dataclasses.fields(value)
            return {KEY_OF_FIELD.get(field.name, field.name): plainly(getattr(value, field.name)) for field in fields}
        if isinstance(value, dict):
            return {key: plainly(item) for key, item in value.items()}
        return [plainly(item) for item in value] if isinstance(value, (list, tuple)) else value

    result: dict[str, Any] = plainly(config)
    return result


def non_default_fields(section: Any) -> dict[str, Any]:
    """The values of a section that are not its defaults, and those without a default: what identifies it.

    A knob that is added later, and left alone, changes no identity. Whoever changes a default or what a value means
    raises `identity.VERSION`.
    """
    known = {}
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        default = field.default_factory() if callable(field.default_factory) else field.default
        if value != default:
            known[KEY_OF_FIELD.get(field.name, field.name)] = _non_default_value(value)
    return known


def _non_default_value(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return non_default_fields(value)
    return {key: _non_default_value(item) for key, item in value.items()} if isinstance(value, dict) else value


def to_yaml(config: Any) -> str:
    """A config section as YAML that `load_experiment` reads back."""
    return dump_yaml(to_dict(config))


def find_configs(start: Path) -> Path:
    """The `configs` folder nearest to `start`, upwards."""
    for folder in (start.resolve(), *start.resolve().parents):
        if (folder / "configs").is_dir():
            return folder / "configs"
    raise UserError(f"no configs/ folder beside or above {start}, needed by `defaults`")


def _compose(path: Path, trail: tuple[Path, ...]) -> Tree:
    if path in trail:
        raise UserError(f"defaults form a cycle: {' → '.join(p.stem for p in (*trail, path))}")
    tree = _read(path)
    names = tree.pop("defaults", None) or []
    if not isinstance(names, list):
        raise UserError(f"{path}: defaults is a list of names below configs/")
    base: Tree = {}
    for name in names:
        base = deep_merge(base, _compose(_default_path(path, str(name)), (*trail, path)))
    _check_null_corpora(f"{path}: ", tree, base)
    found: Tree = deep_merge(base, tree)
    return found


def _default_path(path: Path, name: str) -> Path:
    if ".." in PurePosixPath(name).parts or name.startswith("/"):
        raise UserError(f"{path}: defaults: {name!r} leaves the configs folder")
    folder = find_configs(path.parent)
    file = folder / f"{name}.yaml"
    if not file.is_file():
        known = [str(p.relative_to(folder).with_suffix("")) for p in folder.rglob("*.yaml")]
        raise UserError(f"{path}: defaults: unknown {name!r}{suggest(name, known)}")
    return file


def _read(path: Path) -> Tree:
    if not path.is_file():
        raise UserError(f"no experiment file {path}")
    try:
        tree = parse_yaml(path.read_bytes())
    except (OSError, *PARSE_ERRORS) as error:
        raise UserError(f"{path}: not a plain YAML file: {one_line_message(error)}") from error
    if not isinstance(tree, dict) and tree is not None:
        raise UserError(f"{path}: not a mapping of keys to values")
    found: Tree = resolve_scalars(ExperimentConfig, tree or {}, ExperimentConfig)
    if isinstance(names := found.get("defaults"), list):
        found["defaults"] = resolve_scalars(list[str], (tree or {})["defaults"], ExperimentConfig) or names
    return found


def _explain(error: OmegaConfBaseException) -> str:
    key = unmask_text(str(getattr(error, "full_key", None) or getattr(error, "key", None) or "")).replace("from_", "from")
    message = unmask_text(str(error).splitlines()[0])
    kind = getattr(error, "object_type", None)
    if "not in" in str(error) and kind is not None and dataclasses.is_dataclass(kind):
        fields = [KEY_OF_FIELD.get(f.name, f.name) for f in dataclasses.fields(kind)]
        return f"unknown key {key!r}{suggest(str(key).rsplit('.')[-1], fields)}"
    return f"{key}: {message}" if key else message
