"""Reading what a checkpoint holds as plain tensors and values: it may never build objects."""

import os
import re
from pathlib import Path
from typing import Any

import torch

from distill_lit.utils.exceptions import UserError


def load_checkpoint_weights_only(path: Path, device: Any = "cpu", mmap: bool = False) -> dict[str, Any]:
    """A checkpoint of tensors and plain values in a local file. Raises UserError for one that would build objects.

    `mmap`: tensors stay on disk until they are used.
    """
    if "://" in str(path) or not path.is_file():
        raise UserError(f"checkpoint {path}: no such local file; checkpoints are never loaded from an address")
    # torch reads this variable and would build whatever a file names
    previous = os.environ.pop("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", None)
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location=device, weights_only=True, mmap=mmap or None)
        return checkpoint
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if "weights only" in str(error).lower().replace("_", " "):  # torch's advice is to build whatever a file names
            names = " ".join(sorted(set(re.findall(r"GLOBAL ([\w.]+)", str(error)))))
            reason = f"it would build objects ({names or 'of any kind'}); remove it, and the run goes on without it"
        raise UserError(f"checkpoint {path} is refused: {reason}") from error
    finally:
        if previous is not None:
            os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = previous
