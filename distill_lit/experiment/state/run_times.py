"""What the stages of a run took, recorded in its folder as `times.json`: wall clock, processor time, peak memory.

A run that was stopped and goes on adds to what it had. Only work counts: a run that is done is not touched.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from distill_lit.profiling.memory import read_peak_memory, reset_peak_memory
from distill_lit.utils.files import read_mapping, write_json
from distill_lit.utils.progress import NO_METRICS, NOTE_STAGE, ProgressCallback

TIMES_FILE = "times.json"
START = "start"  # before the first stage says something
Clock = Callable[[], float]


class StageClock:
    """Passes progress on and keeps the time between reports. It belongs to the stage that reports, which has just done
    something; a report of nothing done yet begins a stage, and what came before belongs to the stage before."""

    def __init__(
        self, report: ProgressCallback, clock: Clock = time.perf_counter, processor_clock: Clock = time.process_time
    ) -> None:
        self.report, self.clock, self.processor_clock = report, clock, processor_clock
        self.seconds: dict[str, float] = {}
        self.cpu_seconds: dict[str, float] = {}  # of all threads of this process
        self._last, self._last_cpu = clock(), processor_clock()
        self._begun = START  # stage that has begun and reported nothing done yet
        self._stage = START

    def __call__(
        self, stage: str, done: float, total: float, unit: str = "", metrics: Mapping[str, float] = NO_METRICS, /
    ) -> None:
        """A report of a stage; a note is none."""
        if stage != NOTE_STAGE:
            self._add(self._begun or (self._stage if done <= 0 else stage))
            self._stage, self._begun = stage, stage if done <= 0 else ""
        self.report(stage, done, total, unit, metrics)

    def stop(self) -> None:
        """The end of the last stage."""
        self._add(self._stage)

    def _add(self, stage: str) -> None:
        now, cpu = self.clock(), self.processor_clock()
        for spent, since in ((self.seconds, now - self._last), (self.cpu_seconds, cpu - self._last_cpu)):
            spent[stage] = spent.get(stage, 0.0) + since
        self._last, self._last_cpu = now, cpu


@contextlib.contextmanager
def record_times(folder: Path, report: ProgressCallback, device: torch.device) -> Iterator[StageClock]:
    """Inside, stages are timed by the progress that is reported to what it yields; then their times are added to the
    folder's, however it ends."""
    clock = StageClock(report)
    reset_peak_memory(device)
    try:
        yield clock
    finally:
        clock.stop()
        with contextlib.suppress(OSError):  # the disk may be full, and the run has its own reason
            _add_times(folder / TIMES_FILE, clock, read_peak_memory(device))


def _add_times(path: Path, clock: StageClock, peak: int) -> None:
    before = read_times(path.parent)
    sums = {}
    for kind, spent in (("seconds", clock.seconds), ("cpu_seconds", clock.cpu_seconds)):
        known = before.get(kind, {})
        sums[kind] = {stage: round(known.get(stage, 0.0) + spent.get(stage, 0.0), 3) for stage in {**known, **spent}}
    write_json(
        path,
        {**sums, "peak_memory_bytes": max(peak, before.get("peak_memory_bytes", 0)), "threads": torch.get_num_threads()},
    )


def read_times(folder: Path) -> dict[str, Any]:
    """{seconds, cpu_seconds: {stage: seconds}, peak_memory_bytes, threads} of a run; empty where nothing is recorded, as of
    runs from before there were times."""
    return read_mapping(folder / TIMES_FILE)


def total_seconds(folder: Path) -> float | None:
    """Wall clock of all stages of a run; None where nothing is recorded."""
    seconds = read_times(folder).get("seconds")
    return sum(seconds.values()) if isinstance(seconds, dict) else None
