"""One rank: a process that `together` has started.

`python -m distill_lit.utils.distributed.rank_process DESCRIPTOR`, of a socket to who started it.

It reads (number, count, port, threads) and then what to do; it tells ("report", arguments), and at the end ("done",
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

from distill_lit.utils.exceptions import RankFailure

FORMAT = "%(asctime)s rank {} %(name)s %(message)s"


def main(descriptor: int) -> None:
    """Does what it is told, and waits to be dismissed."""
    os.set_inheritable(descriptor, False)
    pipe = Connection(descriptor)
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):  # who started this rank decides about those
        signal.signal(number, signal.SIG_IGN)
    rank, count, port, threads = pipe.recv()
    told = pipe.recv_bytes()
    threading.Thread(target=_end_with, args=(pipe,), daemon=True).start()
    logging.basicConfig(level=logging.INFO, force=True, format=FORMAT.format(rank))
    if rank:
        logging.disable(logging.INFO)  # the first rank says the same
    try:
        pipe.send(("done", _work(rank, count, port, threads, told, pipe)))
    except BaseException as error:
        traceback.print_exc()
        pipe.send(("failed", portable(error, rank)))
        _leave(1)  # at once, so that no rank waits for this one; and gloo's threads can hang at a regular exit
    logging.shutdown()
    threading.Event().wait()


def _work(rank: int, count: int, port: int, threads: int, told: bytes, pipe: Connection) -> bytes:
    loopback = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), "")
    if loopback:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)
    import torch

    from distill_lit.utils.distributed.ranks import join

    torch.set_num_threads(threads)
    join(rank, count, port)
    work, arguments = pickle.loads(told)

    def report(*facts: Any) -> None:
        if rank == 0:
            pipe.send(("report", facts))

    result = work(*arguments, report)
    return pickle.dumps(result if rank == 0 else None)


def _end_with(pipe: Connection) -> None:
    try:
        pipe.recv_bytes()
    except (EOFError, OSError):
        _leave(1)


def _leave(code: int) -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            continue
    os._exit(code)


def portable(error: BaseException, rank: int) -> bytes:
    """An error pickled; one that would not come out as it went in as a `RankFailure` that says the same."""
    if isinstance(error, SystemExit):
        return pickle.dumps(RankFailure(f"rank {rank} ended with exit code {error.code}"))
    try:
        found = pickle.dumps(error)
        same = pickle.loads(found)
        if type(same) is type(error) and str(same) == str(error):
            return found
    except Exception:
        pass
    first = (str(error).splitlines() or [""])[0]
    return pickle.dumps(RankFailure(f"{type(error).__name__}: {first}"))


if __name__ == "__main__":
    main(int(sys.argv[1]))
