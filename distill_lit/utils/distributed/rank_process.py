"""One rank: a process that `spawn_ranks` has started.

`python -m distill_lit.utils.distributed.rank_process DESCRIPTOR`, of a socket to who started it.

It reads (place, threads) and then what to do; it tells ("report", arguments), and at the end ("done",
result) or ("failed", error), both pickled. When the other end is closed, as by `kill -9`, it ends at once.
"""

import logging
import os
import pickle
import signal
import socket
import sys
import threading
import traceback
from multiprocessing.connection import Connection
from typing import Any

from distill_lit.utils.distributed.node import RankPlace
from distill_lit.utils.exceptions import RankFailure, error_summary

RANK_LOG_FORMAT = "%(asctime)s rank {} %(name)s %(message)s"


def run_rank(descriptor: int) -> None:
    """Does what it is told, and waits to be dismissed."""
    os.set_inheritable(descriptor, False)
    connection = Connection(descriptor)
    for signal_number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):  # who started this rank decides about those
        signal.signal(signal_number, signal.SIG_IGN)
    place, threads = connection.recv()
    rank = place.rank
    payload = connection.recv_bytes()
    threading.Thread(target=_exit_on_disconnect, args=(connection,), daemon=True).start()
    logging.basicConfig(level=logging.INFO, force=True, format=RANK_LOG_FORMAT.format(rank))
    if rank:
        logging.disable(logging.INFO)  # the first rank says the same
    try:
        connection.send(("result", _run_function(place, threads, payload, connection)))
    except BaseException as error:
        traceback.print_exc()
        connection.send(("error", pickle_error(error, rank)))
        _flush_and_exit(1)  # at once, so that no rank waits for this one; and gloo's threads can hang at a regular exit
    logging.shutdown()
    threading.Event().wait()


def _run_function(place: RankPlace, threads: int, payload: bytes, pipe: Connection) -> bytes:
    loopback = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), "")
    if loopback and is_loopback(place.address):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)
    import torch

    from distill_lit.utils.distributed.ranks import init_process_group

    torch.set_num_threads(threads)
    init_process_group(place)
    function, arguments = pickle.loads(payload)

    def progress_callback(*facts: Any) -> None:
        if place.rank == 0:
            pipe.send(("report", facts))

    result = function(*arguments, progress_callback)
    return pickle.dumps(result if place.rank == 0 else None)


def is_loopback(address: str) -> bool:
    """Whether an address is this machine's alone."""
    try:
        return socket.gethostbyname(address).startswith("127.")
    except OSError:
        return False


def _exit_on_disconnect(pipe: Connection) -> None:
    try:
        pipe.recv_bytes()
    except (EOFError, OSError):
        _flush_and_exit(1)


def _flush_and_exit(code: int) -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            continue
    os._exit(code)


def pickle_error(error: BaseException, rank: int) -> bytes:
    """An error pickled; one that would not come out as it went in as a `RankFailure` that says the same."""
    if isinstance(error, SystemExit):
        return pickle.dumps(RankFailure(f"rank {rank} ended with exit code {error.code}"))
    try:
        pickled = pickle.dumps(error)
        restored = pickle.loads(pickled)
        if type(restored) is type(error) and str(restored) == str(error):
            return pickled
    except Exception:
        pass
    return pickle.dumps(RankFailure(error_summary(error)))


if __name__ == "__main__":
    run_rank(int(sys.argv[1]))
