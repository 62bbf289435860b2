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
