"""The runs of an experiment that are in the queue."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from distill_lit.experiment.launcher.slurm.records import RunPart, read_submitted_arrays
from distill_lit.experiment.launcher.slurm.squeue import QueuedTask, by_run, cancel, queued_tasks


def queued_runs(folder: Path, records: Mapping[str, Sequence[RunPart]] | None = None) -> dict[str, QueuedTask]:
    """{name of a run: its job} of the runs in a folder that are in the queue. records: of its arrays, where they have been
    read. Raises SlurmError."""
    records = read_submitted_arrays(folder) if records is None else records
    return by_run(queued_tasks(records), records) if records else {}


def stop_jobs(folder: Path) -> int:
    """Cancels all jobs of the runs in a folder; how many there were. Raises SlurmError."""
    records = read_submitted_arrays(folder)
    tasks = queued_tasks(records) if records else []
    cancel({task.array for task in tasks})  # each is of this experiment alone
    return len(tasks)
