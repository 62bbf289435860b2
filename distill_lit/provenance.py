"""Where a result comes from: commit, uncommitted changes, versions, hardware. No secrets: the environment is not read."""

import hashlib
import subprocess
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from distill_lit import hardware

PACKAGES = (
    "distill-lit",
    "torch",
    "lightning",
    "transformers",
    "datasets",
    "lm_eval",
    "torchmetrics",
    "omegaconf",
    "safetensors",
    "tokenizers",
    "numpy",
)


def provenance() -> dict[str, Any]:
    """Commit, hash of what differs from it, versions, machine, time. Without git both are `unknown`."""
    return {
        "commit": _git("rev-parse", "HEAD"),
        "changes": _changes(),
        "versions": {name: _version(name) for name in PACKAGES},
        "hardware": hardware.describe(),
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _changes() -> str:
    """Empty for a clean checkout, else a hash of the difference."""
    difference = _git("diff", "HEAD", "--", ":!results")
    return difference if difference in ("", "unknown") else hashlib.sha256(difference.encode()).hexdigest()[:16]


def _git(*arguments: str) -> str:
    try:
        result = subprocess.run(["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return result.stdout.strip() if result.returncode == 0 else "unknown"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"
