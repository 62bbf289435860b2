"""What a compute node says of itself: `python -m distill_lit.experiment.launcher.slurm.probe FOLDER ACCELERATOR`.

One line of JSON. The folder is seen when it has the file TOKEN_NAME; ACCELERATOR asks for the fastest number format, and is
left out by who does not want to wait for it.
"""

import fcntl
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

TOKEN_NAME, FLOCK_NAME = ".shared", ".flock"


def probe(folder: Path, accelerator: str = "") -> dict[str, Any]:
    """{host, time, token, flock, gpus, dtype}; token: what the file says, flock: whether one could be had of a file that
    somebody else has locked."""
    found: dict[str, Any] = {"host": socket.gethostname(), "time": time.time(), "token": "", "gpus": _gpus()}
    found["flock"] = _could_lock(folder / FLOCK_NAME)
    try:
        found["token"] = (folder / TOKEN_NAME).read_text()
    except OSError as error:
        found["error"] = str(error)
    if accelerator:
        from distill_lit.utils import hardware

        found["dtype"] = hardware.fastest_dtype(hardware.device_for(accelerator))
    return found


def _could_lock(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def _gpus() -> list[str]:
    if not shutil.which("nvidia-smi"):
        return []
    done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60)
    return [line.partition(" (UUID")[0] for line in done.stdout.splitlines()]


if __name__ == "__main__":
    print("PROBE " + json.dumps(probe(Path(sys.argv[1]), *sys.argv[2:3])), flush=True)
