"""What each of several workers on this machine gets: GPUs of its own, and its share of the CPU threads."""

import os
from collections.abc import Sequence
from typing import Any

import torch

from distill_lit.config import LauncherConfig
from distill_lit.experiment.planning.planned_run import Run
from distill_lit.utils.exceptions import UserError


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return [str(number) for number in range(count)] if named is None else [n.strip() for n in named.split(",")][:count]


def num_devices(run: Run) -> int:
    """GPUs that a run takes, where there are any."""
    training = run.config.training
    return 0 if training.accelerator == "cpu" else training.devices if run.may_take_all_ranks else 1


def share_gpus(launcher: LauncherConfig, runs: Sequence[Run], gpus: list[str]) -> list[list[str]] | None:
    """The GPUs of each of the workers that do these runs, any of which may get any run: no two have one in common, unless
    `launcher.workers_per_gpu` says so. None where workers see what this process sees: there is one, or no GPU is used.

    Raises UserError where there are too few.
    """
    workers = min(launcher.workers, len(runs))
    if workers <= 1 or not gpus or not (most := max(map(num_devices, runs))):
        return None
    each, sharing = launcher.gpus_per_run or most, launcher.workers_per_gpu
    if each < most:
        raise UserError(f"launcher.gpus_per_run: {each}, and a run takes {most} (training.devices); set it to 0")
    groups = len(gpus) // each
    if workers > groups * sharing:
        needed = -(-workers // sharing) * each
        remedy = f"set launcher.workers={max(1, groups * sharing)}"
        if groups:
            remedy += f", or launcher.workers_per_gpu={-(-workers // groups)} to let workers share one"
        raise UserError(
            f"launcher.workers: {workers} workers with {each} GPUs each need {needed}, and there are {len(gpus)}; {remedy}"
        )
    return [gpus[each * (number % groups) : each * (number % groups + 1)] for number in range(workers)]


def worker_environment(gpus: list[str] | None, threads: int) -> dict[str, Any]:
    """The environment of a worker with these GPUs."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    environment["PYTHONIOENCODING"] = "utf-8:backslashreplace"  # whatever the terminal can show
    if gpus is not None:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    return environment


def limit_gpu_memory(share: int) -> None:
    """Leaves this process one of `share` equal parts of the memory of each GPU that it sees."""
    for number in range(torch.cuda.device_count() if share > 1 else 0):
        torch.cuda.set_per_process_memory_fraction(1 / share, number)
