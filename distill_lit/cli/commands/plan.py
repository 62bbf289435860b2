"""`distill-lit plan`: what an experiment would run, and what that costs."""

import argparse
from pathlib import Path

from rich.console import Console

from distill_lit.cli.arguments import CommandParsers, add_experiment_command, load_checked_experiment
from distill_lit.cli.exit_codes import DONE


def add_parser(commands: CommandParsers) -> None:
    """Adds the command."""
    parser = add_experiment_command(
        commands,
        "plan",
        "Show the runs of an experiment, their tokens, arithmetic, memory, disk and minutes, and what difference its "
        "documents and seeds can decide; run nothing.",
        "distill-lit plan experiments/quickstart.yaml training.max_tokens=1000000",
        run,
    )
    parser.add_argument("--records", type=Path, help="results folder whose variances say what can be decided (default: the "
                        "experiment's own, else the one in results/ that shares most of its tasks)")  # fmt: skip


def run(options: argparse.Namespace, console: Console) -> int:
    """Prints the plan."""
    experiment = load_checked_experiment(options)
    from distill_lit.cli.power_lines import print_power
    from distill_lit.cli.run_table import print_plan
    from distill_lit.experiment.power import planned_power

    power = planned_power(experiment, options.records)
    print_plan(experiment, experiment.plan(), console)
    if power is not None:
        print_power(power, experiment.config.evaluation.limit, console)
    elif options.records is not None:
        console.print(
            f"--records {options.records} says nothing of this plan: no student is compared with the same one without the "
            "teacher, or its teacher is at chance on every task",
            style="yellow", highlight=False, markup=False, soft_wrap=True,
        )  # fmt: skip
    return DONE
