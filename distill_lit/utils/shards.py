"""Checksummed files in a folder, made once, by any number of writers, each able to stop at any moment.

`shards.jsonl` gets a line (name, sha256) after its file is whole; a file without its line, or with another hash, is made
again. `manifest.json` says what the shards are of.
"""

import errno
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from distill_lit.utils.files import atomic_write, read_mapping, sha256_of, write_json

_verified: dict[Path, tuple[int, int, str]] = {}  # size, time of change, sha256: hashed by this process


class Shards:
    """The files of one folder."""

    def __init__(self, folder: Path) -> None:
        """`folder` need not exist."""
        self.folder = folder

    def manifest(self) -> dict[str, Any]:
        """What the shards are of; empty where nothing readable says so."""
        return read_mapping(self.folder / "manifest.json")

    def write_manifest(self, facts: Mapping[str, Any]) -> None:
        """Replaces the manifest."""
        write_json(self.folder / "manifest.json", facts)

    def write_missing(
        self, writers: Mapping[str, Callable[[Path], None]], advance: Callable[[], Any] = lambda: None
    ) -> None:
        """Makes every shard that is not intact: name → function that writes its file. `advance` is called for each.

        A shard that another process is at is left to it, and looked at again at the end.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        left = [name for name, write in writers.items() if not self._write_if_missing(name, write, advance, wait=False)]
        for name in left:
            self._write_if_missing(name, writers[name], advance, wait=True)

    def is_intact(self, name: str, known: Mapping[str, str] | None = None) -> bool:
        """Whether a shard has the hash that was written down for it. `known`: `hashes()`, where it was read before."""
        digest = (self.hashes() if known is None else known).get(name)
        return digest is not None and _hash(self.folder / name) == digest

    def are_intact(self, names: object) -> bool:
        """Whether all these shards are; False for anything but a list of names, as a damaged manifest may hold."""
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            return False
        known = self.hashes()
        return all(self.is_intact(name, known) for name in names)

    def hashes(self) -> dict[str, str]:
        """{name: sha256} as written down; a line cut short by a crash counts for nothing."""
        try:
            lines = (self.folder / "shards.jsonl").read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return {}
        found = {}
        for line in lines:
            try:
                entry = json.loads(line)
                found[entry["name"]] = entry["sha256"]
            except (ValueError, TypeError, KeyError):
                continue
        return found

    def _write_if_missing(self, name: str, write: Callable[[Path], None], advance: Callable[[], Any], wait: bool) -> bool:
        """Whether the shard is there now; False when another process is at it and `wait` is not set."""
        if not self.is_intact(name):
            lock = FileLock(self.folder / "locks" / f"{name}.lock", timeout=-1 if wait else 0)
            lock_folder = self.folder / "locks"
            lock_folder.mkdir(exist_ok=True)
            try:
                with lock:
                    if not self.is_intact(name):
                        self.write(name, write)
            except Timeout:
                return False
        advance()
        return True

    def write(self, name: str, write: Callable[[Path], None]) -> None:
        """Makes a shard, whoever else may be at it."""
        with atomic_write(self.folder / name) as temporary:
            write(temporary)
        digest = sha256_of(self.folder / name)
        if self.hashes().get(name) != digest:
            append_line(self.folder / "shards.jsonl", {"name": name, "sha256": digest})


def append_line(path: Path, value: Any) -> None:
    """Adds a JSON line in one write, and syncs it: whole after a crash or not there. A torn line before it is closed.
    Raises OSError where the disk has no room for all of it."""
    line = json.dumps(value) + "\n"  # ASCII: some letters of other scripts end a line too
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            line = "\n" + line
        data = line.encode("utf-8")
        if os.write(descriptor, data) < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _hash(path: Path) -> str:
    """The sha256 of a file, remembered for as long as its size and time of change stay; empty when there is none."""
    try:
        status = path.stat()
    except OSError:
        return ""
    size, changed, digest = _verified.get(path, (-1, -1, ""))
    if (size, changed) != (status.st_size, status.st_mtime_ns):
        digest = sha256_of(path)
        _verified[path] = (status.st_size, status.st_mtime_ns, digest)
    return digest
