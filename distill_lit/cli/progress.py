"""What a run shows while it works: runs done of all, the stage of the current one, its losses, and when it will end."""

import time
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from distill_lit.experiment.planned_run import Run

DISPLAYED_METRICS = ("train/loss", "train/ce", "train/teacher_kl", "validation/teacher_kl", "train/tokens_per_second")
LOG_INTERVAL_SECONDS = 20.0  # between lines when the output is no terminal


class RunDisplay:
    """Bars on a terminal, lines elsewhere."""

    def __init__(self, console: Console) -> None:
        """`console`: where to."""
        self.console = console
        self.bars = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self.tasks: dict[str, TaskID] = {}
        self.stages: dict[str, str] = {}
        self.last_log_time = 0.0
        self.all: TaskID | None = None
        self.done = self.total = 0

    def __enter__(self) -> "RunDisplay":
        self.bars.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.bars.stop()

    def note(self, line: str) -> None:
        """A line that the user should read."""
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def start(self, runs: list[Run], todo: list[Run]) -> None:
        """All runs, and those not done."""
        self.total, self.done = len(runs), len(runs) - len(todo)
        self.all = self.bars.add_task("runs", total=self.total, completed=self.done, note="")
        if todo:
            self.console.print(f"{self.done} of {self.total} runs are done, {len(todo)} to run")

    def start_run(self, run: Run) -> None:
        """A run starts."""
        self.tasks[run.name] = self.bars.add_task(run.label, total=None, note="")
        if not self.console.is_terminal:
            self.console.print(f"[{self.done + 1}/{self.total}] {run.label}", markup=False)

    def update_run(self, run: Run, event: dict[str, Any]) -> None:
        """An event of a worker: stage, done, total, unit, metrics."""
        task = self.tasks[run.name]
        if self.stages.get(run.name) != event["stage"]:
            self.stages[run.name] = event["stage"]
            self.bars.reset(task, total=None)
        note = f"{event['unit']}  " + "  ".join(
            f"{name.split('/')[1].replace('_', ' ')} {value:.3g}"
            for name in DISPLAYED_METRICS
            if (value := event["metrics"].get(name)) is not None
        )
        self.bars.update(
            task,
            description=f"{run.label}: {event['stage']}",
            completed=int(event["done"]),
            total=int(event["total"]),
            note=note,
        )
        if not self.console.is_terminal and time.monotonic() - self.last_log_time > LOG_INTERVAL_SECONDS:
            self.last_log_time = time.monotonic()
            self.console.print(
                f"    {event['stage']} {int(event['done']):,} of {int(event['total']):,} {note}", markup=False
            )

    def finish_run(self, run: Run, reason: str) -> None:
        """A run ends; `reason` tells why it failed, empty for success."""
        if run.name in self.tasks:
            self.bars.remove_task(self.tasks.pop(run.name))
        self.done += not reason
        if self.all is not None:
            self.bars.update(self.all, completed=self.done)
        mark = "failed" if reason else "done"
        self.console.print(f"{mark:>6}  {run.label}" + (f": {reason}" if reason else ""), markup=False, highlight=False)
