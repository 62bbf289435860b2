"""Ctrl-C, twice: what is said, what is lost, and that no checkpoint is cut short."""

import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers import warm_processes
from helpers.training_processes import SABOTAGE, command, outcome, run_folder, wait_until

from distill_lit.config.roles import Role
from distill_lit.experiment.execution.stopping import StopSignals, Terminated
from distill_lit.experiment.launcher.display import SilentDisplay
from distill_lit.experiment.launcher.local import LocalLauncher, Worker
from distill_lit.experiment.launcher.outcome import Outcome
from distill_lit.training.checkpoint import is_checkpoint_intact, list_checkpoints
from distill_lit.utils.files import TEMPORARY_PREFIX

# is deaf to SIGTERM; finishes its file after a second, and would then go on for a minute
WORKER = """
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
path = pathlib.Path(sys.argv[1])
path.write_text("half") if sys.argv[2] == "writes" else None
print("ready", flush=True)
time.sleep(1)
if path.exists():
    path.write_text("whole")
    path.rename(path.with_name("step=7.ckpt"))
time.sleep(60)
"""


class Listening(SilentDisplay):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, line: str) -> None:
        self.lines.append(line)


def launcher_of(folder: Path, signals: StopSignals, what: str) -> tuple[LocalLauncher, Listening]:
    """A launcher with one worker at work, which writes a checkpoint or not."""
    checkpoints = folder / "one" / "checkpoints"
    checkpoints.mkdir(parents=True)
    config = SimpleNamespace(launcher=SimpleNamespace(workers=1, threads_per_worker=1))
    run: Any = SimpleNamespace(name="one", label="one", role=Role.DISTILLED)
    display = Listening()
    launcher = LocalLauncher(config, folder, [run], display, Outcome(), signals)  # type: ignore[arg-type]
    worker = Worker.__new__(Worker)
    worker.number, worker.run, worker.stage, worker.folder = 0, run, "train", folder
    worker.path = folder / "worker-0.log"
    worker.log = worker.path.open("a")
    worker.process = subprocess.Popen(
        [sys.executable, "-S", "-c", WORKER, str(checkpoints / f"{TEMPORARY_PREFIX}x.ckpt"), what],
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert worker.process.stdout is not None
    assert worker.process.stdout.readline() == "ready\n"
    launcher.workers = {0: worker}
    return launcher, display


@pytest.mark.parametrize("what", ["writes", "computes"])
def test_a_second_ctrl_c_kills_a_worker_but_no_checkpoint(tmp_path: Path, what: str) -> None:
    signals = StopSignals()
    signals.first, signals.is_urgent = "Ctrl-C", True
    launcher, display = launcher_of(tmp_path, signals, what)
    began = time.monotonic()
    launcher._stop_workers()
    assert time.monotonic() - began < 30  # the worker would have gone on for a minute
    assert launcher.workers[0].process.returncode == -signal.SIGKILL
    found = [path.name for path in (tmp_path / "one/checkpoints").iterdir()]
    assert found == (["step=7.ckpt"] if what == "writes" else [])
    assert display.lines == (["one: its checkpoint is being written, and finished first"] if what == "writes" else [])


def test_time_that_is_over_does_not_end_a_checkpoint_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distill_lit.experiment.launcher.local.STOP_SECONDS", 0.1)
    signals = StopSignals()
    signals.first = "SIGTERM"
    launcher, _ = launcher_of(tmp_path, signals, "writes")
    launcher._stop_workers()
    assert (tmp_path / "one/checkpoints/step=7.ckpt").read_text() == "whole"


def test_a_launcher_that_is_stopped_says_so_before_it_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    signals = StopSignals()
    launcher, display = launcher_of(tmp_path, signals, "computes")
    monkeypatch.setattr(launcher, "_start_worker", lambda _: signals.handle_signal(signal.SIGINT))
    waited: list[list[str]] = []
    monkeypatch.setattr(launcher, "_stop_workers", lambda: waited.append(list(display.lines)))
    with pytest.raises(Terminated):
        launcher.run()
    launcher.workers[0].process.kill()
    launcher.workers[0].close()
    assert waited[0][0].startswith("Ctrl-C: stopping. A checkpoint is written after the present step of one.")


@pytest.mark.slow
def test_ctrl_c_twice_while_a_checkpoint_is_written(experiment: Path, tmp_path: Path) -> None:
    """The first checkpoint takes four seconds; both Ctrl-C come meanwhile."""
    with warm_processes.cold():
        driver = command("run", experiment, "--root", tmp_path, FAULTS="slow_checkpoints one train 1", PYTHONPATH=SABOTAGE)
    wait_until(lambda: [*tmp_path.glob(f"runs/tiny/one-*/checkpoints/{TEMPORARY_PREFIX}*.ckpt")], 300)
    driver.send_signal(signal.SIGINT)
    time.sleep(1.0)
    driver.send_signal(signal.SIGINT)
    code, said = outcome(driver)
    assert code == 130, said
    assert "Ctrl-C: stopping. A checkpoint is written after the present step of one." in said
    assert "one: its checkpoint is being written, and finished first" in said
    assert "the same command goes on from here" in said
    checkpoints = list_checkpoints(run_folder(tmp_path) / "checkpoints")
    assert checkpoints and all(map(is_checkpoint_intact, checkpoints))


@pytest.mark.slow
def test_ctrl_c_twice_in_a_step_that_does_not_end(experiment: Path, tmp_path: Path) -> None:
    """The checkpoint before is what is left."""
    hangs = tmp_path / "hangs"
    with warm_processes.cold():
        faults = {"FAULTS": "hang one train 22", "HANGS": str(hangs), "PYTHONPATH": SABOTAGE}  # in the eighth step
        driver = command("run", experiment, "--root", tmp_path, **faults)
    wait_until(hangs.exists, 300)
    driver.send_signal(signal.SIGINT)
    time.sleep(1.0)
    began = time.monotonic()
    driver.send_signal(signal.SIGINT)
    code, said = outcome(driver)
    assert code == 130, said
    assert time.monotonic() - began < 30  # not the 60 seconds that a worker is given
    assert "loses what was done since the last checkpoint" in " ".join(said.split())
    assert [path.stem for path in list_checkpoints(run_folder(tmp_path) / "checkpoints")] == ["step=5", "step=4"]


def test_a_sharded_checkpoint_is_seen_to_be_written(tmp_path: Path) -> None:
    """A folder, whose files grow."""
    worker = Worker.__new__(Worker)
    worker.run, worker.folder = SimpleNamespace(name="one"), tmp_path  # type: ignore[assignment]
    assert worker.unfinished_checkpoint() is None
    place = tmp_path / "one/checkpoints" / f"{TEMPORARY_PREFIX}step=5.ckpt"
    place.mkdir(parents=True)
    (place / "rank_00000.safetensors").write_bytes(b"x" * 10)
    before = worker.unfinished_checkpoint()
    (place / "rank_00000.safetensors").write_bytes(b"x" * 30)
    after = worker.unfinished_checkpoint()
    assert before is not None and after is not None
    assert after[0] - before[0] == 20 and after[1] >= before[1]
