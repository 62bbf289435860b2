"""Other libraries' own loss functions, in a folder of their own: installed without dependencies beside our torch."""

import os
import subprocess
import sys
from pathlib import Path

from distill_lit.files import cache_root

PINNED = ("trl==1.16.0", "torchtune==0.6.1")


def install() -> Path:
    """The folder with the pinned packages, downloaded once."""
    folder = cache_root() / "rivals" / "-".join(PINNED).replace("==", "_")
    if not (folder / "installed").is_file():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade", "--target", str(folder)]
        subprocess.run([*command, *PINNED], check=True, timeout=300)
        (folder / "installed").touch()
    return folder


def run_script(script: Path, *arguments: str) -> None:
    """Runs a Python file in a process that sees the rivals."""
    environment = {**os.environ, "PYTHONPATH": str(install())}
    subprocess.run([sys.executable, str(script), *arguments], check=True, timeout=300, env=environment)
