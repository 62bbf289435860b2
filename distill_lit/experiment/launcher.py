"""Runs the runs of an experiment that are not done, on this machine; what fails does not stop the rest."""

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from distill_lit.config import ExperimentConfig, to_yaml
from distill_lit.config.roles import Role
from distill_lit.experiment.completion import is_run_built, is_run_complete
from distill_lit.experiment.display import Display
from distill_lit.experiment.pace import threads_per_worker
from distill_lit.experiment.planned_run import Run
from distill_lit.experiment.services import services_beside
from distill_lit.experiment.status import FAILED, PREEMPTED, STOPPED, RunResults, read_run_results, write_run_status
from distill_lit.experiment.stopping import CheckpointWatch, StopSignals, Terminated, describe_stop, stopping_on_signals
from distill_lit.training.checkpoint import find_latest_checkpoint
from distill_lit.utils.exceptions import FatalRunError, UserError, describe_exit_code
from distill_lit.utils.files import TEMPORARY_PREFIX, write_text
from distill_lit.utils.progress import NOTE_STAGE
from distill_lit.utils.redaction import redact_file

STOP_SECONDS = 60  # for a worker to come to the end of its step and begin its checkpoint
POLL_SECONDS = 0.05


@dataclass
class Outcome:
    """What became of the runs: {run name: reason} of those that failed."""

    failed: dict[str, str] = field(default_factory=dict)


def launch_runs(config: ExperimentConfig, runs: list[Run], folder: Path, display: Display) -> Outcome:
    """Runs what is not done, each run in its folder below `folder`.

    Raises UserError when another process is at it or a run has only corrupt
    checkpoints, Terminated when asked to stop, FatalRunError when going on is hopeless."""
    folder.mkdir(parents=True, exist_ok=True)
    with _exclusive_launcher(folder), stopping_on_signals() as signals:
        _rename_relabeled_folders(runs, folder)
        todo = [run for run in runs if not is_run_complete(run, folder / run.name)]
        for line in _check_checkpoints(todo, folder):
            display.note(line)
        write_text(folder / "experiment.yaml", to_yaml(config))
        display.start(runs, todo)
        outcome = Outcome()
        if todo:
            launcher = _Launcher(config, folder, todo, display, outcome, signals)
            with services_beside(todo, lambda: tuple(launcher.pending), display.note):
                launcher.run()
        return outcome


def _rename_relabeled_folders(runs: list[Run], folder: Path) -> None:
    """A run whose label alone has changed, as when the grid gets another axis, goes on in the folder it has."""
    names = {run.name for run in runs}
    for run in runs:
        if not (folder / run.name).exists():
            others = [path for path in folder.glob(f"*-{run.fingerprint[:8]}") if path.name not in names and path.is_dir()]
            if len(others) == 1:
                others[0].rename(folder / run.name)


def _check_checkpoints(todo: list[Run], folder: Path) -> list[str]:
    """What is to be said about checkpoints that will be passed over. Raises UserError when a run has only such."""
    unbuilt = [run for run in todo if not is_run_built(run, folder / run.name)]
    return [line for run in unbuilt for line in find_latest_checkpoint(folder / run.name / "checkpoints")[1]]


@contextlib.contextmanager
def _exclusive_launcher(folder: Path) -> Iterator[None]:
    lock = FileLock(folder / "lock", timeout=0)  # the kernel frees it when its owner dies
    try:
        lock.acquire()
    except Timeout:
        raise UserError(f"{folder} is in use by another process; wait for it or stop it") from None
    try:
        yield
    finally:
        lock.release()


class _Worker:
    """A worker process and the run it is at."""

    def __init__(self, number: int, folder: Path, threads: int, inbox: "queue.Queue[Any]") -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
        environment["PYTHONIOENCODING"] = "utf-8:backslashreplace"  # whatever the terminal can show
        self.number, self.run, self.stage, self.preempted, self.is_ready = number, None, "", "", False
        self.folder = folder
        self.path = folder / f"worker-{number}.log"
        self.log = self.path.open("a")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "distill_lit.experiment.worker", str(folder), str(threads)],
            encoding="utf-8",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            env=environment,
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
        write_text(self.folder / run.name / "config.yaml", to_yaml(run.config))
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps({"folder": run.name, "run": run.to_json()}), file=self.process.stdin, flush=True)

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
                found = path.stat()
                return found.st_size, found.st_mtime_ns
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


class _Launcher:
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
        self.pending = {run.name for run in todo}
        self.workers: dict[int, _Worker] = {}
        self._noted: set[str] = set()

    def run(self) -> None:
        """Until no run is pending."""
        try:
            for number in range(self.count):
                self._start_worker(number)
            while self.pending:
                worker, event = self.inbox.get()
                self._handle(worker, event)
        except Terminated as stop:
            self.display.note(describe_stop(self.signals.first, self._current_stages(), self._stop_seconds()))
            self._stop_workers()
            self._note_stopped(stop)
            raise
        finally:
            self._stop_workers()

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
            if folder.is_dir() and not (folder / "state.json").is_file() and not is_run_complete(run, folder):
                write_run_status(folder, state, "")

    def _start_worker(self, number: int) -> None:
        self.workers[number] = _Worker(number, self.folder, self.threads, self.inbox)

    def _handle(self, worker: _Worker, event: dict[str, Any]) -> None:
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
        elif kind == "preempted":
            worker.preempted = event["reason"]
        elif kind == "exit":
            if run is not None:
                self._finish(worker, run, worker.preempted or _exit_reason(event["code"]))
            elif event["code"] > 0 and not worker.is_ready and self.pending:
                raise FatalRunError(f"a worker could not start; see {worker.path}")
            if self.waiting:
                self._start_worker(worker.number)
        worker.is_ready = worker.is_ready or kind == "ready"
        if kind in ("ready", "done", "failed"):
            self._assign_next(worker)

    def _finish(self, worker: _Worker, run: Run, reason: str) -> None:
        worker.run = None
        self.pending.discard(run.name)
        if reason:
            self._fail(run, reason)
        self.display.finish_run(run, reason, read_run_results(run, self.folder / run.name))
        self._fail_dependents()
        for idle in self.workers.values():
            if idle is not worker and idle.run is None and idle.process.poll() is None:
                self._assign_next(idle)

    def _fail(self, run: Run, reason: str) -> None:
        """Notes a failure, unless the worker has said more about it."""
        self.outcome.failed[run.name] = reason
        folder = self.folder / run.name
        if not (folder / "state.json").is_file():
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

    def _assign_next(self, worker: _Worker) -> None:
        ready = next((c for c in self.waiting if not self.pending.intersection(c.depends_on)), None)
        if ready is not None and worker.run is None:
            self.waiting.remove(ready)
            worker.assign(ready)
            self.display.start_run(ready)


def _reply_seconds(run: Run | None) -> float:
    """Seconds that replies of a server, which are paid for, may still be on their way."""
    corpora = run.config.data.corpora.values() if run is not None and run.role == Role.GENERATED else ()
    servers = [corpus.generated.remote for corpus in corpora if corpus.generated is not None]
    return max((server.timeout for server in servers if server is not None), default=0.0)


def _exit_reason(code: int) -> str:
    said = describe_exit_code(code)
    return said.removeprefix("was ") if code < 0 else f"the worker {said}"
