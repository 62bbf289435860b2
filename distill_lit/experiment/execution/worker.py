"""A worker process: takes runs from its standard input, runs them one after the other, tells its driver how it goes.

One process serves many runs, so that libraries are imported once; a run that kills the process costs only itself.
"""

import contextlib
import errno
import json
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

from distill_lit.utils.distributed.cluster_environment import remove_cluster_variables
from distill_lit.utils.distributed.node import Node, node_from_environment
from distill_lit.utils.exceptions import Preempted, RankFailure, Unwritable, UserError, error_summary
from distill_lit.utils.progress import NO_METRICS, ProgressCallback
from distill_lit.utils.redaction import redact, redact_file

EVENTS_PER_SECOND = 4
GRACE_SECONDS = 120.0  # between the death of the driver and the end of a worker that does not come to its senses
DISK_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def worker_main(arguments: list[str]) -> None:
    """`python -m distill_lit.experiment.execution.worker RUNS_FOLDER THREADS GPU_SHARE`.

    Runs arrive as lines of JSON; events leave as lines.
    """
    runs_folder, threads, gpu_share = Path(arguments[0]), int(arguments[1]), int(arguments[2])
    remove_cluster_variables()
    for number in (signal.SIGUSR1, signal.SIGUSR2):  # a training takes them for SIGTERM; otherwise they are the driver's
        signal.signal(number, signal.SIG_IGN)
    events = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    queue = _RunQueue()
    import torch

    from distill_lit.experiment.execution.devices import limit_gpu_memory
    from distill_lit.experiment.planning.planned_run import from_task

    torch.set_num_threads(threads)
    limit_gpu_memory(gpu_share)

    def send_event(**event: Any) -> None:
        _write_event(events, **event)

    send_event(event="ready")
    while (line := queue.next()) is not None:
        run = from_task(json.loads(line))
        execute_and_report(run, runs_folder / run.name, _reporter(run.name, send_event), send_event)


class _RunQueue:
    """Runs from standard input. When the driver is gone, the process asks itself to stop, and then insists."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._arrived = threading.Condition()
        self._closed = False
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in sys.stdin:
            with self._arrived:
                self._lines.append(line.strip())
                self._arrived.notify()
        with self._arrived:
            self._closed = True
            self._arrived.notify()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE_SECONDS)
        os.kill(os.getpid(), signal.SIGKILL)

    def next(self) -> str | None:
        """The next line, or None when there will be no more."""
        with self._arrived:
            self._arrived.wait_for(lambda: self._lines or self._closed)
            return self._lines.pop(0) if self._lines else None


def _reporter(run_name: str, send_event: Callable[..., None]) -> ProgressCallback:
    """A function that passes progress on, a few times a second."""
    last = 0.0

    def report(stage: str, done: float, total: float, unit: str = "", metrics: Mapping[str, float] = NO_METRICS, /) -> None:
        nonlocal last
        if time.monotonic() - last > 1 / EVENTS_PER_SECOND or done >= total:
            last = time.monotonic()
            send_event(
                event="progress", run=run_name, stage=stage, done=done, total=total, unit=unit, metrics=dict(metrics)
            )

    return report


def execute_and_report(
    run: Any,
    folder: Path,
    progress_callback: Callable[..., None],
    send_event: Callable[..., None],
    part: str = "",
    job: str = "",
    wait_seconds: float = 0.0,
) -> None:
    """Runs one run, alone in its folder, and says how it ended. Exits with 143 after SIGTERM.

    part: `build` or `evaluate`, empty for both; job: of SLURM; wait_seconds: for another process that is at it,
    to which it is left then.
    """
    from distill_lit.config import to_yaml
    from distill_lit.experiment.execution.run import execute_run
    from distill_lit.experiment.state.claims import InUse
    from distill_lit.experiment.state.run_state import FAILED, PREEMPTED, lock_run_folder, write_run_status
    from distill_lit.utils.files import write_text

    folder.mkdir(parents=True, exist_ok=True)
    if node := other_node_of(run):
        return join_and_report(run, folder, node, send_event)
    _redirect_output(folder / "log.txt")
    try:
        with lock_run_folder(folder, wait_seconds, job):
            write_text(folder / "config.yaml", to_yaml(run.config))
            execute_run(run, folder, progress_callback, part)
        send_event(event="done", run=run.name)
    except InUse as error:
        send_event(event="busy", run=run.name, reason=str(error))
    except Preempted as stop:
        write_run_status(folder, PREEMPTED, str(stop))
        send_event(event="preempted", run=run.name, reason=str(stop))
        sys.exit(143)
    except Exception as error:
        with contextlib.suppress(OSError):  # the disk may be full
            traceback.print_exc()
        reason, is_denied = _failure_reason(error)
        with contextlib.suppress(OSError):
            write_run_status(folder, FAILED, reason)
        fatal = isinstance(error, OSError) and error.errno in DISK_FULL_ERRNOS
        send_event(event="failed", run=run.name, reason=reason, fatal=fatal, denied=is_denied)
    finally:
        with contextlib.suppress(OSError):
            redact_file(folder / "log.txt")


def _failure_reason(error: Exception) -> tuple[str, bool]:
    """(what to say of an error, without secrets; whether something may not be written)."""
    from distill_lit.utils.files import permission_error_message

    if isinstance(error, Unwritable):
        return redact(str(error)), True
    if isinstance(error, OSError) and (denied := permission_error_message(error)):
        return redact(denied), True
    if isinstance(error, (UserError, RankFailure)):
        return redact(str(error)), False
    return redact(error_summary(error)), False


def other_node_of(run: Any) -> Node | None:
    """This machine, where several train together and it is not the first; None for the first, and for one alone."""
    try:
        node = node_from_environment(run.config.training.nodes)
    except UserError:  # told when the run begins
        return None
    return node if node.rank else None


def join_and_report(run: Any, folder: Path, node: Node, send_event: Callable[..., None]) -> None:
    """Takes part in a run as another node than the first, which alone locks the folder and says in it how the run ended."""
    from distill_lit.experiment.execution.run import join_run

    _redirect_output(folder / f"log.{node.rank}.txt")
    try:
        join_run(run, folder, node)
        send_event(event="done", run=run.name)
    except Preempted as stop:
        send_event(event="preempted", run=run.name, reason=str(stop))
        sys.exit(143)
    except Exception as error:
        traceback.print_exc()
        send_event(
            event="failed", run=run.name, reason=redact(str(error) or type(error).__name__), fatal=False, denied=False
        )


def _redirect_output(path: Path) -> None:
    """What libraries print belongs to the run, not to the terminal of the driver."""
    log = path.open("a", buffering=1, encoding="utf-8", errors="backslashreplace")
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    logging.basicConfig(level=logging.INFO, stream=log, force=True, format="%(asctime)s %(name)s %(message)s")


def _write_event(events: TextIO, **event: Any) -> None:
    try:
        print(json.dumps(event), file=events, flush=True)
    except (BrokenPipeError, ValueError):
        os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    worker_main(sys.argv[1:])
