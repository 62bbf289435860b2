"""YAML files + `defaults` + `key=value` overrides → a checked experiment, and its grid of runs."""

import copy
import difflib
import functools
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, cast

from pydantic import ValidationError

from distill_lit.config.errors import KeyPath, describe_error
from distill_lit.config.fields import Section
from distill_lit.config.file_paths import place_paths
from distill_lit.config.grid_points import check_exclusions, grid_points
from distill_lit.config.hypothesis_validation import refuse_untestable, untestable_hypotheses
from distill_lit.config.interpolation import resolve_interpolations
from distill_lit.config.key_paths import (
    NAMED_CHANGES,
    deep_merge,
    is_text,
    nest_key,
    resolve_axis,
    resolve_scalars,
    type_adapter,
    type_at_path,
)
from distill_lit.config.models import BASE_TEACHER
from distill_lit.config.schema import ExperimentConfig
from distill_lit.config.validation import check_interpolations, validate_config
from distill_lit.config.variants import check_disjoint, choose_variants
from distill_lit.config.yaml_text import PARSE_ERRORS, dump_yaml, parse_yaml
from distill_lit.utils.exceptions import UserError, one_line_message, suggest
from distill_lit.utils.shipped import shipped_folder

Tree = dict[str, Any]  # plain values under the keys that users write
# mappings of names of which a null takes one away
NULLABLE: tuple[KeyPath, ...] = (("data", "corpora"), ("evaluation", "probes"), ("hypotheses",))
TERMS: KeyPath = ("objective", "terms")  # of which a null takes one away too, perhaps one of a preset
NAMED_SECTIONS = ("students", "models", "stages")  # {name: what has it}


class Layer(NamedTuple):
    """What one file, the overrides, a variant or a point of the grid says. name: of the file, or empty."""

    name: str
    tree: Tree


def load_experiment(path: Path, overrides: list[str] | None = None, must_test: bool = True) -> ExperimentConfig:
    """The checked experiment in `path`, or a shipped one by its name, with `key=value` overrides.

    must_test: whether its hypotheses must be such that it can test them, and its exclusions leave something out; not those
    of results, whose grid overrides may have made smaller. Raises UserError for anything wrong in it.
    """
    layers = _placed(_compose(find_experiment(path), ()))

    def load(changes: list[str]) -> ExperimentConfig:
        config = _load(ExperimentConfig, layers, changes)
        validate_config(config)
        return config

    config = load(overrides or [])
    if must_test:
        if not any(re.match(r"grid(=|\.(?!exclude=))", override) for override in overrides or []):
            check_exclusions(config.grid)  # overrides may have taken away what the file excludes
        refuse_untestable(untestable_hypotheses(config), overrides or [], lambda own: untestable_hypotheses(load(own)))
    return config


def load_section(section: type[Section], overrides: list[str]) -> Section:
    """One checked section of the config from `key=value` overrides alone."""
    return _load(section, [], overrides)


def _load(section: type[Section], layers: list[Layer], overrides: list[str]) -> Section:
    files = _merged(layers)
    if any(override.startswith("grid=") for override in overrides):
        files.pop("grid", None)  # a whole grid replaces another; grid.KEY=… adds or changes an axis
    changes = _parse_overrides(section, files, overrides)
    check_nulls("", changes, files)
    tree = drop_nulls(deep_merge(files, changes))
    config = build_section(section, resolve_interpolations(section, tree), [*layers, Layer("", changes)])
    if isinstance(config, ExperimentConfig):
        check_interpolations(config, tree)
    return config


def _merged(layers: list[Layer]) -> Tree:
    return functools.reduce(deep_merge, (layer.tree for layer in layers), {})


def _parse_overrides(section: Any, tree: Tree, overrides: list[str]) -> Tree:
    """What overrides say, nested; tree: what they stand on, whose names may have dots."""
    changes: Tree = {}
    for override in overrides:
        if not re.match(r"[\w.-]+(, *[\w.-]+)*=", override):
            raise UserError(f"override {override!r} is not key=value")
        key, _, text = override.partition("=")
        if key == "grid":
            changes.pop("grid", None)
        known, value = deep_merge(tree, changes), _parse_override(section, key, text)
        nested = nest_key(section, known, key, value)
        if value == {} and nested and deep_merge(known, nested) == known:
            raise UserError(f"{key}={{}}: it changes nothing, as a mapping adds to the one that is there")
        changes = deep_merge(changes, _spell_out_teacher(nested))
    return changes


def _parse_override(section: Any, key: str, text: str) -> Any:
    """The value of an override: YAML, and for a key of text what was typed, unless it is in quotes."""
    kind = _kind_of_override(section, key.split("."))
    try:
        value = parse_yaml(text)
    except PARSE_ERRORS as error:
        if is_text(kind):
            return text
        raise UserError(f"{key}: {text[:120]!r} is not YAML: {one_line_message(error)}") from error
    if section is ExperimentConfig and key.startswith("grid."):
        return resolve_axis(key.removeprefix("grid."), value, section)
    if is_text(kind, value) and (typed := _typed_text(text, value)) is not None:
        return typed
    return resolve_scalars(kind, value, section)


def _typed_text(text: str, value: Any) -> str | None:
    """What was typed for a key of text, `####` and all; None where quotes or a null are YAML's. value: as YAML has it."""
    if isinstance(value, (dict, list)):
        return text
    typed = text.strip()
    is_null = value is None and typed.lower() in ("", "~", "null")
    return None if is_null or typed[:1] in ("'", '"') else typed


def _kind_of_override(section: Any, parts: list[str]) -> Any:
    """The type of the value at a key, perhaps of a change to the experiment, as `models.NAME.key`."""
    starts = (2, 3) if parts[0] in NAMED_CHANGES and len(parts) > 2 else (0,)
    kinds = (type_at_path(section, parts[start:]) for start in starts if parts[start:])
    return next((kind for kind in kinds if kind is not Any), Any)


def build_section(section: type[Section], tree: Tree, layers: list[Layer]) -> Section:
    """The checked section of a tree. layers: what it was merged from, the last on top, to name the file of a fault."""
    try:
        config: Section = type_adapter(cast(Any, section)).validate_python(tree, by_alias=True, by_name=False)
    except ValidationError as error:
        path, message = describe_error(error, section)
        origin = next((layer.name for layer in reversed(layers) if _holds(layer.tree, path)), "")
        raise UserError(f"{origin}: {message}" if origin else message) from None
    return config


def _holds(tree: Any, path: KeyPath) -> bool:
    """Whether a tree says anything at a path."""
    for name in path:
        if not isinstance(tree, dict) or name not in tree:
            return False
        tree = tree[name]
    return bool(path)


def _named(tree: Tree, path: KeyPath) -> dict[str, Any]:
    """The mapping at a path, empty where there is none."""
    found: Any = tree
    for key in path:
        found = found.get(key) if isinstance(found, dict) else None
    return found if isinstance(found, dict) else {}


def drop_nulls(tree: Tree) -> Tree:
    """The tree without corpora, probes and hypotheses that are null, which is how one takes away what a default or the base
    has."""
    for path in NULLABLE:
        named = _named(tree, path)
        if None in named.values():
            kept = {name: value for name, value in named.items() if value is not None}
            tree = _with_value(tree, path, kept)
    return tree


def _with_value(tree: Tree, path: KeyPath, value: Any) -> Tree:
    first, *rest = path
    return {**tree, first: _with_value(tree[first], tuple(rest), value) if rest else value}


def check_nulls(where: str, changes: Tree, base: Tree) -> None:
    """Raises UserError for a null in `changes` whose name `base` does not have: one misspelt would remove nothing."""
    objectives = [_named(tree, ("objective",)) for tree in (base, changes)]
    has_only_own_terms = objectives[0].get("terms") and not any(one.get("preset") for one in objectives)
    for path in (*NULLABLE, *([TERMS] if has_only_own_terms else [])):
        known = _named(base, path)
        for name, value in _named(changes, path).items():
            if value is None and name not in known:
                key = ".".join((*path, name))
                raise UserError(f"{where}{key}: null, and nothing here is called {name!r}{suggest(name, known)}")


def expand_grid(config: ExperimentConfig) -> Iterator[tuple[dict[str, Any], ExperimentConfig]]:
    """({grid key: value}, the experiment with these values) for every point of the grid, in the order of the file."""
    for point in grid_points(config.grid):
        yield point, config_at_point(config, point)


def config_at_point(config: ExperimentConfig, point: dict[str, Any]) -> ExperimentConfig:
    """The experiment with these values of its grid's keys, and with its variant."""
    base = to_dict(config)
    layers = [Layer("", base)]
    for variant in choose_variants(config, point):
        changes = nest_changes(base, copy.deepcopy(variant.changes), f"{variant.name}.")
        check_nulls(f"{variant.name}.", changes, base)
        layers.append(Layer(variant.name, changes))
    check_disjoint(layers[1:])
    _check_point(point, _merged(layers))
    layers.append(Layer("grid", nest_changes(_merged(layers), point)))
    resolved = build_section(ExperimentConfig, drop_nulls(_merged(layers)), layers)
    validate_config(resolved)
    return resolved


def _check_point(point: dict[str, Any], base: Tree) -> None:
    """Raises UserError for two keys of the grid that set one value, as `teacher` and `teacher.model`, and for a key below a
    student, model or stage that there is not."""
    check_disjoint((f"grid.{key}", nest_changes(base, {key: value})) for key, value in point.items())
    for key in point:
        section, _, rest = key.partition(".")
        known = base.get(section, {})
        if section in NAMED_SECTIONS and rest and not any(rest == name or rest.startswith(f"{name}.") for name in known):
            name = rest.partition(".")[0]
            raise UserError(f"grid.{key}: {section} has no {name!r}{suggest(name, known)}")


def nest_changes(base: Tree, changes: dict[str, Any], where: str = "") -> Tree:
    """{'a.b': 1, 'c': {…}} → {a: {b: 1}, c: {…}}. where: of the changes, in errors. Raises UserError for two that set one
    value, as `a.b` beside `a: {b: …}`."""
    tree: Tree = {}
    nested: list[tuple[str, Tree]] = []
    for key, value in changes.items():
        one = _spell_out_teacher(nest_key(ExperimentConfig, deep_merge(base, tree), key, value))
        tree = deep_merge(tree, one)
        nested += [] if value == {} else [(f"{where}{key}", one)]  # an empty mapping sets nothing
    check_disjoint(nested)
    return tree


def _spell_out_teacher(tree: Tree) -> Tree:
    """`teacher: X` is short for `teacher: {model: X}`."""
    return {**tree, "teacher": {"model": tree["teacher"]}} if isinstance(tree.get("teacher"), str) else tree


def to_dict(config: Any) -> dict[str, Any]:
    """A config section as plain values under the keys users write."""
    values: dict[str, Any] = type_adapter(cast(Any, type(config))).dump_python(config, by_alias=True, warnings=False)
    return values


def non_default_fields(section: Any) -> dict[str, Any]:
    """The values of a section that are not its defaults, at every depth: what identifies it.

    A field that is added later, and left alone, changes no fingerprint. Whoever changes a default or what a value means
    raises `fingerprint.FINGERPRINT_VERSION`.
    """
    adapter = type_adapter(cast(Any, type(section)))
    values: dict[str, Any] = adapter.dump_python(section, by_alias=True, exclude_defaults=True, warnings=False)
    return values


def to_yaml(config: Any) -> str:
    """A config section as YAML that `load_experiment` reads back."""
    return dump_yaml(to_dict(config))


def find_experiment(path: Path) -> Path:
    """The file of an experiment: a path, or the name of a shipped one, as `quickstart`. Raises UserError."""
    if os.path.isfile(path):  # no error for a text that is longer than a path can be
        return path
    shipped = shipped_folder("experiments")
    if len(path.parts) == 1 and os.path.isfile(file := shipped / f"{path.name.removesuffix('.yaml')}.yaml"):
        return file
    names = [file.stem for file in shipped.glob("*.yaml")]
    beside = f"{path}.yaml"  # as `distill-lit init` writes it
    close = [beside] if os.path.isfile(beside) else difflib.get_close_matches(path.stem, names, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    raise UserError(f"no experiment file {path}{hint}; `distill-lit list experiments` shows the shipped ones")


def config_folders(start: Path) -> list[Path]:
    """Where `defaults` are looked for: the `configs` folder nearest to `start`, upwards, then the shipped one."""
    above = (folder / "configs" for folder in (start.resolve(), *start.resolve().parents))
    nearest = next((folder for folder in above if folder.is_dir()), None)
    return list(dict.fromkeys(folder for folder in (nearest, shipped_folder("configs")) if folder is not None))


def _compose(path: Path, trail: tuple[Path, ...]) -> list[Layer]:
    """What a file says, after what its `defaults` say."""
    if path in trail:
        raise UserError(f"defaults form a cycle: {' → '.join(p.stem for p in (*trail, path))}")
    tree = _read(path)
    names = tree.pop("defaults", None)
    names = [] if names is None else names
    if not isinstance(names, list):
        raise UserError(f"{path}: defaults is a list of names below configs/")
    base = [layer for name in names for layer in _compose(_default_path(path, str(name)), (*trail, path))]
    check_nulls(f"{path}: ", tree, _merged(base))
    return [*base, Layer(str(path), tree)]


def _placed(layers: list[Layer]) -> list[Layer]:
    """Files with their paths as they are from the current folder; only all of them together name the models."""
    files = _merged(layers)
    named = [_named(files, (section,)) for section in NAMED_SECTIONS]
    named += [_named(files, ("models", model, "stages")) for model in _named(files, ("models",))]
    models = {BASE_TEACHER}.union(*named)
    return [Layer(name, place_paths(ExperimentConfig, tree, Path(name).parent, models)) for name, tree in layers]


def _default_path(path: Path, name: str) -> Path:
    if ".." in PurePosixPath(name).parts or name.startswith("/"):
        raise UserError(f"{path}: defaults: {name!r} leaves the configs folder")
    folders = config_folders(path.parent)
    for folder in folders:
        if os.path.isfile(folder / f"{name}.yaml"):  # no error for a text that is longer than a path can be
            return folder / f"{name}.yaml"
    known = [str(p.relative_to(folder).with_suffix("")) for folder in folders for p in folder.rglob("*.yaml")]
    raise UserError(f"{path}: defaults: unknown {name!r}{suggest(name, known)}")


def _read(path: Path) -> Tree:
    if not os.path.isfile(path):
        raise UserError(f"no experiment file {path}")
    try:
        tree = parse_yaml(path.read_bytes())
    except (OSError, *PARSE_ERRORS) as error:
        raise UserError(f"{path}: not a plain YAML file: {one_line_message(error)}") from error
    if not isinstance(tree, dict) and tree is not None:
        raise UserError(f"{path}: not a mapping of keys to values")
    values: Tree = _spell_out_teacher(resolve_scalars(ExperimentConfig, tree or {}, ExperimentConfig))
    if isinstance(names := values.get("defaults"), list):
        values["defaults"] = resolve_scalars(list[str], (tree or {})["defaults"], ExperimentConfig) or names
    return values
