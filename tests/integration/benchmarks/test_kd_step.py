"""The benchmark of a distillation step runs, and compares like with like: it refuses a contender with another gradient."""

import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from helpers import ROOT, tiny_models

from benchmarks import kd_step
from benchmarks.kd_losses import (
    OURS_CE_KL,
    PLAIN,
    check_gradients_match,
    matmul_floor,
    plain_pytorch_loss,
    random_loss_inputs,
)

CPU = torch.device("cpu")


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


def test_the_gradient_of_the_head_is_part_of_the_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a run before it nothing is left that would be freed first."""
    monkeypatch.setattr(kd_step, "losses_for_device", lambda _: {PLAIN: plain_pytorch_loss})
    tokens = random_loss_inputs(4, 100_000, torch.float32, CPU)
    run = kd_step.lm_head_runs(tokens)[PLAIN]
    run()
    assert kd_step.peak_memory(run, CPU) > tokens.weight.nbytes / 2**20


def test_a_whole_step_leaves_no_gradient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_models.make_model(tmp_path / "teacher")
    made, new_distiller = [], kd_step.new_distiller
    monkeypatch.setattr(kd_step, "new_distiller", lambda *options: made.append(new_distiller(*options)) or made[-1])
    runs = kd_step.step_runs(torch.float32, CPU, True, False, f"file:{tmp_path / 'teacher'}", only=(PLAIN,))
    before = [parameter.clone() for parameter in made[0].student.parameters()]
    runs[PLAIN]()
    assert any(not torch.equal(*pair) for pair in zip(before, made[0].student.parameters(), strict=True))
    assert all(parameter.grad is None for parameter in made[0].student.parameters())


def test_a_contender_with_another_gradient_is_refused() -> None:
    tokens = random_loss_inputs(16, 50, torch.float32, CPU)
    check_gradients_match(tokens, {PLAIN: plain_pytorch_loss, OURS_CE_KL: lambda one: plain_pytorch_loss(one, True)})
    for name, wrong in ((PLAIN, True), (OURS_CE_KL, False)):
        with pytest.raises(AssertionError, match=re.escape(f"{name}: gradient off")):
            check_gradients_match(tokens, {name: lambda one, wrong=wrong: plain_pytorch_loss(one, wrong)})


def test_the_floor_of_the_head_takes_tokens_that_fill_no_chunk() -> None:
    matmul_floor(random_loss_inputs(10, 20, torch.bfloat16, CPU, width=8), chunk=4)()
