"""`distill-lit fetch`: downloads what an experiment needs."""

import argparse

from rich.console import Console

from distill_lit.cli.arguments import CommandParsers, add_experiment_command, load_checked_experiment
from distill_lit.cli.exit_codes import DONE


def add_parser(commands: CommandParsers) -> None:
    """Adds the command."""
    add_experiment_command(
        commands,
        "fetch",
        "Download every asset of an experiment, so that it then runs offline.",
        "distill-lit fetch experiments/quickstart.yaml",
        run,
    )


def run(options: argparse.Namespace, console: Console) -> int:
    """Downloads and prepares all that the experiment needs from elsewhere."""
    experiment = load_checked_experiment(options)
    experiment.fetch(lambda name, path: console.print(f"{name} → {path}", highlight=False, soft_wrap=True))
    console.print("everything is here; HF_HUB_OFFLINE=1 works from now on")
    return DONE
