"""Paths as users write them: `~`, and environment variables as `$SCRATCH` or `${SCRATCH}`. Nothing else reads variables.
What is relative has been found by `config.file_paths`.

A config keeps what was written. So fingerprints, `plan.yaml` and provenance hold `$SCRATCH/text.jsonl`, which is the same
on every machine; what stands in the file is in the fingerprint of the data, by its hash.
"""

import os
import re
from pathlib import Path

from distill_lit.utils.exceptions import UserError
from distill_lit.utils.redaction import secret_values

RELATIVE_PATHS = "a relative path is looked for in the current folder, then beside the file that names it"
MAX_NAME_BYTES, MAX_PATH_CHARACTERS = 255, 4000  # of most file systems
MAX_SHOWN_CHARACTERS = 120  # of a wrong path
# capitals only: `${name}` in a config is the value of its key `name`
PATH_VARIABLE = re.compile(r"\$(?:\{([A-Z_][A-Z0-9_]*)\}|([A-Z_][A-Z0-9_]*))")


def missing(path: Path) -> str:
    """What errors say of a path that is not there, or is a folder where a file is wanted."""
    if path.is_dir():
        return "is a folder; name a file in it"
    return "no such file or folder" + ("" if path.is_absolute() else f"; {RELATIVE_PATHS}")


def expand_path(text: str, key: str = "") -> Path:
    """The path that `text` means on this machine. key: what errors call it.

    Raises UserError for what no path can be, for a variable that is not set, or is empty, and for one that holds a secret,
    which would end up in the name of a file.
    """
    shown = repr(text if len(text) <= MAX_SHOWN_CHARACTERS else f"{text[:MAX_SHOWN_CHARACTERS]}…")
    where = f"{key}: {shown}" if key else shown

    def value_of(found: re.Match[str]) -> str:
        name = found[1] or found[2]
        value = os.environ.get(name, "")
        if not value:
            raise UserError(f"{where}: the environment variable {name} is not set")
        if secret_values({name: value}):
            raise UserError(f"{where}: the environment variable {name} is called like a secret, and holds no path")
        return value

    try:
        path = Path(PATH_VARIABLE.sub(value_of, text)).expanduser()
    except RuntimeError:  # what pathlib raises for a user without a home
        raise UserError(f"{where}: nobody knows a home folder for its ~; write it out") from None
    if "\0" in text:
        raise UserError(f"{where}: no path has a null character")
    longest = max((len(part.encode("utf-8", "surrogatepass")) for part in path.parts), default=0)
    if longest > MAX_NAME_BYTES or len(str(path)) > MAX_PATH_CHARACTERS:
        raise UserError(f"{where}: longer than a path can be")
    return path
