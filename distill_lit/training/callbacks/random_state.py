"""The random generators of every rank, saved with a checkpoint and put back."""

import random
from typing import Any

import lightning as L
import numpy as np
import torch

from distill_lit.utils.distributed.ranks import all_gather_object


class RNGStateCallback(L.Callback):
    """Saves and restores the generators of Python, NumPy and torch, so that dropout goes on where it stopped."""

    @property
    def state_key(self) -> str:
        """Under which it stands in a checkpoint; Lightning would take the name of the class."""
        return "generators"

    def state_dict(self) -> dict[str, Any]:
        """The generators' states of every rank as plain values and tensors."""
        return {"ranks": all_gather_object(self._local_state())}

    def _local_state(self) -> dict[str, Any]:
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
        pending = self.__dict__.pop("_pending", None)
        if pending is None or trainer.world_size != len(pending["ranks"]):
            return
        state = pending["ranks"][trainer.global_rank]
        version, words, gauss = state["python"]
        random.setstate((version, tuple(words), gauss))
        name, keys, position, has_gauss, cached = state["numpy"]
        np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
        torch.set_rng_state(state["torch"])
        if "cuda" in state and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(state["cuda"])
