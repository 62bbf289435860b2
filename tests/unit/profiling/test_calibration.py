"""The speed of a machine, from injected times: what a busy moment may not do to it."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from distill_lit.profiling import calibration
from distill_lit.profiling.calibration import Calibration, ProbeShape, SpeedProbe, measure_passes, scaled_to_threads

WORK = {"forward/float32": 100.0, "training/float32": 300.0, "optimizer": 10.0}


class Machine:
    """Calls that take one second each on an idle machine, and `slowness` as long while others are at work."""

    def __init__(self, slowness: Iterator[float], waits: bool = False) -> None:
        self.slowness, self.waits = slowness, waits
        self.now = self.waited = 0.0

    def tasks(self) -> dict[str, tuple[float, Callable[[], None]]]:
        return {name: (work, self.call) for name, work in WORK.items()}

    def call(self) -> None:
        factor = next(self.slowness)
        self.now += factor
        self.waited += (factor - 1) if self.waits else 0.0

    def measure(self) -> Calibration:
        return measure_passes(self.tasks(), lambda: self.now, lambda: self.waited)


def factors(*values: float) -> Iterator[float]:
    yield from values
    while True:
        yield values[-1]


@pytest.fixture(autouse=True)
def _idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration.hardware, "load_per_core", lambda: 0.0)


IDLE = Calibration({"float32": 100.0}, {"float32": 300.0}, 10.0, True)


def test_an_idle_machine_is_measured_in_three_rounds() -> None:
    machine = Machine(factors(1.0))
    assert machine.measure() == IDLE
    assert machine.now == 3 * (1 + 3)  # three tasks, warmed up once and timed three times


def test_a_busy_moment_does_not_count() -> None:
    """Seven times slower while the first calls run, as in the plan that was off by seven."""
    found = Machine(factors(*[7.0] * 6, 1.0)).measure()
    assert found == IDLE


def test_a_machine_that_is_busy_all_the_while_is_known_to_be() -> None:
    found = Machine(factors(7.0), waits=True).measure()
    assert not found.is_quiet
    assert found.training["float32"] == pytest.approx(300 / 7)
    jumping = Machine(1.5**n for n in range(99)).measure()  # no time is reached twice
    assert not jumping.is_quiet


def test_of_two_measurements_the_quiet_one_counts_and_of_two_others_the_faster() -> None:
    slow = Calibration({"float32": 10.0}, {"float32": 90.0}, 1.0, False)
    mixed = Calibration({"float32": 20.0}, {"float32": 50.0}, 3.0, False)
    fast = Calibration({"float32": 900.0}, {"float32": 900.0}, 90.0, False)
    assert slow.best_with(mixed) == Calibration({"float32": 20.0}, {"float32": 90.0}, 3.0, False, 2)
    assert fast.best_with(IDLE) == replace(IDLE, measurements=2) == IDLE.best_with(fast)


def test_threads_beside_each_other_reach_most_of_their_sum() -> None:
    two = scaled_to_threads(IDLE, 2)
    assert two.training["float32"] == pytest.approx(2 * 0.85 * 300)
    assert not two.is_quiet  # the threads were not timed together
    assert scaled_to_threads(IDLE, 1) == IDLE


def test_a_busy_machine_is_measured_again_and_an_idle_one_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTILL_LIT_CACHE", str(tmp_path))
    monkeypatch.setattr(calibration, "SpeedProbe", lambda *_: Machine(factors(1.0)))
    measured: list[bool] = []

    def measure(*_: object) -> Calibration:
        measured.append(len(measured) == 2)  # the third time nothing else runs
        return replace(IDLE, is_quiet=measured[-1])

    monkeypatch.setattr(calibration, "measure_passes", measure)
    found = [calibration.calibrate(torch.device("cpu"), 1) for _ in range(5)]
    assert measured == [False, False, True]
    assert [one.is_quiet for one in found] == [False, False, True, True, True]


def test_a_machine_that_is_never_idle_is_not_measured_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTILL_LIT_CACHE", str(tmp_path))
    monkeypatch.setattr(calibration, "SpeedProbe", lambda *_: Machine(factors(1.0)))
    calls: list[int] = []
    monkeypatch.setattr(calibration, "measure_passes", lambda *_: calls.append(1) or replace(IDLE, is_quiet=False))
    for _ in range(8):
        calibration.calibrate(torch.device("cpu"), 1)
    assert len(calls) == calibration.MAX_MEASUREMENTS


def test_a_busy_machine_is_not_measured_again_until_it_is_idle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTILL_LIT_CACHE", str(tmp_path))
    monkeypatch.setattr(calibration, "SpeedProbe", lambda *_: Machine(factors(1.0)))
    calls: list[int] = []
    monkeypatch.setattr(calibration, "measure_passes", lambda *_: calls.append(1) or replace(IDLE, is_quiet=False))
    for load in (3.0, 3.0, 0.1, 3.0):
        monkeypatch.setattr(calibration.hardware, "load_per_core", lambda load=load: load)
        calibration.calibrate(torch.device("cpu"), 1)
    assert len(calls) == 2


def test_a_format_that_the_processor_emulates_is_timed_on_fewer_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration.hardware, "matmul_flops_per_second", lambda _: {"float32": 50.0, "bfloat16": 1.0})
    probe = SpeedProbe(
        torch.device("cpu"), ProbeShape(width=16, intermediate=32, heads=2, vocabulary=64, batch=2, length=8)
    )
    assert {name: tuple(ids.shape) for name, ids in probe.inputs.items()} == {"float32": (2, 8), "bfloat16": (1, 2)}
    assert probe.flops("float32") == 8 * probe.flops("bfloat16")


def test_the_probe_counts_what_it_does() -> None:
    """2 per weight and token: of a block 4 w² of attention and 3 w f, and the head."""
    shape = ProbeShape(width=16, intermediate=32, heads=2, layers=2, vocabulary=64, batch=2, length=8)
    probe = SpeedProbe(torch.device("cpu"), shape)
    norms = 2 * 2 * 16
    weights = 2 * (4 * 16 * 16 + 3 * 16 * 32) + norms + 16 * 64
    assert probe.flops("float32") == 2 * weights * 2 * 8
    found = measure_passes(probe.tasks())
    assert set(found.forward) == set(found.training) == {"float32", "bfloat16"}
    assert min(*found.forward.values(), *found.training.values(), found.optimizer) > 0
