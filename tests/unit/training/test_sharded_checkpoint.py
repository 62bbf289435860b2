"""Checkpoints that are folders: the rows of every rank, whole or not there, and never an object."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from distill_lit.training import sharded_checkpoint
from distill_lit.training.checkpoint import (
    SafeCheckpointIO,
    find_latest_checkpoint,
    list_checkpoints,
    load_best_weights,
    rotate_checkpoints,
    update_best_checkpoint,
)
from distill_lit.training.sharded_checkpoint import StoredTensor, rank_file, rows_of_rank
from distill_lit.utils.exceptions import UserError
from distill_lit.utils.files import TEMPORARY_PREFIX, sha256_of


@pytest.mark.parametrize("count", [0, 1, 2, 5, 7, 8, 9, 31])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8])
def test_rows_of_ranks_are_those_of_chunk(count: int, ranks: int) -> None:
    chunks = [*torch.arange(count).chunk(ranks)] if count else []
    chunks += [torch.arange(0)] * (ranks - len(chunks))
    for rank, chunk in enumerate(chunks):
        assert list(range(*rows_of_rank(count, rank, ranks))) == chunk.tolist()


def write_by_hand(folder: Path, ranks: int = 3, module: str = "") -> dict[str, torch.Tensor]:
    """A checkpoint of three tensors, as `ranks` ranks would have written it. module: before the names of its weights."""
    whole = {f"state_dict/{module}a": torch.randn(7, 2), f"state_dict/{module}b": torch.randn(2)}
    whole["optimizer_states/0/4/exp_avg"] = torch.randn(5, 3)
    folder.mkdir(parents=True)
    for rank in range(ranks):
        rows = {name: tensor[slice(*rows_of_rank(len(tensor), rank, ranks))] for name, tensor in whole.items()}
        save_file({name: tensor.clone() for name, tensor in rows.items()}, folder / rank_file(rank))
    shared = {"state_dict": {"c": torch.ones(())}, "optimizer_states": [{"state": {4: {"step": 9}}}], "epoch": 1}
    torch.save(shared, folder / "shared.pt")
    files = {path.name: sha256_of(path) for path in folder.iterdir()}
    shapes = {name: list(tensor.shape) for name, tensor in whole.items()}
    (folder / "manifest.json").write_text(json.dumps({"ranks": ranks, "files": files, "tensors": shapes}))
    return whole


def test_a_folder_is_read_by_any_number_of_ranks(tmp_path: Path) -> None:
    folder = tmp_path / "step=3.ckpt"
    whole = write_by_hand(folder)
    checkpoint = SafeCheckpointIO().load_checkpoint(folder)
    assert torch.equal(checkpoint["state_dict"]["a"], whole["state_dict/a"])
    assert torch.equal(checkpoint["state_dict"]["b"], whole["state_dict/b"])
    assert checkpoint["state_dict"]["c"] == 1
    state = checkpoint["optimizer_states"][0]["state"][4]
    assert torch.equal(state["exp_avg"], whole["optimizer_states/0/4/exp_avg"])
    assert (state["step"], checkpoint["epoch"]) == (9, 1)
    for name, tensor in whole.items():
        stored = StoredTensor(folder, name, tensor.shape, 3)
        for ranks in (1, 2, 4, 9):
            for rank in range(ranks):
                rows = rows_of_rank(len(tensor), rank, ranks)
                assert torch.equal(stored.rows(*rows), tensor[slice(*rows)])


@pytest.mark.parametrize("name", ["rank_00001.safetensors", "shared.pt", "manifest.json"])
@pytest.mark.parametrize("deed", ["flip", "remove"])
def test_a_folder_that_is_damaged_is_passed_over(tmp_path: Path, name: str, deed: str) -> None:
    write_by_hand(tmp_path / "step=2.ckpt")
    write_by_hand(tmp_path / "step=3.ckpt")
    (tmp_path / f"{TEMPORARY_PREFIX}step=4.ckpt").mkdir()  # a kill in the middle of writing
    file = tmp_path / "step=3.ckpt" / name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0xFF
    file.write_bytes(data) if deed == "flip" else file.unlink()
    found, warnings = find_latest_checkpoint(tmp_path)
    assert (found, len(warnings)) == (tmp_path / "step=2.ckpt", 1)
    with pytest.raises(UserError, match="corrupt"):
        SafeCheckpointIO().load_checkpoint(tmp_path / "step=3.ckpt")


def test_objects_are_never_built(tmp_path: Path) -> None:
    folder = tmp_path / "step=3.ckpt"
    write_by_hand(folder)
    (folder / "shared.pt").write_bytes(pickle.dumps(Path("/tmp")))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["shared.pt"] = sha256_of(folder / "shared.pt")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="is refused"):
        SafeCheckpointIO().load_checkpoint(folder)


def test_the_best_weights_are_read_from_a_folder(tmp_path: Path) -> None:
    whole = write_by_hand(tmp_path / "step=3.ckpt", module="student.")
    update_best_checkpoint(tmp_path, 3, 1.0)
    student = nn.ParameterDict({"a": torch.zeros(7, 2), "b": torch.zeros(2), "frozen": torch.zeros(1)})
    assert load_best_weights(tmp_path, student) == {"step": 3, "loss": 1.0}
    assert torch.equal(student["a"], whole["state_dict/student.a"])
    assert torch.equal(student["b"], whole["state_dict/student.b"])


def test_folders_count_in_the_budget(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        write_by_hand(tmp_path / f"step={step}.ckpt")
    rotate_checkpoints(tmp_path, 1.0)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step=4.ckpt", "step=3.ckpt"]
    rotate_checkpoints(tmp_path, 1e-9)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step=4.ckpt"]
    sharded_checkpoint.remove(tmp_path / "step=4.ckpt")
    assert not [*tmp_path.iterdir()]


def test_the_same_step_is_saved_again(tmp_path: Path) -> None:
    """As by a signal that comes while a step is validated which has been saved before."""
    folder = tmp_path / "step=3.ckpt"
    for epoch in (1, 2):
        checkpoint = {"state_dict": {"a": torch.ones(2)}, "optimizer_states": [], "epoch": epoch}
        sharded_checkpoint.write(checkpoint, folder, lambda _: None)
        assert SafeCheckpointIO().load_checkpoint(folder)["epoch"] == epoch
    assert [path.name for path in tmp_path.iterdir()] == ["step=3.ckpt"]
    SafeCheckpointIO().save_checkpoint({"epoch": 3}, folder)  # and whole, by a training that is sharded no more
    assert SafeCheckpointIO().load_checkpoint(folder)["epoch"] == 3
    sharded_checkpoint.write(checkpoint, folder, lambda _: None)
    assert SafeCheckpointIO().load_checkpoint(folder)["epoch"] == 2
