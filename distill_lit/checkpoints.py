"""Checkpoints that are whole, checksummed, read as plain tensors, and complete enough to resume exactly."""

import logging
import random
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from distill_lit.errors import UserError
from distill_lit.files import read_json, sha256_of, write_json, writing

log = logging.getLogger(__name__)


class SafeCheckpointIO(TorchCheckpointIO):
    """Writes beside, syncs, renames, then writes the checksum; loads tensors and plain values only."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Saves atomically, with `<name>.sha256.json` beside it."""
        target = Path(path)
        with writing(target) as temporary:
            torch.save(checkpoint, temporary)
            digest = sha256_of(temporary)
        write_json(checksum_of(target), {"sha256": digest})

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> dict[str, Any]:
        """Loads with `weights_only`, whatever the caller says: a checkpoint may not build objects."""
        if not is_intact(Path(path)):
            raise UserError(f"checkpoint {path} is corrupt")
        checkpoint: dict[str, Any] = torch.load(path, map_location=map_location or "cpu", weights_only=True)
        return checkpoint

    def remove_checkpoint(self, path: Any) -> None:
        """Removes a checkpoint and its checksum."""
        Path(path).unlink(missing_ok=True)
        checksum_of(Path(path)).unlink(missing_ok=True)


def checksum_of(path: Path) -> Path:
    """Where the checksum of a checkpoint stands."""
    return path.with_suffix(".sha256.json")


def is_intact(path: Path) -> bool:
    """Whether a checkpoint has the hash that was written with it."""
    try:
        return path.is_file() and read_json(checksum_of(path))["sha256"] == sha256_of(path)
    except (OSError, ValueError, KeyError):
        return False


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest intact checkpoint, by step; corrupt ones are named and passed over. None if there never was one."""
    found = sorted(folder.glob("step=*.ckpt"), key=lambda path: int(path.stem.split("=")[1]), reverse=True)
    for path in found:
        if is_intact(path):
            return path
        log.warning("checkpoint %s does not have its checksum and is passed over", path.name)
    if found:
        raise UserError(f"{folder}: no checkpoint is intact; remove the folder to start this cell again")
    return None


class GeneratorState(L.Callback):
    """Saves and restores the generators of Python, NumPy and torch, so that dropout goes on where it stopped."""

    def state_dict(self) -> dict[str, Any]:
        """The generators' states as plain values and tensors."""
        version, words, gauss = random.getstate()
        name, keys, position, has_gauss, cached = np.random.get_state()
        state: dict[str, Any] = {
            "python": [version, list(words), gauss],
            "numpy": [name, [int(key) for key in keys], int(position), int(has_gauss), float(cached)],
            "torch": torch.get_rng_state(),
        }
        if torch.cuda.is_available():
            state["cuda"] = torch.cuda.get_rng_state_all()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Keeps the states until training starts: Lightning still draws numbers after this."""
        self._pending = state

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Restores the generators after Lightning's own set-up."""
        state = self.__dict__.pop("_pending", None)
        if state is None:
            return
        version, words, gauss = state["python"]
        random.setstate((version, tuple(words), gauss))
        name, keys, position, has_gauss, cached = state["numpy"]
        np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
        torch.set_rng_state(state["torch"])
        if "cuda" in state and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(state["cuda"])
