"""Servers that an experiment starts itself: alive as long as a run that is not done needs them, started again if they die.

`keep_service` is what one process does for one server; `services_beside` does it in threads beside the runs of this
machine. Whoever asks a server finds it through `teachers/service.py`.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import IO

from filelock import FileLock, Timeout

from distill_lit.config import ServiceConfig, TeacherConfig
from distill_lit.config.roles import Role
from distill_lit.experiment.planning.asked_teachers import asked_teachers, with_teacher
from distill_lit.experiment.planning.planned_run import Run
from distill_lit.experiment.state.completion import is_run_built
from distill_lit.teachers import teacher_capabilities
from distill_lit.teachers.service import remove_endpoint, service_folder, start_command, write_endpoint
from distill_lit.utils.exceptions import UserError, describe_exit_code
from distill_lit.utils.files import read_json, write_json
from distill_lit.utils.processes import UNKNOWN_START, process_start

LOOPBACK = "127.0.0.1"
POLL_SECONDS = 0.2
STOP_SECONDS = 30.0  # for a server to end by itself
HEALTH_TIMEOUT = 5.0
Note = Callable[[str], None]


def asking_members(run: Run) -> list[TeacherConfig]:
    """The teachers whose service a run asks until it is built: that whose cache it writes, or those without a cache that a
    student is compared with, which is validated whatever it learns from."""
    if run.role == Role.TEACHER_CACHE:
        return [with_teacher(run.config, run.teacher).teacher]
    if not run.student:
        return []
    return [one for one in asked_teachers(run.config).values() if not teacher_capabilities(one).needs_cache]


def check_service_starts(run: Run, service: ServiceConfig) -> None:
    """Raises UserError where the launcher cannot start the server that a run asks; asked where runs are started."""
    if not service.command:
        return
    elsewhere = "start it on a node of its own, and give its address"
    if run.config.launcher.engine == "slurm":
        raise UserError(f"teacher.server.service: a server beside the runs is for launcher.engine=local; {elsewhere}")
    is_alone = run.config.training.nodes == 1
    if not is_alone and run.role != Role.TEACHER_CACHE:  # which the first node alone writes
        raise UserError(f"teacher.server.service: a server beside the runs answers its own machine alone; {elsewhere}")
    program = start_command(service, service.port)[0]
    if is_alone and shutil.which(program) is None:
        raise UserError(f"teacher.server.service.command: there is no program {program!r} on this machine")


def needed_services(runs: Sequence[Run], folder: Path) -> list[tuple[ServiceConfig, set[str]]]:
    """The services that these runs ask, each with the names of the runs: of those that are not built, for evaluations ask
    none. folder: of all runs."""
    found: dict[str, tuple[ServiceConfig, set[str]]] = {}
    for run in runs:
        asked = [member.server.service for member in asking_members(run) if member.server.service.command]
        if asked and not is_run_built(run, folder / run.name):
            for service in asked:
                found.setdefault(str(service_folder(service)), (service, set()))[1].add(run.name)
    return list(found.values())


@contextlib.contextmanager
def services_beside(
    runs: Sequence[Run], folder: Path, pending: Callable[[], Collection[str]], note: Note
) -> Iterator[None]:
    """Inside, the services that `runs` ask are there, as long as one of those runs is among `pending` ones (names).
    folder: of all runs."""
    ended, threads = threading.Event(), []
    for service, names in needed_services(runs, folder):

        def is_needed(names: set[str] = names) -> bool:
            return not ended.is_set() and bool(names.intersection(pending()))

        threads.append(threading.Thread(target=_keep_or_say, args=(service, is_needed, note), daemon=True))
        threads[-1].start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def _keep_or_say(service: ServiceConfig, is_needed: Callable[[], bool], note: Note) -> None:
    try:
        keep_service(service, is_needed, note)
    except (OSError, UserError) as error:  # a disk that is full, a folder that cannot be written to
        note(f"service: {error}")


def keep_service(service: ServiceConfig, is_needed: Callable[[], bool], note: Note) -> None:
    """Runs a server as long as `is_needed` says so; where another process runs it already, only if that ends."""
    folder = service_folder(service)
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "lock", timeout=POLL_SECONDS)  # the kernel frees it when its owner dies
    while is_needed():
        with contextlib.suppress(Timeout), lock:
            _keep(service, is_needed, note)
            return


def _keep(service: ServiceConfig, is_needed: Callable[[], bool], note: Note) -> None:
    _end_orphan(service)
    port = service.port or _free_port()  # the same after a restart
    base_url = f"http://{LOOPBACK}:{port}/v1"
    try:
        with (service_folder(service) / "log.txt").open("ab") as log:
            for restart in range(service.max_restarts + 1):
                write_endpoint(service, "starting")
                reason = _run_once(service, port, base_url, is_needed, note, log)
                if not reason:
                    return
                is_last = restart == service.max_restarts
                note(f"service: it {reason}; {'given up' if is_last else 'started again'}")
        write_endpoint(service, "failed", reason=f"it {reason}")
        while is_needed():  # those who wait read why
            threading.Event().wait(POLL_SECONDS)
    finally:
        remove_endpoint(service)


def _run_once(
    service: ServiceConfig, port: int, base_url: str, is_needed: Callable[[], bool], note: Note, log: IO[bytes]
) -> str:
    """One life of the server; why it has ended, empty where it is not needed any more."""
    environment = {**os.environ, **({"CUDA_VISIBLE_DEVICES": service.devices} if service.devices else {})}
    command = start_command(service, port)
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
        )
    except (OSError, ValueError) as error:
        return f"cannot be started ({error})"
    write_json(_process_path(service), {"pid": process.pid, "started": process_start(process.pid)})
    is_ready, deadline = False, time.monotonic() + service.start_timeout
    try:
        while is_needed():
            if (code := process.poll()) is not None:
                return describe_exit_code(code)
            if not is_ready and _is_healthy(port, service.health):
                is_ready = True
                write_endpoint(service, "ready", base_url)
                note(f"service: ready at {base_url}")
            if not is_ready and time.monotonic() > deadline:
                return f"was not ready after {service.start_timeout:g} s"
            threading.Event().wait(POLL_SECONDS)
        return ""
    finally:
        _stop(process)
        _process_path(service).unlink(missing_ok=True)


def _end_orphan(service: ServiceConfig) -> None:
    """Ends the server of an owner that was killed and could not: it would hold its GPUs for ever."""
    try:
        left = read_json(_process_path(service))
        if process_start(left["pid"]) == left["started"] not in ("", UNKNOWN_START):
            os.killpg(left["pid"], signal.SIGKILL)
    except (OSError, ValueError, TypeError, KeyError):  # there is none, or it has ended
        pass


def _process_path(service: ServiceConfig) -> Path:
    return service_folder(service) / "process.json"


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """Ends a server and all its processes, with a group of their own."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _is_healthy(port: int, path: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://{LOOPBACK}:{port}{path}", timeout=HEALTH_TIMEOUT) as reply:
            return bool(reply.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])
