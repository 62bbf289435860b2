"""Who shows what a launcher does."""

from typing import Any, Protocol

from distill_lit.experiment.planning.planned_run import Run
from distill_lit.experiment.state.status import RunResults


class Display(Protocol):
    """Who shows what a launcher does."""

    def note(self, line: str) -> None:
        """A line that the user should read."""

    def start(self, runs: list[Run], todo: list[Run]) -> None:
        """All runs, and those not done."""

    def start_run(self, run: Run) -> None:
        """A run starts."""

    def update_run(self, run: Run, event: dict[str, Any]) -> None:
        """An event of a worker: stage, done, total, unit, metrics."""

    def finish_run(self, run: Run, reason: str, results: RunResults) -> None:
        """A run ends; `reason` tells why it failed, empty for success; results: what it has come to."""


class SilentDisplay:
    """Shows nothing."""

    def note(self, line: str) -> None: ...

    def start(self, runs: list[Run], todo: list[Run]) -> None: ...

    def start_run(self, run: Run) -> None: ...

    def update_run(self, run: Run, event: dict[str, Any]) -> None: ...

    def finish_run(self, run: Run, reason: str, results: RunResults) -> None: ...
