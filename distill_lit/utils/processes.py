"""Processes of this machine, told apart from later ones with the same number."""

import os
from pathlib import Path

UNKNOWN_START = "?"


def process_start(pid: int) -> str:
    """When a process began, in ticks since the machine did: another with its number has another. Empty for one that does
    not run; UNKNOWN_START for one that does, where the system does not tell (all but Linux)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        pass
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except OSError:
        return UNKNOWN_START
    return "" if Path("/proc/self/stat").exists() else UNKNOWN_START
