"""`distill-lit status`: which runs are done, failed, or missing."""

import argparse
from collections import Counter

from rich.console import Console
from rich.table import Table
from rich.text import Text

from distill_lit.cli.arguments import CommandParsers, add_experiment_command, load_experiment_of
from distill_lit.cli.exit_codes import DONE


def add_parser(commands: CommandParsers) -> None:
    """Adds the command."""
    add_experiment_command(
        commands,
        "status",
        "Show which runs are done, failed or missing.",
        "distill-lit status experiments/quickstart.yaml",
        run,
    )


def run(options: argparse.Namespace, console: Console) -> int:
    """Prints the status of every run, as it is on disk."""
    experiment = load_experiment_of(options, writes=False)
    table = Table("run", "status", "note")
    statuses = experiment.statuses()
    for planned in experiment.runs:
        status, note = statuses[planned.name]
        table.add_row(Text(planned.label), status, Text(note))
    console.print(table)
    counts = Counter(status for status, _ in statuses.values())
    console.print(", ".join(f"{count} {status}" for status, count in counts.items()))
    return DONE
