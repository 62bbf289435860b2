"""Tokens and keys of the environment stay out of everything that is written."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

NAMES = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|ACCESS_?KEY|AUTH", re.IGNORECASE)
SHORTEST = 8  # anything shorter would blot out ordinary words
HIDDEN = "[hidden]"


def secret_values(environment: Mapping[str, str] | None = None) -> list[str]:
    """The values of variables that are named like a secret, the longest first."""
    found = {v for k, v in (environment or os.environ).items() if NAMES.search(k) and len(v) >= SHORTEST}
    return sorted((value for value in found if not Path(value).exists()), key=len, reverse=True)


def redact(text: str) -> str:
    """`text` without the secrets of the environment."""
    for value in secret_values():
        text = text.replace(value, HIDDEN)
    return text


def scrub(path: Path) -> None:
    """Takes the secrets out of a log that libraries wrote to. The file keeps its length, as it may still be open."""
    if not path.is_file():
        return
    text = clean = path.read_bytes()
    for value in secret_values():
        clean = clean.replace(value.encode(), HIDDEN.encode().ljust(len(value.encode()))[: len(value.encode())])
    if clean != text:
        with path.open("r+b") as file:
            file.write(clean)
