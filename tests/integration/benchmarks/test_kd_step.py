"""The benchmark of a distillation step runs, and compares like with like: it refuses a contender with another gradient."""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from helpers import ROOT


@pytest.mark.slow
def test_the_quick_benchmark_measures_every_contender(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/kd_step.py", "--quick", "--lm-head-only", "--rounds", "2"]
    command += ["--out", str(tmp_path)]
    subprocess.run(command, check=True, cwd=ROOT, timeout=500)
    table = pd.read_csv(tmp_path / "kd_step.csv")
    contenders = {"ours", "ours, CE + KL", "plain", "plain, CE + KL", "trl", "torchtune", "floor"}
    assert set(table["method"]) == contenders
    assert (table["seconds"] > 0).all()
    assert table.loc[table["method"] == "ours", "time / ours"].item() == 1
    text = (tmp_path / "kd_step.md").read_text()
    assert all(f"| {name} |" in text for name in contenders)
