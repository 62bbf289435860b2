"""What a frozen teacher says of held-out rows: the same in every validation of a training, so it is asked once.

A batch is known by its content, whatever loader it comes from. Of a whole distribution the hidden states are kept, D
numbers a token, and the lm_head makes the logits anew: V numbers a token would be a hundred times as much.
"""

import hashlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from distill_lit.losses.lm_head import LMHead
from distill_lit.losses.targets import TeacherTarget
from distill_lit.models.activations import Activations
from distill_lit.teachers import StudentFollowingTeacher

TARGET_CACHE_BYTES = 512 * 2**20  # of main memory, in each process
TeacherAnswer = tuple[TeacherTarget, Activations]  # targets, and the inner states that were wanted


class TargetCache:
    """Answers of a teacher by the batch that was read and the device that it is on, in main memory, as long as there is
    room; to the bit as they were.

    max_bytes: of all answers; what would exceed it is asked each time.
    """

    def __init__(self, max_bytes: int = TARGET_CACHE_BYTES) -> None:
        self._room = max_bytes
        self._answers: dict[bytes, tuple[list[Any], list[torch.device | None], TreeSpec]] = {}

    def get(self, batch: dict[str, Any], ask: Callable[[], TeacherAnswer]) -> TeacherAnswer:
        """The answer to a batch, from `ask` where it is not here. Its tensors are not to be written to."""
        key = _content_key(batch)
        if key not in self._answers:
            answer = ask()
            self._keep(key, answer)
            return answer
        leaves, devices, spec = self._answers[key]
        placed = [leaf if device is None else leaf.to(device) for leaf, device in zip(leaves, devices, strict=True)]
        known: TeacherAnswer = tree_unflatten(placed, spec)
        return known

    def _keep(self, key: bytes, answer: TeacherAnswer) -> None:
        # the lm_head is the teacher's own, and no part of what it says
        leaves, spec = tree_flatten(answer, is_leaf=lambda part: isinstance(part, LMHead))
        size = sum(leaf.nbytes for leaf in leaves if isinstance(leaf, Tensor))
        if size <= self._room:
            self._room -= size
            devices = [leaf.device if isinstance(leaf, Tensor) else None for leaf in leaves]
            self._answers[key] = [leaf.cpu() if isinstance(leaf, Tensor) else leaf for leaf in leaves], devices, spec


def is_frozen(teacher: Any) -> bool:
    """Whether a teacher says the same of a batch throughout a training: none of its weights follows the student's."""
    return not (isinstance(teacher, StudentFollowingTeacher) and teacher.state_dict())


def _content_key(batch: dict[str, Any]) -> bytes:
    digest = hashlib.sha256()
    for name in sorted(batch):
        value = batch[name]
        if isinstance(value, Tensor):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)} {value.device}".encode())
            digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
        else:
            digest.update(f"{name} {value!r}".encode())
    return digest.digest()
