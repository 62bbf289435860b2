"""`distill-lit run`: runs what is not done, then draws the report."""

import argparse
import time

from rich.console import Console

from distill_lit.cli.arguments import CommandParsers, add_experiment_command, load_checked_experiment
from distill_lit.cli.exit_codes import DONE, SOME_RUNS_FAILED
from distill_lit.utils.exceptions import UserError


def add_parser(commands: CommandParsers) -> None:
    """Adds the command."""
    parser = add_experiment_command(
        commands,
        "run",
        "Run what is not done yet of an experiment, then draw its report.",
        "distill-lit run experiments/quickstart.yaml seed=1",
        run,
    )
    parser.add_argument("--dry-run", action="store_true", help="the same as `plan`")


def run(options: argparse.Namespace, console: Console) -> int:
    """Plans, runs what is missing, collects, reports."""
    experiment = load_checked_experiment(options)
    from distill_lit.cli.launch import launch
    from distill_lit.cli.report_output import print_report
    from distill_lit.cli.run_table import print_plan
    from distill_lit.experiment.stopping import Terminated

    if options.dry_run:
        print_plan(experiment, experiment.plan(), console)
        return DONE
    began = time.monotonic()
    experiment.prepare()
    try:
        failed = launch(experiment, console)
    except Terminated as stop:
        return stop.code
    folder = experiment.collect(failed)
    code = SOME_RUNS_FAILED if failed else DONE
    if not experiment.is_evaluated:
        console.print(f"no model was evaluated, so nothing is drawn; {folder / 'runs.csv'} says why", soft_wrap=True)
        return code
    problem: Exception | None = None
    if experiment.config.cost.measure and not failed:
        try:
            experiment.measure_costs(lambda line: console.print(line, highlight=False))
        except (UserError, RuntimeError, OSError) as error:  # what cannot be measured takes no score away
            problem = error
    print_report(experiment.render(), folder, console)
    if problem is not None:
        raise problem
    console.print(f"{folder} drawn after {(time.monotonic() - began) / 60:.1f} minutes", highlight=False)
    return code
