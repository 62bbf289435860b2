"""`distill-lit stop`: cancels the jobs of an experiment, or stops the processes that run it on this machine."""

import argparse

from rich.console import Console

from distill_lit.cli.arguments import CommandParsers, add_experiment_command, load_experiment_of
from distill_lit.cli.exit_codes import DONE


def add_parser(commands: CommandParsers) -> None:
    """Adds the command."""
    add_experiment_command(
        commands,
        "stop",
        "Cancel the SLURM jobs of an experiment, or stop what runs it on this machine; `run` goes on from there.",
        "distill-lit stop experiments/quickstart.yaml",
        run,
    )


def run(options: argparse.Namespace, console: Console) -> int:
    """Says what it has stopped."""
    experiment = load_experiment_of(options, writes=False)
    from distill_lit.experiment.launcher.drivers import stop_local_processes
    from distill_lit.experiment.launcher.slurm.queued_runs import stop_jobs
    from distill_lit.experiment.launcher.slurm.records import records_folder
    from distill_lit.experiment.launcher.slurm.squeue import SlurmError
    from distill_lit.utils.exceptions import UserError

    said = stop_local_processes(experiment.runs_folder)  # first, so that nothing is submitted any more
    for line in said:
        console.print(line, highlight=False, soft_wrap=True)
    count = 0
    if records_folder(experiment.runs_folder).is_dir():
        try:
            count = stop_jobs(experiment.runs_folder)
        except SlurmError as error:
            raise UserError(str(error)) from error
    if count:
        console.print(f"{count} jobs cancelled", highlight=False)
    elif not said:
        console.print(f"nothing of {experiment.name} is queued or running", highlight=False)
    return DONE
