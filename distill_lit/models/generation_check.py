"""Whether a model writes as it reads: in slots of a static cache, or by `generate` with prompts padded on the left and a
cache, against the plain model on the whole text.

Padding moves positions and enters states, and a cache may forget what a window still sees. Found out by comparing, once per
model and length of prompts, on random tokens.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import GenerationConfig

from distill_lit.models.dummy_inputs import random_tokens, text_token_ids
from distill_lit.models.packed_forward import (
    has_length_dependent_rope,
    has_local_attention,
    has_maskable_layer_types,
    uncompiled_eval_mode,
)
from distill_lit.models.packing_check import CHECK_LOCK, FORWARD_ERRORS, checked_size, max_relative_error, relative_error
from distill_lit.models.position_limits import max_context
from distill_lit.models.slot_cache import SlotDecoder
from distill_lit.utils.distributed.ranks import is_sharded
from distill_lit.utils.exceptions import UserError, one_line_message

log = logging.getLogger(__name__)
NEW_TOKENS = 3
SHORT_PROMPT_TOKENS = 3  # tokens of the prompt that is padded


class GenerationMode(NamedTuple):
    """How a model writes. padded: prompts of unequal length side by side; use_cache: with a cache, not from the start each
    time."""

    padded: bool
    use_cache: bool


class SlotMode(NamedTuple):
    """How a model writes in slots. mask_per_kind: it takes a mask for each kind of layer. fallback_reason: why it cannot,
    and `generate` of transformers writes instead; empty where it can."""

    mask_per_kind: bool
    fallback_reason: str = ""


_slot_modes: "WeakKeyDictionary[nn.Module, dict[int, SlotMode]]" = WeakKeyDictionary()
_writings: "WeakKeyDictionary[nn.Module, dict[int, GenerationMode]]" = WeakKeyDictionary()


def supported_slot_mode(model: Any, max_prompt_tokens: int, max_new_tokens: int) -> SlotMode:
    """Whether, and how, a model may write in slots of a static cache. Remembered for this model; a reason not to is logged
    once. Where attention looks back on a window, texts of full length are compared, or the window would not matter."""
    total = max_prompt_tokens + max_new_tokens
    size = _prompt_size(model, total if has_local_attention(model.config, total) else max_prompt_tokens)
    with CHECK_LOCK:
        known = _slot_modes.setdefault(model, {})
        if size not in known:
            with uncompiled_eval_mode(model):
                known[size] = _choose_slot_mode(model, size)
            if known[size].fallback_reason:
                log.info("%s: %s; transformers' generate writes", type(model).__name__, known[size].fallback_reason)
        return known[size]


def _prompt_size(model: Any, tokens: int) -> int:
    """Tokens of the longest prompt that is compared: not more than leave room for the new ones."""
    return max(SHORT_PROMPT_TOKENS + 1, min(checked_size(model.config, tokens), max_context(model.config) - NEW_TOKENS))


def _random_prompts(model: Any, size: int) -> list[list[int]]:
    sizes = [SHORT_PROMPT_TOKENS, SHORT_PROMPT_TOKENS, size]
    return [part.tolist() for part in random_tokens(model, sum(sizes)).split(sizes)]


def _choose_slot_mode(model: Any, size: int) -> SlotMode:
    if any(is_sharded(parameter) for parameter in model.parameters()):
        return SlotMode(False, "its weights are spread over ranks, which must make the same forward passes")
    if has_length_dependent_rope(model.config):
        return SlotMode(False, "its positions depend on the longest text of a batch")
    reason = ""
    for mask_per_kind in [True, False] if has_maskable_layer_types(model.config) else [False]:
        reason = _slot_problem(model, _random_prompts(model, size), mask_per_kind)
        if not reason:
            return SlotMode(mask_per_kind)
    return SlotMode(False, reason)


def _slot_problem(model: Any, prompts: list[list[int]], mask_per_kind: bool) -> str:
    """How what is written in two slots, one of which is taken anew, differs from what the plain model says, or nothing."""
    short, other, long = prompts
    device = next(model.parameters()).device
    usual = text_token_ids(model).to(device)
    decoder = SlotDecoder(model, 2, len(long) + NEW_TOKENS, mask_per_kind)
    texts, logits = [list(short), list(long)], [list[Tensor](), list[Tensor]()]
    active = [0, 1]

    def note(found: Tensor) -> None:
        for number, row in zip(active, found, strict=True):
            logits[number].append(row.float())
            texts[number].append(int(usual[row[usual].argmax()]))

    def last() -> Tensor:
        return torch.tensor([texts[number][-1] for number in active], device=device)

    try:
        note(decoder.add([short, long]))
        note(decoder.step(last()))
        active = [active[number] for number in decoder.drop([True, False])]
        texts.append(list(other))
        logits.append([])
        known = decoder.step(last())
        active.append(2)
        note(torch.cat([known, decoder.add([other])]))
        note(decoder.step(last()))
        for text, rows in zip(texts, logits, strict=True):
            plain = model(input_ids=torch.tensor([text[:-1]], device=device), use_cache=False).logits[0, -len(rows) :]
            deviation = relative_error(model, torch.stack(rows), plain.float())
            if not deviation <= max_relative_error(model):
                return f"its logits in slots of a static cache are not those of the whole text (difference {deviation:.2g})"
    except FORWARD_ERRORS as error:
        return f"it takes no static cache ({type(error).__name__}: {one_line_message(error)[:200]})"
    return ""


def supported_generation_mode(model: Any, max_prompt_tokens: int) -> GenerationMode:
    """How `generate` may write after prompts of at most `max_prompt_tokens` tokens. Remembered for this model.

    Raises UserError where it does not write what it reads, even one text at a time and without a cache.
    """
    size = _prompt_size(model, max_prompt_tokens)
    with CHECK_LOCK:
        known = _writings.setdefault(model, {})
        if size not in known:
            with uncompiled_eval_mode(model):
                known[size] = _choose(model, size)
        return known[size]


def _choose(model: Any, size: int) -> GenerationMode:
    prompts, why = _random_prompts(model, size), ""
    for writing in (GenerationMode(True, True), GenerationMode(False, True), GenerationMode(False, False)):
        problem = _problem(model, prompts, writing)
        if not problem:
            if why:
                log.warning("%s: %s; its prompts are continued apart, which takes longer", type(model).__name__, why)
            return writing
        why = why or problem
    raise UserError(f"{type(model).__name__}: {problem}, so no text can be written with it")


def _problem(model: Any, prompts: list[list[int]], writing: GenerationMode) -> str:
    """How what is written differs from what the plain model says of it, or nothing."""
    device = next(model.parameters()).device
    try:
        for batch in [prompts] if writing.padded else [prompts[:-1], prompts[-1:]]:
            for prompt, written, logits in _write(model, batch, writing.use_cache):
                ids = torch.tensor([[*prompt, *written]], device=device)
                plain = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
                deviation = relative_error(model, logits, plain.to(logits.dtype))
                if not deviation <= max_relative_error(model):
                    kind = "in a padded batch" if writing.padded else "with a cache" if writing.use_cache else "alone"
                    return f"its logits while it writes {kind} are not those of the whole text (difference {deviation:.2g})"
    except FORWARD_ERRORS as error:
        return f"it cannot write ({type(error).__name__}: {one_line_message(error)[:200]})"
    return ""


def _write(model: Any, prompts: list[list[int]], use_cache: bool) -> list[tuple[list[int], list[int], Tensor]]:
    """[(prompt, what was written, logits (new tokens, V) that it was chosen from)]."""
    ids, mask = pad_left(prompts, 0, next(model.parameters()).device)
    usual = set(text_token_ids(model).tolist())  # others may have no embedding
    unusual = [n for n in range(model.get_output_embeddings().weight.shape[0]) if n not in usual]
    settings = GenerationConfig(
        do_sample=False,
        num_beams=1,
        min_new_tokens=NEW_TOKENS,
        max_new_tokens=NEW_TOKENS,
        pad_token_id=0,
        suppress_tokens=unusual or None,
        use_cache=use_cache,
        return_dict_in_generate=True,
        output_logits=True,
    )
    with without_model_generation_config(model):
        output = model.generate(ids, attention_mask=mask, generation_config=settings)
    logits = torch.stack(output.logits, 1).float()
    written = output.sequences[:, ids.shape[1] :].tolist()
    return list(zip(prompts, written, logits, strict=True))


@contextmanager
def without_model_generation_config(model: Any) -> Iterator[None]:
    """Inside, a model's own generation_config fills no gap of the one that is given: no token is forced or forbidden."""
    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


def pad_left(prompts: list[list[int]], padding: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(token ids, attention mask) of prompts that end together, each (B, T)."""
    longest = max(map(len, prompts))
    ids = torch.full((len(prompts), longest), padding, device=device)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt, device=device)
        mask[row, longest - len(prompt) :] = 1
    return ids, mask
