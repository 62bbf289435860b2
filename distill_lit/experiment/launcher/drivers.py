"""Drivers: the processes that decide which runs of an experiment begin, one alone or several that share them out."""

import contextlib
import os
import secrets
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

from distill_lit.experiment.state.claims import Holder, claim_folder, holder_of

DRIVERS_FOLDER = ".drivers"  # beside the runs: a folder with a lease for each of several drivers


@contextlib.contextmanager
def driver_lease(folder: Path, is_shared: bool = False) -> Iterator[None]:
    """Inside, this process is a driver of the runs in a folder, seen by `find_drivers`.

    is_shared: one of several; otherwise the only one of its kind. Raises UserError where there is another such.
    """
    if not is_shared:
        with claim_folder(folder, timeout=0):
            yield
        return
    own = folder / DRIVERS_FOLDER / f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
    try:
        with claim_folder(own, timeout=0):
            yield
    finally:
        with contextlib.suppress(OSError):
            own.rmdir()
            own.parent.rmdir()  # the last one


def find_drivers(folder: Path) -> list[Holder]:
    """The drivers at work on the runs in a folder, on any machine that sees it."""
    found = [holder_of(place) for place in (folder, *sorted((folder / DRIVERS_FOLDER).glob("*")))]
    return [holder for holder in found if holder is not None]


def find_workers(folder: Path) -> dict[str, Holder]:
    """{name of a run: the process that is at it}, but for jobs of SLURM."""
    places = sorted(path for path in folder.glob("*") if path.is_dir())
    found = {place.name: holder for place in places if (holder := holder_of(place)) is not None}
    return {name: holder for name, holder in found.items() if not holder.job}


def stop_local_processes(folder: Path) -> list[str]:
    """Asks what is at the runs in a folder on this machine to stop: drivers, and workers whose driver has died. What there
    is to say of each, and of those on other machines."""
    drivers = find_drivers(folder)
    said = [f"{driver} {_asked_to_stop(driver)}" for driver in drivers]
    driven = {driver.host for driver in drivers}
    orphans = {name: holder for name, holder in find_workers(folder).items() if holder.host not in driven}
    return said + [f"{name}: {holder} {_asked_to_stop(holder)}" for name, holder in orphans.items()]


def _asked_to_stop(holder: Holder) -> str:
    if not holder.is_here:
        return "runs it; stop it there"
    try:
        os.kill(holder.pid, signal.SIGTERM)
    except ProcessLookupError:
        return "has just ended"
    except PermissionError:
        return "belongs to another user, who can stop it"
    return "was asked to stop; what trains is saved first"
