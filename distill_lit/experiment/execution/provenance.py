"""Where a result comes from: commit, uncommitted changes, versions, hardware. No secrets: the environment is not read."""

import functools
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from distill_lit import assets
from distill_lit.config import ExperimentConfig, to_dict
from distill_lit.experiment.planning.run_references import RUN_PREFIX
from distill_lit.utils import hardware
from distill_lit.utils.files import fingerprint

FOLDER = Path(__file__).parent.resolve()  # of this module
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


def collect_provenance(config: ExperimentConfig, references: list[str], runs: Path) -> dict[str, Any]:
    """Commit, hash of what differs from it, hash of the resolved config, seeds, what is behind each reference, versions,
    machine, time. Without git the first two are `unknown`. runs: the folder of all experiments' runs; a model
    that one of them has made is called `run:EXPERIMENT/NAME`, wherever that folder is."""
    is_ours = _git("ls-files", "--error-unmatch", Path(__file__).name) != "unknown"
    return {
        "commit": _git("rev-parse", "HEAD") if is_ours else "unknown",
        "changes": _uncommitted_changes_hash() if is_ours else "unknown",
        "config": fingerprint(to_dict(config)),
        "seeds": {"seed": config.seed, "data.seed": config.data.seed, "evaluation.seed": config.evaluation.seed},
        "revisions": {_published_name(name, runs): assets.revision(name) for name in references},
        "versions": package_versions(),
        "hardware": hardware.describe_hardware(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def package_versions() -> dict[str, str]:
    """{package: version} of what results depend on; `unknown` for one that is not installed."""
    return {name: _version(name) for name in PACKAGES}


def _published_name(reference: str, runs: Path) -> str:
    """A reference as results may be handed on: without the place of the runs on this machine."""
    place = Path(reference.removeprefix("file:"))
    if not reference.startswith("file:") or not place.is_relative_to(runs):
        return reference
    return RUN_PREFIX + "/".join(place.relative_to(runs).parts[:2])


def _uncommitted_changes_hash() -> str:
    """Empty for a clean checkout, else a hash of the difference, new Python files included."""
    root = Path(_git("rev-parse", "--show-toplevel"))  # paths of git are from the folder that it is in
    difference = _git("diff", "HEAD", "--", ":!results", folder=root)
    new = _git("ls-files", "--others", "--exclude-standard", "--", "*.py", ":!results", folder=root)
    if "unknown" in (difference, new):
        return "unknown"
    texts = [path.read_text("utf-8", "replace") for name in new.splitlines() if (path := root / name).is_file()]
    return fingerprint([difference, new, texts]) if difference or new else ""


def _git(*arguments: str, folder: Path | None = None) -> str:
    """What git says in a folder of the code of this suite; `unknown` without git, or where it is installed and not checked
    out."""
    command = ["git", "-c", "core.quotePath=false", *arguments]
    try:
        result = subprocess.run(
            command, cwd=folder or FOLDER, capture_output=True, encoding="utf-8", errors="replace", timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return result.stdout.strip() if result.returncode == 0 else "unknown"


@functools.cache
def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"
