"""Documents → tokens in several processes, in the order of the documents."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_all_start_methods, get_context
from multiprocessing.context import BaseContext
from typing import Any, TypeVar

from distill_lit.utils.exceptions import UserError

BATCHES_PER_PROCESS = 2  # that wait or are worked at, so that no more documents than needed are in memory
Batch = TypeVar("Batch")
Result = TypeVar("Result")


def map_in_processes(
    function: Callable[[Batch, Any], Result], batches: Iterable[Batch], shared: Any, workers: int
) -> Iterator[Result]:
    """function(batch, shared) of every batch, in their order, by so many processes. `shared` goes to each process once.

    Closing the iterator ends them. Raises what the function raises, and UserError where a process dies.
    """
    pending: deque[Future[Result]] = deque()
    pool = ProcessPoolExecutor(workers, mp_context=_context(), initializer=_begin, initargs=(shared,))
    try:
        for batch in batches:
            pending.append(pool.submit(_call, function, batch))
            if len(pending) >= BATCHES_PER_PROCESS * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool as error:
        raise UserError(
            f"data.workers: one of {workers} processes that tokenize has died, perhaps for want of memory; set fewer"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _context() -> BaseContext:
    """Processes that inherit no locks of this one's threads, as forked ones would, and import once, not each for itself,
    where the system can do that."""
    if "forkserver" not in get_all_start_methods():
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload(["distill_lit.data.tokenization"])
    return context


_shared: Any = None  # in a process of the pool


def _begin(shared: Any) -> None:
    global _shared
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # each process is one worker
    _shared = shared


def _call(function: Callable[[Batch, Any], Result], batch: Batch) -> Result:
    return function(batch, _shared)
