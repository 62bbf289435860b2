"""Who works in a folder: a lease, seen by every machine that shares the folder.

`flock` is local to each machine on some NFS, on Lustre without `-o flock` and on GPFS, and nobody is told. A lease is a
file that its holder touches: whoever has not touched it for LEASE_SECONDS has lost it, whoever has died on this machine
at once.
"""

import contextlib
import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import SoftFileLease, Timeout

from distill_lit.utils.exceptions import UserError
from distill_lit.utils.files import read_json, read_mapping, write_unsynced
from distill_lit.utils.processes import process_start

LEASE_NAME, HOLDER_NAME = "lease", "lease.json"
LEASE_SECONDS, HEARTBEAT_SECONDS, POLL_SECONDS = 60.0, 15.0, 0.1


class InUse(UserError):
    """Another process works in a folder; the message names both."""


@dataclass(frozen=True)
class Holder:
    """Who holds a lease. namespace: of process ids, since containers on one host have their own; started: of the process,
    in ticks since boot; job: of SLURM."""

    host: str
    namespace: str
    pid: int
    started: str
    job: str = ""

    @classmethod
    def of_this_process(cls, job: str = "") -> "Holder":
        """This process."""
        return cls(socket.gethostname(), _namespace(), os.getpid(), process_start(os.getpid()), job)

    @property
    def is_here(self) -> bool:
        """Whether its process would be seen from this one."""
        return (self.host, self.namespace) == (socket.gethostname(), _namespace())

    @property
    def is_alive_here(self) -> bool:
        """Whether its process runs on this machine."""
        return self.is_here and process_start(self.pid) == self.started

    def __str__(self) -> str:
        return f"job {self.job} on {self.host}" if self.job else f"process {self.pid} on {self.host}"


def _namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


@contextlib.contextmanager
def claim_folder(folder: Path, timeout: float, job: str = "") -> Iterator[None]:
    """Inside, this process alone works in a folder. Should the lease be lost, as after the machine slept, the process gets
    SIGTERM.

    Raises InUse when another process keeps it for longer than `timeout` seconds.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lease = SoftFileLease(
        folder / LEASE_NAME,
        lease_duration=LEASE_SECONDS,
        heartbeat_interval=HEARTBEAT_SECONDS,
        on_compromise=_give_way,
        timeout=timeout,
        poll_interval=POLL_SECONDS,
    )
    try:
        lease.acquire()
    except Timeout:
        raise InUse(f"{folder} is in use by {holder_of(folder) or 'another process'}; wait for it or stop it") from None
    own = Holder.of_this_process(job)
    try:
        write_unsynced(folder / HOLDER_NAME, json.dumps(asdict(own)))
        yield
    finally:
        if read_mapping(folder / HOLDER_NAME) == asdict(own):  # not that of whoever has taken a lost lease
            (folder / HOLDER_NAME).unlink(missing_ok=True)
        lease.release()


def _give_way(_: Any) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def holder_of(folder: Path) -> Holder | None:
    """Who works in a folder now; None when nobody does. Only looks: it needs no right to write."""
    try:
        touched = (folder / LEASE_NAME).stat().st_mtime
    except OSError:
        return None
    try:
        holder = Holder(**read_json(folder / HOLDER_NAME))
    except (OSError, ValueError, TypeError):  # between the two files, or not allowed to read
        holder = Holder("another machine", "?", 0, "")
    if holder.is_here:
        return holder if holder.is_alive_here else None
    return holder if time.time() - touched < 2 * LEASE_SECONDS else None  # clocks of two machines differ a little


def is_claimed(folder: Path) -> bool:
    """Whether somebody works in a folder now."""
    return holder_of(folder) is not None
