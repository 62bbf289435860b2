"""The examples in Python run as they are printed, without a network."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT
from transformers import AutoModelForCausalLM

EXAMPLES = ROOT / "examples/python"


@pytest.mark.parametrize("name", ["distill", "hf_trainer", "custom_loss"])
def test_an_example_runs(name: str, tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), "--steps", "2"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    if name != "custom_loss":
        assert AutoModelForCausalLM.from_pretrained(tmp_path / "student").config.num_hidden_layers == 1
