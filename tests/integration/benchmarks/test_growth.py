"""The benchmark of growth: its powers, by hand, and a figure of every case."""

from pathlib import Path

import pandas as pd
import pytest

from benchmarks import growth
from benchmarks.growth import CPU, draw, exponent, planning, render_page
from distill_lit.experiment.experiment import Experiment
from distill_lit.profiling.memory import read_peak_memory, reset_peak_memory

SIZES = (1, 10, 100, 1000)


def made_up(power: float, constant: float = 0.0) -> pd.DataFrame:
    return pd.DataFrame([
        {"what": "Report", "grows": f"documents {power}", "size": size, "seconds": constant + size**power, "peak_mib": 1.0}
        for size in SIZES
    ])  # fmt: skip


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_the_power_is_that_of_the_larger_sizes(power: float, tmp_path: Path) -> None:
    table = made_up(power)
    assert exponent(table) == pytest.approx(power)
    assert exponent(table.assign(seconds=[50.0, *table["seconds"][1:]])) == pytest.approx(power)
    draw(pd.concat([table, made_up(3.0)]), tmp_path / "growth.png")
    assert (tmp_path / "growth.png").stat().st_size > 1000
    assert f"| {power:.2f} | 1 to 1 |" in render_page(table, 1)


def test_every_round_plans_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planned, plan_runs = [], Experiment._planned_runs
    monkeypatch.setattr(Experiment, "_planned_runs", lambda self: planned.append(self) or plan_runs(self))
    plan = planning(1, tmp_path)
    before = len(planned)
    assert plan() == plan() == 100
    assert len(planned) - before == 2


def test_gradients_are_part_of_the_peak() -> None:
    step = growth.distillation_step(layers=1, tokens=128, vocabulary=65536)
    before = reset_peak_memory(CPU)
    step()
    assert read_peak_memory(CPU) - before > 4 * 65536 * growth.HIDDEN_SIZE * 2  # of the head and of the embedding
