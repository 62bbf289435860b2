"""Do two chat templates render the same chat alike, and how does a template end a turn?

A teacher that reads a chat in another format than its own says something else of every token: tinker-cookbook#796 lost
0.29 nats per token to a student's and a teacher's template. A student that ends a turn with another token than its teacher
learns to go on: ms-swift#9526.
"""

from typing import Any, NamedTuple

from distill_lit.data.chat import render_chat
from distill_lit.data.span_tokenization import added_token_pattern, special_token_pattern
from distill_lit.data.templates import Messages, apply_chat_template, check_no_lone_surrogates
from distill_lit.utils.exceptions import UserError
from distill_lit.utils.template_limits import TemplateLimitExceeded

QUESTION = {"role": "user", "content": "Why is the sky blue?"}
ANSWER = {"role": "assistant", "content": "Because air scatters blue light more than red."}
SYSTEM = {"role": "system", "content": "Answer in one sentence."}
FOLLOW_UP = {"role": "user", "content": "And at sunset?\nIs it the same?"}
SECOND_ANSWER = {"role": "assistant", "content": "Then the light has come a longer way."}
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Rome"}}}],
}
RESULT = {"role": "tool", "name": "get_weather", "content": "21 degrees"}
# {what tells a chat from the others: (messages, tools)}, the plainest first
SAMPLE_CHATS: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]] = {
    "a question": ([QUESTION], []),
    "a question and its answer": ([QUESTION, ANSWER], []),
    "a system message": ([SYSTEM, QUESTION, ANSWER], []),
    "several turns": ([QUESTION, ANSWER, FOLLOW_UP, SECOND_ANSWER], []),
    "tools": ([SYSTEM, QUESTION, CALL, RESULT, SECOND_ANSWER], [TOOL]),
}
PLAIN_CHAT = SAMPLE_CHATS["a question and its answer"][0]
SHOWN_CHARACTERS = 40  # of each text, where two differ


class TurnEnd(NamedTuple):
    """The token with which a template closes a response. is_supervised: it is part of what a student learns to write."""

    token: str
    token_id: int
    is_supervised: bool


def find_turn_end(tokenizer: Any) -> TurnEnd | None:
    """The token that ends a response of the tokenizer's template; None where that is text, or nothing at all.

    Raises UserError for a template that refuses a question with an answer.
    """
    chat = render_chat(tokenizer, PLAIN_CHAT)
    if not chat.spans:
        return None
    start, end = chat.spans[0][0], chat.spans[-1][1]  # the one response may be of several blocks
    pattern, token = added_token_pattern(tokenizer), None
    for found in reversed(list(pattern.finditer(chat.text, start, end))):  # the first of those that end it together
        if chat.text[found.end() : token.start() if token else end].strip():
            break
        token = found
    token = token or pattern.match(chat.text, end + len(chat.text[end:]) - len(chat.text[end:].lstrip()))
    if token is None:
        return None
    is_supervised = any(first <= token.start() and token.end() <= last for first, last in chat.spans)
    return TurnEnd(token[0], int(tokenizer.convert_tokens_to_ids(token[0])), is_supervised)


def learned_turn_end(tokenizer: Any) -> int | None:
    """The token that students of these chats learn to end a turn with; None where none ends one, or the template takes no
    plain chat."""
    try:
        end = find_turn_end(tokenizer)
    except UserError:
        return None
    return end.token_id if end is not None and end.is_supervised else None


def chat_tokens(tokenizer: Any) -> dict[int, str]:
    """{id: token} of the special tokens that a template puts around a question, before the answer and at its end. Raises
    UserError for a template that refuses them."""
    prompt = apply_chat_template(tokenizer, [QUESTION], add_generation_prompt=True)
    end = find_turn_end(tokenizer)
    found = [*special_token_pattern(tokenizer).findall(prompt), *([end.token] if end else [])]
    return {int(tokenizer.convert_tokens_to_ids(token)): token for token in found}


def rendering_difference(tokenizer: Any, other: Any) -> str:
    """Where the templates of two tokenizers first render one of `SAMPLE_CHATS` unlike each other: `for a system message
    '…' against '…'`; empty where they render all of them alike. Tools count where both templates know of them."""
    for kind, (messages, tools) in SAMPLE_CHATS.items():
        if tools and not ("tools" in str(tokenizer.chat_template) and "tools" in str(other.chat_template)):
            continue
        ends_with_question = messages[-1]["role"] == "user"
        one, two = (_rendered(each, messages, tools, ends_with_question) for each in (tokenizer, other))
        if one != two:
            return f"for {kind} {_first_difference(one, two)}"
    return ""


def token_id_difference(tokenizer: Any, other: Any) -> str:
    """Where two tokenizers of the same tokens first cut one of `SAMPLE_CHATS`, or its plain text, into other tokens; empty
    where they never do. other: its own template is not asked."""
    for messages, tools in SAMPLE_CHATS.values():
        texts = [("\n".join(str(message["content"]) for message in messages), True)]
        if tokenizer.chat_template and not tools:
            texts.append((_rendered(tokenizer, messages, tools, messages[-1]["role"] == "user"), False))
        for text, add_special_tokens in texts:
            ids = [list(each(text, add_special_tokens=add_special_tokens)["input_ids"]) for each in (tokenizer, other)]
            if ids[0] != ids[1]:
                return _first_difference(*map(tokenizer.convert_ids_to_tokens, ids))
    return ""


def check_prompt_renders(tokenizer: Any, system_prompt: str) -> None:
    """Raises UserError where the tokenizer's template refuses a question, with this system prompt if it is not empty."""
    messages: Messages = [*([{"role": "system", "content": system_prompt}] if system_prompt else []), QUESTION]
    check_no_lone_surrogates(messages)
    apply_chat_template(tokenizer, messages, add_generation_prompt=True)


def _rendered(tokenizer: Any, messages: Messages, tools: list[Any], add_generation_prompt: bool) -> str:
    try:
        return apply_chat_template(tokenizer, messages, tools, add_generation_prompt)
    except TemplateLimitExceeded:
        raise
    except UserError as error:
        return f"({error})"


def _first_difference(one: Any, two: Any) -> str:
    """`'…' against '…'`: what two texts, or two lists of tokens, hold from a little before where they part."""
    pairs = enumerate(zip(one, two, strict=False))
    at = next((i for i, (a, b) in pairs if a != b), min(len(one), len(two)))
    start, end = max(0, at - SHOWN_CHARACTERS // 4), at + SHOWN_CHARACTERS * 3 // 4
    if not isinstance(one, str):
        start, end = max(0, at - 2), at + 3
    return f"{one[start:end]!r} against {two[start:end]!r}"
