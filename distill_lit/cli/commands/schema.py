"""`distill-lit schema`: the JSON schema of experiment files."""

import argparse
import json

from rich.console import Console

from distill_lit.cli.arguments import CommandParsers, add_command
from distill_lit.cli.exit_codes import DONE


def add_parser(commands: CommandParsers) -> None:
    """Adds the command."""
    add_command(
        commands,
        "schema",
        "Print the JSON schema of experiment files, by which editors complete and check them. VS Code's YAML extension "
        "reads it where a file has the line  # yaml-language-server: $schema=experiment.schema.json",
        "distill-lit schema > configs/experiment.schema.json",
        run,
    )


def run(options: argparse.Namespace, console: Console) -> int:
    """Prints it."""
    from distill_lit.config.json_schema import experiment_json_schema

    text = json.dumps(experiment_json_schema(), indent=2, ensure_ascii=False)
    console.print(text, markup=False, highlight=False, soft_wrap=True)
    return DONE
