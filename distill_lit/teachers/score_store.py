"""What a server has said, on disk before the next request goes out: nothing is asked, or paid for, twice."""

from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from safetensors.numpy import load_file, save_file

from distill_lit.generation.request_log import RequestLogEntry
from distill_lit.utils.files import atomic_write, parse_jsonl
from distill_lit.utils.shards import append_line

COSTS = "costs.jsonl"
Said = TypeVar("Said", bound=tuple)


class ScoreStore:
    """One file for each request, by its key; a `ReplyLog`."""

    def __init__(self, folder: Path) -> None:
        """`folder` need not exist."""
        self.folder, self.entries = folder, dict[str, RequestLogEntry]()
        self._cost, self._bytes_read = 0.0, 0  # of the costs on disk

    @property
    def total_cost(self) -> float:
        """The sum of all costs so far, also of other processes that ask now: only what is new on disk is read."""
        with suppress(FileNotFoundError), (self.folder / COSTS).open("rb") as file:
            file.seek(self._bytes_read)
            content = file.read()
            whole_lines = content[: content.rfind(b"\n") + 1]  # the last may be on its way
            self._cost += sum(float(line.get("cost", 0.0)) for line in parse_jsonl(whole_lines))
            self._bytes_read += len(whole_lines)
        return self._cost

    def add(self, entry: RequestLogEntry) -> None:
        """Keeps a reply and what it cost."""
        if entry["key"]:
            scores: NamedTuple = entry["scores"]
            with atomic_write(self._path(entry["key"])) as path:
                save_file(scores._asdict(), path)
        if entry["cost"]:
            self.folder.mkdir(parents=True, exist_ok=True)
            append_line(self.folder / COSTS, {"key": entry["key"], "cost": entry["cost"]})

    def holds(self, key: str) -> bool:
        """Whether a request has been answered."""
        return self._path(key).is_file()

    def read(self, key: str, kind: type[Said]) -> Said:
        """The answer to a request: a named tuple of arrays."""
        return kind(**load_file(self._path(key)))

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"


class MemoryReplies:
    """Replies that cost nothing and need not outlive the process; a `ReplyLog`."""

    def __init__(self) -> None:
        self.entries, self.total_cost = dict[str, RequestLogEntry](), 0.0

    def add(self, entry: RequestLogEntry) -> None:
        """Keeps a reply."""
        self.total_cost += entry["cost"]
        self.entries[entry["key"]] = entry

    def holds(self, key: str) -> bool:
        """Whether a request has been answered."""
        return key in self.entries

    def reply(self, key: str) -> Any:
        """The reply to a request."""
        return self.entries[key]
