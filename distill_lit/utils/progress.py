"""How long work says where it is: one signature for all of it."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Protocol

NO_METRICS: Mapping[str, float] = MappingProxyType({})


class ProgressCallback(Protocol):
    """Told the stage, what is done of how much, in which unit, and the latest metrics."""

    def __call__(
        self, stage: str, done: float, total: float, unit: str = "", metrics: Mapping[str, float] = NO_METRICS, /
    ) -> None: ...


NOTE_STAGE = "note"


def send_note(progress_callback: ProgressCallback, line: str) -> None:
    """Sends a line that the user should read, by the way that progress takes: as the unit of a stage of its own."""
    progress_callback(NOTE_STAGE, 0, 0, line)
