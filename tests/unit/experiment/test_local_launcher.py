"""What the launcher of this machine does about its workers, made-up ones that end as they are told and do nothing."""

import os
import queue
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from distill_lit.config import ExperimentConfig, StudentConfig, TeacherConfig
from distill_lit.experiment.launcher import local, prepare
from distill_lit.experiment.launcher.display import SilentDisplay
from distill_lit.experiment.launcher.outcome import Outcome
from distill_lit.experiment.state.run_state import FAILED, STATE_NAME, write_run_status
from distill_lit.utils.exceptions import FatalRunError


class Notes(SilentDisplay):
    """A display that keeps its notes."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, line: str) -> None:
        """Keeps a line."""
        self.lines.append(line)


class Worker(local.Worker):
    """One that sends what is next in `life`: `ready`, or the code that it exits with."""

    life: Iterator[int | str]

    def __init__(self, number: int, folder: Path, threads: int, inbox: "queue.Queue[Any]", *_: Any) -> None:
        self.number, self.run, self.stage, self.preempted, self.is_ready = number, None, "", "", False
        self.folder, self.path, self.inbox = folder, folder / f"worker-{number}.log", inbox
        self.process: Any = SimpleNamespace(terminate=lambda: None, poll=lambda: 0)
        self.live()

    def live(self) -> None:
        said = next(self.life)
        self.inbox.put((self, {"event": said} if said == "ready" else {"event": "exit", "code": said}))

    def assign(self, run: Any) -> None:
        self.run = run
        self.live()

    def close(self) -> None:
        """Nothing is open."""


def launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, life: list[int | str], runs: int = 1) -> tuple[Notes, Outcome]:
    config = ExperimentConfig("x", teacher=TeacherConfig(model="x"), students={"s": StudentConfig()})
    todo: Any = [SimpleNamespace(name=f"r{n}", label=f"r{n}", depends_on=(), role="ce_only") for n in range(runs)]
    display, outcome, signals = Notes(), Outcome(), SimpleNamespace(is_urgent=False, first="")
    monkeypatch.setattr(Worker, "life", iter(life), raising=False)
    monkeypatch.setattr(local, "Worker", Worker)
    monkeypatch.setattr(local, "visible_gpus", list)
    monkeypatch.setattr(local, "is_run_complete", lambda *_: False)
    monkeypatch.setattr(local, "read_run_results", lambda *_: None)
    launcher = local.LocalLauncher(config, tmp_path, todo, display, outcome, signals)  # type: ignore[arg-type]
    try:
        launcher.run()
    finally:
        display.lines.append(f"{sum(1 for _ in Worker.life)} left")
    return display, outcome


def test_a_worker_that_is_killed_before_it_is_ready_is_started_a_few_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FatalRunError) as caught:
        launch(tmp_path, monkeypatch, [-9, -9, -9, *[-9] * 100])
    assert str(caught.value) == (
        "a worker that was not ready yet was killed by SIGKILL, perhaps out of memory, 3 times in a row; see "
        f"{tmp_path / 'worker-0.log'}"
    )


def test_deaths_before_a_worker_was_ready_are_said_and_forgotten_once_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice in a row is no reason to give up; the run that it is at when it dies has failed."""
    display, outcome = launch(tmp_path, monkeypatch, [-9, -15, "ready", -11, 0, -9, "ready", -11], runs=2)
    assert display.lines == [
        "a worker that was not ready yet was killed by SIGKILL, perhaps out of memory; started again",
        "a worker that was not ready yet was killed by SIGTERM; started again",
        "a worker that was not ready yet ended with exit code 0; started again",
        "a worker that was not ready yet was killed by SIGKILL, perhaps out of memory; started again",
        "0 left",
    ]
    assert outcome.failed == {"r0": "killed by SIGSEGV", "r1": "killed by SIGSEGV"}


def test_an_error_before_a_worker_is_ready_is_one_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FatalRunError, match="a worker that was not ready yet ended with exit code 1; see .*worker-0.log"):
        launch(tmp_path, monkeypatch, [1])


def shared_launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[local.LocalLauncher, list[str]]:
    """A launcher of `teacher` and of `student`, which needs it, and the names of the runs that it has given to workers."""
    runs: Any = [
        SimpleNamespace(name="teacher", label="teacher", depends_on=(), role="teacher_cache"),
        SimpleNamespace(name="student", label="student", depends_on=("teacher",), role="distilled"),
    ]
    config = ExperimentConfig("x", teacher=TeacherConfig(model="x"), students={"s": StudentConfig()})
    monkeypatch.setattr(local, "visible_gpus", list)
    monkeypatch.setattr(local, "is_run_complete", lambda *_: False)
    monkeypatch.setattr(local, "read_run_results", lambda *_: None)
    signals: Any = SimpleNamespace(is_urgent=False, first="")
    return local.LocalLauncher(config, tmp_path, runs, SilentDisplay(), Outcome(), signals), []


def give_work(launcher: local.LocalLauncher, given: list[str]) -> None:
    worker: Any = SimpleNamespace(run=None, assign=lambda run: given.append(run.name))
    launcher._assign_next(worker)


def test_what_has_failed_before_is_tried_again_whatever_the_clock_of_the_disk_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run_status(tmp_path / "teacher", FAILED, "no room")
    in_an_hour = time.time() + 3600
    os.utime(tmp_path / "teacher" / STATE_NAME, (in_an_hour, in_an_hour))
    launcher, given = shared_launcher(tmp_path, monkeypatch)
    give_work(launcher, given)
    assert (given, launcher.outcome.failed) == (["teacher"], {})


def test_no_worker_gets_what_needs_a_run_that_has_failed_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One worker finds the failure of another driver, whose clock is an hour slow; the next one is given nothing."""
    launcher, given = shared_launcher(tmp_path, monkeypatch)
    write_run_status(tmp_path / "teacher", FAILED, "no room")
    an_hour_ago = time.time() - 3600
    os.utime(tmp_path / "teacher" / STATE_NAME, (an_hour_ago, an_hour_ago))
    for _ in range(2):
        give_work(launcher, given)
    assert not given
    assert launcher.outcome.failed == {"teacher": "no room", "student": "needs teacher, which failed"}


def test_a_folder_that_another_driver_has_just_renamed_is_left_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "old-01234567").mkdir()
    monkeypatch.setattr(prepare, "is_claimed", lambda path: path.rename(tmp_path / "elsewhere") is None)
    run: Any = SimpleNamespace(name="new-01234567", fingerprint="0123456789abcdef")
    prepare._rename_relabeled_folders([run], tmp_path)
    assert not (tmp_path / "new-01234567").exists()
