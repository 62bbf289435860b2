"""What a run shows while it works: cells done of all, the stage of the current one, its losses, and when it will end."""

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

from distill_lit.experiment.plan import Cell

SHOWN = ("train/loss", "train/ce", "train/teacher_kl", "validation/teacher_kl", "train/tokens_per_second")
QUIET_SECONDS = 20.0  # between lines when the output is no terminal


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
        self.spoken = 0.0
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

    def start(self, cells: list[Cell], todo: list[Cell]) -> None:
        """All cells, and those not done."""
        self.total, self.done = len(cells), len(cells) - len(todo)
        self.all = self.bars.add_task("cells", total=self.total, completed=self.done, note="")
        if todo:
            self.console.print(f"{self.done} of {self.total} cells are done, {len(todo)} to run")

    def begin(self, cell: Cell) -> None:
        """A cell starts."""
        self.tasks[cell.name] = self.bars.add_task(cell.label, total=None, note="")
        if not self.console.is_terminal:
            self.console.print(f"[{self.done + 1}/{self.total}] {cell.label}", markup=False)

    def progress(self, cell: Cell, event: dict[str, Any]) -> None:
        """An event of a worker: stage, done, total, unit, metrics."""
        task = self.tasks[cell.name]
        if self.stages.get(cell.name) != event["stage"]:
            self.stages[cell.name] = event["stage"]
            self.bars.reset(task, total=None)
        note = f"{event['unit']}  " + "  ".join(
            f"{name.split('/')[1].replace('_', ' ')} {value:.3g}"
            for name in SHOWN
            if (value := event["metrics"].get(name)) is not None
        )
        self.bars.update(
            task,
            description=f"{cell.label}: {event['stage']}",
            completed=int(event["done"]),
            total=int(event["total"]),
            note=note,
        )
        if not self.console.is_terminal and time.monotonic() - self.spoken > QUIET_SECONDS:
            self.spoken = time.monotonic()
            self.console.print(
                f"    {event['stage']} {int(event['done']):,} of {int(event['total']):,} {note}", markup=False
            )

    def finish(self, cell: Cell, reason: str) -> None:
        """A cell ends; `reason` tells why it failed, empty for success."""
        if cell.name in self.tasks:
            self.bars.remove_task(self.tasks.pop(cell.name))
        self.done += not reason
        if self.all is not None:
            self.bars.update(self.all, completed=self.done)
        mark = "failed" if reason else "done"
        self.console.print(f"{mark:>6}  {cell.label}" + (f": {reason}" if reason else ""), markup=False, highlight=False)
