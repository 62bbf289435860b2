"""How long work takes: hand arithmetic with a made-up machine."""

from types import SimpleNamespace
from typing import Any

import pytest

from distill_lit.experiment.estimates.pace import Pace, makespan, threads_per_worker
from distill_lit.profiling.calibration import Calibration

MACHINE = Calibration({"float32": 100.0, "bfloat16": 400.0}, {"float32": 50.0, "bfloat16": 200.0}, 10.0, True)


def test_seconds_of_arithmetic() -> None:
    pace = Pace(MACHINE)
    assert pace.forward(1000, "float32") == 10
    assert pace.forward(1000, "float16") == 10  # what was not measured goes at the speed of float32
    assert pace.training(1000, "bfloat16") == 5
    assert Pace(MACHINE, devices=4).training(1000, "bfloat16") == 1.25
    assert pace.optimizer(50) == 5
    assert pace.decoding(1000, "bfloat16") == pytest.approx(1000 / (400 * 0.2))


def run(name: str, minutes: float, *needs: str) -> Any:
    return SimpleNamespace(name=name, minutes=minutes, depends_on=needs)


@pytest.mark.parametrize(("workers", "expected"), [(1, 3 + 1 + 2 + 4), (2, 5), (4, 5)])
def test_runs_wait_for_workers_and_for_what_they_need(workers: int, expected: float) -> None:
    """Two workers: a until 3 and b until 1; d goes from 1 to 5, c from 3 to 5."""
    runs = [run("a", 3), run("b", 1), run("c", 2, "a"), run("d", 4, "b", "elsewhere")]
    assert makespan(runs, lambda one: one.minutes, workers) == expected
    assert makespan([], lambda one: one.minutes, workers) == 0


def test_a_worker_that_has_nothing_to_do_waits() -> None:
    assert makespan([run("a", 3), run("b", 1, "a"), run("c", 1, "b")], lambda one: one.minutes, 2) == 5


def test_threads_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    assert threads_per_worker(0, 3) == 2
    assert threads_per_worker(5, 3) == 5
    assert threads_per_worker(0, 99) == 1
