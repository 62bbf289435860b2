"""Whether a model writes as it reads: prompts padded on the left, with a cache, against the plain model on the whole text.

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
from distill_lit.models.packed_forward import uncompiled_eval_mode
from distill_lit.models.packing_check import CHECK_LOCK, FORWARD_ERRORS, checked_size, max_relative_error, relative_error
from distill_lit.utils.exceptions import UserError, one_line_message

log = logging.getLogger(__name__)
NEW_TOKENS = 3
SHORT_PROMPT_TOKENS = 3  # tokens of the prompt that is padded


class GenerationMode(NamedTuple):
    """How a model writes. padded: prompts of unequal length side by side; use_cache: with a cache, not from the start each
    time."""

    padded: bool
    use_cache: bool


_writings: "WeakKeyDictionary[nn.Module, dict[int, GenerationMode]]" = WeakKeyDictionary()


def supported_generation_mode(model: Any, max_prompt_tokens: int) -> GenerationMode:
    """How a model may write after prompts of at most `max_prompt_tokens` tokens. Remembered for this model.

    Raises UserError where it does not write what it reads, even one text at a time and without a cache.
    """
    room = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 1 << 30
    size = max(SHORT_PROMPT_TOKENS + 1, min(checked_size(model.config, max_prompt_tokens), int(room) - NEW_TOKENS))
    with CHECK_LOCK:
        known = _writings.setdefault(model, {})
        if size not in known:
            with uncompiled_eval_mode(model):
                known[size] = _choose(model, size)
        return known[size]


def _choose(model: Any, size: int) -> GenerationMode:
    prompts = [
        part.tolist()
        for part in random_tokens(model, 2 * SHORT_PROMPT_TOKENS + size).split(
            [SHORT_PROMPT_TOKENS, SHORT_PROMPT_TOKENS, size]
        )
    ]
    why = ""
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
                deviation = relative_error(logits, plain.to(logits.dtype))
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
