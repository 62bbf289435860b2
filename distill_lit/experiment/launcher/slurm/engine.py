"""Submits what is neither done nor queued, then watches: progress from disk, the rest from squeue."""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from distill_lit.config import ExperimentConfig
from distill_lit.experiment.execution.stopping import Terminated, stopping_on_signals
from distill_lit.experiment.launcher.display import Display
from distill_lit.experiment.launcher.drivers import driver_lease
from distill_lit.experiment.launcher.outcome import Outcome
from distill_lit.experiment.launcher.prepare import prepare_runs
from distill_lit.experiment.launcher.slurm.arrays import plan_arrays, total_tasks
from distill_lit.experiment.launcher.slurm.checks import array_limit, check_cluster
from distill_lit.experiment.launcher.slurm.node import check_shared_folder
from distill_lit.experiment.launcher.slurm.progress_file import PROGRESS_NAME
from distill_lit.experiment.launcher.slurm.queued_runs import queued_runs
from distill_lit.experiment.launcher.slurm.squeue import SlurmError
from distill_lit.experiment.launcher.slurm.submit import submit_array
from distill_lit.experiment.launcher.slurm.task import RESTARTS_FILE
from distill_lit.experiment.launcher.slurm.watch import Watch
from distill_lit.experiment.planning.planned_run import Run
from distill_lit.experiment.state.completion import is_run_built
from distill_lit.experiment.state.run_state import STATE_NAME
from distill_lit.utils.exceptions import UserError

RETRY_SECONDS = 30.0  # before the rest is submitted again, where the queue took no more


def launch_on_slurm(config: ExperimentConfig, runs: list[Run], folder: Path, display: Display, detach: bool) -> Outcome:
    """Submits what is to be run and, unless `detach`, stays until nothing of it is in the queue. A signal ends the wait
    alone: jobs go on.

    Raises UserError for what the cluster will not take, before anything is submitted, and Terminated after a signal.
    """
    check_cluster(config, runs)
    check_shared_folder(config, folder, display.note)
    with driver_lease(folder):
        todo = prepare_runs(config, runs, folder, display.note)
        display.start(runs, todo)
        is_whole = not todo or submit(config, todo, folder, display.note)
    outcome = Outcome()
    if detach or not todo:
        return outcome
    with _detaching(display.note):
        while True:
            Watch(todo, folder, display, outcome).run()
            todo = [run for run in todo if run.name in outcome.left]
            if is_whole or not todo:
                return outcome
            time.sleep(RETRY_SECONDS)
            outcome.left.clear()
            with driver_lease(folder):
                is_whole = submit(config, todo, folder, display.note, is_rest=True)


@contextlib.contextmanager
def _detaching(note: Callable[[str], None]) -> Iterator[None]:
    """Inside, a signal ends the wait alone."""
    try:
        with stopping_on_signals():
            yield
    except Terminated:
        note("detached: its jobs go on; `distill-lit status` shows them, `distill-lit stop` cancels them, and the same")
        note("command watches again and draws the report at the end")
        raise


def submit(
    config: ExperimentConfig, todo: list[Run], folder: Path, note: Callable[[str], None], is_rest: bool = False
) -> bool:
    """Submits those of these runs that are not in the queue; whether the queue took all of them.

    is_rest: these were left of a submission, so that their restarts count on. Raises UserError where it took none.
    """
    try:
        queued = queued_runs(folder)
        limit = array_limit()
    except SlurmError as error:
        raise UserError(f"launcher.engine: slurm: {error}") from error
    new = [run for run in todo if run.name not in queued]
    arrays = plan_arrays(
        new,
        lambda run: is_run_built(run, folder / run.name),
        limit,
        {name: task.array for name, task in queued.items()},
    )
    for run in new:
        for name in (STATE_NAME, PROGRESS_NAME, *(() if is_rest else (RESTARTS_FILE,))):
            (folder / run.name / name).unlink(missing_ok=True)
    if queued:
        note(f"{len(queued)} runs are in the queue already")
    ids: list[str] = []
    for array in arrays:
        try:
            ids.append(
                submit_array(config, folder, array, [*(ids[i] for i in sorted(array.after)), *sorted(array.after_jobs)])
            )
        except SlurmError as error:
            if not ids and not queued:
                raise UserError(f"launcher.slurm: {error}") from error
            left = total_tasks(arrays[len(ids) :])
            note(f"{error}: {left} jobs are left; the same command submits them once there is room")
            return False
    if ids:
        note(f"submitted {total_tasks(arrays)} jobs in {len(ids)} arrays: {', '.join(ids[:20])}")
    return True
