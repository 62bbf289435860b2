"""Configs and experiments that come with the package: beside it in a checkout, inside it once it is installed."""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]


def shipped_folder(kind: str) -> Path:
    """The folder of `configs` or `experiments`."""
    installed = PACKAGE / "shipped" / kind
    return installed if installed.is_dir() else PACKAGE.parent / kind
