"""`distill-lit cache`: writes the outputs of an offline teacher."""

import argparse

from rich.console import Console

from distill_lit.cli.arguments import CommandParsers, add_experiment_command, load_checked_experiment


def add_parser(commands: CommandParsers) -> None:
    """Adds the command."""
    add_experiment_command(
        commands,
        "cache",
        "Write the teacher caches of an experiment, and what they need.",
        "distill-lit cache experiments/quickstart.yaml",
        run,
    )


def run(options: argparse.Namespace, console: Console) -> int:
    """Runs the runs of this role and what they depend on; prints what they made."""
    experiment = load_checked_experiment(options)
    from distill_lit.cli.launch import launch_role
    from distill_lit.config.roles import Role

    return launch_role(experiment, Role.TEACHER_CACHE, "teacher.source: offline", console)
