"""Folders that may only be read, and commands of a user who minds that."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import warm_processes

# root may write anywhere, unless it gives up that right
AS_ANYONE = warm_processes.AS_ANYONE if os.geteuid() == 0 else ()
needs_rights = pytest.mark.skipif(bool(AS_ANYONE) and not shutil.which("setpriv"), reason="root without setpriv")


def as_anyone(*arguments: str | Path, cwd: Path | None = None, **environment: str) -> tuple[int, str]:
    """(exit code, everything said) of a command of a user who may write only where the rights of a folder say so."""
    command = [*AS_ANYONE, sys.executable, "-m", "distill_lit", *map(str, arguments)]
    known = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", **environment}
    result = subprocess.run(command, capture_output=True, text=True, env=known, cwd=cwd, timeout=300)
    return result.returncode, result.stdout + result.stderr


def close(folder: Path) -> None:
    """Takes the right to write from a folder and all below it."""
    for place, _, names in os.walk(folder):
        os.chmod(place, 0o555)
        for name in names:
            os.chmod(os.path.join(place, name), 0o444)


def reopen(folder: Path) -> None:
    for place, _, _ in os.walk(folder):
        os.chmod(place, 0o755)
