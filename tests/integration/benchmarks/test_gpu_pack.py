"""What is packed for a GPU is unpacked again, and benchmarks/gpu.sh says of each part how it ended."""

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ROOT, tiny_models

from benchmarks import gpu_pack
from distill_lit.models import load_model


def test_weights_come_back_as_near_as_the_rounding_says(tmp_path: Path) -> None:
    model = load_model(tiny_models.make_model(tmp_path, tie_word_embeddings=False))
    weights = dict(model.state_dict())
    files = gpu_pack.encode_weights(weights)
    found = gpu_pack.decode_weights(files)
    assert found.keys() == weights.keys()
    for name, wanted in weights.items():
        if wanted.ndim == 2:
            step = (gpu_pack.STEP * wanted.std(1, keepdim=True)).clamp(min=1e-4)  # a row of padding is all zeros
            steps = ((found[name] - wanted).abs() / step).max()
            assert steps < 0.51, name
        else:
            assert torch.equal(found[name], wanted), name
    bits = 8 * len(files["symbols.zlib"]) / sum(tensor.numel() for tensor in weights.values() if tensor.ndim == 2)
    assert bits < 4


def test_rows_are_stored_in_as_few_bytes_as_hold_them() -> None:
    for array, dtype in (([255], np.uint8), ([256], np.uint16), ([70000], np.uint32), ([True], bool)):
        narrow = gpu_pack._narrow(np.array(array))
        assert narrow.dtype == dtype and narrow.tolist() == array


@pytest.mark.parametrize(
    ("command", "seconds_left", "ends"),
    [("true", "60", {"0"}), ("false", "60", {"1"}), ("true", "0", {"skipped"})],
    ids=["all is well", "all fails", "no time"],
)
def test_the_script_goes_on_after_a_part_that_fails(
    tmp_path: Path, command: str, seconds_left: str, ends: set[str]
) -> None:
    environment = {**os.environ, "PYTHON": command, "OUT": str(tmp_path), "SECONDS_LEFT": seconds_left}
    done = subprocess.run([ROOT / "benchmarks" / "gpu.sh", "--dry-run"], env=environment, capture_output=True, text=True)
    lines = (tmp_path / "parts.csv").read_text().split()
    assert lines[0] == "part,seconds,exit_code"
    assert [line.split(",")[0] for line in lines[1:]] == ["unpack", "tests", "kd_step", "flagship"]
    assert {line.split(",")[2] for line in lines[1:]} == ends
    assert (done.returncode == 0) == (ends == {"0"})
