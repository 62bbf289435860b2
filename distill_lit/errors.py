"""What a user did wrong, in one line. The command line turns these into exit code 2 without a traceback."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input: nothing was written and no model was loaded. The message names the key or path and the remedy."""


class Failure(Exception):
    """What went wrong while running and concerns every cell, such as a full disk: one line, exit code 1."""


def in_one_line(error: Exception) -> str:
    """What an error of somebody else's library says, without its line breaks and not at any length."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def suggest(value: str, choices: Iterable[str]) -> str:
    """`; did you mean 'x'? choose from a, b, c` for the end of an error line."""
    known = sorted(choices)
    if not known:
        return "; there is none"
    close = difflib.get_close_matches(value, known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ";"
    return f"{hint} choose from {', '.join(known)}"
