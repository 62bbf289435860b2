"""What a run shows while it works: a line for each run at work, and one for all: stage, bar, count, time left, losses."""

import time
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from distill_lit.cli.progress_line import Work, progress_line
from distill_lit.experiment.planning.planned_run import Run
from distill_lit.experiment.state.status import RunResults, format_seconds

LOG_INTERVAL_SECONDS = 20.0  # between lines when the output is no terminal
REFRESHES_PER_SECOND = 4


class RunDisplay:
    """Bars on a terminal, lines elsewhere."""

    def __init__(
        self,
        console: Console,
        planned_minutes: Mapping[str, float] | None = None,
        workers: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """console: where to; planned_minutes: {run name: minutes}, for the time left of all runs; workers: runs at a
        time."""
        self.console, self.planned_minutes, self.workers, self.clock = console, planned_minutes or {}, workers, clock
        self.works: dict[str, Work] = {}  # of runs at work, by name
        self.waiting: set[str] = set()  # names of runs that are not done
        self.last_log_time = 0.0
        self.done = self.total = 0
        self.spent = self.planned = 0.0  # minutes of the runs that were done here, and what they were planned with
        self.live = Live(get_renderable=self._render, console=console, refresh_per_second=REFRESHES_PER_SECOND)

    def __enter__(self) -> "RunDisplay":
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.live.stop()

    def note(self, line: str) -> None:
        """A line that the user should read."""
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def start(self, runs: list[Run], todo: list[Run]) -> None:
        """All runs, and those not done."""
        self.total, self.done = len(runs), len(runs) - len(todo)
        self.waiting = {run.name for run in todo}
        if todo:
            self.console.print(f"{self.done} of {self.total} runs are done, {len(todo)} to run")

    def start_run(self, run: Run) -> None:
        """A run starts."""
        self.works[run.name] = Work(run.label, self.clock())
        if not self.console.is_terminal:
            self.console.print(f"[{self.done + 1}/{self.total}] {run.label}", markup=False, soft_wrap=True)

    def update_run(self, run: Run, event: dict[str, Any]) -> None:
        """An event of a worker: stage, done, total, unit, metrics."""
        work = self.works[run.name]
        work.update(event["stage"], event["done"], event["total"], event["unit"], event["metrics"], self.clock())
        if not self.console.is_terminal and self.clock() - self.last_log_time > LOG_INTERVAL_SECONDS:
            self.last_log_time = self.clock()
            label = f"{run.label}  " if len(self.works) > 1 else ""
            self.note(f"    {label}{work.plain_line()}")

    def finish_run(self, run: Run, reason: str, results: RunResults) -> None:
        """A run ends; `reason` tells why it failed, empty for success; results: what it has come to."""
        work = self.works.pop(run.name, None)
        self.waiting.discard(run.name)
        self.done += not reason
        if work is not None and not reason and run.name in self.planned_minutes:
            self.spent += (self.clock() - work.began) / 60
            self.planned += self.planned_minutes[run.name]
        said = f": {reason}" if reason else "".join(f"  {phrase}" for phrase in results.phrases)
        self.note(f"{'failed' if reason else 'done':>6}  {run.label}{said}")

    def seconds_left(self) -> float | None:
        """Of all runs: what was planned for them, corrected by how long those took that are done; None where nothing is
        planned."""
        if not self.planned_minutes:
            return None
        now, correction = self.clock(), self.spent / self.planned if self.planned else 1.0
        left = 0.0
        for name in self.waiting:
            work = self.works.get(name)
            planned = 60 * correction * self.planned_minutes.get(name, 0.0)
            left += max(0.0, planned - (0.0 if work is None else now - work.began))
        return left / max(1, min(self.workers, len(self.waiting)))

    def _render(self) -> RenderableType:
        width = self.console.width
        lines = [progress_line(work, width, self.clock()) for work in self.works.values()]
        left = self.seconds_left()
        last = f"{self.done} of {self.total} runs done" + ("" if left is None else f"  about {format_seconds(left)} left")
        return Text("\n", no_wrap=True, overflow="crop").join([*lines, Text(last[:width])])
