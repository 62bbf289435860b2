"""What has been submitted, in `runs/NAME/slurm`: for each array a tag, which its jobs bear as their name.

An id says nothing: a controller that dies may lose a job and give its id to another.
"""

import json
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from distill_lit.experiment.launcher.slurm.arrays import Task
from distill_lit.experiment.planning.planned_run import from_task, to_task
from distill_lit.utils.files import read_json, write_text

RECORDS_FOLDER = "slurm"


class RunPart(NamedTuple):
    """The name of a run and which part of it a task does."""

    run: str
    part: str


def records_folder(folder: Path) -> Path:
    """Where the records of an experiment with runs in `folder` are."""
    return folder / RECORDS_FOLDER


def write_record(folder: Path, tasks: Sequence[Task]) -> str:
    """Keeps the tasks of an array before it is submitted; its tag."""
    tag = secrets.token_hex(5)
    place = records_folder(folder)
    lines = [json.dumps({"part": part, **to_task(run)}, default=str) for run, part in tasks]
    write_text(place / f"{tag}.jsonl", "\n".join(lines) + "\n")
    write_text(place / f"{tag}.json", json.dumps([[task.run.name, task.part] for task in tasks]))
    return tag


def read_submitted_arrays(folder: Path) -> dict[str, list[RunPart]]:
    """{tag: its tasks} of all arrays, the oldest first."""
    found = {}
    paths = records_folder(folder).glob("*.json")
    for path in sorted(paths, key=lambda path: path.stat().st_mtime_ns):
        try:
            found[path.stem] = [RunPart(*entry) for entry in read_json(path)]
        except (OSError, ValueError, TypeError):
            continue
    return found


def read_task(folder: Path, tag: str, index: int) -> Task:
    """One task of an array."""
    with (records_folder(folder) / f"{tag}.jsonl").open(encoding="utf-8") as lines:
        text = next(line for number, line in enumerate(lines) if number == index)
    entry: dict[str, Any] = json.loads(text)
    return Task(from_task(entry), entry["part"])
