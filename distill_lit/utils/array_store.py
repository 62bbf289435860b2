"""Arrays on disk: a folder of .npy files that is complete or not there, and opens only if its hashes are right."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from distill_lit.utils.files import atomic_write_folder, cached_file_sha256, file_lock, read_json, sha256_of, write_json

Arrays = dict[str, np.ndarray]


def save_arrays(folder: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, Any]) -> None:
    """Writes `<name>.npy` for every array and manifest.json with their sizes, hashes and `metadata`, atomically."""
    with atomic_write_folder(folder) as temporary:
        for name, array in arrays.items():
            np.save(temporary / f"{name}.npy", array, allow_pickle=False)
        files = {p.name: {"bytes": p.stat().st_size, "sha256": sha256_of(p)} for p in sorted(temporary.glob("*.npy"))}
        write_json(temporary / "manifest.json", {**metadata, "files": files})


def open_arrays(folder: Path) -> tuple[Arrays, dict[str, Any]] | None:
    """(memory-mapped arrays, manifest) of a folder that `save_arrays` wrote; None when it is absent or damaged.

    Hashes are taken at the first opening by this process, and again when a file has been touched.
    """
    try:
        manifest = read_json(folder / "manifest.json")
        for name, entry in manifest["files"].items():
            if not _is_intact(folder / name, entry):
                return None
        arrays = {Path(name).stem: np.load(folder / name, mmap_mode="r", allow_pickle=False) for name in manifest["files"]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return arrays, manifest


def _is_intact(path: Path, entry: Mapping[str, Any]) -> bool:
    if path.stat().st_size != entry["bytes"]:
        return False
    return bool(cached_file_sha256(path) == entry["sha256"])


def open_or_make(
    folder: Path, make: Callable[[], tuple[Mapping[str, np.ndarray], Mapping[str, Any]]]
) -> tuple[Arrays, dict[str, Any]]:
    """The arrays and manifest of `folder`, made by `make` and saved when they are not there or damaged.

    One process makes them, others wait for it.
    """
    loaded = open_arrays(folder)
    if loaded is None:
        with file_lock(folder):
            loaded = open_arrays(folder)
            if loaded is None:
                save_arrays(folder, *make())
                loaded = open_arrays(folder)
    if loaded is None:
        raise OSError(f"{folder} cannot be read back after writing")
    return loaded
