"""Where a server that an experiment has started itself is found: a file on disk, for all processes of its machine.

Whoever runs the server (`experiment/execution/services.py`) writes `endpoint.json`; whoever asks it waits
until the file says that it is ready, also after it has died and is being started again.
"""

import shlex
import socket
import time
from pathlib import Path
from typing import Any, Literal

from distill_lit.config import ServiceConfig
from distill_lit.utils.exceptions import UserError
from distill_lit.utils.files import cache_root, fingerprint, read_mapping, write_json

State = Literal["starting", "ready", "failed"]
POLL_SECONDS = 0.5


def service_folder(service: ServiceConfig) -> Path:
    """Where the log of a service is, and the file that says where it is found. One service for all of this machine that
    want the same: its address leads nowhere from another one, which may have the same cache."""
    return cache_root() / "services" / socket.gethostname() / fingerprint([service.command, service.port, service.devices])


def start_command(service: ServiceConfig, port: int) -> list[str]:
    """The program that starts a service on a port, and its arguments. Raises UserError for a command that names none."""
    try:
        words = shlex.split(service.command.replace("{port}", str(port)))
    except ValueError as error:
        raise UserError(f"teacher.server.service.command: {str(error).lower()} in {service.command!r}") from None
    if not words:
        raise UserError("teacher.server.service.command: it names no program")
    return words


def write_endpoint(service: ServiceConfig, state: State, base_url: str = "", reason: str = "") -> None:
    """Says how a service is, and where: `base_url` up to and with /v1."""
    write_json(service_folder(service) / "endpoint.json", {"state": state, "base_url": base_url, "reason": reason})


def remove_endpoint(service: ServiceConfig) -> None:
    """Says that the service is not there any more."""
    (service_folder(service) / "endpoint.json").unlink(missing_ok=True)


def read_endpoint(service: ServiceConfig) -> dict[str, Any]:
    """What was written last; empty where there is nothing."""
    return read_mapping(service_folder(service) / "endpoint.json")


def wait_for_service(service: ServiceConfig) -> str:
    """The address of a service, once it is ready. Raises UserError where it has failed, or is not ready in time."""
    end = time.monotonic() + service.start_timeout
    while True:
        found = read_endpoint(service)
        if found.get("state") == "ready":
            return str(found["base_url"])
        if found.get("state") == "failed" or time.monotonic() > end:
            reason = found.get("reason") or f"it is not ready after {service.start_timeout:g} s"
            raise UserError(f"teacher.server.service: {reason}; see {service_folder(service) / 'log.txt'}")
        time.sleep(POLL_SECONDS)
