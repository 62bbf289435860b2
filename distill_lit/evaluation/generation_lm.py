"""lm-eval's generate_until by continuous batching, or, where a model does not suit that, in batches of prompts of like
length, padded on the left: token for token what HFLM writes when it is asked one request at a time.

HFLM in batches may write something else: a row that has ended goes on until every row of its batch has met the same stop
sequence, and special tokens that it writes meanwhile are dropped from its text. Here every row ends where it would end
alone.
"""

import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from torch import Tensor
from transformers import PreTrainedTokenizerBase, StoppingCriteria, StoppingCriteriaList

from distill_lit.evaluation.generation_settings import MAX_BATCH_ROWS, MAX_BATCH_TOKENS
from distill_lit.models.continuous_batching import write_continuously
from distill_lit.models.generation_check import (
    GenerationMode,
    pad_left,
    supported_generation_mode,
    supported_slot_mode,
)
from distill_lit.models.generation_files import PENALTY_FIELDS, generation_eos_token_ids, penalty_settings
from distill_lit.models.processed_choice import ProcessedChoice
from distill_lit.utils.seeding import derive_seed

HFLM_LOOKBACK = 2  # tokens beyond those of a stop sequence in which HFLM looks for it
# options that change what a row is, or measure its length with its padding: HFLM writes these itself
HFLM_ONLY = ("num_beams", "num_return_sequences", "max_length", "penalty_alpha")


@dataclass(frozen=True)
class GeneratedAnswer:
    """One answer. `text`: up to its stop sequence; `token_ids`: written, those of its end included; `is_finished`: it ended
    before its longest length; None where HFLM wrote it, which does not say."""

    text: str
    token_ids: list[int]
    is_finished: bool | None


@dataclass(frozen=True)
class _Request:
    number: int
    token_ids: list[int]


class StopSequences(StoppingCriteria):  # type: ignore[misc]
    """Ends each row by itself, where HFLM's criterion ends it in a batch of one. `ends`: {row: tokens written by then}."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str], prompt_length: int) -> None:
        self.ends: dict[int, int] = {}
        self._tokenizer = tokenizer
        self._prompt_length = prompt_length
        self._stop_by_lookback: dict[int, list[str]] = {}
        for text in stop:
            size = len(tokenizer.encode(text, add_special_tokens=False)) + HFLM_LOOKBACK
            self._stop_by_lookback.setdefault(size, []).append(text)

    def are_met(self, written: Sequence[list[int]]) -> list[bool]:
        """Whether the last of these tokens end each answer."""
        met = [False] * len(written)
        for lookback, stops in self._stop_by_lookback.items():
            for row, tail in enumerate(self._tokenizer.batch_decode([tokens[-lookback:] for tokens in written])):
                met[row] = met[row] or any(stop in tail for stop in stops)
        return met

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        written = input_ids[:, self._prompt_length :]
        going = [row for row in range(len(written)) if row not in self.ends]
        for row, is_met in zip(going, self.are_met(written[going].tolist()) if going else [], strict=True):
            if is_met:
                self.ends[row] = written.shape[1]
        return torch.tensor([row in self.ends for row in range(len(written))], device=input_ids.device)


def generate_answers(
    lm: HFLM, requests: Sequence[Any], seed: int, progress_callback: Callable[[int, int], None] | None = None
) -> list[GeneratedAnswer]:
    """The answer to each of lm-eval's requests, in their order.

    Greedy answers to the same prompt are written once. Drawn ones depend on `seed`, the model's weights and the requests,
    and not on the random state of the process: two models draw independently. Options of `HFLM_ONLY` are left to HFLM.
    """
    answers: dict[int, GeneratedAnswer] = {}
    for options, numbers in _group_by_options(requests).items():
        part = [requests[number] for number in numbers]
        before = len(answers)

        def advance(done: int, before: int = before) -> None:
            if progress_callback:
                progress_callback(before + done, len(requests))

        if _is_left_to_hflm(lm, part[0].args[1]):
            found = _generate_with_hflm(lm, part, advance)
        else:
            found = _generate_group(
                lm, part, derive_seed(seed, zlib.crc32(options.encode()), weights_digest(lm.model)), advance
            )
        answers.update(zip(numbers, found, strict=True))
    return [answers[number] for number in range(len(requests))]


def weights_digest(model: torch.nn.Module) -> int:
    """32 bits of the kinds and first numbers of all parameters: models that were trained, cut or quantized apart differ."""
    digest = 0
    for name, parameter in model.named_parameters():
        values = parameter.data
        digest = zlib.crc32(f"{name} {type(values).__name__} {values.dtype}".encode(), digest)
        if type(values) is Tensor:  # packed weights cannot be sliced
            digest = zlib.crc32(values.flatten()[:64].float().cpu().numpy().tobytes(), digest)
    return digest


def _group_by_options(requests: Sequence[Any]) -> dict[str, list[int]]:
    """{options as JSON: numbers of the requests that have them}."""
    found: dict[str, list[int]] = {}
    for number, request in enumerate(requests):
        found.setdefault(json.dumps(request.args[1], sort_keys=True, default=str), []).append(number)
    return found


def _is_left_to_hflm(lm: HFLM, options: dict[str, Any]) -> bool:
    own = lm.model.generation_config.to_dict()
    return any(options.get(name) not in (None, 1) for name in HFLM_ONLY) or (own.get("num_beams") or 1) > 1


def _generate_with_hflm(lm: HFLM, requests: Sequence[Any], advance: Callable[[int], None]) -> list[GeneratedAnswer]:
    answers = []
    for number, request in enumerate(requests):
        (text,) = HFLM.generate_until(lm, [request], disable_tqdm=True)
        answers.append(GeneratedAnswer(text, lm.tok_encode(text, add_special_tokens=False), None))
        advance(number + 1)
    return answers


def _generate_group(lm: HFLM, requests: Sequence[Any], seed: int, advance: Callable[[int], None]) -> list[GeneratedAnswer]:
    """Requests with the same options: longest prompts first, as HFLM orders them."""
    options = normalize_gen_kwargs(requests[0].args[1], lm.max_gen_toks)
    max_context = lm.max_length - options["max_gen_toks"]
    same: dict[str, list[int]] = {}
    for number, request in enumerate(requests):
        same.setdefault(request.args[0], []).append(number)
    tokens = {context: _encode(lm, context, max_context) for context in same}
    written_once = not options["do_sample"]
    encoded = [_Request(n, tokens[context]) for context, numbers in same.items()
               for n in (numbers[:1] if written_once else numbers)]  # fmt: skip
    encoded.sort(key=lambda request: (-len(request.token_ids), request.number))
    asked = lm, encoded, options, seed, advance
    found = _write_continuously(*asked) or _write_in_batches(*asked)
    for numbers in same.values() if written_once else ():
        found.update((number, found[numbers[0]]) for number in numbers)
    return [found[number] for number in range(len(requests))]


def _write_continuously(
    lm: HFLM, requests: list[_Request], options: dict[str, Any], seed: int, advance: Callable[[int], None]
) -> dict[int, GeneratedAnswer]:
    """{number of a request: its answer}, by continuous batching; nothing where the model or the options do not suit it."""
    prompts, new_tokens = [request.token_ids for request in requests], options["max_gen_toks"]
    mode = supported_slot_mode(lm.model, len(prompts[0]), new_tokens)
    if mode.fallback_reason:
        return {}
    stop = _stop_sequences(lm, options)
    criterion = StopSequences(lm.tokenizer, stop, 0)
    with torch.inference_mode(), mixed_precision(lm):
        choice = ProcessedChoice(
            lm.model, prompts, _model_options(lm, options), new_tokens, seed, [request.number for request in requests]
        )
        if not choice.is_supported:
            return {}
        written = write_continuously(
            lm.model,
            prompts,
            new_tokens,
            max(1, min(MAX_BATCH_ROWS, MAX_BATCH_TOKENS // (len(prompts[0]) + new_tokens))),
            mode.mask_per_kind,
            choice,
            lambda active: [
                is_met or sequence.token_ids[-1] in choice.eos_token_ids
                for is_met, sequence in zip(criterion.are_met([s.token_ids for s in active]), active, strict=True)
            ],
            advance,
        )
    return {
        request.number: _answer(lm, each.token_ids, len(each.token_ids) if each.is_finished else None, set(), stop)
        for request, each in zip(requests, written, strict=True)
    }


def _write_in_batches(
    lm: HFLM, encoded: list[_Request], options: dict[str, Any], seed: int, advance: Callable[[int], None]
) -> dict[int, GeneratedAnswer]:
    """{number of a request: its answer}, by `generate` of transformers."""
    mode = supported_generation_mode(lm.model, len(encoded[0].token_ids))
    found: dict[int, GeneratedAnswer] = {}
    may_pad = mode.padded and not _penalizes_prompts(lm, options)
    for number, batch in enumerate(batches_by_length(encoded, options["max_gen_toks"], may_pad)):
        written = _generate_batch(lm, [request.token_ids for request in batch], options, mode, derive_seed(seed, number))
        found.update(zip((request.number for request in batch), written, strict=True))
        advance(len(found))
    return found


def _penalizes_prompts(lm: HFLM, options: dict[str, Any]) -> bool:
    """Whether tokens of a prompt change the logits, so that padding would too, as under a repetition penalty."""
    return bool(penalty_settings(lm.model.generation_config)) or any(options.get(name) for name in PENALTY_FIELDS)


def batches_by_length(requests: Sequence[_Request], max_gen_toks: int, may_pad: bool) -> Iterator[list[_Request]]:
    """Neighbours of `requests`, longest first, that are written together: within MAX_BATCH_ROWS and MAX_BATCH_TOKENS, and
    of equal length where padding is not allowed."""
    batch: list[_Request] = []
    for request in requests:
        if batch:
            tokens = (len(batch) + 1) * (len(batch[0].token_ids) + max_gen_toks)
            is_full = len(batch) == MAX_BATCH_ROWS or tokens > MAX_BATCH_TOKENS
            if is_full or not (may_pad or len(request.token_ids) == len(batch[0].token_ids)):
                yield batch
                batch = []
        batch.append(request)
    if batch:
        yield batch


def _encode(lm: HFLM, context: str, max_context: int) -> list[int]:
    """The tokens that HFLM makes of a prompt, cut from the left where it is too long."""
    ids, mask = lm.tok_batch_encode([context], left_truncate_len=max_context, truncation=lm.truncation)
    return list(ids[0][mask[0] == 1].tolist())


def _generate_batch(
    lm: HFLM, prompts: list[list[int]], options: dict[str, Any], mode: GenerationMode, seed: int
) -> list[GeneratedAnswer]:
    kwargs = _model_options(lm, options)
    stop = _stop_sequences(lm, options)
    ids, attention_mask = pad_left(prompts, lm.tokenizer.pad_token_id, lm.device)
    criterion = StopSequences(lm.tokenizer, stop, ids.shape[1])
    devices = [lm.device] if lm.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.inference_mode(), mixed_precision(lm):
        torch.manual_seed(seed)
        sequences = lm.model.generate(
            input_ids=ids,
            attention_mask=attention_mask,
            max_length=ids.shape[1] + options["max_gen_toks"],
            stopping_criteria=StoppingCriteriaList([criterion]),
            use_cache=mode.use_cache,
            **kwargs,
        )
    own_ends = kwargs.get("eos_token_id", generation_eos_token_ids(lm.model.generation_config))
    ends = {own_ends} if isinstance(own_ends, int) else set(own_ends)
    rows = sequences[:, ids.shape[1] :].tolist()
    return [_answer(lm, tokens, criterion.ends.get(row), ends, stop) for row, tokens in enumerate(rows)]


def _model_options(lm: HFLM, options: dict[str, Any]) -> dict[str, Any]:
    """What `generate` is told of a request's options."""
    kwargs = {name: value for name, value in options.items() if name not in ("until", "max_gen_toks")}
    if not kwargs["do_sample"]:
        kwargs.pop("temperature", None)
    return {"pad_token_id": lm.tokenizer.pad_token_id, **kwargs}


def _stop_sequences(lm: HFLM, options: dict[str, Any]) -> list[str]:
    stop: list[str] = handle_stop_sequences(
        list(options["until"]), eos=lm.tok_decode(lm.eot_token_id, skip_special_tokens=False)
    )
    return stop


def mixed_precision(lm: HFLM) -> torch.autocast:
    """The precision of lm-eval's `mixed_precision_dtype`; changes nothing without it."""
    precision = lm.mixed_precision_dtype
    return torch.autocast(device_type=lm.device.type, dtype=precision, enabled=precision is not None)


def _answer(lm: HFLM, tokens: list[int], stopped_at: int | None, ends: set[int], stop: list[str]) -> GeneratedAnswer:
    """One row, up to where it ended by itself."""
    found = [position + 1 for position, token in enumerate(tokens) if token in ends]
    stops = [end for end in (stopped_at, min(found, default=None)) if end is not None]
    tokens = tokens[: min(stops, default=len(tokens))]
    spoken, think_end = tokens, lm.think_end_token
    if isinstance(think_end, int) and think_end in tokens:
        spoken = tokens[len(tokens) - tokens[::-1].index(think_end) :]
    text = lm.tok_decode(spoken)
    text = text.lstrip() if isinstance(think_end, int) else text
    text = postprocess_generated_text(text, stop, think_end if isinstance(think_end, str) else None)
    return GeneratedAnswer(text, tokens, bool(stops))
