"""The benchmark of whole trainers compares like with like: from the same rows all of them train the same student."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import ROOT, reference_libraries, tiny_models
from safetensors.torch import load_file

from benchmarks import trainers
from benchmarks.trainer_contenders import main
from distill_lit.models import load_model

SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from benchmarks.trainer_contenders import main
for name in ("trl GKDTrainer", "trl DistillationTrainer"):
    main(name, Path({folder!r}))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    teacher = load_model(tiny_models.make_model(tmp_path / "teacher", seed=1))
    tiny_models.make_model(tmp_path / "student", seed=2)
    rows = np.random.default_rng(0).integers(3, teacher.config.vocab_size, (6, 16))
    np.save(tmp_path / "rows.npy", rows)
    (tmp_path / "settings.json").write_text(json.dumps({"batch": 2, "dtype": "float32"}))
    return tmp_path


def assert_same_student(folder: Path, name: str, other: str) -> None:
    start, first, second = (load_file(folder / part / "model.safetensors") for part in ("student", name, other))
    assert any(not torch.equal(first[parameter], value) for parameter, value in start.items())
    for parameter, value in first.items():
        torch.testing.assert_close(second[parameter], value, rtol=0, atol=2e-6, msg=parameter)


def test_ours_and_plain_lightning_train_the_same_student(folder: Path) -> None:
    for name in ("distill-lit", "plain Lightning"):
        main(name, folder)
        found = json.loads((folder / f"{name}.json").read_text())
        assert len(found["seconds"]) == 3 and min(found["seconds"]) > 0 and found["peak"] > 0
    assert_same_student(folder, "distill-lit", "plain Lightning")


def test_the_floor_learns_nothing(folder: Path) -> None:
    """In a process of its own, which finds by itself what it imports."""
    script = ROOT / "benchmarks/trainer_contenders.py"
    subprocess.run([sys.executable, str(script), trainers.FLOOR, str(folder)], check=True, timeout=300)
    assert len(json.loads((folder / f"{trainers.FLOOR}.json").read_text())["seconds"]) == 3
    start, end = (load_file(folder / part / "model.safetensors") for part in ("student", trainers.FLOOR))
    torch.testing.assert_close(end, start, rtol=0, atol=0)


@pytest.mark.slow
def test_trl_trains_the_same_student(folder: Path) -> None:
    main("distill-lit", folder)
    script = folder / "other_trainers.py"
    script.write_text(SCRIPT.format(root=str(Path(__file__).parents[3]), folder=str(folder)))
    reference_libraries.run_script(script)
    for name in ("trl GKDTrainer", "trl DistillationTrainer"):
        assert_same_student(folder, "distill-lit", name)


def test_the_peak_is_that_of_the_process_itself(folder: Path) -> None:
    """Linux begins `ru_maxrss` of a process at the peak of the one that started it, here more than the training takes."""
    command = [sys.executable, str(ROOT / "benchmarks/trainer_contenders.py"), "plain Lightning", str(folder)]
    parent = "import subprocess, sys; memory = b'1' * (2 << 30); del memory; subprocess.run(sys.argv[1:], check=True)"
    subprocess.run([sys.executable, "-c", parent, *command], check=True, timeout=300)
    assert json.loads((folder / "plain Lightning.json").read_text())["peak"] < 2 << 30


def test_what_is_measured_is_kept_where_a_trainer_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def train(name: str, folder: Path, _: str) -> dict[str, Any]:
        if name == "broken":
            raise subprocess.CalledProcessError(1, name)
        if name == trainers.FLOOR:
            return {"seconds": [1.0, 1.0, 2.0, 2.0], "peak": 2**30}
        times.append(0)
        return {"seconds": [30.0 * len(times), 9.0, float(len(times)), 8.0], "peak": 2**30}

    times: list[int] = []
    monkeypatch.setattr(trainers, "train", train)
    monkeypatch.setattr(trainers, "held_out_kl", lambda folder, name: 0.5)
    monkeypatch.setattr(sys, "argv", ["trainers.py", "--out", str(tmp_path), "--rounds", "2", "--steps", "4"])
    names = [trainers.OURS, "broken", "plain Lightning", trainers.FLOOR]
    failed = trainers.measure(names, tmp_path, trainers.parse_options())
    assert failed == {"broken": 1}
    table = pd.read_csv(tmp_path / "trainers.csv").set_index("trainer")
    # of 1, 8, 3, 8 and of 2, 8, 4, 8
    assert table["seconds"].to_dict() == {trainers.OURS: 5.5, "plain Lightning": 6.0, trainers.FLOOR: 2.0}
    assert table["first_step"].tolist()[:2] == [30.0, 60.0]
    assert table["time_ratio"].tolist() == pytest.approx([1.0, 6 / 5.5, 2 / 5.5], rel=1e-4)
    assert table["floor_ratio"].tolist() == pytest.approx([5.5 / 2, 6 / 2, 1.0], rel=1e-4)
    assert "Failed: broken in round 1." in (tmp_path / "trainers.md").read_text()


@pytest.mark.parametrize(
    "options",
    [["--rounds", "0"], ["--steps", "2"], ["--only", "DistillKit"], ["--distillkit", "none"], ["--out", "none"]],
)
def test_options_that_cannot_be_measured_are_refused(
    options: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["trainers.py", *options])
    with pytest.raises(SystemExit) as ended:
        trainers.parse_options()
    assert ended.value.code == 2
    assert options[0] in capsys.readouterr().err.splitlines()[-1]
