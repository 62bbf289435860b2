"""YAML files + `defaults` + `key=value` overrides → a checked experiment, and its grid of cells."""

import copy
import dataclasses
import functools
import itertools
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar, cast

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from distill_lit.config.knobs import check_knobs, check_types
from distill_lit.config.schema import BASELINES, RIVAL_BASELINES, ExperimentConfig
from distill_lit.errors import UserError, suggest

Section = TypeVar("Section")
# `from` is a word of Python, so the dataclass field has an underscore that no user should see
FIELD_OF_KEY = {"from": "from_"}
KEY_OF_FIELD = {field: key for key, field in FIELD_OF_KEY.items()}
# names of files beside the records of models, and of models that are no students
TAKEN = (*BASELINES, *RIVAL_BASELINES, "documents", "frequencies", "surprisal")
WHOLE_EXPERIMENT = ("name", "question", "benchmarks", "evaluation", "cost", "analysis", "launcher", "grid", "variants",
                    "baselines", "rivals")  # fmt: skip
# what OmegaConf and PyYAML raise beside their own kinds where a value has a shape they did not expect
SURPRISES = (TypeError, ValueError, AttributeError, AssertionError, LookupError, RecursionError, yaml.YAMLError)
# an experiment file must not be able to read secrets out of the environment into its manifest
OmegaConf.clear_resolver("oc.env")


def load_experiment(path: Path, overrides: list[str] | None = None) -> ExperimentConfig:
    """The checked experiment in `path` with `key=value` overrides. Raises UserError for anything wrong in it."""
    return resolve(_compose(path, ()), overrides or [])


def load_section(schema: type[Section], overrides: list[str]) -> Section:
    """One checked section of the config from `key=value` overrides alone."""
    section = _merge(schema, OmegaConf.create({}), overrides)
    check_knobs(section)
    return section


def resolve(tree: DictConfig, overrides: list[str]) -> ExperimentConfig:
    """Merges a composed tree and dotlist overrides into the schema, and checks every value."""
    config = _merge(ExperimentConfig, tree, overrides)
    _check(config)
    return config


def _merge(schema: type[Section], tree: DictConfig, overrides: list[str]) -> Section:
    for override in overrides:
        if not re.match(r"[\w.-]+=", override):
            raise UserError(f"override {override!r} is not key=value")
    with _telling():
        given = _renamed(OmegaConf.from_dotlist(overrides))
        _check_removed("", given, tree)
        for part in (tree, given):
            check_types(schema, OmegaConf.to_container(part))
        merged = OmegaConf.merge(_structured(cast(Any, schema)), _without_removed(OmegaConf.merge(tree, given)))
        config = OmegaConf.to_object(merged)
    assert isinstance(config, schema)
    return config


def _without_removed(tree: Any) -> Any:
    """The tree without corpora that are null, which is how one takes away what a default or the base has."""
    corpora = OmegaConf.select(tree, "data.corpora")
    if OmegaConf.is_dict(corpora):
        for name in [name for name in corpora if corpora[name] is None]:
            del corpora[name]
    return tree


def _check_removed(where: str, changes: Any, base: Any) -> None:
    """Raises UserError for a null corpus in `changes` that `base` does not have: a name misspelt would remove nothing."""
    asked, known = OmegaConf.select(changes, "data.corpora"), OmegaConf.select(base, "data.corpora")
    names = list(known) if OmegaConf.is_dict(known) else []
    for name in asked if OmegaConf.is_dict(asked) else ():
        if asked[name] is None and name not in names:
            raise UserError(
                f"{where}data.corpora.{name}: null, and there is no corpus of this name{suggest(str(name), names)}"
            )


@functools.cache
def _structured(schema: Any) -> Any:
    return OmegaConf.structured(schema)


@contextmanager
def _telling() -> Iterator[None]:
    """Inside, whatever OmegaConf raises becomes a UserError."""
    try:
        yield
    except MissingMandatoryValue as error:
        raise UserError(f"{error.full_key}: a value is needed and there is none") from error
    except OmegaConfBaseException as error:
        raise UserError(_explain(error)) from error
    except SURPRISES as error:
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"a value does not have the form that its key needs: {said}") from error


def expand(config: ExperimentConfig) -> Iterator[tuple[dict[str, Any], ExperimentConfig]]:
    """({grid key: value}, the experiment with these values) for every cell of the grid, in the order of the file."""
    key = json.dumps(dataclasses.asdict(config), default=str)
    if key not in _expanded:
        base = OmegaConf.create(dataclasses.asdict(config))
        points = [dict(zip(config.grid, values, strict=True)) for values in itertools.product(*config.grid.values())]
        if len(_expanded) == EXPANSIONS:
            _expanded.clear()
        _expanded[key] = [(point, resolve(_at_point(base, point, config), [])) for point in points]
    yield from copy.deepcopy(_expanded[key])


# a point takes OmegaConf 25 ms, and an experiment is expanded by whoever looks at all its cells
EXPANSIONS = 8
_expanded: dict[str, list[tuple[dict[str, Any], ExperimentConfig]]] = {}


def _at_point(base: DictConfig, point: dict[str, Any], config: ExperimentConfig) -> DictConfig:
    tree = copy.deepcopy(base)
    variant = point.get("variant", config.variant)
    if variant:
        if variant not in config.variants:
            raise UserError(f"variant: unknown value {variant!r}{suggest(variant, config.variants)}")
        with _telling():
            changes = _nested(config.variants[variant])
            _check_removed(f"variants.{variant}.", changes, tree)
            tree = OmegaConf.merge(tree, changes)  # type: ignore[assignment]
    with _telling():
        for key, value in point.items():
            OmegaConf.update(tree, _field_path(key), _rename(value), merge=True, force_add=True)
    return tree


def to_dict(config: Any) -> dict[str, Any]:
    """A config section as plain values under the keys users write."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {KEY_OF_FIELD.get(key, key): plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, list) else value

    result: dict[str, Any] = plain(dataclasses.asdict(config))
    return result


def decisive(section: Any) -> dict[str, Any]:
    """The values of a section that are not its defaults, and those without a default: what identifies it.

    A knob that is added later, and left alone, changes no identity. Whoever changes a default or what a value means
    raises `identity.VERSION`.
    """
    known = {}
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        default = field.default_factory() if callable(field.default_factory) else field.default
        if value != default:
            known[KEY_OF_FIELD.get(field.name, field.name)] = _decisive_value(value)
    return known


def _decisive_value(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return decisive(value)
    return {key: _decisive_value(item) for key, item in value.items()} if isinstance(value, dict) else value


def to_yaml(config: Any) -> str:
    """A config section as YAML that `load_experiment` reads back."""
    text: str = yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True, width=120)
    return text


def find_configs(start: Path) -> Path:
    """The `configs` folder nearest to `start`, upwards."""
    for folder in (start.resolve(), *start.resolve().parents):
        if (folder / "configs").is_dir():
            return folder / "configs"
    raise UserError(f"no configs/ folder beside or above {start}, needed by `defaults`")


def _compose(path: Path, trail: tuple[Path, ...]) -> DictConfig:
    if path in trail:
        raise UserError(f"defaults form a cycle: {' → '.join(p.stem for p in (*trail, path))}")
    tree = _read(path)
    with _telling():
        names = tree.pop("defaults", None) or []
        if not isinstance(names, list) and not OmegaConf.is_list(names):
            raise UserError(f"{path}: defaults is a list of names below configs/")
        merged = OmegaConf.create({})
        for name in names:
            merged = OmegaConf.merge(merged, _compose(_default_path(path, str(name)), (*trail, path)))  # type: ignore
        _check_removed(f"{path}: ", tree, merged)
        return OmegaConf.merge(merged, tree)  # type: ignore[return-value]


def _default_path(path: Path, name: str) -> Path:
    if ".." in PurePosixPath(name).parts or name.startswith("/"):
        raise UserError(f"{path}: defaults: {name!r} leaves the configs folder")
    folder = find_configs(path.parent)
    file = folder / f"{name}.yaml"
    if not file.is_file():
        known = [str(p.relative_to(folder).with_suffix("")) for p in folder.rglob("*.yaml")]
        raise UserError(f"{path}: defaults: unknown {name!r}{suggest(name, known)}")
    return file


def _read(path: Path) -> DictConfig:
    if not path.is_file():
        raise UserError(f"no experiment file {path}")
    try:
        tree = OmegaConf.load(path)
    except (OmegaConfBaseException, OSError, *SURPRISES) as error:
        line = " ".join(str(error).split())
        raise UserError(f"{path}: not a plain YAML file: {line}") from error
    if not isinstance(tree, DictConfig):
        raise UserError(f"{path}: not a mapping of keys to values")
    with _telling():
        return _renamed(tree)


def _renamed(tree: Any) -> DictConfig:
    renamed: DictConfig = OmegaConf.create(_rename(OmegaConf.to_container(tree)))
    return renamed


def _rename(value: Any) -> Any:
    """A plain value with the names of fields for the keys that users write."""
    if isinstance(value, dict):
        return {FIELD_OF_KEY.get(key, key): _rename(item) for key, item in value.items()}
    return [_rename(item) for item in value] if isinstance(value, list) else value


def _nested(overrides: dict[str, Any]) -> DictConfig:
    """{'a.b': 1, 'c': {…}} → {a: {b: 1}, c: {…}}."""
    tree = OmegaConf.create({})
    for key, value in overrides.items():
        OmegaConf.update(tree, _field_path(str(key)), _rename(value), merge=True)
    return tree


def _field_path(key: str) -> str:
    return ".".join(FIELD_OF_KEY.get(part, part) for part in key.split("."))


def _explain(error: OmegaConfBaseException) -> str:
    key = (getattr(error, "full_key", None) or getattr(error, "key", None) or "").replace("from_", "from")
    kind = getattr(error, "object_type", None)
    if "not in" in str(error) and kind is not None and dataclasses.is_dataclass(kind):
        fields = [KEY_OF_FIELD.get(f.name, f.name) for f in dataclasses.fields(kind)]
        return f"unknown key {key!r}{suggest(str(key).rsplit('.')[-1], fields)}"
    return f"{key}: {str(error).splitlines()[0]}" if key else str(error).splitlines()[0]


def _check_varies(what: str, key: str) -> None:
    """Cells of one experiment answer the same questions beside the same teacher."""
    if key.split(".")[0] in WHOLE_EXPERIMENT or key in ("teacher", "teacher.model", "students"):
        raise UserError(f"{what}: holds for the whole experiment; write one experiment for each value")


def _check(config: ExperimentConfig) -> None:
    check_knobs(config)
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]{,99}", config.name) or ".." in config.name or config.name == "index.html":
        raise UserError(
            f"name: {config.name[:120]!r} must be a plain folder name: letters, digits, '.', '_', '-', at most 100"
        )
    if not config.students:
        raise UserError("students: at least one is needed, as in {half: {depth: 15}}")
    for name in config.students:
        if not re.fullmatch(r"[A-Za-z0-9][\w-]{,99}", name):
            raise UserError(f"students.{name}: a name is made of letters, digits, '_' and '-', at most 100")
        if name in TAKEN:
            raise UserError(f"students.{name}: the name is taken; choose another")
    if config.student and config.student not in config.students:
        raise UserError(f"student: unknown value {config.student!r}{suggest(config.student, config.students)}")
    for name in config.baselines:
        if name not in (*BASELINES, *RIVAL_BASELINES):
            raise UserError(f"baselines: unknown value {name!r}{suggest(name, (*BASELINES, *RIVAL_BASELINES))}")
    for name in config.rivals:
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]{,99}", name) or name in (*config.students, *TAKEN):
            raise UserError(f"rivals.{name}: a name is made of letters, digits, '_', '.' and '-', and is not taken")
    for name in ("batches", "prompts", "outputs"):
        if not getattr(config.cost, name):
            raise UserError(f"cost.{name}: has no values")
    for key, values in config.grid.items():
        if not values:
            raise UserError(f"grid.{key}: has no values")
        _check_varies(f"grid.{key}", key)
    for variant, changes in config.variants.items():
        for key in changes:
            _check_varies(f"variants.{variant}.{key}", str(key))
        if "variant" in changes:
            raise UserError(f"variants.{variant}.variant: a variant cannot choose another one")
    if "student" not in config.grid and not config.student:
        config.student = next(iter(config.students))
