"""Who works on a run, and the last word of one that ended before it was done. Light: a job begins with it."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from distill_lit.experiment.state.claims import claim_folder
from distill_lit.utils.files import read_mapping, remove_leftovers, write_json

DONE, RUNNING, FAILED, PREEMPTED, STOPPED, MISSING = "done", "running", "failed", "preempted", "stopped", "missing"
STATE_NAME = "state.json"


@contextlib.contextmanager
def lock_run_folder(folder: Path, timeout: float, job: str = "") -> Iterator[None]:
    """Inside, this process alone works on a run. What a killed predecessor left half-written is removed.

    Raises InUse when another process keeps the folder for longer than `timeout` seconds.
    """
    with claim_folder(folder, timeout, job):
        remove_leftovers(folder)
        (folder / STATE_NAME).unlink(missing_ok=True)
        yield


def write_run_status(folder: Path, status: str, reason: str) -> None:
    """Leaves the last word of a run that ended before it was done."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / STATE_NAME, {"state": status, "reason": reason})


def last_status(folder: Path) -> tuple[str, str]:
    """(status, reason) of the last word of a run; empty where there is none."""
    found = read_mapping(folder / STATE_NAME)
    return str(found.get("state", "")), str(found.get("reason", ""))
