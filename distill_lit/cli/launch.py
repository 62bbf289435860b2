"""An experiment launched from a terminal: the plan first, then bars."""

from rich.console import Console

from distill_lit.cli.exit_codes import DONE, SOME_RUNS_FAILED
from distill_lit.cli.progress import RunDisplay
from distill_lit.cli.run_table import print_plan
from distill_lit.config.roles import Role
from distill_lit.experiment.execution.stopping import Terminated
from distill_lit.experiment.experiment import Experiment
from distill_lit.utils.exceptions import UserError
from distill_lit.utils.files import read_mapping

PRINTED_FACTS = ("corpora", "teacher_cache", "bytes_per_token")


def launch(experiment: Experiment, console: Console, *roles: Role, detach: bool = False) -> dict[str, str]:
    """Shows the plan, runs what is not done; {run that failed, or was left: why}. Raises Terminated, having said so."""
    planned = experiment.estimated_runs(roles)
    print_plan(experiment, planned, console)
    minutes = {run.name: estimate.minutes for run, estimate in planned if estimate is not None}
    try:
        with RunDisplay(console, minutes, experiment.config.launcher.workers) as display:
            return experiment.launch(display, roles, detach)
    except Terminated as stop:
        if experiment.config.launcher.engine == "local":
            console.print(f"stopped; the same command goes on from here (exit code {stop.code})")
        raise


def launch_role(experiment: Experiment, role: Role, missing: str, console: Console) -> int:
    """Runs the runs of one role and what they depend on, and prints what they made. missing: what an experiment without
    such runs lacks."""
    if all(run.role != role for run in experiment.runs):
        raise UserError(f"{experiment.name}: nothing to write, since it needs {missing}")
    experiment.measure_cluster()
    experiment.prepare([role])
    try:
        failed = launch(experiment, console, role)
    except Terminated as stop:
        return stop.code
    for run in experiment.runs_with_dependencies([role]):
        manifest = read_mapping(experiment.folder_of(run) / "manifest.json")
        for fact in PRINTED_FACTS:
            if fact in manifest:
                console.print(f"{run.label} {fact}: {manifest[fact]}", highlight=False, soft_wrap=True, markup=False)
    return SOME_RUNS_FAILED if failed else DONE
