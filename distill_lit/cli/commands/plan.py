"""`distill-lit plan`: what an experiment would run, and what that costs."""

import argparse

from rich.console import Console

from distill_lit.cli.arguments import CommandParsers, add_experiment_command, load_checked_experiment
from distill_lit.cli.exit_codes import DONE


def add_parser(commands: CommandParsers) -> None:
    """Adds the command."""
    add_experiment_command(
        commands,
        "plan",
        "Show the runs of an experiment, their tokens, arithmetic, disk and minutes; run nothing.",
        "distill-lit plan experiments/quickstart.yaml training.max_tokens=1000000",
        run,
    )


def run(options: argparse.Namespace, console: Console) -> int:
    """Prints the plan."""
    experiment = load_checked_experiment(options)
    from distill_lit.cli.run_table import print_plan

    print_plan(experiment, experiment.plan(), console)
    return DONE
