"""What a command says, and when it fails: one line, without secrets; the traceback goes to a file."""

import contextlib
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from rich.console import Console

from distill_lit.utils.exceptions import UserError
from distill_lit.utils.files import cache_root
from distill_lit.utils.redaction import redact

PIPE_WIDTH = 200  # columns where output goes to a file or a program, which would get its tables cut


class PipeSafeConsole(Console):
    """A console that shows text as it is, whatever brackets and colons a path or a question has. Its reader may go away, as
    `head` does: the command goes on without output."""

    def __init__(self, **options: Any) -> None:
        """options: those of rich's console."""
        super().__init__(markup=False, emoji=False, **options)

    @classmethod
    def of_output(cls) -> "PipeSafeConsole":
        """For standard output, as wide as the terminal, or as `COLUMNS` says."""
        is_known = sys.stdout.isatty() or "COLUMNS" in os.environ
        return cls(width=None if is_known else PIPE_WIDTH)

    def on_broken_pipe(self) -> None:
        """Sends the rest nowhere."""
        self.quiet = True
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.file.fileno())
            os.close(nowhere)


def replace_closed_output() -> None:
    """Sends output nowhere where its stream is closed, as `>&-` does: what is opened next would else stand in its place."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - as long as the process


def replace_unencodable_output() -> None:
    """Replaces characters that the terminal cannot show: they must not end a run."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def print_error(message: str, code: int) -> int:
    """Prints one line on the error stream; returns `code`."""
    line = " ".join(redact(message).split())
    PipeSafeConsole(stderr=True).print(f"distill-lit: {line}", markup=False, highlight=False, soft_wrap=True)
    return code


def log_traceback() -> Path | str:
    """Appends the present traceback to a log in the cache; returns where, or that it could not be written."""
    try:
        path = cache_root() / "errors.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8", errors="backslashreplace") as log:
            log.write(redact(traceback.format_exc()))
    except (OSError, UserError) as error:
        return f"not kept: {error}"
    return path
