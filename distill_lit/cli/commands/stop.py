"""`distill-lit stop`: cancels the jobs of an experiment, or stops the process that runs it on this machine."""

import argparse
import os
import signal

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
    from distill_lit.experiment.claims import holder_of
    from distill_lit.experiment.launcher.slurm.queued_runs import stop_jobs
    from distill_lit.experiment.launcher.slurm.records import records_folder
    from distill_lit.experiment.launcher.slurm.squeue import SlurmError
    from distill_lit.utils.exceptions import UserError

    said = []
    if records_folder(experiment.runs_folder).is_dir():
        try:
            count = stop_jobs(experiment.runs_folder)
        except SlurmError as error:
            raise UserError(str(error)) from error
        said += [f"{count} jobs cancelled"] if count else []
    if driver := holder_of(experiment.runs_folder):
        if driver.is_here:
            os.kill(driver.pid, signal.SIGTERM)
            said.append(f"{driver} was asked to stop; what trains is saved first")
        else:
            said.append(f"{driver} runs it; stop it there")
    console.print("; ".join(said) or f"nothing of {experiment.name} is queued or running", highlight=False, soft_wrap=True)
    return DONE
