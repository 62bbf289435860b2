"""Caches of their own for tests, which have what takes long to build and is the same for all."""

import functools
import os
import shutil
from pathlib import Path

import torch

from distill_lit.evaluation.task_index import built_in_index, built_in_index_path
from distill_lit.profiling import calibration
from distill_lit.utils import hardware
from distill_lit.utils.files import cache_root, read_json, write_json


def new_cache(folder: Path) -> Path:
    """A cache with nothing but lm-eval's list of tasks, which takes ten seconds to build, and this machine's speed."""
    built_in_index()
    (folder / "lm_eval").mkdir(parents=True)
    shutil.copy(built_in_index_path(), folder / "lm_eval")
    _measure_machine()
    shutil.copytree(cache_root() / "hardware", folder / "hardware", dirs_exist_ok=True)
    for path in (folder / "hardware").glob("passes-*.json"):  # a busy machine is not measured again
        write_json(path, {**read_json(path), "measurements": calibration.MAX_MEASUREMENTS})
    return folder


@functools.cache
def _measure_machine() -> None:
    device = torch.device("cpu")
    hardware.matmul_flops_per_second(device)
    for threads in {1, os.cpu_count() or 1}:
        calibration.calibrate(device, threads)
