"""One task of an array: a run, or a part of one, on a compute node.

Before the end of its time SLURM sends SIGUSR2, at a preemption SIGTERM. Both mean: note it, save after the step, leave with
143. A preempted job is requeued by SLURM, a cancelled one by nobody; a job whose time is over requeues itself.
"""

import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from distill_lit.experiment.launcher.slurm.progress_file import ProgressFile
from distill_lit.experiment.launcher.slurm.records import read_task
from distill_lit.experiment.launcher.slurm.squeue import SlurmError, run_command
from distill_lit.experiment.planning.planned_run import EVALUATE
from distill_lit.experiment.state.run_state import FAILED, PREEMPTED, STATE_NAME, last_status, write_run_status
from distill_lit.utils.cores import usable_cores
from distill_lit.utils.distributed.cluster_environment import remove_cluster_variables
from distill_lit.utils.files import read_mapping, write_json

LEAVE_CODE = 143
NEEDS_SECONDS = 20.0  # until a folder on a network shows what another node has written there
CLAIM_SECONDS = 150.0  # for the lease of a node that has died to run out
RESTARTS_FILE = "restarts.json"  # in the folder of a run: how often its time was over


class Job(NamedTuple):
    """id: as scontrol takes it, of this task alone; node: which of its nodes this is, from 0."""

    id: str
    node: int = 0

    @classmethod
    def of_environment(cls, variables: Mapping[str, str]) -> "Job":
        """The job whose variables these are."""
        array, index = variables.get("SLURM_ARRAY_JOB_ID"), variables.get("SLURM_ARRAY_TASK_ID")
        name = f"{array}_{index}" if array else variables.get("SLURM_JOB_ID", "")
        return cls(name, int(variables.get("SLURM_NODEID", "0")))


class SignalLog:
    """Which signals have come to this process, whoever handles them."""

    def __init__(self) -> None:
        self._reader, writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

    def read(self) -> set[int]:
        """Those that have come since the last time."""
        try:
            return set(os.read(self._reader, 4096))
        except BlockingIOError:
            return set()


def run_task(folder: str, tag: str, index: int) -> None:
    """What submitit calls in a job. folder: of the runs; tag, index: which task it is."""
    signals = SignalLog()
    for number in (signal.SIGTERM, signal.SIGUSR2):  # submitit's own would save in the middle of a step
        signal.signal(number, _leave)
    signal.signal(signal.SIGCONT, signal.SIG_DFL)
    job = Job.of_environment(os.environ)
    remove_cluster_variables()
    task = read_task(Path(folder), tag, index)
    place, config = Path(folder) / task.run.name, task.run.config
    code, before = 1, _checkpoints(place)
    try:
        code = _execute(task.run, place, task.part, job)
    except SystemExit as end:
        code = int(end.code or 0)
    if code == LEAVE_CODE:
        _end_early(place, signals.read(), job, config.launcher.slurm, before)
    if code:
        raise SystemExit(code)


def _leave(*_: Any) -> NoReturn:
    """Outside of a training there is nothing to save: whatever is not finished will be done again."""
    raise SystemExit(LEAVE_CODE)


def _execute(run: Any, place: Path, part: str, job: Job) -> int:
    """The exit code of a task."""
    if lost := missing_needs(run, place, part):
        if not job.node and not (place / STATE_NAME).is_file():
            write_run_status(place, FAILED, _why_lost(run, place, lost[0]))
        return 1
    import torch

    from distill_lit.experiment.execution.worker import execute_and_report

    torch.set_num_threads(run.config.launcher.threads_per_worker or usable_cores())
    progress = ProgressFile(place, is_silent=job.node > 0)
    ended: dict[str, Any] = {}
    try:
        execute_and_report(run, place, progress.report, lambda **event: ended.update(event), part, job.id, CLAIM_SECONDS)
    finally:
        progress.remove()
    return 0 if ended.get("event") == "done" else 1


def missing_needs(run: Any, place: Path, part: str) -> list[str]:
    """The names of runs that this one needs and that have no manifest; some time is left for one to be seen."""
    needs = [*run.depends_on, *([run.name] if part == EVALUATE else [])]
    end = time.monotonic() + NEEDS_SECONDS
    while True:
        lost = [name for name in needs if not _has_manifest(place.parent / name)]
        if not lost or any((place.parent / name / STATE_NAME).is_file() for name in lost) or time.monotonic() > end:
            return lost
        time.sleep(1.0)


def _has_manifest(folder: Path) -> bool:
    return str(read_mapping(folder / "manifest.json").get("identity", ""))[:8] == folder.name[-8:]


def _why_lost(run: Any, place: Path, need: str) -> str:
    """What to say where a run that is needed is not done, or the run itself has no model to evaluate."""
    if need == run.name:
        return "its training has ended without a word, as one that is killed; the same command goes on from its checkpoint"
    return f"needs {need}, which {'failed' if last_status(place.parent / need)[0] == FAILED else 'is not done'}"


def _checkpoints(place: Path) -> set[str]:
    """Names, without the library that reads them: a job begins with it."""
    return {path.name for path in (place / "checkpoints").glob("step=*.ckpt")}


def _end_early(place: Path, came: set[int], job: Job, slurm: Any, before: set[str]) -> NoReturn:
    """The end of a task that was asked to leave. Later signals count for nothing: another one comes while Python ends."""
    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    if not job.node and not (place / STATE_NAME).is_file():
        write_run_status(place, PREEMPTED, "stopped before there was anything to save")
    if not job.node and signal.SIGUSR2 in came:
        if reason := _why_not_again(place, slurm, before):
            write_run_status(place, FAILED, reason)
        else:
            _requeue(job)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    # threads of libraries can hang at a regular end; at any other code of a further node srun kills the first, which may
    # not have requeued the job yet
    os._exit(0 if job.node else LEAVE_CODE)


def _why_not_again(place: Path, slurm: Any, before: set[str]) -> str:
    """Why a run whose time was over does not go on in another job; empty where it does."""
    found = read_mapping(place / RESTARTS_FILE).get("restarts")
    times = found if isinstance(found, int) else 0
    if times >= slurm.restarts:
        return f"launcher.slurm.restarts: its time was over {times + 1} times; raise launcher.slurm.time, or this"
    reason = last_status(place)[1]
    if "at step" in reason and _checkpoints(place) == before:
        return f"launcher.slurm.time: {slurm.time} minutes are too few for one step"
    write_json(place / RESTARTS_FILE, {"restarts": times + 1})
    return ""


def _requeue(job: Job) -> None:
    """Puts this task, and it alone, back into the queue. Where SLURM refuses, the same command submits it again."""
    try:
        run_command(["scontrol", "requeue", job.id])
    except SlurmError as error:
        print(error, file=sys.stderr, flush=True)
