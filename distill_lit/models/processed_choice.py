"""Which token follows under the options of `generate`: its own logits processors, those of a model's generation config
among them, applied to sequences that are written by continuous batching."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList
from transformers.generation import GenerationMode

from distill_lit.models.continuous_batching import WrittenSequence
from distill_lit.models.drawing import UniformNumbers, draw_tokens
from distill_lit.models.generation_files import (
    PENALTY_FIELDS,
    SAMPLING_FIELDS,
    generation_eos_token_ids,
    penalty_settings,
)

# what is done to logits alone; whatever else `generate` may be told, it does itself
SUPPORTED_OPTIONS = {*SAMPLING_FIELDS, *PENALTY_FIELDS, "do_sample", "num_beams", "num_return_sequences",
                     "eos_token_id", "pad_token_id"} - {"guidance_scale"}  # fmt: skip
SUPPORTED_CRITERIA = {"MaxLengthCriteria", "EosTokenCriteria"}
UNSUPPORTED_FIELDS = ("guidance_scale", "watermarking_config", "cache_implementation", "cache_config")


class ProcessedChoice:
    """Chooses as `generate` does: the most probable token, or one that is drawn by a sequence's own numbers.
    `eos_token_ids`: at which a sequence ends; `is_supported`: whether `generate` would do nothing else."""

    def __init__(
        self,
        model: Any,
        prompts: Sequence[list[int]],
        options: dict[str, Any],
        max_new_tokens: int,
        seed: int,
        draw_numbers: Sequence[int],
    ) -> None:
        """options: keyword arguments of `generate`; draw_numbers: which numbers each prompt draws by."""
        self._model, self._prompts, self._max_new_tokens = model, prompts, max_new_tokens
        self._options, self._draw_numbers = options, draw_numbers
        self._numbers = UniformNumbers(seed, max_new_tokens)
        config, criteria, processors = self._prepare(prompts[0])
        self._does_sample = bool(config.do_sample)
        self.eos_token_ids = set(generation_eos_token_ids(config))
        self.is_supported = (
            (options.get("num_return_sequences") or 1) == 1
            and set(options) <= SUPPORTED_OPTIONS
            and config.get_generation_mode() in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE)
            and {type(each).__name__ for each in criteria} <= SUPPORTED_CRITERIA
            and all(getattr(config, name, None) in (None, 1) for name in UNSUPPORTED_FIELDS)
        )
        # processors that look at a text, or count its tokens, are made for each prompt
        self._shared = None if penalty_settings(config) else processors
        self._processors: dict[int, LogitsProcessorList] = {}

    def _prepare(self, prompt: list[int]) -> tuple[Any, Any, LogitsProcessorList]:
        """(generation config, stopping criteria, logits processors) that `generate` makes for a prompt."""
        prepared: list[Any] = []

        def capture(
            model: Any, input_ids: Tensor, logits_processor: Any, stopping_criteria: Any, generation_config: Any, **_: Any
        ) -> Tensor:
            prepared.extend((generation_config, stopping_criteria, logits_processor))
            return input_ids

        ids = torch.tensor([prompt], device=next(self._model.parameters()).device)
        self._model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_length=len(prompt) + self._max_new_tokens,
            custom_generate=capture,
            **self._options,
        )
        config, criteria, processors = prepared
        return config, criteria, processors

    def __call__(self, logits: Tensor, active: list[WrittenSequence]) -> Tensor:
        """Tokens (n,) by logits (n, V)."""
        scores = self._process(logits.float(), active)
        if not self._does_sample:
            return scores.argmax(-1)
        places = [(self._draw_numbers[sequence.number], len(sequence.token_ids)) for sequence in active]
        return draw_tokens(scores, self._numbers(places, logits.device))

    def _process(self, logits: Tensor, active: list[WrittenSequence]) -> Tensor:
        if self._shared is not None:
            no_text = torch.zeros(len(active), 0, dtype=torch.int64, device=logits.device)
            shared: Tensor = self._shared(no_text, logits)
            return shared
        rows = []
        for sequence, row in zip(active, logits, strict=True):
            if sequence.number not in self._processors:
                self._processors[sequence.number] = self._prepare(sequence.prompt)[2]
            ids = torch.tensor([[*sequence.prompt, *sequence.token_ids]], device=logits.device)
            rows.append(self._processors[sequence.number](ids, row[None]))
        return torch.cat(rows)
