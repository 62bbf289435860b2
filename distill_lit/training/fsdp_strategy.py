"""Lightning's FSDP2 strategy, with the checkpoints of this suite: the same file whatever the strategy, or a folder of
shards; a run goes on from either, under any strategy."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from torch.optim import Optimizer

from distill_lit.training import sharded_checkpoint
from distill_lit.training.checkpoint import ensure_free_space, frozen_weights
from distill_lit.training.weights_only import load_checkpoint_weights_only
from distill_lit.utils.distributed.ranks import full_tensor, get_rank, is_sharded


class FullyShardedStrategy(ModelParallelStrategy):
    """Student and teacher are sharded over all ranks by `Distiller.configure_model`.

    Lightning's own numbers an optimizer's states in the order of a model's parameters, where torch numbers them in that of
    the optimizer's groups; here they are numbered as torch does, as without sharding.
    """

    def __init__(self, ranks: int, teacher_shards: int = 0, sharded_checkpoints: bool = False) -> None:
        """`ranks`: on all nodes together; `teacher_shards`: ranks that share one copy of a teacher, 0 for all;
        `sharded_checkpoints`: folders of shards instead of one file."""
        super().__init__(ranks, 1, save_distributed_checkpoint=sharded_checkpoints)
        self.teacher_shards, self.sharded_checkpoints = teacher_shards or ranks, sharded_checkpoints

    @property
    def lightning_restore_optimizer(self) -> bool:
        """By `load_optimizer_state_dict`."""
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """What is trained, in shards, or whole on the first rank and empty elsewhere."""
        module = self.lightning_module
        assert module is not None
        frozen = frozen_weights(module)
        return self._stored({name: value for name, value in module.state_dict().items() if name not in frozen})

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The states of an optimizer as its own `state_dict` has them, in shards, or whole on the first rank."""
        inner = optimizer._optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        found = inner.state_dict()
        return {**found, "state": {number: self._stored(values) for number, values in found["state"].items()}}

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Writes one file by the first rank, or a folder by all."""
        if self.sharded_checkpoints:
            path = Path(filepath)
            sharded_checkpoint.write(checkpoint, path, lambda size: ensure_free_space(path.parent, size))
        elif self.is_global_zero:
            self.checkpoint_io.save_checkpoint(checkpoint, filepath)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = True) -> dict[str, Any]:
        """A checkpoint of either kind, whose tensors stay on disk until their rows are read."""
        path = Path(checkpoint_path)
        return (
            sharded_checkpoint.read(path, whole=False) if path.is_dir() else load_checkpoint_weights_only(path, mmap=True)
        )

    @torch.no_grad()
    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Each rank reads its rows. Raises RuntimeError for other weights than this model's."""
        assert self.lightning_module is not None
        own, saved = self.lightning_module.state_dict(), checkpoint["state_dict"]
        if own.keys() != saved.keys():
            raise RuntimeError(f"the checkpoint has other weights: {', '.join(sorted(own.keys() ^ saved.keys()))[:300]}")
        for name, target in own.items():
            if not is_sharded(saved[name]):  # what is not trained is its own
                _fill(target, saved[name])

    @torch.no_grad()
    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Each rank reads its rows."""
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            states = {
                number: {name: _like_parameter(parameters[int(number)], value) for name, value in values.items()}
                for number, values in saved["state"].items()
            }
            optimizer.load_state_dict({**saved, "state": states})

    def _stored(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """Tensors as they go into a checkpoint."""
        if self.sharded_checkpoints:
            return dict(tensors)
        whole = {}
        for name, value in tensors.items():  # one at a time: a device need not hold them all
            gathered = full_tensor(value) if isinstance(value, Tensor) else value
            if get_rank() == 0:
                whole[name] = gathered.cpu() if isinstance(value, Tensor) and is_sharded(value) else gathered
        return whole


def _fill(target: Any, saved: Any) -> None:
    """Copies saved values into a tensor, of a sharded one those that this rank holds."""
    own = target.to_local() if is_sharded(target) else target
    if target.ndim == 0:
        own.copy_(saved)
        return
    mesh = target.device_mesh if is_sharded(target) else None
    rows = sharded_checkpoint.rows_of_rank(target.shape[0], mesh.get_local_rank(), mesh.size()) if mesh else (0, len(own))
    own.copy_(saved.rows(*rows) if isinstance(saved, sharded_checkpoint.StoredTensor) else saved[slice(*rows)])


def _like_parameter(parameter: Tensor, value: Any) -> Any:
    """The state of an optimizer for a parameter: sharded as this is where it has its shape."""
    if not is_sharded(parameter) or getattr(value, "shape", None) != parameter.shape:
        is_stored = isinstance(value, sharded_checkpoint.StoredTensor)
        return value.rows(0, value.shape[0]) if is_stored else value
    sharded = torch.zeros_like(parameter, requires_grad=False)
    _fill(sharded, value)
    return sharded
