"""Checkpoints that are whole, checksummed, read as plain tensors, kept within a budget, and say what they belong to."""

import errno
import logging
import math
import shutil
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor, nn

from distill_lit.training import sharded_checkpoint
from distill_lit.training.weights_only import load_checkpoint_weights_only
from distill_lit.utils.exceptions import UserError
from distill_lit.utils.files import atomic_write, read_json, sha256_of, write_json

log = logging.getLogger(__name__)
RESERVE_BYTES = 32 << 20  # left free beside a checkpoint, for event files and manifests
MAX_RETAINED_CHECKPOINTS = 2  # the newest, and one to fall back on
CHECKPOINT_KEY = "distill_lit"  # our entry in a checkpoint
BEST_CHECKPOINT_FILE = "best.json"
STUDENT = "student."  # before the names of a student's weights in a checkpoint of its `Distiller`
Fingerprints = dict[str, str]


class SafeCheckpointIO(TorchCheckpointIO):
    """Asks for room, writes beside, syncs, writes the checksum, renames; loads tensors and plain values only."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Saves atomically, with `<name>.sha256.json` beside it. Raises OSError when the disk is too full."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        ensure_free_space(target.parent, _tensor_bytes(checkpoint))
        with atomic_write(target) as temporary:
            with temporary.open("wb") as file:
                _save(checkpoint, file)
            # before the rename: a checkpoint under its final name always has its checksum
            write_json(checksum_path(target), {"sha256": sha256_of(temporary)})
            if target.is_dir():  # of shards, where the same step was saved so before
                sharded_checkpoint.remove(target)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> dict[str, Any]:
        """Loads with `weights_only`, whatever the caller or the environment says: a checkpoint may not build objects."""
        if not is_checkpoint_intact(Path(path)):
            raise UserError(f"checkpoint {path} is corrupt")
        if Path(path).is_dir():
            return sharded_checkpoint.read(Path(path), whole=True)
        return load_checkpoint_weights_only(Path(path), map_location or "cpu")

    def remove_checkpoint(self, path: Any) -> None:
        """Removes a checkpoint and its checksum."""
        if Path(path).is_dir():
            sharded_checkpoint.remove(Path(path))
            return
        Path(path).unlink(missing_ok=True)
        checksum_path(Path(path)).unlink(missing_ok=True)


def frozen_weights(module: nn.Module) -> dict[str, Tensor]:
    """{name: parameter} of what is not trained, under every name that a tied one has."""
    parameters = module.named_parameters(remove_duplicate=False)
    return {name: parameter.detach() for name, parameter in parameters if not parameter.requires_grad}


def _save(checkpoint: dict[str, Any], file: Any) -> None:
    try:
        torch.save(checkpoint, file)
    except RuntimeError as error:  # torch's writer reports a full disk so
        if isinstance(error.__context__, OSError):
            raise error.__context__ from error
        raise


def _tensor_bytes(value: Any) -> int:
    """Bytes of the tensors anywhere in a checkpoint."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, dict):
        return sum(_tensor_bytes(item) for item in value.values())
    return sum(_tensor_bytes(item) for item in value) if isinstance(value, (list, tuple)) else 0


def ensure_free_space(folder: Path, required_bytes: int) -> None:
    """Makes room for `required_bytes` bytes by removing what is older than the newest checkpoint; raises OSError if it is
    not enough."""
    for path in [*list_checkpoints(folder)[1:][::-1], None]:
        free = shutil.disk_usage(folder).free
        if free >= required_bytes + RESERVE_BYTES:
            return
        if path is not None and path.stem != _best_stem(folder):
            SafeCheckpointIO().remove_checkpoint(path)
    message = f"a checkpoint needs {required_bytes / 1e6:,.0f} MB and {folder} has {free / 1e6:,.0f} MB free"
    raise OSError(errno.ENOSPC, message)


def checksum_path(path: Path) -> Path:
    """Where the checksum of a checkpoint stands."""
    return path.with_suffix(".sha256.json")


def is_checkpoint_intact(path: Path) -> bool:
    """Whether a checkpoint, a file or a folder of shards, has the hashes that were written with it."""
    if path.is_dir():
        return sharded_checkpoint.is_intact(path)
    try:
        return path.is_file() and read_json(checksum_path(path))["sha256"] == sha256_of(path)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def checkpoint_step(checkpoint: Path) -> int:
    """The optimizer steps that a checkpoint has behind it."""
    return int(checkpoint.stem.split("=")[1])


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, the newest first."""
    return sorted((p for p in folder.glob("step=*.ckpt") if p.stem[5:].isdigit()), key=checkpoint_step, reverse=True)


def find_latest_checkpoint(folder: Path) -> tuple[Path | None, list[str]]:
    """(the newest intact checkpoint, None if there never was one; what is to be said about corrupt ones).

    Raises UserError when there are checkpoints and none is intact.
    """
    warnings: list[str] = []
    checkpoints = list_checkpoints(folder)
    for path in checkpoints:
        if is_checkpoint_intact(path):
            return path, [f"{line}; {path.name} is used" for line in warnings]
        warnings.append(f"checkpoint {path} does not have its checksum")
    if checkpoints:
        raise UserError(f"{folder}: no checkpoint is intact; remove this folder to start its run again")
    return None, []


def remove_checkpoints(folder: Path) -> None:
    """Removes all checkpoints, and what is known of the best one."""
    (folder / BEST_CHECKPOINT_FILE).unlink(missing_ok=True)
    for path in list_checkpoints(folder):
        SafeCheckpointIO().remove_checkpoint(path)


def fingerprint_mismatches(checkpoint: Path, fingerprints: Fingerprints) -> list[str]:
    """How what a checkpoint was made from differs from `fingerprints`, a phrase for each part."""
    file = checkpoint / sharded_checkpoint.SHARED_FILE if checkpoint.is_dir() else checkpoint
    entry = load_checkpoint_weights_only(file, mmap=True).get(CHECKPOINT_KEY)
    saved = entry.get("origin", {}) if isinstance(entry, dict) else {}
    return [
        f"{name} was {_short(saved.get(name))} and is {_short(fingerprints.get(name))}"
        for name in dict.fromkeys([*fingerprints, *saved])
        if saved.get(name) != fingerprints.get(name)
    ]


def _short(value: str | None) -> str:
    return "unknown" if value is None else value if len(value) <= 120 else f"{value[:117]}…"


# ---------------------------------------------------------------- what is kept


def update_best_checkpoint(folder: Path, step: int, loss: float) -> None:
    """Remembers the checkpoint of `step` as the best when its validation loss is the lowest finite one so far."""
    if not (folder / f"step={step}.ckpt").exists() or not loss < float("inf"):  # NaN is below nothing
        return
    best = read_best(folder)
    if best is None or loss < best["loss"]:
        write_json(folder / BEST_CHECKPOINT_FILE, {"step": step, "loss": loss})


def read_best(folder: Path) -> dict[str, Any] | None:
    """{step, loss} of the best checkpoint that is there and intact; None if there is none."""
    try:
        best: dict[str, Any] = read_json(folder / BEST_CHECKPOINT_FILE)
        is_whole = math.isfinite(best["loss"]) and is_checkpoint_intact(folder / f"step={best['step']}.ckpt")
        return best if is_whole else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def load_best_weights(folder: Path, student: nn.Module) -> dict[str, Any]:
    """Gives the student of a `Distiller` the weights of the best checkpoint, whose {step, loss} it returns; what is frozen
    stays. Raises UserError where there is none that is intact."""
    best = read_best(folder)
    if best is None:
        raise UserError(
            f"training.export: best, and {folder} has no intact checkpoint with a finite validation/loss; look at the "
            "curves of the run, and remove its folder to train again"
        )
    weights = _read_weights(folder / f"step={best['step']}.ckpt")
    own = {name.removeprefix(STUDENT): tensor for name, tensor in weights.items() if name.startswith(STUDENT)}
    unknown = student.load_state_dict(own, strict=False).unexpected_keys
    if unknown or not own:
        raise RuntimeError(f"{folder}: not a checkpoint of this student: {unknown[:3]}")
    return best


def _read_weights(checkpoint: Path) -> dict[str, Tensor]:
    """{name: tensor} of a module; the states of its optimizer, twice as large, stay on the disk."""
    if not checkpoint.is_dir():
        weights: dict[str, Tensor] = load_checkpoint_weights_only(checkpoint, mmap=True)[sharded_checkpoint.WEIGHTS]
        return weights
    stored = sharded_checkpoint.read(checkpoint, whole=False)[sharded_checkpoint.WEIGHTS]
    return {name: part if isinstance(part, Tensor) else part.rows(0, part.shape[0]) for name, part in stored.items()}


def _best_stem(folder: Path) -> str:
    try:
        return f"step={read_json(folder / BEST_CHECKPOINT_FILE)['step']}"
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def rotate_checkpoints(folder: Path, disk_budget_gb: float, needs_best: bool = False) -> None:
    """Keeps the newest checkpoint whatever it weighs, and the best too where it is needed; then, within the budget, the
    best and the one before the newest."""
    newest, *older = list_checkpoints(folder)
    best = _best_stem(folder)
    remaining_bytes = disk_budget_gb * 1e9 - _bytes_on_disk(newest)
    retained = [p for p in older if p.stem == best] + [p for p in older if p.stem != best][: MAX_RETAINED_CHECKPOINTS - 1]
    for path in [*retained, *(p for p in older if p not in retained)]:
        is_needed = needs_best and path.stem == best
        if is_needed or (path in retained and _bytes_on_disk(path) <= remaining_bytes):
            remaining_bytes -= _bytes_on_disk(path)
        else:
            SafeCheckpointIO().remove_checkpoint(path)


def _bytes_on_disk(path: Path) -> int:
    """Of a checkpoint, a file or a folder."""
    return sum(file.stat().st_size for file in (path.iterdir() if path.is_dir() else (path,)))
