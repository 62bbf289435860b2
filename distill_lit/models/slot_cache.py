"""A static key-value cache in which sequences of unequal length sit side by side, each in a slot of its own, and the
forward passes over it.

A slot is filled from its first column on, so there is no padding to its left, and attention reads only the columns that
some sequence has reached. Nothing is copied as sequences grow; a slot that becomes free is taken by the next prompt.
"""

import inspect
from collections.abc import Iterator, Sequence
from itertools import compress
from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

from distill_lit.models.packed_forward import attention_windows, format_attention_mask

MAX_PADDING_RATIO = 1.25  # tokens of prompts that are read together, padding included, per real token
MAX_PREFILL_TOKENS = 8192  # read in one forward pass, padding included, unless one prompt has more


class SlotCache(Cache):  # type: ignore[misc]
    """What `past_key_values` is to a model. Slots 0, 1, … are taken; `first_slot` and `source_rows`: where prompts go, and
    which row of the batch each slot takes; `columns` (n,): where the next token of each slot goes, None for prompts."""

    def __init__(self, num_slots: int, capacity: int) -> None:
        super().__init__(layer_class_to_replicate=lambda: _SlotLayer(self))
        self.num_slots, self.capacity = num_slots, capacity
        self.first_slot = self.num_visible = 0
        self.source_rows: Tensor | None = None
        self.columns: Tensor | None = None
        self.slots: Tensor | None = None

    def move(self, source: int, target: int, length: int) -> None:
        """The first `length` columns of one slot into another."""
        for layer in self.layers:
            layer.keys[target, :, :length] = layer.keys[source, :, :length]
            layer.values[target, :, :length] = layer.values[source, :, :length]


class _SlotLayer(CacheLayerMixin):  # type: ignore[misc]
    """Keys and values (slots, heads, capacity, head size) of one layer."""

    is_sliding = False

    def __init__(self, cache: SlotCache) -> None:
        super().__init__()
        self._cache = cache

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Zeros: what is masked must be a number all the same."""
        self.keys, self.values = (
            states.new_zeros(self._cache.num_slots, states.shape[1], self._cache.capacity, states.shape[3])
            for states in (key_states, value_states)
        )
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Notes them; returns what attention reads: of prompts themselves, of a step all columns that are visible."""
        cache = self._cache
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if cache.columns is None:
            assert cache.source_rows is not None
            slots = slice(cache.first_slot, cache.first_slot + len(cache.source_rows))
            self.keys[slots, :, : key_states.shape[2]] = key_states[cache.source_rows]
            self.values[slots, :, : value_states.shape[2]] = value_states[cache.source_rows]
            return key_states, value_states
        self.keys[cache.slots, :, cache.columns] = key_states[:, :, 0]
        self.values[cache.slots, :, cache.columns] = value_states[:, :, 0]
        taken = len(cache.columns)
        return self.keys[:taken, :, : cache.num_visible], self.values[:taken, :, : cache.num_visible]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Of prompts, which see themselves alone; a step brings its own mask."""
        return query_length, 0

    def get_seq_length(self) -> int:
        """None before a prompt; a step brings its own positions."""
        return 0

    def get_max_length(self) -> int:
        """Columns of a slot."""
        return self._cache.capacity


class SlotDecoder:
    """Forward passes of one model over its slots. `lengths`: tokens that each taken slot holds."""

    def __init__(self, model: Any, num_slots: int, capacity: int, mask_per_kind: bool) -> None:
        """capacity: tokens of the longest sequence; mask_per_kind: the model takes a mask for each kind of layer."""
        self.model, self.mask_per_kind = model, mask_per_kind
        self.device = next(model.parameters()).device
        self.lengths: list[int] = []
        self._cache = SlotCache(num_slots, capacity)
        forward = (model.get_base_model() if hasattr(model, "get_base_model") else model).forward
        self._keeps_logits = "logits_to_keep" in inspect.signature(forward).parameters

    def add(self, prompts: Sequence[list[int]]) -> Tensor:
        """Reads prompts into the next slots. Returns logits (prompts, V) of the token after each. Neighbours of like length
        are read together, and equal neighbours once."""
        return torch.cat([self._read_prompts(group) for group in prompt_groups(prompts)])

    def _read_prompts(self, prompts: Sequence[list[int]]) -> Tensor:
        is_new = [i == 0 or prompt != prompts[i - 1] for i, prompt in enumerate(prompts)]
        distinct = list(compress(prompts, is_new))
        longest = max(map(len, distinct))
        # padding follows a prompt, so that no token of it sees any
        ids = torch.tensor([[*prompt, *[0] * (longest - len(prompt))] for prompt in distinct], device=self.device)
        last = torch.tensor([len(prompt) - 1 for prompt in distinct], device=self.device)
        cache = self._cache
        cache.columns, cache.first_slot = None, len(self.lengths)
        cache.source_rows = torch.tensor(is_new, device=self.device).cumsum(0) - 1
        positions = torch.arange(longest, device=self.device).expand(len(distinct), -1)
        logits = self._forward(ids, positions, None, last[:, None])
        if logits.shape[1] > 1:
            logits = logits[torch.arange(len(distinct), device=self.device), last][:, None]
        self.lengths += [len(prompt) for prompt in prompts]
        return logits[:, 0][cache.source_rows]

    def step(self, tokens: Tensor) -> Tensor:
        """Reads one more token (n,) of each taken slot. Returns logits (n, V) of the token after it."""
        positions = torch.tensor(self.lengths, device=self.device)
        cache = self._cache
        cache.columns, cache.num_visible = positions, max(self.lengths) + 1
        cache.slots = torch.arange(len(positions), device=self.device)
        logits = self._forward(tokens[:, None], positions[:, None], self._mask(positions, cache.num_visible), 1)
        self.lengths = [length + 1 for length in self.lengths]
        return logits[:, -1]

    def drop(self, ended: Sequence[bool]) -> list[int]:
        """Frees the slots of sequences that have ended; the last ones fill the gaps. Returns each slot's old number."""
        kept = len(ended) - sum(ended)
        movers = (number for number in range(kept, len(ended)) if not ended[number])
        order = [next(movers) if ended[number] else number for number in range(kept)]
        for target, source in enumerate(order):
            if source != target:
                self._cache.move(source, target, self.lengths[source])
        self.lengths = [self.lengths[number] for number in order]
        return order

    def _forward(self, ids: Tensor, positions: Tensor, mask: Any, keep: Any) -> Tensor:
        options = {"logits_to_keep": keep} if self._keeps_logits else {}
        output = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
            **options,
        )
        logits: Tensor = output.logits
        return logits

    def _mask(self, positions: Tensor, num_visible: int) -> Any:
        """Which columns the next token of each slot sees, (n, 1, 1, columns), as the model takes it."""
        columns = torch.arange(num_visible, device=self.device)
        at = positions[:, None]
        past = columns <= at
        masks = {
            kind: format_attention_mask(self.model, (past & (columns >= first(at)))[:, None, None])
            for kind, first in attention_windows(self.model.config).items()
        }
        return masks if self.mask_per_kind else next(iter(masks.values()))


def prompt_groups(prompts: Sequence[list[int]]) -> Iterator[list[list[int]]]:
    """Neighbours that are read together: padded to the longest, different ones are at most MAX_PADDING_RATIO times their
    tokens."""
    group: list[list[int]] = []
    longest = tokens = rows = 0
    for prompt in prompts:
        if group and prompt == group[-1]:
            group.append(prompt)
            continue
        size = max(longest, len(prompt)) * (rows + 1)
        if group and (size > MAX_PADDING_RATIO * (tokens + len(prompt)) or size > MAX_PREFILL_TOKENS):
            yield group
            group, longest, tokens, rows = [], 0, 0, 0
        group.append(prompt)
        longest, tokens, rows = max(longest, len(prompt)), tokens + len(prompt), rows + 1
    if group:
        yield group
