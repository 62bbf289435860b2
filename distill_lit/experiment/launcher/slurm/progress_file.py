"""Where a run is, in a file of its folder, for whoever watches from another machine."""

import contextlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distill_lit.utils.files import read_mapping, write_unsynced
from distill_lit.utils.progress import NO_METRICS, NOTE_STAGE

PROGRESS_NAME = "progress.json"
SECONDS_BETWEEN_WRITES = 1.0


class ProgressFile:
    """Written at most once a second, and without waiting for the disk: it matters only while the run goes on."""

    def __init__(self, folder: Path, is_silent: bool = False) -> None:
        self.is_silent = is_silent  # on a node that is not the first
        self.path, self.last, self.notes = folder / PROGRESS_NAME, 0.0, list[str]()

    def report(
        self, stage: str, done: float, total: float, unit: str = "", metrics: Mapping[str, float] = NO_METRICS, /
    ) -> None:
        """A `ProgressCallback`."""
        now = time.monotonic()
        if stage == NOTE_STAGE:
            self.notes.append(unit)
            return
        if self.is_silent or (now - self.last < SECONDS_BETWEEN_WRITES and done < total):
            return
        self.last = now
        event = {"stage": stage, "done": done, "total": total, "unit": unit, "metrics": dict(metrics), "notes": self.notes}
        with contextlib.suppress(OSError):  # nothing depends on it
            write_unsynced(self.path, json.dumps(event))

    def remove(self) -> None:
        """At the end."""
        if self.is_silent:
            return
        self.path.unlink(missing_ok=True)


def read_progress(folder: Path) -> dict[str, Any]:
    """What a run has reported last; empty where it has not."""
    found = read_mapping(folder / PROGRESS_NAME)
    return found if "stage" in found else {}
