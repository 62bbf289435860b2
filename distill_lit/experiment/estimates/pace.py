"""How long work takes on this machine when nothing else runs: its measured speeds, and what every run costs beside them.

`benchmarks/plan_error.py` compares with the times that runs have recorded.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from distill_lit.config import ExperimentConfig
from distill_lit.experiment.planning.planned_run import Run
from distill_lit.profiling.calibration import Calibration, calibrate
from distill_lit.utils import hardware
from distill_lit.utils.cores import usable_cores

DECODING_SHARE = 0.2  # of the speed of a forward pass: one token at a time, 16 sequences beside each other
# seconds that are the same on most machines; benchmarks/plan_error.md has what was recorded
WORKER_SECONDS = 20.0  # to import torch, transformers and lm-eval, once for each worker
START_SECONDS = 1.5  # of a run: read packed text, load the models
BUILD_SECONDS = 10.0  # of a student: make it, write and read it to see that it can be exported
EXPORT_SECONDS = 5.0  # of a student: write it, read it in another process, compare
TASK_SECONDS = 1.0  # of a task: read its documents, compare packed with plain scoring


@dataclass(frozen=True)
class Pace:
    """Seconds of arithmetic in a worker of an experiment. devices: GPUs that share a training."""

    calibration: Calibration
    devices: int = 1

    @classmethod
    def of(cls, runs: Sequence[Run]) -> "Pace":
        """Of the workers that do these runs, with the threads that each of them has."""
        config = runs[0].config
        device = planning_device(config)
        threads = threads_per_worker(config.launcher.threads_per_worker, num_workers(runs))
        return cls(calibrate(device, threads), config.training.ranks if device.type == "cuda" else 1)

    def forward(self, flops: float, dtype: str) -> float:
        """Seconds of forward passes."""
        return flops / _speed(self.calibration.forward, dtype)

    def training(self, flops: float, precision: str) -> float:
        """Seconds of forward and backward passes."""
        return flops / _speed(self.calibration.training, precision) / self.devices

    def optimizer(self, parameters: float) -> float:
        """Seconds of optimizer steps; `parameters`: of all steps together."""
        return parameters / self.calibration.optimizer

    def decoding(self, flops: float, dtype: str) -> float:
        """Seconds of text that is written token by token."""
        return flops / (_speed(self.calibration.forward, dtype) * DECODING_SHARE)


def _speed(speeds: Mapping[str, float], dtype: str) -> float:
    return speeds.get(dtype, speeds["float32"])


def planning_device(config: ExperimentConfig) -> torch.device:
    """The device whose speed and memory a plan is made with: where a cluster does the work, the best of this machine."""
    return hardware.device_for("auto" if config.launcher.engine == "slurm" else config.training.accelerator)


def num_workers(runs: Sequence[Run]) -> int:
    """Workers that an experiment keeps at work."""
    return min(runs[0].config.launcher.workers, len(runs))


def threads_per_worker(configured: int, workers: int) -> int:
    """Threads of each worker; 0: all cores, shared out."""
    return configured or max(1, usable_cores() // workers)


def makespan(runs: Sequence[Run], minutes: Callable[[Run], float], workers: int) -> float:
    """Minutes until all runs are done: each is begun, in order, as soon as a worker is free and what it needs is done."""
    names, ends = {run.name for run in runs}, dict.fromkeys((run.name for run in runs), math.inf)
    free, waiting = [0.0] * max(workers, 1), list(runs)
    while waiting:
        now = min(free)
        needs = {run.name: max((ends[name] for name in run.depends_on if name in names), default=0.0) for run in waiting}
        ready = next((run for run in waiting if needs[run.name] <= now), None)
        if ready is None:  # this worker waits for the next one that ends something
            free[free.index(now)] = min(needs.values())
            continue
        waiting.remove(ready)
        ends[ready.name] = free[free.index(now)] = now + minutes(ready)
    return max(ends.values(), default=0.0)
