"""What a server answered and what it cost, on disk before anything else: nothing paid for is asked twice."""

import json
from pathlib import Path
from typing import Any, Protocol

from distill_lit.utils.files import cache_root, fingerprint
from distill_lit.utils.shards import append_line

RequestLogEntry = dict[str, Any]


class ReplyLog(Protocol):
    """Where replies go before the next request is sent. `entries`: {request key: reply} known at the start."""

    entries: dict[str, RequestLogEntry]

    @property
    def total_cost(self) -> float:
        """The sum of all costs so far."""
        ...

    def add(self, entry: RequestLogEntry) -> None:
        """Keeps a reply, on disk. An entry without `key` is money spent on nothing usable."""
        ...


class RequestLog:
    """An append-only file of replies by request. `entries`: {request key: reply}; `total_cost`: sum of all costs in it."""

    def __init__(self, path: Path) -> None:
        """Reads what is there; a line cut short by a crash counts for nothing."""
        self.path = path
        self.entries: dict[str, RequestLogEntry] = {}
        self.total_cost = 0.0
        if path.is_file():
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    self._take(json.loads(line))
                except (ValueError, TypeError, AttributeError, KeyError):
                    continue
        path.parent.mkdir(parents=True, exist_ok=True)

    def add(self, entry: RequestLogEntry) -> None:
        """Appends a reply and syncs it. An entry without `key` is money spent on nothing usable."""
        append_line(self.path, entry)
        self._take(entry)

    def _take(self, entry: RequestLogEntry) -> None:
        self.total_cost += float(entry["cost"])
        if entry.get("key"):
            self.entries[entry["key"]] = entry


def request_log_path(base_url: str, model: str) -> Path:
    """One request log for each server and model, shared by all experiments."""
    return cache_root() / "remote" / fingerprint([base_url.rstrip("/"), model]) / "journal.jsonl"


def request_key(request: dict[str, Any]) -> str:
    """Identifies a request by everything in it."""
    return fingerprint(request)
