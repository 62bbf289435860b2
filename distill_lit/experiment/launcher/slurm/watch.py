"""Shows what jobs do until none is left in the queue. What has become of a run is read from its folder."""

import time
from pathlib import Path
from typing import Any

from distill_lit.experiment.launcher.display import Display
from distill_lit.experiment.launcher.outcome import Outcome
from distill_lit.experiment.launcher.slurm.progress_file import read_progress
from distill_lit.experiment.launcher.slurm.queued_runs import queued_runs
from distill_lit.experiment.launcher.slurm.squeue import ORDINARY_REASONS, QueuedTask, SlurmError
from distill_lit.experiment.planning.planned_run import Run
from distill_lit.experiment.state.claims import is_claimed
from distill_lit.experiment.state.completion import is_run_complete
from distill_lit.experiment.state.run_state import FAILED, last_status
from distill_lit.experiment.state.status import RunResults, read_run_results

QUEUE_SECONDS, PROGRESS_SECONDS = 5.0, 1.0  # between looks
SETTLE_SECONDS = 20.0  # until a folder on a network shows what a node has written
LEFT = "it is not in the queue any more, and not done; the same command submits it again"


class Watch:
    """Runs that were submitted, until each has come to an end."""

    def __init__(self, todo: list[Run], folder: Path, display: Display, outcome: Outcome) -> None:
        self.folder, self.display, self.outcome = folder, display, outcome
        self.open = {run.name: run for run in todo}
        self.running: set[str] = set()
        self.missing_since: dict[str, float] = {}
        self._noted: set[str] = set()
        self._last_events: dict[str, dict[str, Any]] = {}

    def run(self) -> None:
        """Until nothing is open."""
        next_look = 0.0
        while self.open:
            if time.monotonic() >= next_look:
                self._look_at_queue()
                next_look = time.monotonic() + QUEUE_SECONDS
            for name in self.running:
                self._show_progress(self.open[name])
            time.sleep(PROGRESS_SECONDS if self.open else 0)

    def _look_at_queue(self) -> None:
        try:
            queued = queued_runs(self.folder)
        except SlurmError as error:
            self._note_once(f"{error}; jobs go on, and it is asked again")
            return
        for run in list(self.open.values()):
            task = queued.get(run.name)
            if task is not None:
                self.missing_since.pop(run.name, None)
                self._show_task(run, task)
            elif not is_claimed(self.folder / run.name):
                self._close(run)

    def _show_task(self, run: Run, task: QueuedTask) -> None:
        if task.is_held or (task.is_pending and task.reason not in ORDINARY_REASONS):
            self._note_once(f"{run.label}: {'held: ' if task.is_held else ''}{task}")
        if task.state == "RUNNING" and run.name not in self.running:
            self.running.add(run.name)
            self.display.start_run(run)

    def _show_progress(self, run: Run) -> None:
        event = read_progress(self.folder / run.name)
        for line in event.pop("notes", []):
            self._note_once(f"{run.label}: {line}")
        if not event or event == self._last_events.get(run.name):
            return
        self._last_events[run.name] = event
        self.display.update_run(run, event)

    def _close(self, run: Run) -> None:
        """The end of a run that is not in the queue."""
        folder = self.folder / run.name
        (state, why), now = last_status(folder), time.monotonic()
        if is_run_complete(run, folder):
            self._finish(run, "", read_run_results(run, folder))
        elif state == FAILED:
            self.outcome.failed[run.name] = why
            self._finish(run, self.outcome.failed[run.name], RunResults())
        elif now - self.missing_since.setdefault(run.name, now) > SETTLE_SECONDS:
            self.outcome.left[run.name] = LEFT
            self._finish(run, LEFT, RunResults())

    def _finish(self, run: Run, reason: str, results: RunResults) -> None:
        del self.open[run.name]
        self.running.discard(run.name)
        self.display.finish_run(run, reason, results)

    def _note_once(self, line: str) -> None:
        if line not in self._noted:
            self._noted.add(line)
            self.display.note(line)
