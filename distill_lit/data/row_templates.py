"""Jinja templates over the columns of a row, sandboxed; what they cannot make a text of is told with the row."""

import functools
import re
from typing import Any

from jinja2 import StrictUndefined, Template, TemplateSyntaxError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from distill_lit.data.column_values import Row
from distill_lit.utils.exceptions import UserError, one_line_message
from distill_lit.utils.template_limits import TEMPLATE_ERRORS

MAX_ROW_CHARS_IN_ERROR = 80  # characters of a row in an error
ROW_TEMPLATE_ERRORS = (*TEMPLATE_ERRORS, MemoryError, re.error)  # the last of `regex_replace`


def template_sandbox() -> ImmutableSandboxedEnvironment:
    """Where templates are compiled: no access to attributes of Python, unknown columns and printed nulls raise, and
    lm-eval's filter `regex_replace`."""
    sandbox = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True, finalize=_printable)
    sandbox.filters["regex_replace"] = lambda text, pattern, new="", count=0: re.sub(pattern, new, text, count=count)
    return sandbox


def _printable(value: Any) -> Any:
    if isinstance(value, (list, tuple, dict)):
        raise ValueError(f"it prints a {type(value).__name__}, which is no text; name a field, or a filter such as join")
    if isinstance(value, bytes):
        return str(value)  # tells where it comes from
    if value != value:  # not a number
        raise ValueError("it prints nan, which is no text; say {{ column or '' }} after testing it, or leave the row out")
    if value is None:
        raise ValueError(
            "it prints a null, which would be trained as the word None; say {{ column or '' }} to leave it out"
        )
    return value


def compile_template(key: str, text: str) -> Template:
    """The template that the field `key` holds. Raises UserError for a syntax error."""
    try:
        return _compiled(text)
    except TemplateSyntaxError as error:
        raise UserError(f"{key}: template line {error.lineno}: {error.message}") from error


def check_reads_row(key: str, text: str) -> None:
    """Raises UserError for a template that says the same of every row, as one that names a column without braces does.

    Args:
        key: the field that holds the template.
        text: the template.
    """
    if "{{" not in text and "{%" not in text:
        column = text.strip() if text.strip().isidentifier() else "column"
        raise UserError(
            f"{key}: {text[:60]!r} is the same text for every row; a column stands in braces: {{{{ {column} }}}}"
        )


@functools.lru_cache(maxsize=1024)
def _compiled(text: str) -> Template:
    return template_sandbox().from_string(text)


def render_template(key: str, template: Template, row: Row, **names: Any) -> str:
    """A text over the columns of a row, and over `names`. Raises UserError, naming the field `key`, where there is none."""
    try:
        return template.render({**row, **names})
    except ROW_TEMPLATE_ERRORS as error:
        raise render_error(key, error, row) from error


def render_error(key: str, error: Exception, row: Row) -> UserError:
    """The error of a row from which the template at `key` cannot make a text."""
    columns, begins = ", ".join(sorted(row)), repr(row)[:MAX_ROW_CHARS_IN_ERROR]
    return UserError(f"{key}: {one_line_message(error)}; the columns are {columns}; the row begins {begins}")
