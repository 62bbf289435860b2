"""Writing with a KV cache: batches of prompts, padded on the left, continued by `transformers`' own `generate`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from distill_lit.data.chat import encode_chat
from distill_lit.models.generation_check import generation_check, own_settings_aside, pad_left


@dataclass(frozen=True)
class Sampling:
    """temperature: 0 for the most probable token; top_p: smallest set with this probability; max_new_tokens: longest."""

    temperature: float
    top_p: float
    max_new_tokens: int


@dataclass(frozen=True)
class Written:
    """One continuation. tokens: its ids, the end token included; log_probabilities: of each to the model itself, at
    temperature 1 and without top-p, nats; finished: it ended by itself."""

    tokens: list[int]
    log_probabilities: list[float]
    finished: bool


def write_batch(
    model: Any,
    prompts: Sequence[Sequence[int]],
    ends: list[int],
    sampling: Sampling,
    seed: int,
    extra: Sequence[Any] = (),
    vocabulary: int = 0,
) -> list[Written]:
    """A continuation of each prompt (token ids). The same prompts, in the same batch, with the same seed give the same.

    extra: logits processors that change what is drawn from, told of the prompts' attention mask by `start`, each with the
    `models` it asks; vocabulary: real tokens, when a padded head must draw no others. Models that cannot be padded write
    after prompts of equal length together.
    """
    device = next(model.parameters()).device
    checks = [generation_check(m, max(map(len, prompts))) for m in (model, *(m for p in extra for m in p.models))]
    settings = _settings(sampling, ends, _padding(model, vocabulary), all(check.cached for check in checks))
    found: list[Written | None] = [None] * len(prompts)
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.inference_mode():
        torch.manual_seed(seed)
        for numbers in _together(prompts, all(check.padded for check in checks)):
            ids, mask = pad_left([list(prompts[i]) for i in numbers], ends[0], device)
            recorder = _Recorder()
            for processor in extra:
                processor.start(mask)
            processors = LogitsProcessorList([recorder, *extra])
            with own_settings_aside(model):
                sequences = model.generate(
                    ids, attention_mask=mask, generation_config=settings, logits_processor=processors
                )
            written = sequences[:, ids.shape[1] :].tolist()
            for i, row, values in zip(numbers, written, recorder.finish(sequences).tolist(), strict=True):
                found[i] = _cut(row, values, ends)
    return [text for text in found if text is not None]


def _together(prompts: Sequence[Sequence[int]], may_pad: bool) -> list[list[int]]:
    """Numbers of the prompts that are continued in one batch: all, or those of equal length."""
    if may_pad:
        return [list(range(len(prompts)))]
    lengths = sorted({len(prompt) for prompt in prompts})
    return [[i for i, prompt in enumerate(prompts) if len(prompt) == length] for length in lengths]


def end_tokens(model: Any, tokenizer: Any, chat: bool) -> list[int]:
    """Tokens that end an answer: the tokenizer's, the model's own, and in a chat the one that ends a turn."""
    own = model.generation_config.eos_token_id
    ends = [tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])]
    if chat:
        ids, supervised = encode_chat(tokenizer, [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
        last = max((i for i, marked in enumerate(supervised) if marked), default=None)
        ends += [ids[last]] if last is not None and ids[last] in tokenizer.all_special_ids else []
    return list(dict.fromkeys(end for end in ends if end is not None))


def _padding(model: Any, vocabulary: int) -> list[int]:
    """Columns of the logits that are no token; none where `vocabulary` is 0."""
    return list(range(vocabulary, model.get_output_embeddings().weight.shape[0])) if vocabulary else []


def _settings(sampling: Sampling, ends: list[int], padding: list[int], cached: bool) -> GenerationConfig:
    # every knob that a model's own generation_config.json could set is named, or it would decide here
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


def _cut(tokens: list[int], values: list[float], ends: list[int]) -> Written:
    """Everything up to the first end token; after it there is only padding."""
    end = next((i for i, token in enumerate(tokens) if token in ends), None)
    stop = len(tokens) if end is None else end + 1
    return Written(tokens[:stop], [round(value, 4) for value in values[:stop]], end is not None)


class _Recorder(LogitsProcessor):  # type: ignore[misc]
    """Changes nothing; notes the log-probability of every token, one step after it was chosen."""

    def __init__(self) -> None:
        self._last: Tensor | None = None
        self._chosen: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self._note(input_ids[:, -1])
        self._last = torch.log_softmax(scores.float(), -1)
        return scores

    def _note(self, tokens: Tensor) -> None:
        if self._last is not None:
            self._chosen.append(self._last.gather(-1, tokens[:, None])[:, 0])

    def finish(self, sequences: Tensor) -> Tensor:
        """(B, new tokens) log-probabilities, once the whole sequences (B, T) are known."""
        self._note(sequences[:, -1])
        return torch.stack(self._chosen, 1)
