"""`distill-lit generate`: writes the corpora that a teacher generates."""

import argparse

from rich.console import Console

from distill_lit.cli.arguments import CommandParsers, add_experiment_command, load_checked_experiment


def add_parser(commands: CommandParsers) -> None:
    """Adds the command."""
    add_experiment_command(
        commands,
        "generate",
        "Write the generated corpora of an experiment, and nothing else.",
        "distill-lit generate experiments/sequence_level.yaml",
        run,
    )


def run(options: argparse.Namespace, console: Console) -> int:
    """Runs the runs of this role and what they depend on; prints what they made."""
    experiment = load_checked_experiment(options)
    from distill_lit.cli.launch import launch_role
    from distill_lit.config.roles import Role

    return launch_role(experiment, Role.GENERATED, "a corpus with `generated`", console)
