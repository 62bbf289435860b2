"""What the launcher of this machine does about its workers, made-up ones that end as they are told and do nothing."""

import queue
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from distill_lit.config import ExperimentConfig, StudentConfig, TeacherConfig
from distill_lit.experiment.launcher import local
from distill_lit.experiment.launcher.display import SilentDisplay
from distill_lit.experiment.launcher.outcome import Outcome
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
