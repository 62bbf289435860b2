"""Writing with a KV cache: batches of prompts, padded on the left, continued by `transformers`' own `generate`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from distill_lit.data.chat import encode_chat
from distill_lit.models.generation_check import pad_left, supported_generation_mode, without_model_generation_config
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
) -> list[GeneratedSequence]:
    """A continuation of each prompt (token ids). The same prompts, in the same batch, with the same seed give the same.

    logits_processors: logits processors that change what is drawn from, told of the prompts' attention mask by `start`,
    each with the `models` it asks; vocab_size: real tokens, when a padded head must draw no others. Models that cannot be
    padded write after prompts of equal length together.
    """
    device = next(model.parameters()).device
    checks = [
        supported_generation_mode(m, max(map(len, prompts)))
        for m in (model, *(m for p in logits_processors for m in p.models))
    ]
    generation_config = _generation_config(
        sampling, eos_token_ids, _padding_token_ids(model, vocab_size), all(check.use_cache for check in checks)
    )
    results: list[GeneratedSequence | None] = [None] * len(prompts)
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.inference_mode():
        torch.manual_seed(seed)
        for numbers in _group_by_length(prompts, all(check.padded for check in checks)):
            ids, mask = pad_left([list(prompts[i]) for i in numbers], eos_token_ids[0], device)
            recorder = _LogprobRecorder()
            for processor in logits_processors:
                processor.start(mask)
            processors = LogitsProcessorList([recorder, *logits_processors])
            with without_model_generation_config(model):
                sequences = model.generate(
                    ids, attention_mask=mask, generation_config=generation_config, logits_processor=processors
                )
            new_tokens = sequences[:, ids.shape[1] :].tolist()
            for i, row, values in zip(numbers, new_tokens, recorder.stack(sequences).tolist(), strict=True):
                results[i] = _truncate_at_eos(row, values, eos_token_ids)
    return [text for text in results if text is not None]


def _group_by_length(prompts: Sequence[Sequence[int]], may_pad: bool) -> list[list[int]]:
    """Numbers of the prompts that are continued in one batch: all, or those of equal length."""
    if may_pad:
        return [list(range(len(prompts)))]
    lengths = sorted({len(prompt) for prompt in prompts})
    return [[i for i, prompt in enumerate(prompts) if len(prompt) == length] for length in lengths]


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


def _generation_config(sampling: SamplingParams, ends: list[int], padding: list[int], cached: bool) -> GenerationConfig:
    # every field that a model's own generation_config.json could set is named, or it would decide here
    drawn = {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0, "min_p": 0.0, "typical_p": 1.0}
    return GenerationConfig(
        do_sample=sampling.temperature > 0,
        **(drawn if sampling.temperature > 0 else {}),
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        num_beams=1,
        min_new_tokens=0,
        max_new_tokens=sampling.max_new_tokens,
        eos_token_id=ends,
        pad_token_id=ends[0],
        use_cache=cached,
        suppress_tokens=padding or None,
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
