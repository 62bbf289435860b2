"""Relative paths in a file: what is not below the current folder is taken from beside the file that names it."""

import os
import re
from pathlib import Path
from typing import Any

from distill_lit.config.grid_points import EXCLUDE, INCLUDE, zipped_keys
from distill_lit.config.key_paths import holds_paths


def place_paths(root: Any, tree: Any, folder: Path, where: str = "") -> Any:
    """A tree, as a file in `folder` says it, with every relative path as it is found from the current folder. root: the
    section that the tree is of; where: the dotted key at which it is.

    A path that is not there, and one of another kind (`hf:`, `$SCRATCH/…`), stays as it is.
    """
    if isinstance(tree, dict):
        return {name: _place_below(root, item, folder, where, name) for name, item in tree.items()}
    if isinstance(tree, list):
        return [place_paths(root, item, folder, where) for item in tree]
    return find_beside(tree, folder) if isinstance(tree, str) and holds_paths(root, where) else tree


def _place_below(root: Any, item: Any, folder: Path, where: str, name: str) -> Any:
    key = f"{where}.{name}" if where else name
    if where != "grid":
        return place_paths(root, item, folder, key)
    if name in (EXCLUDE, INCLUDE):  # lists of points
        return place_paths(root, item, folder, "")
    keys = zipped_keys(name)
    if len(keys) > 1 and isinstance(item, list):
        return [_place_row(root, row, folder, keys) for row in item]
    return place_paths(root, item, folder, name)


def _place_row(root: Any, row: Any, folder: Path, keys: list[str]) -> Any:
    """The values of keys that go together."""
    if not isinstance(row, list) or len(row) != len(keys):
        return row
    return [place_paths(root, value, folder, key) for key, value in zip(keys, row, strict=True)]


def find_beside(text: str, folder: Path) -> str:
    """A relative path, perhaps with `file:`, that is not below the current folder and is below `folder`, from the current
    one; any other text as it is."""
    kind = "file:" if text.startswith("file:") else ""
    name = text.removeprefix(kind)
    if not name or re.match(r"\w+:|[~/\\]", name) or "$" in name:
        return text
    try:
        is_beside = not Path(name).exists() and (folder / name).exists()
    except (OSError, ValueError):  # no path at all
        return text
    return f"{kind}{os.path.relpath(folder / name)}" if is_beside else text
