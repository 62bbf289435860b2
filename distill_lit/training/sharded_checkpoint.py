"""Checkpoints of sharded trainings: a folder in which every rank has a file of its own slices.

`rank_00000.safetensors` and so on: the rows of every sharded tensor that a rank holds, along the first dimension;
`shared.pt`: what is no sharded tensor, plain values and tensors; `manifest.json`: the sha256 of all these files, and the
shape of every sharded tensor. Nothing in it can build objects, which is why it is not torch's own distributed format, whose
metadata is a pickle.

All files are written into a folder with TEMPORARY_PREFIX before its name, each rank hashes its own, and when all have done
so the first rank writes the manifest and renames the folder: one called `step=N.ckpt` is whole. Rows can be read by any
number of ranks, sharded or not.
"""

import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from distill_lit.training.weights_only import load_checkpoint_weights_only
from distill_lit.utils.distributed.ranks import all_gather_object, barrier, get_rank, is_sharded
from distill_lit.utils.files import TEMPORARY_PREFIX, read_json, sha256_of, sync_folder, write_json

SHARED_FILE, MANIFEST_FILE = "shared.pt", "manifest.json"
HASHING_THREADS = 8
WEIGHTS, OPTIMIZERS = "state_dict", "optimizer_states"  # where Lightning keeps tensors in a checkpoint


class StoredTensor(NamedTuple):
    """A tensor that stays in the files of a checkpoint until its rows are asked for."""

    folder: Path
    name: str
    shape: torch.Size
    ranks: int

    def rows(self, start: int, stop: int) -> Tensor:
        """Its rows from `start` to `stop` − 1."""
        parts = []
        for rank in range(self.ranks):
            first, last = rows_of_rank(self.shape[0], rank, self.ranks)
            if max(first, start) < min(last, stop) or (rank == 0 and start == stop):
                with safe_open(self.folder / rank_file(rank), framework="pt") as file:
                    parts.append(file.get_slice(self.name)[max(first, start) - first : min(last, stop) - first])
        return torch.cat(parts)


def rows_of_rank(count: int, rank: int, ranks: int) -> tuple[int, int]:
    """(first, last + 1) of `count` rows that a rank holds, as `torch.chunk` cuts them and FSDP2 with it."""
    size = -(-count // ranks)
    return min(rank * size, count), min((rank + 1) * size, count)


def rank_file(rank: int) -> str:
    """The name of a rank's file."""
    return f"rank_{rank:05d}.safetensors"


def write(checkpoint: dict[str, Any], folder: Path, make_room: Callable[[int], None]) -> None:
    """Writes a checkpoint whose sharded tensors (DTensors) each rank holds a part of; all ranks call this.

    make_room: called on the first rank with the bytes that are to be written. Raises OSError when the disk is too full.
    """
    shared, sharded = _split(checkpoint)
    temporary = folder.with_name(f"{TEMPORARY_PREFIX}{folder.name}")
    if get_rank() == 0:
        for left in folder.parent.glob(f"{TEMPORARY_PREFIX}step=*"):
            shutil.rmtree(left)
        folder.parent.mkdir(parents=True, exist_ok=True)
        make_room(sum(tensor.numel() * tensor.element_size() for tensor in sharded.values()))
        temporary.mkdir()
    barrier()
    file = temporary / rank_file(get_rank())
    save_file({name: _own_rows(tensor) for name, tensor in sharded.items()}, file)
    _sync(file)
    hashes = dict(all_gather_object((file.name, sha256_of(file))))
    if get_rank() == 0:
        torch.save(shared, temporary / SHARED_FILE)
        _sync(temporary / SHARED_FILE)
        hashes[SHARED_FILE] = sha256_of(temporary / SHARED_FILE)
        shapes = {name: list(tensor.shape) for name, tensor in sharded.items()}
        write_json(temporary / MANIFEST_FILE, {"ranks": len(hashes) - 1, "files": hashes, "tensors": shapes})
        aside = _set_aside(folder) if folder.is_dir() else None
        folder.unlink(missing_ok=True)  # a whole one, of before there were shards
        temporary.rename(folder)
        sync_folder(folder.parent)
        if aside is not None:
            shutil.rmtree(aside)


def read(folder: Path, whole: bool) -> dict[str, Any]:
    """A checkpoint as it was given to `write`, its sharded tensors whole, or as `StoredTensor`s."""
    checkpoint, manifest = load_checkpoint_weights_only(folder / SHARED_FILE), read_json(folder / MANIFEST_FILE)
    for name, shape in manifest["tensors"].items():
        tensor: Any = StoredTensor(folder, name, torch.Size(shape), manifest["ranks"])
        tensor = tensor.rows(0, shape[0]) if whole else tensor
        kind, rest = name.split("/", 1)
        if kind == WEIGHTS:
            checkpoint[WEIGHTS][rest] = tensor
        else:
            optimizer, parameter, value = rest.split("/")
            checkpoint[OPTIMIZERS][int(optimizer)]["state"][int(parameter)][value] = tensor
    return checkpoint


def is_intact(folder: Path) -> bool:
    """Whether every file has the hash that was written with it."""
    try:
        files = read_json(folder / MANIFEST_FILE)["files"]
        with ThreadPoolExecutor(HASHING_THREADS) as pool:
            return SHARED_FILE in files and list(pool.map(sha256_of, (folder / name for name in files))) == [
                *files.values()
            ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def remove(folder: Path) -> None:
    """Removes a checkpoint; one that is removed in part is none."""
    shutil.rmtree(_set_aside(folder))


def _set_aside(folder: Path) -> Path:
    """Where a checkpoint is then, under a name that is not that of one which is being written."""
    aside = folder.with_name(f"{TEMPORARY_PREFIX}removed-{folder.name}")
    shutil.rmtree(aside, ignore_errors=True)
    return folder.rename(aside)


def _split(checkpoint: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(the checkpoint without its sharded tensors, these by name)."""
    shared = {**checkpoint, WEIGHTS: {}, OPTIMIZERS: []}
    sharded: dict[str, Tensor] = {}
    for name, tensor in checkpoint[WEIGHTS].items():
        if is_sharded(tensor):
            sharded[f"{WEIGHTS}/{name}"] = tensor
        else:
            shared[WEIGHTS][name] = tensor
    for number, state in enumerate(checkpoint.get(OPTIMIZERS, [])):
        kept: dict[int, dict[str, Any]] = {}
        for parameter, values in state["state"].items():
            kept[parameter] = {key: value for key, value in values.items() if not is_sharded(value)}
            sharded |= {
                f"{OPTIMIZERS}/{number}/{parameter}/{key}": value for key, value in values.items() if is_sharded(value)
            }
        shared[OPTIMIZERS].append({**state, "state": kept})
    return shared, sharded


def _own_rows(tensor: Any) -> Tensor:
    """The rows of a DTensor that this rank holds, on the CPU; a copy, as tied weights may not share memory in a file."""
    own: Tensor = tensor.to_local().detach()
    return own.to("cpu", copy=True).contiguous()


def _sync(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())
