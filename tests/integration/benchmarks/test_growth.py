"""The benchmark of growth: its powers, by hand, and a figure of every case."""

from pathlib import Path

import pandas as pd
import pytest

from benchmarks.growth import draw, exponent, render_page

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
