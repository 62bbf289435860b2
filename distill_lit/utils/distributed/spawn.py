"""Several processes that do one thing together: started afresh, watched, and failing like one.

A rank is never forked from a process with threads. Who starts them takes no part, so it can never be stuck with one.
"""

import contextlib
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any

from distill_lit.utils.distributed.cluster_environment import leave_cluster
from distill_lit.utils.exceptions import Preempted, RankFailure, how_it_ended

LEAVE_SECONDS = 10.0  # for the other ranks to say their last word once one of them has
STOPPING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


@dataclass
class _Rank:
    """A process, the socket to it, and its last word: what it has returned or raised, pickled."""

    number: int
    process: subprocess.Popen
    pipe: Connection
    done: bytes | None = None
    failed: bytes | None = None
    code: int | None = None

    @property
    def is_over(self) -> bool:
        return self.done is not None or self.failed is not None or self.code is not None


def together(count: int, work: Callable[..., Any], *arguments: Any, report: Callable[..., None] | None = None) -> Any:
    """What `work(*arguments, report)` returns on the first of `count` ranks, each a process of its own on this machine,
    joined in torch's default group. `work` and all it is given and returns must be picklable; of `report` only what the
    first rank reports arrives.

    Raises what the first rank to fail has raised, RankFailure for one that died without a word, and Preempted when a signal
    that asks to stop came to this process or to any rank. No rank is left when it returns.
    """
    told = pickle.dumps((work, arguments))
    server, port = _meeting_place(count)
    ranks: list[_Rank] = []
    try:
        with _passing_on(ranks) as stopped:
            for number in range(count):
                ranks.append(_start(number, count, port, told))
                if stopped:
                    ranks[-1].process.terminate()
            ended = _watch(ranks, report or (lambda *_: None))
    finally:
        for rank in ranks:
            rank.process.kill()
        for rank in ranks:
            rank.process.wait()
            rank.pipe.close()
        del server
    if all(rank.done is not None for rank in ranks):
        return pickle.loads(ranks[0].done or b"")
    raise _reason(ended)


def _meeting_place(count: int) -> tuple[Any, int]:
    """(a store at which `count` ranks find each other, its port, which was free and which nobody else on the net sees)."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    descriptor = listener.detach()
    store = TCPStore("127.0.0.1", port, count, is_master=True, wait_for_workers=False, master_listen_fd=descriptor)
    return store, port


@contextlib.contextmanager
def _passing_on(ranks: list[_Rank]) -> Iterator[list[int]]:
    """Inside, a signal that asks to stop goes on to every rank as SIGTERM; yields those that came."""
    came: list[int] = []

    def note(number: int, _: Any) -> None:
        came.append(number)
        for rank in ranks:
            rank.process.terminate()

    if threading.current_thread() is not threading.main_thread():
        yield came
        return
    previous = {number: signal.signal(number, note) for number in STOPPING}
    try:
        yield came
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _start(number: int, count: int, port: int, told: bytes) -> _Rank:
    import torch

    threads = max(1, torch.get_num_threads() // count)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    leave_cluster(environment)
    ours, theirs = Pipe()
    descriptor = theirs.fileno()
    process = subprocess.Popen(
        [sys.executable, "-m", "distill_lit.utils.distributed.rank_process", str(descriptor)],
        stdin=subprocess.DEVNULL,
        pass_fds=[descriptor],
        env=environment,
    )
    theirs.close()
    with contextlib.suppress(OSError):  # one that has died is noticed by its exit code
        ours.send((number, count, port, threads))
        ours.send_bytes(told)
    return _Rank(number, process, ours)


def _watch(ranks: list[_Rank], report: Callable[..., None]) -> list[_Rank]:
    """Listens until all have said their last word, or one has failed and the others had time to. Those that are over, in
    the order of their ends."""
    listening, ended = {rank.pipe: rank for rank in ranks}, []
    end = float("inf")
    while any(not rank.is_over for rank in ranks) and time.monotonic() < end:
        for pipe in wait(list(listening), None if end == float("inf") else max(0.0, end - time.monotonic())):
            rank = listening[pipe]  # type: ignore[index]
            try:
                kind, value = rank.pipe.recv()
            except (EOFError, OSError):
                del listening[rank.pipe]
                rank.code = rank.process.wait()
            else:
                if kind == "report":
                    report(*value)
                    continue
                setattr(rank, kind, value)
            if rank not in ended:
                ended.append(rank)
            if rank.done is None:
                end = min(end, time.monotonic() + LEAVE_SECONDS)
    return ended


def _reason(ended: list[_Rank]) -> Exception:
    """Why it ended. Who died without a word comes first: whoever waited for it has failed since."""
    for rank in ended:
        if rank.done is None and rank.failed is None:
            if rank.code == -signal.SIGTERM:
                return Preempted("SIGTERM before the first step")
            return RankFailure(f"rank {rank.number} {how_it_ended(rank.code or 0)}")
    errors = [pickle.loads(rank.failed) for rank in ended if rank.failed is not None]
    stops = [error for error in errors if isinstance(error, Preempted)]
    error = [*stops, *errors][0]
    return error if isinstance(error, Exception) else RankFailure(f"{type(error).__name__}: {error}")
