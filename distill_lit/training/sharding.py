"""A distiller over several ranks: student and teacher sharded, each a root of its own."""

from typing import Any

import torch

from distill_lit.models.sharding import Shardable, receive_from_rank_zero, shard_layers
from distill_lit.utils.exceptions import UserError


def shard_for_training(module: Any, mesh: Any, device: torch.device, teacher_shards: int = 0) -> None:
    """Shards a `Distiller` over the ranks of a mesh; all of them call this.

    The layers of the student are groups of their own. The root group, which is the module itself, holds embeddings, final
    norm, lm_head and projectors; it is gathered when a step begins, so the fused loss sees a plain lm_head. The teacher is
    another root, over a mesh of `teacher_shards` neighbouring ranks, 0 for all. Raises UserError where these do not divide
    the ranks.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    shard_layers(module.student, mesh, device)
    receive_from_rank_zero(module, device)
    # given back after a step: an optimizer made after a validation would else hold the gathered parameters
    fully_shard(module, mesh=mesh, reshard_after_forward=True)
    for step in ("training_step", "validation_step"):
        register_fsdp_forward_method(module, step)
    teacher = module.loss.teacher
    if not isinstance(teacher, Shardable):  # none, or one without a model: every rank has its own
        return
    size = teacher_shards or mesh.size()
    if mesh.size() % size:
        raise UserError(f"training.teacher_shards: {size} does not divide the {mesh.size()} ranks")
    copies = init_device_mesh(device.type, (mesh.size() // size, size), mesh_dim_names=("copies", "shards"))
    with torch.inference_mode(False):
        teacher.shard(copies["shards"], device)
