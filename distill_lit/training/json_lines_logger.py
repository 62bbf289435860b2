"""`metrics.jsonl` of a run: what tables and curves are drawn from."""

import json
import math
import os
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger

from distill_lit.utils.distributed.ranks import get_rank
from distill_lit.utils.files import read_jsonl, write_text


class JSONLinesLogger(Logger):
    """One JSON object per logged step: what tables and curves are drawn from. A resumed run drops what it will repeat.

    `step` counts optimizer steps done: before the step of a training line, before the validation of a validation line.
    """

    def __init__(self, path: Path, resume_step: int | None) -> None:
        """resume_step: optimizer steps of the checkpoint that training goes on from; None: start anew."""
        super().__init__()
        self.path = path
        if get_rank() == 0:
            kept = [line for line in read_jsonl(path) if step_of(line) < resume_step] if resume_step is not None else []
            write_text(path, "".join(json.dumps(line) + "\n" for line in kept))

    @property
    def name(self) -> str:
        """No name: there is one file per run."""
        return ""

    @property
    def version(self) -> str:
        """No version: there is one file per run."""
        return ""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Appends a line, on the first rank."""
        if get_rank():
            return
        values = {name: value for name, value in metrics.items() if name != "epoch"}
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")

    @property
    def experiment(self) -> "JSONLinesLogger":
        """What has a `flush`, as Lightning calls it."""
        return self

    def flush(self) -> None:
        """Makes the lines durable."""
        if get_rank():
            return
        with self.path.open("a") as file:
            os.fsync(file.fileno())

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """The resolved config is in the run folder already."""


def step_of(line: dict[str, Any]) -> float:
    """The step of a logged line; NaN, which is before and after nothing, where it has none."""
    step = line.get("step")
    return step if isinstance(step, (int, float)) else math.nan
