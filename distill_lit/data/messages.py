"""A column of chat messages as the chat template gets them: with all their keys, and checked."""

import json
from collections.abc import Mapping
from typing import Any

from distill_lit.utils.exceptions import UserError

MESSAGE_FORMS = "{role, content} or {from, value}"
TOOL_CALL_KEYS = ("tool_calls", "function_call")
REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")  # transformers gives templates one for the other
# who writes in ShareGPT's form, {from, value}, and the role of it
SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bard", "bing"), "assistant"),
    "system": "system",
}
LOSS_WEIGHT_KEYS = ("weight", "train")  # OpenAI's name, and axolotl's


def read_messages(column: str, value: Any) -> tuple[dict[str, Any], ...]:
    """The messages of a row. What is null counts as absent, since Parquet gives every message the keys of all others; texts
    in parts are joined; ShareGPT's {from, value} becomes {role, content}. Raises UserError for what is no list of messages
    with text, for one with an image, and for one from somebody who has no role."""
    messages = without_nulls(value)
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise UserError(f"column {column!r} must be a list of {MESSAGE_FORMS} with texts")
    messages = [_with_role(i, message) for i, message in enumerate(messages)]
    if not all(isinstance(message.get("role"), str) for message in messages):
        raise UserError(f"column {column!r} must be a list of {MESSAGE_FORMS} with texts")
    return tuple(_message(column, i, message) for i, message in enumerate(messages))


def _with_role(i: int, message: dict[str, Any]) -> dict[str, Any]:
    """A message of ShareGPT's as {role, content}; any other as it is."""
    if "role" in message or not isinstance(message.get("from"), str):
        return message
    author = message["from"]
    if author not in SHAREGPT_ROLES:
        raise UserError(f"message {i + 1} is from {author!r}; known are {', '.join(SHAREGPT_ROLES)}")
    others = {key: value for key, value in message.items() if key not in ("from", "value")}
    return {"role": SHAREGPT_ROLES[author], "content": message.get("value"), **others}


def _message(column: str, i: int, message: dict[str, Any]) -> dict[str, Any]:
    content = message.get("content")
    if isinstance(content, list):
        non_text_parts = [p for p in content if not (isinstance(p, dict) and isinstance(p.get("text"), str))]
        non_text_parts += [p for p in content if isinstance(p, dict) and p.get("type", "text") != "text"]
        if non_text_parts:
            raise UserError(f"message {i + 1} has a part that is no text: {str(non_text_parts[0])[:60]}")
        return {**message, "content": "".join(part["text"] for part in content)}
    calls = message["role"] == "assistant" and any(message.get(name) for name in TOOL_CALL_KEYS)
    if not isinstance(content, str) and not (content is None and calls):
        raise UserError(f"column {column!r} must be a list of {MESSAGE_FORMS} with texts; message {i + 1} has none")
    return message


def read_tools(value: Any) -> tuple[dict[str, Any], ...]:
    """The tools of a row: a list of JSON schemas, as such or as text, whole or each; none where it is null or empty. Raises
    UserError for anything else."""
    tools = _from_text(value)
    tools = [_from_text(tool) for tool in tools] if isinstance(tools, list) else tools
    if not tools:
        return ()
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise UserError(
            f"column 'tools' must be a list of JSON schemas, not {str(value)[:60]!r}; rename it if it is another"
        )
    return tuple(without_nulls(tool) for tool in tools)


def _from_text(value: Any) -> Any:
    """What a text of JSON says; the text itself where it is none."""
    try:
        return json.loads(value) if isinstance(value, str) and value.strip() else value
    except ValueError:
        return value


def without_nulls(value: Any) -> Any:
    """Lists and mappings without the keys whose value is null."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def is_supervised_response(message: Mapping[str, Any]) -> bool:
    """Whether a message is of the assistant, says something, and is supervised."""
    says = str(message.get("content", "")).strip() or any(message.get(name) for name in (*TOOL_CALL_KEYS, *REASONING_KEYS))
    return bool(message["role"] == "assistant" and says and is_supervised(message))


def is_supervised(message: Mapping[str, Any]) -> bool:
    """Whether a message's own weight, 1 where it names none, leaves it supervised. Raises UserError for another than 0
    and 1."""
    for name in LOSS_WEIGHT_KEYS:
        value = message.get(name)
        if value is not None and value not in (0, 1):
            raise UserError(f"a message has {name} {value!r}; only 0 and 1 are known: not supervised, or supervised")
    return all(message.get(name) in (None, 1) for name in LOSS_WEIGHT_KEYS)
