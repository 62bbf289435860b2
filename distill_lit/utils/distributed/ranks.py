"""Which process of a training this is, and what the others have."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import distributed

# for the others, who may have a cache to write or questions to ask: whoever dies is noticed by who started the ranks
PATIENCE = timedelta(days=7)
Value = TypeVar("Value")


def join(number: int, count: int, port: int) -> None:
    """Makes this process one of the `count` ranks of this machine, who meet at a port of it."""
    store = distributed.TCPStore("127.0.0.1", port, count, is_master=False, timeout=PATIENCE)  # type: ignore[attr-defined]
    with_gpus = torch.cuda.is_available()
    if with_gpus and number < torch.cuda.device_count():
        torch.cuda.set_device(number)
    backend = "cpu:gloo,cuda:nccl" if with_gpus else "gloo"
    distributed.init_process_group(backend, store=store, rank=number, world_size=count, timeout=PATIENCE)


def this_rank() -> int:
    """The number of this process, 0 where it is alone."""
    return distributed.get_rank() if _is_shared() else 0


def rank_count() -> int:
    """How many processes train together."""
    return distributed.get_world_size() if _is_shared() else 1


def of_every_rank(mine: Any) -> list[Any]:
    """What every rank has passed, in their order: all of them must call this. Tensors are to be on the CPU."""
    found = [mine] * rank_count()
    if _is_shared():
        distributed.all_gather_object(found, mine)
    return found


def of_first_rank(make: Callable[[], Value]) -> Value:
    """What `make` returns on the first rank, the only one to call it: what is read from disk must be the same for all."""
    if not _is_shared():
        return make()
    found = [make() if this_rank() == 0 else None]
    distributed.broadcast_object_list(found, src=0)
    return found[0]  # type: ignore[return-value]


@contextmanager
def first_rank_first() -> Iterator[None]:
    """The first rank does what is inside before the others begin with it: they find on disk what it has prepared."""
    if _is_shared() and this_rank() > 0:
        distributed.barrier()
    yield
    if _is_shared() and this_rank() == 0:
        distributed.barrier()


def _is_shared() -> bool:
    return distributed.is_available() and distributed.is_initialized()
