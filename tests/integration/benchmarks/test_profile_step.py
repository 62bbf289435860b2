"""The profile of a step: its parts are the whole, and the page says what was measured."""

import time
from pathlib import Path

import pandas as pd
import pytest
import torch

from benchmarks.profile_step import NONE, profile, write


def test_parts_make_up_the_step(tmp_path: Path) -> None:
    a = torch.randn(256, 256)

    def run() -> None:
        for _ in range(50):
            a @ a
        time.sleep(0.05)

    rows = profile(run, lambda: time.sleep(0.01), 2, is_cuda=False)
    seconds = {row["part"]: row["seconds"] for row in rows}
    parts = {name: value for name, value in seconds.items() if name not in ("step", "floor")}
    assert sum(parts.values()) == pytest.approx(seconds["step"])
    assert parts["matrix products"] > 0 and parts[NONE] > 0.03
    assert rows[0]["time / floor"] == pytest.approx(seconds["step"] / seconds["floor"])
    write(pd.DataFrame(rows), tmp_path / "profile_step", "Where", "two rounds.")
    page = (tmp_path / "profile_step.md").read_text()
    assert "`python benchmarks/profile_step.py" in page and "two rounds. Machine: " in page
