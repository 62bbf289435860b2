"""Chats → tokens and which of them are supervised: the assistant's text and the token that ends its turn."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from distill_lit.errors import UserError

Messages = Sequence[Mapping[str, Any]]
GENERATION_BLOCK = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")


def check_template(tokenizer: Any) -> None:
    """Raises UserError when the tokenizer has no chat template."""
    if not tokenizer.chat_template:
        raise UserError("data.corpora: chat messages need a tokenizer with a chat template; use `text` instead")


def encode_chat(tokenizer: Any, messages: Messages) -> tuple[list[int], list[bool]]:
    """(token ids, supervised) of one chat, both as long as the rendered chat.

    A template with `{% generation %}` says itself what the assistant wrote. For others the chat is rendered up to each
    of its responses, with and without it. Raises UserError when such a template is not prefix-stable: when the tokens
    of a prompt are not the first tokens of the whole chat.
    """
    if GENERATION_BLOCK.search(_template(tokenizer)):
        encoded = tokenizer.apply_chat_template(
            list(messages), tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        return list(encoded["input_ids"]), [bool(m) for m in encoded["assistant_masks"]]
    ids = _encode(tokenizer, messages)
    supervised = [False] * len(ids)
    for i, message in enumerate(messages):
        if message["role"] == "assistant":
            start, end = _response(tokenizer, messages, i, ids)
            supervised[start:end] = [True] * (end - start)
    return ids, supervised


def _template(tokenizer: Any) -> str:
    template = tokenizer.chat_template
    return str(template.get("default", "")) if isinstance(template, dict) else str(template)


def _encode(tokenizer: Any, messages: Messages, prompt: bool = False) -> list[int]:
    encoded = tokenizer.apply_chat_template(list(messages), tokenize=True, return_dict=True, add_generation_prompt=prompt)
    return list(encoded["input_ids"])


def _response(tokenizer: Any, messages: Messages, i: int, ids: list[int]) -> tuple[int, int]:
    """[start, end) of response i in the tokens of the whole chat, with its end-of-turn token and nothing after it."""
    if not i:
        raise UserError("data.corpora: a chat begins with the assistant; a response needs something to respond to")
    prompt = _encode(tokenizer, messages[:i], prompt=True)
    turn = _encode(tokenizer, messages[: i + 1])
    if ids[: len(prompt)] != prompt or ids[: len(turn)] != turn or not len(prompt) < len(turn):
        raise UserError(
            f"data.corpora: the chat template is not prefix-stable: the prompt of message {i + 1} "
            "is not how the whole chat begins; use a template with {% generation %} around responses"
        )
    special = set(tokenizer.all_special_ids)
    end = len(turn)
    while end > len(prompt) and ids[end - 1] not in special and not tokenizer.decode(ids[end - 1 : end]).strip():
        end -= 1  # white space between this turn and the next
    return len(prompt), end
