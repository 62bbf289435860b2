"""Which process of a training this is, and what the others have."""

from typing import Any

from torch import distributed


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


def _is_shared() -> bool:
    return distributed.is_available() and distributed.is_initialized()
