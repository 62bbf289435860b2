"""The benchmark of whole trainers compares like with like: from the same rows all of them train the same student."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import reference_libraries, tiny_models
from safetensors.torch import load_file

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


@pytest.mark.slow
def test_trl_trains_the_same_student(folder: Path) -> None:
    main("distill-lit", folder)
    script = folder / "other_trainers.py"
    script.write_text(SCRIPT.format(root=str(Path(__file__).parents[3]), folder=str(folder)))
    reference_libraries.run_script(script)
    for name in ("trl GKDTrainer", "trl DistillationTrainer"):
        assert_same_student(folder, "distill-lit", name)
