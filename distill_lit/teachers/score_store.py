"""What a server has said, on disk before the next request goes out: nothing is asked, or paid for, twice."""

from pathlib import Path
from typing import Any

from safetensors.numpy import load_file, save_file

from distill_lit.generation.request_log import RequestLogEntry
from distill_lit.teachers.server_api import TopKScores
from distill_lit.utils.files import atomic_write, read_jsonl
from distill_lit.utils.shards import append_line

COSTS = "costs.jsonl"


class ScoreStore:
    """One file for each request, by its key; a `ReplyLog`."""

    def __init__(self, folder: Path) -> None:
        """`folder` need not exist."""
        self.folder, self.entries = folder, dict[str, RequestLogEntry]()
        self.total_cost = sum(float(line.get("cost", 0.0)) for line in read_jsonl(folder / COSTS))

    def add(self, entry: RequestLogEntry) -> None:
        """Keeps a reply and what it cost."""
        if entry["key"]:
            scores: TopKScores = entry["scores"]
            with atomic_write(self._path(entry["key"])) as path:
                save_file(scores._asdict(), path)
        if entry["cost"]:
            self.folder.mkdir(parents=True, exist_ok=True)
            append_line(self.folder / COSTS, {"key": entry["key"], "cost": entry["cost"]})
            self.total_cost += entry["cost"]

    def holds(self, key: str) -> bool:
        """Whether a request has been answered."""
        return self._path(key).is_file()

    def read(self, key: str) -> TopKScores:
        """The answer to a request."""
        return TopKScores(**load_file(self._path(key)))

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
