"""Several processes that do one thing together: started afresh, watched, and failing like one.

A rank is never forked from a process with threads. Who starts them takes no part, so it can never be stuck with one.
"""

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any

from distill_lit.utils.distributed.cluster_environment import remove_cluster_variables
from distill_lit.utils.distributed.node import ONLY_NODE, Node, RankPlace
from distill_lit.utils.distributed.peers import Peers
from distill_lit.utils.exceptions import Preempted, RankFailure, describe_exit_code

RANK_EXIT_GRACE_SECONDS = 10.0  # for the other ranks to say their last word once one of them has
TERMINATION_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


@dataclass
class _RankProcess:
    """A process, the socket to it, and its last word: what it has returned or raised, pickled."""

    rank: int
    process: subprocess.Popen
    connection: Connection
    result: bytes | None = None
    error: bytes | None = None
    exit_code: int | None = None

    @property
    def is_over(self) -> bool:
        return self.result is not None or self.error is not None or self.exit_code is not None


def spawn_ranks(
    count: int,
    function: Callable[..., Any],
    *arguments: Any,
    progress_callback: Callable[..., None] | None = None,
    node: Node = ONLY_NODE,
    label: str = "",
) -> Any:
    """What `function(*arguments, progress_callback)` returns on the first of `count` ranks of this machine, each a process
    of its own, joined in torch's default group with those of the other nodes, where the same is called. `function` and all
    it is given and returns must be picklable; of `progress_callback` only what the first rank of all reports arrives.
    label: what is done, the same on all nodes.

    Raises what the first rank to fail has raised, RankFailure for one that died without a word or on another node, and
    Preempted when a signal that asks to stop came to this process or to any rank. No rank is left when it returns.
    """
    payload = pickle.dumps((function, arguments))
    peers = Peers(count * node.count, node, label)
    ranks: list[_RankProcess] = []
    try:
        with _forward_signals(ranks) as received_signals:
            for number in range(count):
                ranks.append(_start_rank(number, count, peers, payload))
                if received_signals:
                    ranks[-1].process.terminate()
            ended = _wait_for_ranks(ranks, progress_callback or (lambda *_: None), peers)
    finally:
        for rank in ranks:
            rank.process.kill()
        for rank in ranks:
            rank.process.wait()
            rank.connection.close()
    if all(rank.result is not None for rank in ranks):
        peers.leave()
        return pickle.loads(ranks[0].result or b"")
    cause = peers.failure() or _failure_cause(ended)
    peers.tell(cause)
    peers.leave()
    raise cause


@contextlib.contextmanager
def _forward_signals(ranks: list[_RankProcess]) -> Iterator[list[int]]:
    """Inside, a signal that asks to stop goes on to every rank as SIGTERM; yields those that came."""
    received_signals: list[int] = []

    def note(number: int, _: Any) -> None:
        received_signals.append(number)
        for rank in ranks:
            rank.process.terminate()

    if threading.current_thread() is not threading.main_thread():
        yield received_signals
        return
    previous = {number: signal.signal(number, note) for number in TERMINATION_SIGNALS}
    try:
        yield received_signals
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _start_rank(local_rank: int, count: int, peers: Peers, payload: bytes) -> _RankProcess:
    import torch

    node, rank = peers.node, peers.node.rank * count + local_rank
    threads = max(1, torch.get_num_threads() // count)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    remove_cluster_variables(environment)
    parent_connection, child_connection = Pipe()
    descriptor = child_connection.fileno()
    process = subprocess.Popen(
        [sys.executable, "-m", "distill_lit.utils.distributed.rank_process", str(descriptor)],
        stdin=subprocess.DEVNULL,
        pass_fds=[descriptor],
        env=environment,
    )
    child_connection.close()
    with contextlib.suppress(OSError):  # one that has died is noticed by its exit code
        place = RankPlace(rank, count * node.count, local_rank, node.rank, node.address, peers.port)
        parent_connection.send((place, threads))
        parent_connection.send_bytes(payload)
    return _RankProcess(rank, process, parent_connection)


def _wait_for_ranks(ranks: list[_RankProcess], progress_callback: Callable[..., None], peers: Peers) -> list[_RankProcess]:
    """Listens until all have said their last word, or one has failed, here or on another node, and the others had time to.
    Those that are over, in the order of their ends."""
    listening, ended = {rank.connection: rank for rank in ranks}, []
    deadline = float("inf")
    while any(not rank.is_over for rank in ranks) and time.monotonic() < deadline:
        patience = min(peers.poll_seconds, max(0.0, deadline - time.monotonic()))
        ready = wait(list(listening), None if patience == float("inf") else patience)
        if deadline == float("inf") and peers.failure():
            deadline = time.monotonic() + RANK_EXIT_GRACE_SECONDS
        for pipe in ready:
            rank = listening[pipe]  # type: ignore[index]
            try:
                kind, value = rank.connection.recv()
            except (EOFError, OSError):
                del listening[rank.connection]
                rank.exit_code = rank.process.wait()
            else:
                if kind == "report":
                    progress_callback(*value)
                    continue
                setattr(rank, kind, value)
            if rank not in ended:
                ended.append(rank)
            if rank.result is None:
                deadline = min(deadline, time.monotonic() + RANK_EXIT_GRACE_SECONDS)
    return ended


def _failure_cause(ended: list[_RankProcess]) -> Exception:
    """Why it ended. Who died without a word comes first: whoever waited for it has failed since."""
    for rank in ended:
        if rank.result is None and rank.error is None:
            if rank.exit_code == -signal.SIGTERM:
                return Preempted("SIGTERM before the first step")
            return RankFailure(f"rank {rank.rank} {describe_exit_code(rank.exit_code or 0)}")
    errors = [pickle.loads(rank.error) for rank in ended if rank.error is not None]
    stops = [error for error in errors if isinstance(error, Preempted)]
    error = [*stops, *errors][0]
    return error if isinstance(error, Exception) else RankFailure(f"{type(error).__name__}: {error}")
