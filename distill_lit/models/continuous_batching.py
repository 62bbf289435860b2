"""Continuous batching: sequences that end leave their slot to the next prompt, so no forward pass reads what nobody wants.

Iteration-level scheduling, Yu et al. 2022 (Orca, OSDI). Which token follows is the caller's choice, so greedy decoding,
sampling and penalties are the same here as anywhere else.
"""

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from distill_lit.models.packed_linears import MIN_PACKED_ROWS, packed_linears
from distill_lit.models.slot_cache import SlotDecoder

MIN_FREE_SHARE = 4  # new prompts are read once one slot in so many is free, or all are
PACK_AFTER_STEPS = 64  # of steps before weights are packed, and of those that may follow: about what packing costs


@dataclass
class WrittenSequence:
    """A prompt and what has been written after it. `number`: its place among the prompts; `is_finished`: it ended by
    itself."""

    number: int
    prompt: list[int]
    token_ids: list[int] = field(default_factory=list)
    is_finished: bool = False


Choice = Callable[[Tensor, list[WrittenSequence]], Tensor]  # logits (n, V) → the next token (n,) of each
Ends = Callable[[list[WrittenSequence]], Sequence[bool]]  # whether the last token ends each


@torch.inference_mode()
def write_continuously(
    model: Any,
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    num_slots: int,
    mask_per_kind: bool,
    choose: Choice,
    ends: Ends,
    progress_callback: Callable[[int], Any] = lambda done: None,
) -> list[WrittenSequence]:
    """Continues every prompt (token ids), at most `num_slots` at a time, longest first. In the order of the prompts.

    `progress_callback` is told how many have ended.
    """
    written = [WrittenSequence(number, list(prompt)) for number, prompt in enumerate(prompts)]
    waiting = deque(sorted(written, key=lambda each: (-len(each.prompt), each.prompt)))
    num_slots = min(num_slots, len(prompts))
    decoder = SlotDecoder(model, num_slots, max(map(len, prompts), default=0) + max_new_tokens, mask_per_kind)
    active: list[WrittenSequence] = []
    num_steps, num_ended, is_packed = 0, 0, False
    with ExitStack() as stack:
        while waiting or active:
            steps_left = max_new_tokens if waiting else max_new_tokens - min(len(each.token_ids) for each in active)
            if num_steps >= PACK_AFTER_STEPS <= steps_left and len(active) >= MIN_PACKED_ROWS and not is_packed:
                stack.enter_context(packed_linears(model))
                is_packed = True
            num_steps += 1
            logits = _next_logits(decoder, num_slots, waiting, active)
            for sequence, token in zip(active, choose(logits, active).tolist(), strict=True):
                sequence.token_ids.append(token)
            for sequence, is_finished in zip(active, ends(active), strict=True):
                sequence.is_finished = bool(is_finished)
            ended = [sequence.is_finished or len(sequence.token_ids) >= max_new_tokens for sequence in active]
            if any(ended):
                num_ended += sum(ended)
                active = [active[number] for number in decoder.drop(ended)]
                progress_callback(num_ended)
    return written


def _next_logits(
    decoder: SlotDecoder, num_slots: int, waiting: deque[WrittenSequence], active: list[WrittenSequence]
) -> Tensor:
    """Logits (n, V) after every active sequence, to which those are added for which there are slots."""
    logits = []
    if active:
        logits.append(decoder.step(torch.tensor([each.token_ids[-1] for each in active], device=decoder.device)))
    free = num_slots - len(active)
    if waiting and (free * MIN_FREE_SHARE >= num_slots or not active):
        new = [waiting.popleft() for _ in range(min(free, len(waiting)))]
        logits.append(decoder.add([each.prompt for each in new]))
        active += new
    return torch.cat(logits)
