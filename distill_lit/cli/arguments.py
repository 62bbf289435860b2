"""What the commands share: a parser with an example, the arguments of an experiment, and how it is loaded and checked."""

import argparse
import gc
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from distill_lit.utils.exceptions import UserError

if TYPE_CHECKING:
    from distill_lit.config import ExperimentConfig
    from distill_lit.experiment.experiment import Experiment

CommandParsers = argparse._SubParsersAction  # what `add_subparsers` returns
Command = Callable[[argparse.Namespace, Console], int]


def add_command(
    commands: CommandParsers, name: str, description: str, example: str, run: Command
) -> argparse.ArgumentParser:
    """A command with its help. run: does it, and returns the exit code."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=description,
        description=description,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def add_experiment_command(
    commands: CommandParsers, name: str, description: str, example: str, run: Command
) -> argparse.ArgumentParser:
    """A command on an experiment: its file, overrides of its keys, and the root of its folders."""
    parser = add_command(commands, name, description, example, run)
    parser.add_argument(
        "experiment", type=Path, help="experiment file, or the name of a shipped one, see `distill-lit list experiments`"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="overrides of any key of the experiment")
    parser.add_argument("--root", type=Path, default=Path(), help="where runs/ and results/ are (default: here)")
    return parser


def load_experiment_of(options: argparse.Namespace, writes: bool = True) -> "Experiment":
    """The experiment of a command, its values checked but not compared with anything else. Raises UserError."""
    from distill_lit.config import load_experiment

    config = load_experiment(options.experiment, options.overrides)
    check_root(options.root, config.name, writes)
    from distill_lit.evaluation.tasks import check_task_names

    if writes:
        check_task_names(config.evaluation, config.dataset_source)  # misspelt names are reported before torch is imported
    gc.disable()  # nothing of what an import makes is garbage
    from distill_lit.experiment.experiment import Experiment

    gc.enable()
    command = " ".join(["distill-lit run", str(options.experiment), *options.overrides])
    return Experiment(config, options.root, command)


def load_checked_experiment(options: argparse.Namespace) -> "Experiment":
    """The experiment of a command. Raises UserError for whatever can be wrong with it before a model or a data set is
    loaded."""
    experiment = load_experiment_of(options)
    experiment.validate()
    experiment.check_hypotheses(options.experiment, options.overrides)
    return experiment


def check_root(root: Path, name: str, writes: bool = True) -> None:
    """Raises UserError unless runs/name and results/name can be folders below `root`, and where something is written,
    folders that this user may write to. A link to a folder is one; a link to nothing is none."""
    for kind in ("runs", "results"):
        place = root.absolute() / kind / name
        while not os.path.lexists(place):
            place = place.parent
        if place.is_symlink() and not place.exists():
            raise UserError(f"--root {root}: {place} is a link to {os.readlink(place)}, which is not there; make it first")
        if not place.is_dir() or (writes and not os.access(place, os.W_OK | os.X_OK)):
            raise UserError(f"--root {root}: {place} is no folder that can be {'written to' if writes else 'read'}")


def check_new_file(path: Path) -> None:
    """Raises UserError where --out cannot be a new file at `path`."""
    folder = path.absolute().parent
    if os.path.lexists(path):
        raise UserError(f"--out {path}: is there already; remove it, or give another name")
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"--out {path}: {folder} is no folder that can be written to")


def find_results(path: Path, overrides: list[str]) -> "tuple[Path, ExperimentConfig]":
    """The results folder and the config of an argument. Raises UserError for what is neither folder nor experiment."""
    from distill_lit.config import load_experiment

    if os.path.isdir(path):
        if not (path / "plan.yaml").is_file():
            raise UserError(f"{path}: no plan.yaml and records.parquet in it, so it is no results folder")
        return path, load_experiment(path / "plan.yaml", overrides, must_test=False)
    if not os.path.isfile(path):
        raise UserError(f"{path}: neither a results folder nor an experiment file")
    config = load_experiment(path, overrides)
    return Path("results") / config.name, config
