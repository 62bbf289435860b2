"""`distill-lit cost`: measures what the finished models cost to run."""

import argparse

from rich.console import Console

from distill_lit.cli.arguments import CommandParsers, add_experiment_command, load_checked_experiment
from distill_lit.cli.exit_codes import DONE


def add_parser(commands: CommandParsers) -> None:
    """Adds the command."""
    add_experiment_command(
        commands,
        "cost",
        "Measure speed, latency, memory and energy of the finished models; leave the machine alone meanwhile.",
        "distill-lit cost experiments/quickstart.yaml cost.blocks=10",
        run,
    )


def run(options: argparse.Namespace, console: Console) -> int:
    """Measures, and draws the report again."""
    experiment = load_checked_experiment(options)
    from distill_lit.cli.report_output import print_report

    folder = experiment.measure_costs(lambda line: console.print(line, highlight=False))
    if experiment.is_evaluated:
        print_report(experiment.render(), folder, console)
    return DONE
