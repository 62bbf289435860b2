"""`distill-lit list`: what there is to choose from, a line each."""

import argparse
import itertools
import json
import re
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import get_args

from rich.console import Console

from distill_lit.cli.arguments import CommandParsers, add_command
from distill_lit.cli.exit_codes import DONE
from distill_lit.cli.paper_terms import paper_terms
from distill_lit.utils.exceptions import UserError, suggest
from distill_lit.utils.shipped import shipped_folder

Line = tuple[str, str | Callable[[], str]]  # name, and what is said of it or makes that


def add_parser(commands: CommandParsers) -> None:
    """Adds the command."""
    description = "List what there is to choose from, a line each; what papers call it, with its key and file."
    parser = add_command(commands, "list", description, "distill-lit list terms MiniLLM", run)
    kinds = f"{', '.join(_makers())}; terms: what papers call it, with the key that asks for it and the file to read"
    parser.add_argument("what", help=kinds)
    about_words = "only lines whose name holds these words; of terms the whole line, as in `list terms 2402.03898`"
    parser.add_argument("words", nargs="*", help=about_words)
    about = "with `tasks`: results folder, of whose tasks chance, the teacher's score and signal to noise are shown"
    parser.add_argument("--records", type=Path, help=about)


def _makers() -> dict[str, Callable[[], Iterable[Line]]]:
    return {
        "objectives": _objectives,
        "teachers": _teachers,
        "students": _students,
        "tasks": _tasks,
        "experiments": _experiments,
        "defaults": _defaults,
        "assets": _assets,
        "fields": _fields,
        "terms": _terms,
    }


def run(options: argparse.Namespace, console: Console) -> int:
    """Prints the lines of one kind."""
    if options.records is not None and options.what != "tasks":
        raise UserError(f"--records goes with `list tasks`, not with `list {options.what}`")
    makers, word = _makers(), " ".join(options.words).lower()
    if options.what not in makers:
        hint = suggest(options.what, makers)
        raise UserError(f"list: unknown kind {options.what!r}{hint}; a paper's word: distill-lit list terms {options.what}")
    lines = list(_signals(options.records) if options.records is not None else makers[options.what]())
    searched = [f"{name} {about}" if options.what == "terms" else name for name, about in lines]
    lines = [line for line, text in zip(lines, searched, strict=True) if word in text.lower()]
    if word and not lines:
        raise UserError(f"list {options.what}: no line holds {word!r}; without it all are listed")
    width = max((len(name) for name, _ in lines), default=0)
    for name, about in lines:
        console.print(
            f"{name:<{width}}  {about if isinstance(about, str) else about()}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    return DONE


def _objectives() -> Iterable[Line]:
    from distill_lit.losses import FEATURE_LOSSES, LOGIT_LOSSES, PRESETS
    from distill_lit.training.feature_alignment import describe_feature_teachers

    for name, kind in LOGIT_LOSSES.items():
        options = f" [{', '.join(kind.options)}]" if kind.options else ""
        yield name, kind.about + options
    for name, other in FEATURE_LOSSES.items():
        yield name, f"{other.about} [{', '.join(other.options)}] Needs teacher.source {describe_feature_teachers(name)}."
    for name, preset in PRESETS.items():
        yield f"preset: {name}", preset.about


def _teachers() -> Iterable[Line]:
    from distill_lit.teachers.registry import TEACHER_SOURCES

    for name, source in TEACHER_SOURCES.items():
        yield name, source.about


def _students() -> Iterable[Line]:
    from distill_lit.config.fields import QuantizationAware, Quantize
    from distill_lit.models.pruning import LAYER_SELECTION_METHODS

    yield "num_layers: n", f"n layers of the teacher, chosen by layers: {', '.join(LAYER_SELECTION_METHODS)}, or listed"
    yield "{}", "all layers of the teacher, with its weights"
    yield "width: {…}", "fewer hidden channels, heads, key-value groups, neurons of the teacher, by activation importance"
    yield "from: reference", "a pretrained model with the teacher's tokenizer"
    yield "config: {…}", "random weights; the teacher's transformers config with these changes"
    yield "lora: {rank: r}", "low-rank adapters on any of these, or on the whole teacher; merged when training is done"
    schemes = ", ".join(scheme for scheme in get_args(QuantizationAware) if scheme != "none")
    yield "quantization_aware: scheme", f"weights rounded in every forward pass of the training, and exported so: {schemes}"
    recipes = ", ".join(recipe for recipe in get_args(Quantize) if recipe != "none")
    yield "quantize: recipe", f"weights rounded when training is done: {recipes}"


def _tasks() -> Iterable[Line]:
    from distill_lit.evaluation.task_names import IN_PACKAGES, TASK_GROUPS, describe_task_data, load_task_index

    index = load_task_index()
    for name, members in TASK_GROUPS.items():
        without = [f"{member} {where}" for member in members if (where := describe_task_data(member, index)) != IN_PACKAGES]
        yield name, "; ".join([f"group of ours: {', '.join(members)}", *without])
    for name in sorted(index):
        if name not in TASK_GROUPS:
            yield name, partial(describe_task_data, name, index)


def _signals(records: Path) -> Iterable[Line]:
    """The tasks in the records of a results folder, with what they can tell."""
    from distill_lit.experiment.power import teacher_signals
    from distill_lit.report.number_format import format_number, format_points, format_with_interval

    for signal in teacher_signals(records):
        teacher = "no teacher"
        if signal.teacher.value == signal.teacher.value:
            at_chance = "" if signal.above_chance else " (at chance)"
            teacher = f"teacher {format_with_interval(*signal.teacher)}{at_chance}"
        spread = f"spread of models {format_points(signal.signal)}, of seeds {format_points(signal.noise)}"
        ratio = f"signal to noise {format_number(signal.signal_to_noise)}"
        chance = f"chance {format_points(signal.chance)}"
        yield signal.task, f"{signal.metric}, {signal.n} documents, {chance}, {teacher}, {spread}, {ratio}"


def _experiments() -> Iterable[Line]:
    own, shipped = Path("experiments"), shipped_folder("experiments")
    folder = own if own.is_dir() else shipped
    for path in sorted(folder.glob("*.yaml")):
        yield str(path) if folder == own else path.stem, _first_sentence(path)


def _defaults() -> Iterable[Line]:
    from distill_lit.config.loading import config_folders

    paths = {
        path.relative_to(folder).with_suffix("").as_posix(): path
        for folder in reversed(config_folders(Path()))
        for path in folder.rglob("*.yaml")
    }
    for name, path in sorted(paths.items()):
        if not name.startswith("templates/"):  # what `init` copies: a whole experiment
            yield name, _first_sentence(path)


def _first_sentence(path: Path) -> str:
    """Of the comment that a file begins with, which may be anything in a file of one's own."""
    with path.open(encoding="utf-8", errors="replace") as file:
        lines = itertools.takewhile(lambda line: line.startswith("#"), file)
        comment = " ".join(line.strip("# \n") for line in lines)
    return re.split(r"(?<=[.?!])(?<!et al\.)\s", comment, maxsplit=1)[0]


def _assets() -> Iterable[Line]:
    from distill_lit import assets

    for name, digest in assets.PINNED_WHEELS.items():
        here = "here" if assets.is_fetched(f"pypi:{name}") else f"{assets.WHEEL_MEGABYTES.get(name, '?')} MB to download"
        yield f"pypi:{name}", f"sha256 {digest[:12]}…, {here}"


def _fields() -> Iterable[Line]:
    from distill_lit.config.json_schema import describe_fields

    for field in describe_fields():
        allowed = f" [{field.allowed}]" if field.allowed else ""
        yield f"{field.key}={json.dumps(field.default, ensure_ascii=False)}", field.description + allowed


def _terms() -> Iterable[Line]:
    for term, key, files in paper_terms():
        yield term, f"{key} [{files}]".replace("`", "")
