"""Writing with a KV cache: batches of prompts, padded on the left, continued by `transformers`' own `generate`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from distill_lit.data.chat import encode_chat


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

    extra: logits processors that change what is drawn from, told of the prompts' attention mask by `start`; vocabulary:
    real tokens, when a padded head must draw no others.
    """
    device = next(model.parameters()).device
    longest = max(map(len, prompts))
    ids = torch.full((len(prompts), longest), ends[0], device=device)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt, device=device)
        mask[row, longest - len(prompt) :] = 1
    recorder = _Recorder()
    for processor in extra:
        processor.start(mask)
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.inference_mode():
        torch.manual_seed(seed)
        sequences = model.generate(
            ids,
            attention_mask=mask,
            generation_config=_settings(sampling, ends, _padding(model, vocabulary)),
            logits_processor=LogitsProcessorList([recorder, *extra]),
        )
    written = sequences[:, longest:]
    return [
        _cut(row, values, ends) for row, values in zip(written.tolist(), recorder.finish(sequences).tolist(), strict=True)
    ]


def end_tokens(model: Any, tokenizer: Any, chat: bool) -> list[int]:
    """Tokens that end an answer: the tokenizer's, the model's own, and in a chat the one that ends a turn."""
    own = model.generation_config.eos_token_id
    ends = [tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])]
    if chat:
        ids, supervised = encode_chat(tokenizer, [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
        last = max(i for i, marked in enumerate(supervised) if marked)
        ends += [ids[last]] if ids[last] in tokenizer.all_special_ids else []
    return list(dict.fromkeys(end for end in ends if end is not None))


def _padding(model: Any, vocabulary: int) -> list[int]:
    """Columns of the logits that are no token; none where `vocabulary` is 0."""
    return list(range(vocabulary, model.get_output_embeddings().weight.shape[0])) if vocabulary else []


def _settings(sampling: Sampling, ends: list[int], padding: list[int]) -> GenerationConfig:
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
        use_cache=True,
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
