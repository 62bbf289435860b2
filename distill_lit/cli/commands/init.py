"""`distill-lit init`: a commented experiment to begin with."""

import argparse
import json
import re
from pathlib import Path

from rich.console import Console

from distill_lit.cli.arguments import CommandParsers, add_command
from distill_lit.cli.exit_codes import DONE
from distill_lit.utils.exceptions import UserError
from distill_lit.utils.files import write_text
from distill_lit.utils.shipped import shipped_folder


def add_parser(commands: CommandParsers) -> None:
    """Adds the command."""
    parser = add_command(
        commands,
        "init",
        "Write a commented experiment file to begin with.",
        "distill-lit init my_experiment",
        run,
    )
    parser.add_argument("name", help="name of the experiment and, with .yaml, of its file")
    parser.add_argument("--folder", type=Path, default=Path(), help="where to write it (default: here)")


def run(options: argparse.Namespace, console: Console) -> int:
    """Writes NAME.yaml. Raises UserError for a name that is no file name, and where the file is there already."""
    from distill_lit.config.validation import check_experiment_name

    name = options.name.removesuffix(".yaml")
    check_experiment_name(name)
    path = options.folder / f"{name}.yaml"
    if path.exists():
        raise UserError(f"init: {path} exists already; give another name")
    if not options.folder.is_dir():
        raise UserError(f"--folder {options.folder}: no such folder")
    template = (shipped_folder("configs") / "templates/experiment.yaml").read_text(encoding="utf-8")
    quoted = f"name: {json.dumps(name, ensure_ascii=False)}"  # YAML reads null, or 1e5, as no text
    write_text(path, re.sub("(name: )?NAME", lambda found: quoted if found[1] else name, template))
    console.print(f"{path} written; next: distill-lit plan {path}, then distill-lit run {path}", highlight=False)
    return DONE
