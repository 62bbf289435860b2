"""A bar for one piece of work with stages, as one evaluation or one export."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console


@contextmanager
def stage_bar(console: Console, name: str) -> Iterator[Any]:
    """Yields the progress callback of a bar that is gone at the end. name: what it says before the first stage."""
    from rich.progress import Progress

    with Progress(console=console, transient=True) as bar:
        task = bar.add_task(name, total=None)
        yield lambda stage, done, total, *_: bar.update(task, completed=done, total=total, description=stage)
