"""Chats → tokens and which of them are supervised: the assistant's text and what ends its turn."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from distill_lit.data.messages import REASONING_KEYS, TOOL_CALL_KEYS, is_supervised
from distill_lit.data.span_tokenization import encode_spans, special_token_pattern
from distill_lit.data.templates import (
    Messages,
    apply_chat_template,
    check_has_chat_template,
    check_no_lone_surrogates,
    has_generation_tags,
    render_with_assistant_spans,
    unused_sentinels,
)
from distill_lit.utils.exceptions import UserError
from distill_lit.utils.template_limits import TemplateLimitExceeded

__all__ = ["Messages", "check_has_chat_template", "encode_chat", "render_chat"]


class ChatText(NamedTuple):
    """A chat as text. spans: [start, end) of what is supervised, in characters; num_unsupervised_responses: responses that
    are not, because the template writes them otherwise once a later turn follows; template_ignores_tools: it writes nothing
    of the tools."""

    text: str
    spans: list[tuple[int, int]]
    num_unsupervised_responses: int = 0
    template_ignores_tools: bool = False


def encode_chat(tokenizer: Any, messages: Messages, tools: Sequence[Any] = ()) -> tuple[list[int], list[bool]]:
    """(token ids, supervised) of one chat, both as long as the rendered chat. Raises UserError like `render_chat`."""
    chat = render_chat(tokenizer, messages, tools)
    return encode_spans(tokenizer, chat.text, chat.spans)


def render_chat(tokenizer: Any, messages: Messages, tools: Sequence[Any] = ()) -> ChatText:
    """One chat as text, and what of it is supervised: all that a model has to write after a prompt, to the end of its turn.

    A template with {% generation %} says itself what the assistant wrote. For others the chat is rendered up to each of
    its responses, with and without it; a response that the whole chat shows otherwise, as templates do that leave out
    earlier reasoning, is not supervised. Raises UserError for a chat that the template refuses, or of which it does not
    write what the assistant says.
    """
    check_no_lone_surrogates(messages, tools)
    supervised_turns = [
        i for i, message in enumerate(messages) if message["role"] == "assistant" and is_supervised(message)
    ]
    ignores_tools = bool(tools) and apply_chat_template(tokenizer, messages) == apply_chat_template(
        tokenizer, messages, tools
    )
    if has_generation_tags(tokenizer, tools):
        text, spans = render_with_assistant_spans(tokenizer, messages, tools)
        for i in supervised_turns:
            _check_written(tokenizer, messages, i, tools)
        spans = _of_wanted([span for span in spans if span[0] < span[1]], messages, supervised_turns)
        return ChatText(text, spans, 0 if spans else len(supervised_turns), ignores_tools)
    text = apply_chat_template(tokenizer, messages, tools)
    response_spans = [_response(tokenizer, messages, i, text, tools) for i in supervised_turns]
    spans = [span for span in response_spans if span is not None]
    return ChatText(text, spans, len(response_spans) - len(spans), ignores_tools)


def _of_wanted(spans: list[tuple[int, int]], messages: Messages, wanted: list[int]) -> list[tuple[int, int]]:
    """The blocks of the messages that are supervised."""
    responses = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    if len(wanted) == len(responses):
        return spans
    if len(spans) != len(responses):
        raise UserError(
            f"the chat template has {len(spans)} {{% generation %}} blocks for {len(responses)} responses, so it cannot be "
            "told which belong to those of weight 0"
        )
    return [span for i, span in zip(responses, spans, strict=True) if i in wanted]


def _response(tokenizer: Any, messages: Messages, i: int, text: str, tools: Sequence[Any]) -> tuple[int, int] | None:
    """[start, end) of response i in the text of the whole chat: what a model has to write behind the prompt, with the token
    that ends its turn and nothing after it. None where the whole chat shows it otherwise."""
    turn = text if i == len(messages) - 1 else _render_or_none(tokenizer, messages[: i + 1], tools)
    frame = _frame(tokenizer, messages, i, tools)
    if turn is None or frame is None:
        return None
    _check_written(tokenizer, messages, i, tools)
    before, after = frame
    is_empty = not any(messages[i].get(name) for name in ("content", *TOOL_CALL_KEYS, *REASONING_KEYS))
    if is_empty and not turn.startswith(before):  # all that is written of it is its header
        return None
    start = _start(turn, before, *(_prompts(tokenizer, messages[:i], tools) if i else (None, None)))
    if start is None or not turn.endswith(after):
        return None
    ending = special_token_pattern(tokenizer).search(after)
    end = len(turn) - len(after) + (ending.end() if ending else len(after.rstrip()))
    return (start, end) if start <= end and text[:end] == turn[:end] else None


def _start(turn: str, before: str, prompt: str | None, bare: str | None) -> int | None:
    """Where a response begins in `turn`, which ends with it. before: what stands before an answer's own text; prompt, bare:
    the chat so far, with and without the beginning of a response."""
    is_shown = prompt is not None and turn.startswith(prompt)
    # a template without a generation prompt leaves the header of a turn to us, but blanks to the model
    if is_shown and (prompt != bare or not turn.startswith(before) or not before[len(prompt or "") :].strip()):
        return len(prompt or "")
    return len(before) if turn.startswith(before) else None


def _frame(tokenizer: Any, messages: Messages, i: int, tools: Sequence[Any]) -> tuple[str, str] | None:
    """What the template writes before and after the text of response i, if that is the last and nothing but text."""
    (sentinel,) = unused_sentinels(1, messages, tools)
    rendered = _render_or_none(tokenizer, [*messages[:i], {"role": "assistant", "content": sentinel}], tools)
    if rendered is None:
        return None
    if sentinel not in rendered:
        raise UserError("the chat template writes nothing of what the assistant says")
    before, _, after = rendered.partition(sentinel)
    return (before, after) if sentinel not in after else None


def _prompts(tokenizer: Any, messages: Messages, tools: Sequence[Any]) -> tuple[str | None, str | None]:
    return _render_or_none(tokenizer, messages, tools, add_generation_prompt=True), _render_or_none(
        tokenizer, messages, tools
    )


def _render_or_none(
    tokenizer: Any, messages: Messages, tools: Sequence[Any], add_generation_prompt: bool = False
) -> str | None:
    """A part of a chat as text; None where the template wants whole ones."""
    try:
        return apply_chat_template(tokenizer, messages, tools, add_generation_prompt)
    except TemplateLimitExceeded:
        raise
    except UserError:
        return None


def _check_written(tokenizer: Any, messages: Messages, i: int, tools: Sequence[Any]) -> None:
    """Raises UserError where the template leaves out what response i says, in a tool call, its reasoning, or beside one."""
    message = messages[i]
    extra = [name for name in (*TOOL_CALL_KEYS, *REASONING_KEYS) if message.get(name)]
    if not extra:
        return
    whole = _render_or_none(tokenizer, messages[: i + 1], tools)
    missing_fields = []
    for name in extra:
        same = [other for other in REASONING_KEYS if other in message] if name in REASONING_KEYS else [name]
        without = {key: value for key, value in message.items() if key not in same}
        decides = name in REASONING_KEYS and any(other in str(tokenizer.chat_template) for other in REASONING_KEYS)
        if (
            not decides
            and _render_or_none(tokenizer, [*messages[:i], {"content": "", **without}], tools) == whole is not None
        ):
            missing_fields.append(name)
    if message.get("content"):
        (sentinel,) = unused_sentinels(1, messages, tools)
        rendered = _render_or_none(tokenizer, [*messages[:i], {**message, "content": sentinel}], tools)
        missing_fields += ["content"] if rendered is not None and sentinel not in rendered else []
    if missing_fields:
        raise UserError(
            f"message {i + 1} has {missing_fields[0]}, of which the chat template writes nothing; "
            "give one that does as data.chat_template, or leave the message out"
        )
