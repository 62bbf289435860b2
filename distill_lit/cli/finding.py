"""What `doctor` says of one thing it has looked at."""

from dataclasses import dataclass

GOOD, WARNING, BAD = "ok", "note", "wrong"


@dataclass(frozen=True)
class Finding:
    """One thing looked at: its state (ok, note or wrong), what was found, and what to do."""

    subject: str
    state: str
    found: str
    remedy: str = ""
