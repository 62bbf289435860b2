"""`training.export: best`: the weights of the lowest validation loss are exported, after kill -9 too."""

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.training_processes import finish, lines, run_folder, start, weights
from safetensors.torch import load_file

from distill_lit.training.checkpoint import list_checkpoints
from distill_lit.utils.files import read_json

# the learning rate rises to where the student unlearns; the losses of all steps compare
RISING_AT_THE_END = (
    "training.export=best",
    "training.warmup_fraction=1.0",
    "training.learning_rate=1.0",
    "objective.terms.ce.weight=1.0",
    "objective.terms.kl.temperature=2.0",
)
NO_ROOM = ("training.keep_checkpoints=false", "training.checkpoint_budget=1e-9")


@pytest.fixture(scope="module")
def whole(experiment: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of a run that nobody disturbed."""
    root = tmp_path_factory.mktemp("whole")
    assert finish(start(experiment, root, overrides=RISING_AT_THE_END)) == 0
    return root


def manifest(root: Path) -> dict[str, Any]:
    return read_json(run_folder(root) / "manifest.json")


def test_the_step_with_the_lowest_validation_loss_is_exported(whole: Path) -> None:
    losses = {line["step"]: line["validation/loss"] for line in lines(whole) if "validation/loss" in line}
    best = min((step for step in losses if step), key=lambda step: losses[step])
    assert 0 < best < 20 and losses[best] < losses[20] and losses[best] < losses[24]
    said = manifest(whole)
    assert (said["exported"], said["steps"]) == ({"step": best, "loss": losses[best]}, 24)
    (validated,) = [line for line in lines(whole) if line["step"] == best and "validation/loss" in line]
    assert validated.items() - {("step", best)} <= said["metrics"].items()
    stored = torch.load(run_folder(whole) / f"checkpoints/step={best}.ckpt", weights_only=True)["state_dict"]
    exported = load_file(run_folder(whole) / "student/model.safetensors")
    assert exported and all(torch.equal(exported[name], stored[f"student.{name}"]) for name in exported)
    assert (
        f"| exported step | {best}, of the lowest validation loss |"
        in (run_folder(whole) / "student/README.md").read_text()
    )


@pytest.mark.parametrize(
    "point", ["export 1", *(pytest.param(point, marks=pytest.mark.slow) for point in ("train 47", "validate 20"))]
)
def test_a_run_that_is_killed_exports_the_same(experiment: Path, whole: Path, tmp_path: Path, point: str) -> None:
    """With a budget that holds no second checkpoint: the best one is kept until it is exported, and not after."""
    overrides = (*RISING_AT_THE_END, *NO_ROOM)
    assert finish(start(experiment, tmp_path, f"SIGKILL {point}", overrides)) == -signal.SIGKILL
    if point == "export 1":
        left = [path.stem for path in list_checkpoints(run_folder(tmp_path) / "checkpoints")]
        assert left == ["step=24", f"step={manifest(whole)['exported']['step']}"]
    assert finish(start(experiment, tmp_path, overrides=overrides)) == 0
    assert lines(tmp_path) == lines(whole) and weights(tmp_path) == weights(whole)
    assert manifest(tmp_path)["exported"] == manifest(whole)["exported"]
    assert not (run_folder(tmp_path) / "checkpoints").exists()
