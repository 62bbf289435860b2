"""The cached teacher: its last hidden states, computed once per packed row; full distributions come from its head.

For a width far below the vocabulary this is exact and small: SmolLM2 needs 1,152 bytes per token in bfloat16, where
its logits would need 98,304. Many students and seeds then train without running the teacher's body.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from distill_lit.data import Packed
from distill_lit.data.loader import make_batch
from distill_lit.errors import UserError
from distill_lit.files import cache_root, fingerprint, read_json, sha256_of, sha256_once, write_json, writing
from distill_lit.heads import Head
from distill_lit.signals.live import last_hidden
from distill_lit.targets import DenseTarget

SHARD_ROWS = 64
FORMAT = 1  # raise when the bytes of a shard change their meaning


def cache_folder(teacher: dict[str, str], data: str, dtype: torch.dtype) -> Path:
    """Where the signal of this teacher (file hashes) on this packed data (fingerprint) in this number format lives."""
    key = fingerprint({"teacher": teacher, "data": data, "dtype": str(dtype), "format": FORMAT})
    return cache_root() / "signals" / key


def write_cache(
    folder: Path, model: Any, rows: Packed, batch: int, progress: Callable[[int, int], None] | None = None
) -> None:
    """Runs the teacher over all rows and writes shards of hidden states (rows, T, D). A half-written cache goes on."""
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):
        manifest = _read_manifest(folder)
        for start in range(0, len(rows), SHARD_ROWS):
            name = f"hidden-{start // SHARD_ROWS:05d}.safetensors"
            if not _is_intact(folder / name, manifest):
                numbers = range(start, min(start + SHARD_ROWS, len(rows)))
                _write_shard(folder / name, model, rows, numbers, batch)
                manifest["shards"][name] = sha256_of(folder / name)
                write_json(folder / "manifest.json", manifest)
            if progress:
                progress(min(start + SHARD_ROWS, len(rows)), len(rows))
        write_json(folder / "manifest.json", {**manifest, "rows": len(rows)})


def is_complete(folder: Path, rows: int) -> bool:
    """Whether the cache holds all rows and every shard has the hash that the manifest lists."""
    manifest = _read_manifest(folder)
    return manifest.get("rows") == rows and all(_is_intact(folder / name, manifest) for name in manifest["shards"])


def _read_manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = read_json(folder / "manifest.json")
        if isinstance(manifest["shards"], dict):
            return manifest
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return {"shards": {}}


def _is_intact(path: Path, manifest: dict[str, Any]) -> bool:
    return path.is_file() and manifest["shards"].get(path.name) == sha256_once(path)


def _write_shard(path: Path, model: Any, rows: Packed, numbers: range, batch: int) -> None:
    device = next(model.parameters()).device
    parts = []
    with torch.inference_mode():
        for start in range(0, len(numbers), batch):
            inputs = make_batch(rows, np.array(numbers[start : start + batch]), 1)
            parts.append(last_hidden(model, {name: value.to(device) for name, value in inputs.items()}).cpu())
    with writing(path) as temporary:
        save_file({"hidden": torch.cat(parts).contiguous()}, temporary)


class CachedTeacher:
    """A teacher that is read from shards; only its head is in memory."""

    def __init__(self, folder: Path, rows: int, head: Head) -> None:
        """Raises UserError when the cache is incomplete or a shard does not have its hash."""
        if not is_complete(folder, rows):
            raise UserError(f"the teacher cache {folder} is incomplete or corrupt; run the experiment again to mend it")
        self.head = head
        self._shards = [safe_open(path, framework="pt") for path in sorted(folder.glob("hidden-*.safetensors"))]
        self._slices = [shard.get_slice("hidden") for shard in self._shards]

    def to(self, device: torch.device) -> None:
        """Moves the head; shards stay on disk."""
        bias = None if self.head.bias is None else self.head.bias.to(device)
        self.head = self.head._replace(weight=self.head.weight.to(device), bias=bias)

    def target(self, batch: dict[str, Tensor], chosen: Tensor) -> DenseTarget:
        """Its whole distribution at the chosen positions (B, T − 1)."""
        return DenseTarget(self.hidden(batch)[:, :-1][chosen], self.head)

    def hidden(self, batch: dict[str, Tensor]) -> Tensor:
        """Hidden states (B, T, D) of the rows in `batch["rows"]`."""
        numbers = batch["rows"].tolist()
        parts = [self._slices[n // SHARD_ROWS][n % SHARD_ROWS : n % SHARD_ROWS + 1] for n in numbers]
        return torch.cat(parts).to(batch["rows"].device)
