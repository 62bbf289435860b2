"""What a whole experiment must hold beyond the types of its values."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from distill_lit.config.grid_points import axis_keys, check_grid, grid_keys
from distill_lit.config.interpolation import interpolated_keys
from distill_lit.config.roles import Role
from distill_lit.config.schema import BASELINES, ExperimentConfig
from distill_lit.config.variants import all_variants, leaf_paths
from distill_lit.utils.exceptions import UserError, suggest

MAX_NAME_BYTES = 200  # of the 255 that the name of a folder may have
# names of models that are no students
RESERVED_NAMES = BASELINES
EXPERIMENT_WIDE_KEYS = ("name", "question", "dataset_source", "evaluation", "cost", "analysis", "report", "hypotheses",
                        "launcher", "grid", "plugins", "variants", "baselines", "external_models")  # fmt: skip


def _check_varies(what: str, key: str) -> None:
    """Runs of one experiment answer the same questions."""
    if key.split(".")[0] in EXPERIMENT_WIDE_KEYS or key in ("students", "models"):
        raise UserError(f"{what}: holds for the whole experiment; write one experiment for each value")


def check_experiment_name(name: str) -> None:
    """Raises UserError unless an experiment can have this name, which its folders bear."""
    if not name:
        raise UserError("name: it is required and has no value")
    fits = re.fullmatch(r"[A-Za-z0-9][\w.-]{,99}", name) and len(name.encode()) <= MAX_NAME_BYTES
    if not fits or ".." in name or name == "index.html":
        raise UserError(f"name: {name[:120]!r} must be a plain folder name: letters, digits, '.', '_', '-', at most 100")


def validate_config(config: ExperimentConfig) -> None:
    """Raises UserError for names that cannot be, and for what only whole experiments have; names the student of an
    experiment of one."""
    check_experiment_name(config.name)
    if not config.teacher.model:
        raise UserError("teacher.model: it is required and has no value")
    if not config.students:
        raise UserError("students: at least one is needed, as in {half: {num_layers: 15}}")
    for name in config.students:
        if not re.fullmatch(r"[A-Za-z0-9][\w-]{,99}", name):
            raise UserError(f"students.{name}: a name is made of letters, digits, '_' and '-', at most 100")
        if name in RESERVED_NAMES:
            raise UserError(f"students.{name}: the name is taken; choose another")
    for name in config.models:
        if not re.fullmatch(r"[A-Za-z0-9][\w-]{,99}", name) or name in RESERVED_NAMES:
            raise UserError(f"models.{name}: a name is made of letters, digits, '_' and '-', and is not taken")
    for name in config.stages:
        if not re.fullmatch(r"[A-Za-z0-9][\w-]{,99}", name) or name == Role.TEACHER:
            raise UserError(f"stages.{name}: a name is made of letters, digits, '_' and '-', at most 100, and is not taken")
    if config.student and config.student not in config.students:
        raise UserError(f"student: unknown value {config.student!r}{suggest(config.student, config.students)}")
    for name in config.external_models:
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]{,99}", name) or name in (*config.students, *RESERVED_NAMES):
            raise UserError(f"external_models.{name}: a name is made of letters, digits, '_', '.', '-', and is not taken")
    for name in config.evaluation.probes:
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]{,99}", name) or name in config.evaluation.tasks:
            raise UserError(f"evaluation.probes.{name}: a name is made of letters, digits, '_', '.', '-', and is no task's")
    if config.analysis.primary_endpoint.startswith("probe_") and not config.evaluation.probes:
        raise UserError(
            f"analysis.primary_endpoint: {config.analysis.primary_endpoint}, and evaluation.probes names no text"
        )
    for key in grid_keys(config.grid):
        _check_varies(f"grid.{key}", key)
    check_grid(config.grid)
    for variant in all_variants(config):
        for key in variant.changes:
            _check_varies(f"{variant.name}.{key}", str(key))
            if key.split(".")[0] == "variant":
                raise UserError(f"{variant.name}.{key}: a variant cannot choose another one")
    if "student" not in axis_keys(config.grid) and not config.student:
        config.student = _sole_student(config)


def _sole_student(config: ExperimentConfig) -> str:
    """The student of an experiment that chooses none: the first, where `models`, variants or the grid name all others.
    Raises UserError for one that nothing names: it would never run."""
    first, *others = config.students
    named = set(_texts([config.models, config.variants, config.grid]))
    if left := [name for name in others if name not in named]:
        names = ", ".join([first, *left])
        raise UserError(
            f"students: nothing says which of {names} to train; all: grid: {{student: [{names}]}}, one: student: {first}"
        )
    return first


def _texts(value: Any) -> Iterator[str]:
    """All texts in a tree, but for keys."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, str):
        yield value


def check_interpolations(config: ExperimentConfig, tree: dict[str, Any]) -> None:
    """Raises UserError for a `${key}` whose key the grid or a variant changes, but not the key that it is the value of: it
    has been replaced before. tree: what the config was made of, before that."""
    axes = set(grid_keys(config.grid))
    sources = {"the grid": axes} | {
        one.name: axes | set(map(".".join, leaf_paths(one.changes))) for one in all_variants(config)
    }
    for where, key in interpolated_keys(tree):
        for source, changed in sources.items():
            is_changed = any(_is_at(key, one) or _is_at(one, key) for one in changed)
            if is_changed and not any(_is_at(where, one) for one in changed):
                raise UserError(
                    f"{where}: ${{{key}}} is replaced before {source} changes {key}; give {where} there too, or write its "
                    "value here"
                )


def _is_at(key: str, other: str) -> bool:
    """Whether a dotted key is another one, or below it."""
    return key == other or key.startswith(f"{other}.")
