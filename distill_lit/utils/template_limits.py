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

from distill_lit.utils.exceptions import UserError, in_one_line

SECONDS = 10.0  # of computing, for one chat: a hundred thousand times what one takes
MEMORY = 1 << 30  # bytes beyond what the process has
CHARACTERS = 1 << 24  # of one chat
REFUSALS = (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError)


class Excess(UserError):
    """A template took more than its share."""


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Inside, this process may compute for SECONDS and take MEMORY more. Raises Excess beyond either.

    The time is limited in the main thread only, as signals are; the memory where /proc tells how much there is.
    """
    with _memory(), _time():
        try:
            yield
        except MemoryError as error:
            raise Excess(f"it takes more than {MEMORY >> 20:,} MiB of memory") from error


@contextlib.contextmanager
def refusing() -> Iterator[None]:
    """Inside, what a chat template raises becomes a UserError of one line, and what takes too much of it an Excess."""
    try:
        with bounded():
            yield
    except Excess as error:
        raise Excess(f"the chat template is stopped: {error}") from error
    except REFUSALS as error:
        raise UserError(f"the chat template refuses it: {in_one_line(error)}") from error


def check_size(text: str) -> str:
    """The text. Raises Excess where it is longer than CHARACTERS."""
    if len(text) > CHARACTERS:
        raise Excess(f"it writes {len(text):,} characters, and {CHARACTERS:,} are the most for one chat")
    return text


@contextlib.contextmanager
def _time() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise Excess(f"it takes more than {SECONDS:g} seconds")

    known = signal.signal(signal.SIGVTALRM, stop)
    try:
        signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, known)


@contextlib.contextmanager
def _memory() -> Iterator[None]:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = pages * resource.getpagesize() + MEMORY
    if soft != resource.RLIM_INFINITY and soft <= most:
        yield
        return
    resource.setrlimit(resource.RLIMIT_AS, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
