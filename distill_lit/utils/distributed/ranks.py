"""Which process of a training this is, and what the others have."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from distill_lit.utils.distributed.node import RankPlace

# for the others, who may have a cache to write or questions to ask: whoever dies is noticed by who started the ranks
PROCESS_GROUP_TIMEOUT = timedelta(days=7)
ResultT = TypeVar("ResultT")


_place = RankPlace(0, 1, 0, 0, "127.0.0.1", 0)


def init_process_group(place: RankPlace) -> None:
    """Makes this process one of the ranks, who meet at a store of the first machine."""
    global _place
    _place = place
    store = distributed.TCPStore(  # type: ignore[attr-defined]
        place.address, place.port, place.world_size, is_master=False, timeout=PROCESS_GROUP_TIMEOUT
    )
    with_gpus = torch.cuda.is_available()
    if with_gpus and place.local_rank < torch.cuda.device_count():
        torch.cuda.set_device(place.local_rank)
    backend = "cpu:gloo,cuda:nccl" if with_gpus else "gloo"
    distributed.init_process_group(
        backend, store=store, rank=place.rank, world_size=place.world_size, timeout=PROCESS_GROUP_TIMEOUT
    )


def get_local_rank() -> int:
    """The number of this process among those of its machine."""
    return _place.local_rank


def get_node_rank() -> int:
    """The number of this machine."""
    return _place.node_rank


def get_rank() -> int:
    """The number of this process, 0 where it is alone."""
    return distributed.get_rank() if _is_distributed() else 0


def get_world_size() -> int:
    """How many processes train together."""
    return distributed.get_world_size() if _is_distributed() else 1


def all_gather_object(value: Any) -> list[Any]:
    """What every rank has passed, in their order: all of them must call this. Tensors are to be on the CPU."""
    gathered = [value] * get_world_size()
    if _is_distributed():
        distributed.all_gather_object(gathered, value)
    return gathered


def broadcast_from_rank_zero(compute: Callable[[], ResultT]) -> ResultT:
    """What `compute` returns on the first rank, the only one to call it: what is read from disk must be the same for
    all."""
    if not _is_distributed():
        return compute()
    payload = [compute() if get_rank() == 0 else None]
    distributed.broadcast_object_list(payload, src=0)
    return payload[0]  # type: ignore[return-value]


def full_tensor(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be sharded over the ranks (a DTensor, whose import takes a second): all of them
    must call this."""
    gather = getattr(tensor, "full_tensor", None)
    return gather() if gather else tensor


def is_sharded(tensor: Tensor) -> bool:
    """Whether each rank holds a part of it (a DTensor)."""
    return hasattr(tensor, "full_tensor")


def all_gather_rows(tensor: Tensor) -> Tensor:
    """The rows (n, …) of all ranks, in their order: (n × ranks, …). All ranks have equally many."""
    if not _is_distributed():
        return tensor
    own = tensor.contiguous()
    gathered = [torch.empty_like(own) for _ in range(get_world_size())]
    # as bytes: gloo knows few number formats
    distributed.all_gather([part.reshape(-1).view(torch.uint8) for part in gathered], own.reshape(-1).view(torch.uint8))
    return torch.cat(gathered)


def barrier() -> None:
    """Waits for all ranks."""
    if _is_distributed():
        distributed.barrier()


@contextmanager
def rank_zero_first() -> Iterator[None]:
    """The first rank does what is inside before the others begin with it: they find on disk what it has prepared."""
    if get_rank() > 0:
        barrier()
    yield
    if get_rank() == 0:
        barrier()


def _is_distributed() -> bool:
    return distributed.is_available() and distributed.is_initialized()
