"""Engine local: workers on this machine run what is not done; what fails does not stop the rest.

Several drivers may share one folder, as on several machines: a run that another one is at is left to it.
"""

import contextlib
import json
import queue
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from distill_lit.config import ExperimentConfig
from distill_lit.config.roles import Role
from distill_lit.experiment.estimates.pace import threads_per_worker
from distill_lit.experiment.execution.devices import share_gpus, visible_gpus, worker_environment
from distill_lit.experiment.execution.stopping import CheckpointWatch, StopSignals, Terminated, describe_stop
from distill_lit.experiment.launcher.display import Display
from distill_lit.experiment.launcher.outcome import Outcome
from distill_lit.experiment.planning.planned_run import Run, to_task
from distill_lit.experiment.state.claims import holder_of
from distill_lit.experiment.state.completion import is_run_complete
from distill_lit.experiment.state.run_state import FAILED, PREEMPTED, STATE_NAME, STOPPED, last_status, write_run_status
from distill_lit.experiment.state.status import RunResults, read_run_results
from distill_lit.utils.exceptions import FatalRunError, UserError, describe_exit_code
from distill_lit.utils.files import TEMPORARY_PREFIX
from distill_lit.utils.progress import NOTE_STAGE
from distill_lit.utils.redaction import redact_file

STOP_SECONDS = 60  # for a worker to come to the end of its step and begin its checkpoint
MAX_EARLY_DEATHS = 3  # of workers that have not been ready yet, one after the other in one place
POLL_SECONDS = 0.05
ELSEWHERE_SECONDS = 1.0  # between looks at runs that other drivers are at


class Worker:
    """A worker process and the run it is at."""

    def __init__(
        self, number: int, folder: Path, threads: int, inbox: "queue.Queue[Any]", gpus: list[str] | None, gpu_share: int
    ) -> None:
        """gpus: those it sees, None for all; gpu_share: workers that share each of them."""
        self.number, self.run, self.stage, self.preempted, self.is_ready = number, None, "", "", False
        self.folder = folder
        self.path = folder / f"worker-{number}.log"
        self.log = self.path.open("a")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "distill_lit.experiment.execution.worker", str(folder), str(threads), str(gpu_share)],
            encoding="utf-8",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            env=worker_environment(gpus, threads),
            start_new_session=True,
        )
        threading.Thread(target=self._listen, args=(inbox,), daemon=True).start()

    run: Run | None
    stage: str  # that the run has reported last
    preempted: str
    is_ready: bool

    def _listen(self, inbox: "queue.Queue[Any]") -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with contextlib.suppress(json.JSONDecodeError):
                event = json.loads(line)
                if isinstance(event, dict) and "event" in event:  # not what a library has printed on its import
                    inbox.put((self, event))
        self.process.wait()
        inbox.put((self, {"event": "exit", "code": self.process.returncode}))

    def assign(self, run: Run) -> None:
        """Starts a run. A worker that has just died is noticed by its exit event."""
        self.run, self.stage = run, ""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(to_task(run)), file=self.process.stdin, flush=True)

    @property
    def is_alive(self) -> bool:
        """Whether the process runs."""
        return self.process.poll() is None

    def unfinished_checkpoint(self) -> tuple[int, int] | None:
        """(bytes, time of the last change) of the checkpoint that is being written; None where there is none."""
        if self.run is None:
            return None
        for path in (self.folder / self.run.name / "checkpoints").glob(f"{TEMPORARY_PREFIX}*"):
            with contextlib.suppress(OSError):  # finished meanwhile
                found = [each.stat() for each in (path, *path.glob("*"))]  # a folder, where it is one of shards
                return sum(each.st_size for each in found), max(each.st_mtime_ns for each in found)
        return None

    @property
    def run_label(self) -> str:
        """The label of the run it is at."""
        return "a worker" if self.run is None else self.run.label

    def close(self) -> None:
        """After its end."""
        self.process.wait()
        self.log.close()
        redact_file(self.path)


class LocalLauncher:
    """Hands runs to workers in order, each once what it needs is done."""

    def __init__(
        self,
        config: ExperimentConfig,
        folder: Path,
        todo: list[Run],
        display: Display,
        outcome: Outcome,
        signals: StopSignals,
    ) -> None:
        self.folder, self.waiting, self.display, self.outcome = folder, list(todo), display, outcome
        self.signals = signals
        self.inbox: queue.Queue[Any] = queue.Queue()
        self.count = min(config.launcher.workers, len(todo))
        self.threads = threads_per_worker(config.launcher.threads_per_worker, self.count)
        self.gpus = share_gpus(config.launcher, todo, visible_gpus())
        self.gpu_share = config.launcher.workers_per_gpu if self.gpus else 1
        self._old_words = {run.name: _state_stamp(folder / run.name) for run in todo}  # of runs that ended before this
        self.pending = {run.name for run in todo}
        self.workers: dict[int, Worker] = {}
        self._early_deaths: Counter[int] = Counter()  # by the number of the worker
        self._noted: set[str] = set()

    def run(self) -> None:
        """Until no run is pending."""
        try:
            for number in range(self.count):
                self._start_worker(number)
            while self.pending:
                self._wait_for_event()
        except Terminated as stop:
            self.display.note(describe_stop(self.signals.first, self._current_stages(), self._stop_seconds()))
            self._stop_workers()
            self._note_stopped(stop)
            raise
        finally:
            self._stop_workers()

    def _wait_for_event(self) -> None:
        """Until a worker says something; meanwhile looks now and then at runs that other drivers are at."""
        is_idle = self.waiting and any(w.run is None and w.is_ready for w in self.workers.values())
        try:
            worker, event = self.inbox.get(timeout=ELSEWHERE_SECONDS if is_idle else None)
        except queue.Empty:
            self._look_elsewhere()
        else:
            self._handle(worker, event)

    def _look_elsewhere(self) -> None:
        """Takes over what other drivers have come to: runs that they have finished, failed, or given up."""
        for run in list(self.waiting):
            if not self.pending.intersection(run.depends_on):
                self._finish_elsewhere(run)
        self._fail_dependents()
        for worker in self.workers.values():
            if worker.run is None and worker.is_ready and worker.is_alive:
                self._assign_next(worker)

    def _finish_elsewhere(self, run: Run) -> None:
        """Notes the end of a waiting run that another driver has brought to one."""
        folder = self.folder / run.name
        reason = ""
        if holder_of(folder) is not None:
            return
        if not is_run_complete(run, folder):
            stamp = _state_stamp(folder)
            status, reason = last_status(folder)
            if status != FAILED or stamp in (None, self._old_words[run.name]):
                return
            self.outcome.failed[run.name] = reason
        self.waiting.remove(run)
        self.pending.discard(run.name)
        self.display.finish_run(run, reason, read_run_results(run, folder))

    def _current_stages(self) -> dict[str, str]:
        """{label of a run at work: its stage}."""
        return {worker.run.label: worker.stage for worker in self.workers.values() if worker.run is not None}

    def _stop_seconds(self) -> float:
        return STOP_SECONDS + max((_reply_seconds(worker.run) for worker in self.workers.values()), default=0.0)

    def _stop_workers(self) -> None:
        """Asks all workers for a checkpoint and an end. Whoever takes too long, or longer than the user will wait, is
        killed, but never while a checkpoint is being written."""
        workers = list(self.workers.values())
        for worker in workers:
            worker.process.terminate()  # all at once, as each writes a checkpoint
        watch, end = CheckpointWatch(), time.monotonic() + self._stop_seconds()
        while alive := [worker for worker in workers if worker.is_alive]:
            is_over = self.signals.is_urgent or time.monotonic() > end
            for worker in alive if is_over else ():
                if watch.is_writing(worker.number, worker.unfinished_checkpoint(), time.monotonic()):
                    self._note_once(f"{worker.run_label}: its checkpoint is being written, and finished first")
                else:
                    worker.process.kill()
            time.sleep(POLL_SECONDS)
        for worker in workers:
            worker.close()

    def _note_once(self, line: str) -> None:
        if line not in self._noted:
            self._noted.add(line)
            self.display.note(line)

    def _note_stopped(self, stop: Terminated) -> None:
        """The last word about runs whose workers were stopped before they could say one."""
        state = PREEMPTED if stop.code == 143 else STOPPED
        for run in (worker.run for worker in self.workers.values() if worker.run):
            folder = self.folder / run.name
            if folder.is_dir() and not (folder / STATE_NAME).is_file() and not is_run_complete(run, folder):
                write_run_status(folder, state, "")

    def _start_worker(self, number: int) -> None:
        gpus = self.gpus[number] if self.gpus else None
        self.workers[number] = Worker(number, self.folder, self.threads, self.inbox, gpus, self.gpu_share)

    def _handle(self, worker: Worker, event: dict[str, Any]) -> None:
        kind, run = event["event"], worker.run
        if kind == "progress" and run is not None and event["stage"] == NOTE_STAGE:
            self.display.note(f"{run.label}: {event['unit']}")
        elif kind == "progress" and run is not None:
            worker.stage = event["stage"]
            self.display.update_run(run, event)
        elif kind == "done" and run is not None:
            # what counts is what is on disk
            done = is_run_complete(run, self.folder / run.name)
            self._finish(worker, run, "" if done else "ended, but its files are not complete")
        elif kind == "failed" and run is not None:
            self._finish(worker, run, event["reason"])
            if event["denied"]:  # no other run could write there either
                raise UserError(event["reason"])
            if event["fatal"]:
                raise FatalRunError(f"{run.label}: {event['reason']}; make room, and the same command goes on from here")
        elif kind == "busy" and run is not None:  # another driver was quicker
            worker.run = None
            self.waiting.insert(0, run)
            self._note_once(f"{run.label}: {event['reason']}")
        elif kind == "preempted":
            worker.preempted = event["reason"]
        elif kind == "exit":
            if run is not None:
                self._finish(worker, run, worker.preempted or _exit_reason(event["code"]))
            elif not worker.is_ready and self.pending:
                self._note_early_death(worker, event["code"])
            if self.waiting:
                self._start_worker(worker.number)
        if kind == "ready":
            worker.is_ready = True
            del self._early_deaths[worker.number]
        if kind in ("ready", "done", "failed"):
            self._assign_next(worker)
        if kind == "busy":
            self._look_elsewhere()

    def _note_early_death(self, worker: Worker, code: int) -> None:
        """Raises FatalRunError where a worker has ended with an error before it was ready, or was killed too often: the
        next one would end alike."""
        self._early_deaths[worker.number] += 1
        line = f"a worker that was not ready yet {describe_exit_code(code)}"
        if code > 0 or self._early_deaths[worker.number] == MAX_EARLY_DEATHS:
            times = "" if code > 0 else f", {MAX_EARLY_DEATHS} times in a row"
            raise FatalRunError(f"{line}{times}; see {worker.path}")
        self.display.note(f"{line}; started again")

    def _finish(self, worker: Worker, run: Run, reason: str) -> None:
        worker.run = None
        self.pending.discard(run.name)
        if reason:
            self._fail(run, reason)
        self.display.finish_run(run, reason, read_run_results(run, self.folder / run.name))
        self._fail_dependents()
        for idle in self.workers.values():
            if idle is not worker and idle.run is None and idle.is_ready and idle.is_alive:
                self._assign_next(idle)

    def _fail(self, run: Run, reason: str) -> None:
        """Notes a failure, unless the worker has said more about it."""
        self.outcome.failed[run.name] = reason
        folder = self.folder / run.name
        if not (folder / STATE_NAME).is_file():
            with contextlib.suppress(OSError):  # the disk may be full
                write_run_status(folder, FAILED, reason)
        redact_file(folder / "log.txt")

    def _fail_dependents(self) -> None:
        for run in list(self.waiting):  # each stands after what it depends on, so one pass reaches all of them
            failed = next((name for name in run.depends_on if name in self.outcome.failed), "")
            if failed:
                self.waiting.remove(run)
                self.pending.discard(run.name)
                self._fail(run, f"needs {failed}, which failed")
                self.display.finish_run(run, self.outcome.failed[run.name], RunResults())

    def _assign_next(self, worker: Worker) -> None:
        if worker.run is not None:
            return
        self._fail_dependents()  # of what was found to have failed elsewhere
        for run in [run for run in self.waiting if not self.pending.intersection(run.depends_on)]:
            if holder := holder_of(self.folder / run.name):
                self._note_once(f"{run.label}: {holder} is at it")
                continue
            self._finish_elsewhere(run)
            if run not in self.waiting:
                continue
            self.waiting.remove(run)
            worker.assign(run)
            self.display.start_run(run)
            return


def _state_stamp(folder: Path) -> tuple[int, int] | None:
    """What tells one last word of a run from a later one, whatever the clocks of machines say; None where there is none."""
    with contextlib.suppress(OSError):
        found = (folder / STATE_NAME).stat()
        return found.st_mtime_ns, found.st_ino
    return None


def _reply_seconds(run: Run | None) -> float:
    """Seconds that replies of a server, which are paid for, may still be on their way."""
    corpora = run.config.data.corpora.values() if run is not None and run.role == Role.GENERATED else ()
    servers = [corpus.generated.remote for corpus in corpora if corpus.generated is not None]
    return max((server.timeout for server in servers if server is not None), default=0.0)


def _exit_reason(code: int) -> str:
    said = describe_exit_code(code)
    return said.removeprefix("was ") if code < 0 else f"the worker {said}"
