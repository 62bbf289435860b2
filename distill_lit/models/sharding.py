"""Models that are sharded over ranks (FSDP2): each rank keeps a slice of every weight, and a layer is gathered while it is
read. `torch.distributed.fsdp.fully_shard`; Rajbhandari et al. 2020, 1910.02054; Zhao et al. 2023, 2304.11277.

Only the first rank reads weights from disk: the others begin with a model on the meta device, which takes no memory, and
are sent one layer at a time. So a machine needs memory for one copy, and a device for its slices and one layer.
"""

import copy
from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

import torch
import torch.distributed
from torch import Tensor, nn

from distill_lit.models.backbone import get_backbone
from distill_lit.models.packing_check import forget_checks
from distill_lit.models.pruning.architecture import get_decoder_layers
from distill_lit.utils.distributed.ranks import (
    broadcast_from_rank_zero,
    full_tensor,
    get_local_rank,
    get_rank,
    get_world_size,
    is_sharded,
)
from distill_lit.utils.exceptions import UserError


@runtime_checkable
class Shardable(Protocol):
    """What can be spread over ranks."""

    def shard(self, mesh: Any, device: torch.device) -> None:
        """Spreads what is in memory over the ranks of a one-dimensional device mesh; all ranks call this together, and
        those that are not the first may hold shapes alone (the meta device)."""
        ...


def meta_copy(model: nn.Module) -> Any:
    """The same model without its weights: a copy on the meta device, in which tied weights are tied."""
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = buffer.to("meta")
    return copy.deepcopy(model, memo)


def build_on_rank_zero(build: Callable[[], nn.Module]) -> Any:
    """The model that `build` makes on the first rank, the only one to call it; elsewhere its shape (`meta_copy`)."""
    model = build() if get_rank() == 0 else None
    shape = broadcast_from_rank_zero(lambda: meta_copy(model) if model is not None else None)
    return shape if model is None else model


def shard_layers(model: Any, mesh: Any, device: torch.device) -> None:
    """Shards the decoder layers of a model over the ranks of a mesh, one after the other; they are gathered in their own
    number format, and multiplied as without sharding. Raises UserError for a model whose layers are not found."""
    from torch.distributed.fsdp import fully_shard

    forget_checks(model)  # the first rank may have read it alone
    for layer in decoder_layers(model):
        receive_from_rank_zero(layer, device)
        fully_shard(layer, mesh=mesh)


def shard_frozen(model: Any, mesh: Any, device: torch.device) -> None:
    """Shards the layers of a model that is only read over the ranks of a mesh; embeddings, final norm and lm_head, which
    never change, are whole on every rank. Over a mesh of one rank all of it is. All ranks of the training call this."""
    from torch.distributed.fsdp import fully_shard

    if mesh.size() > 1:
        shard_layers(model, mesh, device)
    receive_from_rank_zero(model, device)
    if mesh.size() > 1:  # a root, so that layers are gathered ahead of their use
        backbone = get_backbone(model)
        fully_shard(backbone, mesh=mesh, ignored_params={p for p in backbone.parameters() if not is_sharded(p)})


def world_mesh(device: torch.device) -> Any:
    """All ranks as a device mesh."""
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh(device.type, (get_world_size(),))


def rank_device(device: torch.device) -> torch.device:
    """The device of this rank: of GPUs that of its number on this machine."""
    return torch.device("cuda", get_local_rank()) if device.type == "cuda" else device


def decoder_layers(model: Any) -> nn.ModuleList:
    """The layers of a model. Raises UserError where they are not found."""
    try:
        return get_decoder_layers(model)[1]
    except UserError:
        raise UserError(
            f"training.strategy: fsdp shards a model by its decoder layers, and those of {type(model).__name__} are not "
            "found; take ddp"
        ) from None


def receive_from_rank_zero(module: nn.Module, device: torch.device) -> None:
    """Gives every rank the first one's parameters and buffers of a module, on a device; what is sharded already is left.
    Tied weights stay tied."""
    sent: dict[int, tuple[Tensor, Tensor]] = {}  # with the old one, whose id must stay taken
    for store, name in _tensor_slots(module):
        tensor = store[name]
        if is_sharded(tensor):
            continue
        if id(tensor) not in sent:
            sent[id(tensor)] = tensor, broadcast_tensor(tensor, device)
        store[name] = sent[id(tensor)][1]


def gather_model(shape: Any, model: nn.Module) -> Any:
    """A sharded model as it would be in one process: on the first rank, on the CPU; None elsewhere. All ranks call this.

    shape: its `meta_copy` from before it was sharded, which is filled.
    """
    gathered: dict[int, tuple[Tensor, Tensor]] = {}
    for (store, name), (target, same_name) in zip(_tensor_slots(model), _tensor_slots(shape), strict=True):
        assert name == same_name
        tensor = store[name]
        if id(tensor) not in gathered:
            gathered[id(tensor)] = tensor, _gather(tensor)
        target[name] = gathered[id(tensor)][1]
    return shape if get_rank() == 0 else None


def _tensor_slots(module: nn.Module) -> Iterator[tuple[dict[str, Any], str]]:
    """(mapping, name) of every parameter, buffer and plain attribute that is a tensor, in a module and all its parts."""
    for part in module.modules():
        for store in (part._parameters, part._buffers, part.__dict__):
            for name in [name for name, value in store.items() if isinstance(value, Tensor)]:
                yield store, name


def broadcast_tensor(tensor: Tensor, device: torch.device) -> Tensor:
    """The first rank's tensor on a device of every rank; elsewhere `tensor` only tells its shape."""
    if get_rank() == 0:
        value = tensor.detach().to(device).contiguous()
    else:
        value = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
    if value.numel():
        torch.distributed.broadcast(value.reshape(-1).view(torch.uint8), 0)  # bytes: gloo knows few number formats
    return _like(tensor, value)


def _gather(tensor: Tensor) -> Tensor:
    value = full_tensor(tensor.detach())
    return _like(tensor, value.to("cpu" if get_rank() == 0 else "meta"))


def _like(tensor: Tensor, value: Tensor) -> Tensor:
    return nn.Parameter(value, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else value
