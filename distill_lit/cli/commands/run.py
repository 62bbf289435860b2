"""`distill-lit run`: runs what is not done, then draws the report."""

import argparse
import time
from typing import TYPE_CHECKING

from rich.console import Console

from distill_lit.cli.arguments import CommandParsers, add_experiment_command, load_checked_experiment
from distill_lit.cli.exit_codes import DONE, SOME_RUNS_FAILED
from distill_lit.utils.exceptions import UserError

if TYPE_CHECKING:
    from distill_lit.experiment.experiment import Experiment


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
    parser.add_argument("--detach", action="store_true", help="submit jobs and return (launcher.engine=slurm)")
    parser.add_argument(
        "--shard", metavar="I/N", help="every N-th run from the I-th on; others may do the rest at the same time"
    )
    parser.add_argument(
        "--run",
        action="append",
        default=[],
        metavar="NAME",
        dest="run_names",
        help="the run of this name alone, and what it needs; repeatable",
    )


def run(options: argparse.Namespace, console: Console) -> int:
    """Plans, runs what is missing, collects, reports."""
    experiment = load_checked_experiment(options)
    _choose_runs(experiment, options)
    if not options.dry_run:
        experiment.measure_cluster()
    from distill_lit.cli.launch import launch
    from distill_lit.cli.report_output import print_report
    from distill_lit.cli.run_table import print_plan
    from distill_lit.experiment.execution.stopping import Terminated

    if options.dry_run:
        print_plan(experiment, experiment.plan(), console)
        return DONE
    began = time.monotonic()
    experiment.prepare()
    try:
        failed = launch(experiment, console, detach=options.detach)
    except Terminated as stop:
        return stop.code
    if options.detach or experiment.chosen is not None:
        what = "some runs failed" if failed else "the jobs are in the queue" if options.detach else "these runs are done"
        console.print(f"{what}; the command without --detach, --shard and --run draws the report once all are done")
        return SOME_RUNS_FAILED if failed else DONE
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


def _choose_runs(experiment: "Experiment", options: argparse.Namespace) -> None:
    """Leaves an experiment the runs that are asked for. Raises UserError for what does not go together."""
    from distill_lit.experiment.launcher.shards import choose_named, choose_shard, parse_shard

    is_slurm = experiment.config.launcher.engine == "slurm"
    if options.detach and not is_slurm:
        raise UserError("--detach: launcher.engine is local; a terminal such as tmux keeps it, or set it to slurm")
    if options.shard and options.run_names:
        raise UserError("--shard and --run: give one")
    if (options.shard or options.run_names) and is_slurm:
        raise UserError("--shard and --run are for other schedulers; launcher.engine=slurm shares all runs out itself")
    if options.shard:
        experiment.chosen = frozenset(choose_shard(experiment.runs, *parse_shard(options.shard)))
    elif options.run_names:
        experiment.chosen = frozenset(choose_named(experiment.runs, options.run_names))
