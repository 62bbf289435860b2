"""Where a run stands, from what is on disk: its manifests, a lock that dies with its owner, and the last recorded
status."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from distill_lit.experiment.planned_run import Run
from distill_lit.experiment.run import is_run_built, is_run_complete, read_manifest
from distill_lit.training.checkpoint import list_checkpoints
from distill_lit.utils.exceptions import UserError
from distill_lit.utils.files import remove_leftovers, write_json

DONE, RUNNING, FAILED, PREEMPTED, STOPPED, MISSING = "done", "running", "failed", "preempted", "stopped", "missing"
LOCK_TIMEOUT_SECONDS = 120.0  # for a worker whose driver has died to write its checkpoint and leave


@contextlib.contextmanager
def lock_run_folder(folder: Path) -> Iterator[None]:
    """Inside, this process alone works on a run. What a killed predecessor left half-written is removed.

    Raises UserError when another process keeps the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "lock", timeout=LOCK_TIMEOUT_SECONDS)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(f"{folder} is in use by another process; wait for it or stop it") from None
    try:
        remove_leftovers(folder)
        (folder / "state.json").unlink(missing_ok=True)
        yield
    finally:
        lock.release()


def is_locked(folder: Path) -> bool:
    """Whether a living process works on a run."""
    if not (folder / "lock").is_file():
        return False
    try:
        descriptor = os.open(folder / "lock", os.O_RDONLY)  # who only looks may not be allowed to write
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def write_run_status(folder: Path, status: str, reason: str) -> None:
    """Leaves the last word of a run that ended before it was done."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "state.json", {"state": status, "reason": reason})


def get_run_status(run: Run, folder: Path) -> tuple[str, str]:
    """(status, message)."""
    if is_locked(folder):
        return RUNNING, _progress(run, folder)
    if is_run_complete(run, folder):
        return DONE, ""
    if not folder.is_dir():
        return MISSING, ""
    last_status = read_manifest(folder / "state.json")
    status, reason = str(last_status.get("state", STOPPED)), str(last_status.get("reason", ""))
    if status == FAILED:
        return status, f"{reason}; {folder / 'log.txt'}"
    return status, "; ".join(part for part in (reason, _progress(run, folder)) if part)


def _progress(run: Run, folder: Path) -> str:
    if is_run_built(run, folder):
        return "built, not evaluated"
    saved = list_checkpoints(folder / "checkpoints")
    return f"checkpoint {saved[0].stem}" if saved else ""
