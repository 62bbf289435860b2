"""What squeue knows of runs, beside what is on disk."""

from collections.abc import Mapping
from pathlib import Path

from distill_lit.experiment.launcher.slurm.queued_runs import queued_runs
from distill_lit.experiment.launcher.slurm.records import read_submitted_arrays
from distill_lit.experiment.launcher.slurm.squeue import QueuedTask, SlurmError
from distill_lit.experiment.state.run_state import DONE, FAILED, MISSING, PREEMPTED, RUNNING, STOPPED

QUEUED, HELD, LOST = "queued", "held", "lost"
Statuses = Mapping[str, tuple[str, str]]  # {name of a run: (status, note)}


def join_queue(statuses: Statuses, folder: Path) -> dict[str, tuple[str, str]]:
    """The statuses of runs in a folder, as they are on disk, with what the queue says of those that are not done."""
    records = read_submitted_arrays(folder)
    if not records:
        return dict(statuses)
    try:
        queued = queued_runs(folder, records)
    except SlurmError as error:
        return {
            name: (status, note if status in (DONE, FAILED) else _joined(note, str(error)))
            for name, (status, note) in statuses.items()
        }
    submitted = {part.run for parts in records.values() for part in parts}
    return {name: join_task(status, note, queued.get(name), name in submitted) for name, (status, note) in statuses.items()}


def join_task(status: str, note: str, task: QueuedTask | None, was_submitted: bool) -> tuple[str, str]:
    """The status of one run whose job is `task`, or has none in the queue."""
    if status == DONE:
        return status, note
    if task is not None:
        if status == RUNNING and not task.is_pending:
            return status, _joined(str(task), note.partition("; ")[2] if note.startswith("job ") else note)
        on_disk = note if status == PREEMPTED else ""
        return (HELD if task.is_held else QUEUED if task.is_pending else RUNNING), _joined(str(task), on_disk)
    if was_submitted and status in (MISSING, STOPPED):
        return LOST, _joined("its job is gone; the same command submits it again", note)
    return status, note


def _joined(*parts: str) -> str:
    return "; ".join(part for part in parts if part)
