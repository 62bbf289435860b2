"""What a user did wrong, in one line. The command line turns these into exit code 2 without a traceback."""

import difflib
import signal
from collections.abc import Iterable


class UserError(Exception):
    """Bad input: nothing was written and no model was loaded. The message names the key or path and the remedy."""


class Unwritable(UserError):
    """A folder that this user may not write to; the message names it and the variable that names another."""


class FatalRunError(Exception):
    """What went wrong while running and concerns every run, such as a full disk: one line, exit code 1."""


class Preempted(Exception):
    """A signal asked to stop; where training had begun, a checkpoint of the step just taken is on disk."""


class RankFailure(Exception):
    """One of several processes that train together died, or raised what cannot be raised here: one line."""


def describe_exit_code(code: int) -> str:
    """`was killed by SIGKILL, perhaps out of memory`, or with which exit code a process ended."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:  # of real time
        name = f"signal {-code}"
    return f"was killed by {name}" + (", perhaps out of memory" if name == "SIGKILL" else "")


def error_summary(error: BaseException) -> str:
    """The kind of an error, and the first line of what it says."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def one_line_message(error: BaseException) -> str:
    """What an error of somebody else's library says, without its line breaks and not at any length."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def check_not_one_text(name: str, texts: object) -> None:
    """Raises UserError for one text in place of a list of texts: its characters would be taken for them."""
    if isinstance(texts, (str, bytes)):
        raise UserError(f"{name}: {texts!r} is one text; give a list, as in [{texts!r}]")


def suggest(value: str, choices: Iterable[str]) -> str:
    """`; did you mean 'x'? choose from a, b, c` for the end of an error line."""
    known = sorted(choices)
    if not known:
        return "; there is none"
    folded = {choice.casefold(): choice for choice in reversed(known)}
    close = difflib.get_close_matches(value.casefold(), folded, n=1)
    hint = f"; did you mean {folded[close[0]]!r}?" if close else ";"
    return f"{hint} choose from {', '.join(known)}"
