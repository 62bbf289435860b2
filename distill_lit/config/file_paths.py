"""Relative paths in a file: what is not below the current folder is taken from beside the file that names it."""

import os
import re
from collections.abc import Callable, Container
from pathlib import Path
from typing import Any

from distill_lit.config.grid_points import EXCLUDE, INCLUDE, zipped_keys
from distill_lit.config.key_paths import holds_paths

REFERENCE_KEYS = ("teacher", "model", "from", "perplexity_model")  # they name a model of the experiment, or are a path
PlaceText = Callable[[str, str], str]  # (dotted key, text at it) → the text as it is from the current folder


def place_paths(root: Any, tree: Any, folder: Path, models: Container[str] = ()) -> Any:
    """A tree, as a file in `folder` says it, with every relative path as it is found from the current folder. root: the
    section that the tree is of; models: names that the experiment gives to models, which are no paths where a model is
    referred to.

    A path that is not there, and one of another kind (`hf:`, `$SCRATCH/…`), stays as it is.
    """

    def place(key: str, text: str) -> str:
        is_name = text in models and key.rpartition(".")[2] in REFERENCE_KEYS
        return text if is_name else find_beside(text, folder)

    return _map_paths(root, tree, place, "")


def _map_paths(root: Any, tree: Any, place: PlaceText, where: str) -> Any:
    if isinstance(tree, dict):
        return {name: _map_below(root, item, place, where, name) for name, item in tree.items()}
    if isinstance(tree, list):
        return [_map_paths(root, item, place, where) for item in tree]
    return place(where, tree) if isinstance(tree, str) and holds_paths(root, where) else tree


def _map_below(root: Any, item: Any, place: PlaceText, where: str, name: str) -> Any:
    key = f"{where}.{name}" if where else name
    if where != "grid":
        return _map_paths(root, item, place, key)
    if name in (EXCLUDE, INCLUDE):  # lists of points
        return _map_paths(root, item, place, "")
    keys = zipped_keys(name)
    if len(keys) > 1 and isinstance(item, list):
        return [_map_row(root, row, place, keys) for row in item]
    return _map_paths(root, item, place, name)


def _map_row(root: Any, row: Any, place: PlaceText, keys: list[str]) -> Any:
    """The values of keys that go together."""
    if not isinstance(row, list) or len(row) != len(keys):
        return row
    return [_map_paths(root, value, place, key) for key, value in zip(keys, row, strict=True)]


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
