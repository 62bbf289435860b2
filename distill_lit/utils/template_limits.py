"""Limits on what a template of somebody else's may take: time, memory, and text.

The sandbox keeps a template from what it must not touch, and `range` from more than 100,000 steps; loops within loops, and
texts that double, are only stopped from outside.
"""

import contextlib
import resource
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from jinja2 import TemplateError

from distill_lit.utils.exceptions import UserError, one_line_message

TEMPLATE_TIMEOUT_S = 10.0  # of computing, for one chat: a hundred thousand times what one takes
TEMPLATE_MEMORY_BYTES = 1 << 30  # bytes beyond what the process has
MAX_RENDERED_CHARACTERS = 1 << 24  # of one chat
TEMPLATE_ERRORS = (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError)


class TemplateLimitExceeded(UserError):
    """A template took more than its share."""


@contextlib.contextmanager
def limit_template_resources() -> Iterator[None]:
    """Inside, this process may compute for TEMPLATE_TIMEOUT_S and take TEMPLATE_MEMORY_BYTES more. Raises
    TemplateLimitExceeded beyond either.

    The time is limited in the main thread only, as signals are; the memory where /proc tells how much there is.
    """
    with _memory_limit(), _time_limit():
        try:
            yield
        except MemoryError as error:
            raise TemplateLimitExceeded(f"it takes more than {TEMPLATE_MEMORY_BYTES >> 20:,} MiB of memory") from error


@contextlib.contextmanager
def handle_template_errors() -> Iterator[None]:
    """Inside, what a chat template raises becomes a UserError of one line, and what takes too much a
    TemplateLimitExceeded."""
    try:
        with limit_template_resources():
            yield
    except TemplateLimitExceeded as error:
        raise TemplateLimitExceeded(f"the chat template is stopped: {error}") from error
    except TEMPLATE_ERRORS as error:
        raise UserError(f"the chat template refuses it: {one_line_message(error)}") from error


def check_rendered_length(text: str) -> str:
    """The text. Raises TemplateLimitExceeded where it is longer than MAX_RENDERED_CHARACTERS."""
    if len(text) > MAX_RENDERED_CHARACTERS:
        raise TemplateLimitExceeded(
            f"it writes {len(text):,} characters, and {MAX_RENDERED_CHARACTERS:,} are the most for one chat"
        )
    return text


@contextlib.contextmanager
def _time_limit() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise TemplateLimitExceeded(f"it takes more than {TEMPLATE_TIMEOUT_S:g} seconds")

    known = signal.signal(signal.SIGVTALRM, stop)
    try:
        signal.setitimer(signal.ITIMER_VIRTUAL, TEMPLATE_TIMEOUT_S)
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, known)


@contextlib.contextmanager
def _memory_limit() -> Iterator[None]:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = pages * resource.getpagesize() + TEMPLATE_MEMORY_BYTES
    if soft != resource.RLIM_INFINITY and soft <= most:
        yield
        return
    resource.setrlimit(resource.RLIMIT_AS, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
