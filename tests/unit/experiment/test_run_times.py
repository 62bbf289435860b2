"""The times of stages from injected clocks."""

from pathlib import Path

import pytest
import torch

from distill_lit.experiment.state import run_times
from distill_lit.experiment.state.run_times import StageClock, read_times, record_times, total_seconds
from distill_lit.utils.progress import send_note


def test_time_belongs_to_the_stage_that_has_worked() -> None:
    now = [0.0]
    reports: list[tuple] = []
    clock = StageClock(lambda *report: reports.append(report), lambda: now[0], lambda: 2 * now[0])

    def at(seconds: float, stage: str, done: float) -> None:
        now[0] = seconds
        clock(stage, done, 10.0)

    at(5, "validate", 1)  # loading, and the first batch, which cannot be told apart
    at(6, "validate", 2)
    at(9, "train", 1)
    send_note(clock, "a line")
    at(13, "train", 2)
    at(15, "validate", 1)
    at(18, "export", 0)  # what came before was the last validation's
    at(25, "evaluate a", 3)  # writing took until the first answer
    at(26, "evaluate a", 4)
    now[0] = 27
    clock.stop()
    assert clock.seconds == {"start": 5, "validate": 1 + 2 + 3, "train": 3 + 4, "export": 7, "evaluate a": 2}
    assert clock.cpu_seconds == {stage: 2 * seconds for stage, seconds in clock.seconds.items()}
    assert sum(clock.seconds.values()) == 27
    assert [report[0] for report in reports].count("note") == 1


def fail_in(folder: Path) -> None:
    with record_times(folder, lambda *_: None, torch.device("cpu")) as clock:
        clock.seconds = {"train": 1.5}
        raise RuntimeError


def test_a_run_that_goes_on_adds_to_its_times_also_after_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_times, "read_peak_memory", lambda _: 7)
    monkeypatch.setattr(StageClock, "stop", lambda _: None)
    assert total_seconds(tmp_path) is None  # a run from before there were times
    for _ in range(2):
        with pytest.raises(RuntimeError):
            fail_in(tmp_path)
    found = read_times(tmp_path)
    assert found["seconds"] == {"train": 3.0}
    assert found["peak_memory_bytes"] == 7
    assert total_seconds(tmp_path) == 3.0
    (tmp_path / "times.json").write_text("{")
    assert read_times(tmp_path) == {}
