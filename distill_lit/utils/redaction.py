"""Tokens and keys of the environment stay out of everything that is written."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

SECRET_VARIABLE_PATTERN = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|ACCESS_?KEY|AUTH", re.IGNORECASE)
MIN_SECRET_LENGTH = 8  # anything shorter would blot out ordinary words
REDACTED_TEXT = "[hidden]"


def secret_values(environment: Mapping[str, str] | None = None) -> list[str]:
    """The values of variables that are named like a secret, the longest first."""
    found = {
        v
        for k, v in (environment or os.environ).items()
        if SECRET_VARIABLE_PATTERN.search(k) and len(v) >= MIN_SECRET_LENGTH
    }
    return sorted((value for value in found if not os.path.exists(value)), key=len, reverse=True)


def redact(text: str) -> str:
    """`text` without the secrets of the environment."""
    for value in secret_values():
        text = text.replace(value, REDACTED_TEXT)
    return text


def redact_file(path: Path) -> None:
    """Takes the secrets out of a log that libraries wrote to. The file keeps its length, as it may still be open."""
    if not path.is_file():
        return
    text = clean = path.read_bytes()
    for value in map(os.fsencode, secret_values()):
        clean = clean.replace(value, REDACTED_TEXT.encode().ljust(len(value))[: len(value)])
    if clean != text:
        with path.open("r+b") as file:
            file.write(clean)
