"""Continuations of prompts: by continuous batching in a static cache, or by `generate` of transformers where a model does
not suit that. Both choose tokens alike, so they write the same apart from rounding."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from distill_lit.data.chat import encode_chat
from distill_lit.models.continuous_batching import WrittenSequence, write_continuously
from distill_lit.models.drawing import UniformNumbers, draw_tokens, top_p_filter
from distill_lit.models.generation_check import (
    pad_left,
    supported_generation_mode,
    supported_slot_mode,
    without_model_generation_config,
)
from distill_lit.models.generation_files import generation_eos_token_ids


@dataclass(frozen=True)
class SamplingParams:
    """temperature: 0 for the most probable token; top_p: smallest set with this probability; max_new_tokens: longest."""

    temperature: float
    top_p: float
    max_new_tokens: int


@dataclass(frozen=True)
class GeneratedSequence:
    """One continuation. token_ids: its ids, the end token included; logprobs: of each to the model itself, at
    temperature 1 and without top-p, nats; is_finished: it ended by itself."""

    token_ids: list[int]
    logprobs: list[float]
    is_finished: bool


def generate_batch(
    model: Any,
    prompts: Sequence[Sequence[int]],
    eos_token_ids: list[int],
    sampling: SamplingParams,
    seed: int,
    logits_processors: Sequence[Any] = (),
    vocab_size: int = 0,
    num_slots: int = 0,
) -> list[GeneratedSequence]:
    """A continuation of each prompt (token ids), at most `num_slots` at a time, 0 for all. The same prompts with the same
    seed give the same, apart from rounding: each draws by numbers of its own.

    Written by continuous batching in a static cache where the model agrees with itself there, or else, and with
    `logits_processors`, by `generate` of transformers. logits_processors: change what is drawn from, told of the prompts'
    attention mask, and whether a cache may be kept, by `start`, each with the `models` it asks; vocab_size: real tokens,
    when a padded head must draw no others.
    """
    if not prompts:
        return []
    rows = [list(prompt) for prompt in prompts]
    choice = _TokenChoice(sampling, seed, len(_padding_token_ids(model, vocab_size)))
    if not logits_processors:
        mode = supported_slot_mode(model, max(map(len, rows)), sampling.max_new_tokens)
        if not mode.fallback_reason:
            return generate_in_slots(model, rows, eos_token_ids, sampling, choice, num_slots, mode.mask_per_kind)
    return generate_with_transformers(model, rows, eos_token_ids, sampling, choice, num_slots, logits_processors)


class _TokenChoice:
    """Which token follows: the most probable one, or one that is drawn by the sequence's own numbers."""

    def __init__(self, sampling: SamplingParams, seed: int, num_padding: int) -> None:
        """num_padding: last columns of the logits that are no token."""
        self.sampling, self.num_padding = sampling, num_padding
        self._numbers = UniformNumbers(seed, sampling.max_new_tokens)

    def mask_padding(self, logits: Tensor) -> Tensor:
        """Logits (n, V) in float32 that give what is no token no probability."""
        logits = logits.float()
        return logits if not self.num_padding else logits.index_fill(-1, self._padding(logits), -torch.inf)

    def _padding(self, logits: Tensor) -> Tensor:
        return torch.arange(logits.shape[-1] - self.num_padding, logits.shape[-1], device=logits.device)

    def __call__(self, logits: Tensor, places: Sequence[tuple[int, int]]) -> Tensor:
        """Tokens (n,) for (sequence, place of the token in it) by logits (n, V)."""
        if not self.sampling.temperature:
            return logits.argmax(-1)
        logits = logits / self.sampling.temperature
        if self.sampling.top_p < 1:
            logits = top_p_filter(logits, self.sampling.top_p)
        return draw_tokens(logits, self._numbers(places, logits.device))


def generate_in_slots(
    model: Any,
    prompts: list[list[int]],
    eos_token_ids: list[int],
    sampling: SamplingParams,
    choice: _TokenChoice,
    num_slots: int,
    mask_per_kind: bool,
) -> list[GeneratedSequence]:
    """By continuous batching; see `generate_batch`."""
    ends = set(eos_token_ids)
    logprobs: list[list[float]] = [[] for _ in prompts]

    def choose(logits: Tensor, active: list[WrittenSequence]) -> Tensor:
        logits = choice.mask_padding(logits)
        tokens = choice(logits, [(sequence.number, len(sequence.token_ids)) for sequence in active])
        values = logits.log_softmax(-1).gather(-1, tokens[:, None])[:, 0].tolist()
        for sequence, value in zip(active, values, strict=True):
            logprobs[sequence.number].append(round(value, 4))
        return tokens

    written = write_continuously(
        model,
        prompts,
        sampling.max_new_tokens,
        num_slots or len(prompts),
        mask_per_kind,
        choose,
        lambda active: [sequence.token_ids[-1] in ends for sequence in active],
    )
    return [GeneratedSequence(w.token_ids, logprobs[w.number], w.is_finished) for w in written]


def generate_with_transformers(
    model: Any,
    prompts: list[list[int]],
    eos_token_ids: list[int],
    sampling: SamplingParams,
    choice: _TokenChoice,
    num_slots: int,
    logits_processors: Sequence[Any] = (),
) -> list[GeneratedSequence]:
    """By `generate` of transformers, batch after batch; see `generate_batch`. Models that cannot be padded write after
    prompts of equal length together."""
    checks = [
        supported_generation_mode(m, max(map(len, prompts)))
        for m in (model, *(m for p in logits_processors for m in p.models))
    ]
    is_cached = all(check.use_cache for check in checks)
    config = _generation_config(sampling, eos_token_ids, choice.num_padding, model, is_cached)
    results: dict[int, GeneratedSequence] = {}
    device = next(model.parameters()).device
    with torch.inference_mode(), without_model_generation_config(model):
        for numbers in _group_by_length(prompts, all(check.padded for check in checks), num_slots or len(prompts)):
            ids, mask = pad_left([prompts[i] for i in numbers], eos_token_ids[0], device)
            recorder = _LogprobRecorder()
            for processor in logits_processors:
                processor.start(mask, is_cached)
            processors = LogitsProcessorList([recorder, *logits_processors, _ForcedChoice(choice, numbers, ids.shape[1])])
            sequences = model.generate(ids, attention_mask=mask, generation_config=config, logits_processor=processors)
            new_tokens = sequences[:, ids.shape[1] :].tolist()
            for i, row, values in zip(numbers, new_tokens, recorder.stack(sequences).tolist(), strict=True):
                results[i] = _truncate_at_eos(row, values, eos_token_ids)
    return [results[number] for number in range(len(prompts))]


def _group_by_length(prompts: Sequence[Sequence[int]], may_pad: bool, max_rows: int) -> list[list[int]]:
    """Numbers of the prompts that are continued in one batch: neighbours by length, or those of equal length."""
    order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
    groups = [order] if may_pad else [list(part) for _, part in groupby(order, key=lambda number: len(prompts[number]))]
    return [group[start : start + max_rows] for group in groups for start in range(0, len(group), max_rows)]


def get_eos_token_ids(model: Any, tokenizer: Any, chat: bool) -> list[int]:
    """Tokens that end an answer: the tokenizer's, the model's own, and in a chat the one that ends a turn."""
    eos_token_ids = [tokenizer.eos_token_id, *generation_eos_token_ids(model.generation_config)]
    if chat:
        ids, supervised = encode_chat(tokenizer, [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
        last = max((i for i, marked in enumerate(supervised) if marked), default=None)
        eos_token_ids += [ids[last]] if last is not None and ids[last] in tokenizer.all_special_ids else []
    return list(dict.fromkeys(end for end in eos_token_ids if end is not None))


def _padding_token_ids(model: Any, vocabulary: int) -> list[int]:
    """Columns of the logits that are no token; none where `vocabulary` is 0."""
    return list(range(vocabulary, model.get_output_embeddings().weight.shape[0])) if vocabulary else []


def _generation_config(
    sampling: SamplingParams, ends: list[int], num_padding: int, model: Any, cached: bool
) -> GenerationConfig:
    # every field that a model's own generation_config.json could set is named, or it would decide here
    width = model.get_output_embeddings().weight.shape[0]
    return GenerationConfig(
        do_sample=False,  # _ForcedChoice draws
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        num_beams=1,
        min_new_tokens=0,
        max_new_tokens=sampling.max_new_tokens,
        eos_token_id=ends,
        pad_token_id=ends[0],
        use_cache=cached,
        suppress_tokens=list(range(width - num_padding, width)) or None,
    )


def _truncate_at_eos(tokens: list[int], values: list[float], ends: list[int]) -> GeneratedSequence:
    """Everything up to the first end token; after it there is only padding."""
    end = next((i for i, token in enumerate(tokens) if token in ends), None)
    stop = len(tokens) if end is None else end + 1
    return GeneratedSequence(tokens[:stop], [round(value, 4) for value in values[:stop]], end is not None)


class _LogprobRecorder(LogitsProcessor):  # type: ignore[misc]
    """Changes nothing; notes the log-probability of every token, one step after it was chosen."""

    def __init__(self) -> None:
        self._last: Tensor | None = None
        self._token_logprobs: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self._record(input_ids[:, -1])
        self._last = torch.log_softmax(scores.float(), -1)
        return scores

    def _record(self, tokens: Tensor) -> None:
        if self._last is not None:
            self._token_logprobs.append(self._last.gather(-1, tokens[:, None])[:, 0])

    def stack(self, sequences: Tensor) -> Tensor:
        """(B, new tokens) log-probabilities, once the whole sequences (B, T) are known."""
        self._record(sequences[:, -1])
        return torch.stack(self._token_logprobs, 1)


class _ForcedChoice(LogitsProcessor):  # type: ignore[misc]
    """Leaves `generate` no token but the one that was chosen."""

    def __init__(self, choice: _TokenChoice, numbers: list[int], prompt_length: int) -> None:
        self.choice, self.numbers, self.prompt_length = choice, numbers, prompt_length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        place = input_ids.shape[1] - self.prompt_length
        tokens = self.choice(scores.float(), [(number, place) for number in self.numbers])
        return torch.full_like(scores, -torch.inf).scatter(-1, tokens[:, None], 0.0)
