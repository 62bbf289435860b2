"""What this machine does best, measured once and remembered."""

import os
import platform
import time
from pathlib import Path
from typing import Any, Literal

import torch

from distill_lit.utils.exceptions import UserError
from distill_lit.utils.files import cache_root, fingerprint, read_json, try_write_json

MEMINFO, CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")
BUSY_LOAD = 0.5  # programs for each core, from which timings are not to be trusted
MATMUL_BENCHMARK_SHAPE = (1024, 576, 4096)  # tokens, width, output columns of the product that is timed
MATMUL_BENCHMARK_REPEATS = 8


def describe_hardware() -> dict[str, Any]:
    """Processor, cores, threads, GPU, versions: what a timing depends on."""
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else ""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def main_memory() -> tuple[int, int]:
    """(bytes of memory, bytes of it that are free to use), within the limit of a container; (0, 0) where the system does
    not tell."""
    try:
        lines = MEMINFO.read_text().splitlines()
    except OSError:
        return 0, 0
    found = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if len(line.split()) > 1}
    total, free = found.get("MemTotal", 0), found.get("MemAvailable", found.get("MemFree", 0))
    try:
        limit, used = int((CGROUP / "memory.max").read_text()), int((CGROUP / "memory.current").read_text())
    except (OSError, ValueError):  # none, or `max`
        return total, free
    return min(total, limit), min(free, max(0, limit - used))


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a device; 0 where the system does not tell."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else main_memory()[1]


def num_gpus() -> int:
    """GPUs that this process sees."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def device_memory(device: torch.device, ranks: int = 1) -> int:
    """Bytes of memory of a device; of a CPU what each of `ranks` processes has. 0 where the system does not tell."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return main_memory()[0] // ranks


def load_per_core() -> float:
    """Programs that run or wait now, for each core, over the last minute; 0 where the system does not tell."""
    return os.getloadavg()[0] / (os.cpu_count() or 1) if hasattr(os, "getloadavg") else 0.0


def device_for(accelerator: str, key: str = "training.accelerator") -> torch.device:
    """The device for auto, cpu or cuda. Raises UserError when CUDA is asked for, by what is called `key`, and not there."""
    if accelerator == "cuda" and not torch.cuda.is_available():
        raise UserError(f"{key}: cuda was asked for and there is none; use cpu or auto")
    return torch.device("cuda" if accelerator != "cpu" and torch.cuda.is_available() else "cpu")


def check_device(key: str, name: str) -> None:
    """Raises UserError when there is no such device as `name`, such as cuda:1, here; key: the field that names it."""
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"{key}: {name!r} is no device; give cpu, cuda or cuda:1") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"{key}: {name!r}; give cpu, cuda or cuda:1")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"{key}: {name} was asked for, and there are {torch.cuda.device_count()} GPUs here")


def logits_budget(device: torch.device, in_kernel: bool = False) -> float:
    """MiB that logits may fill: 512; of a GPU a tenth, where few large chunks are faster than many (kd_step_cuda.md), and
    at most 1024 in the Triton kernel, which holds a tenth of what eager code does of a token."""
    if device.type != "cuda":
        return 512.0
    tenth = torch.cuda.get_device_properties(device).total_memory / 2**20 / 10
    return min(tenth, 1024.0) if in_kernel else tenth


def fastest_dtype(device: torch.device) -> Literal["float32", "bfloat16"]:
    """`bfloat16` where its matrix products are at least 1.3 times as fast as float32's, else `float32`."""
    speed = matmul_flops_per_second(device)
    return "bfloat16" if speed["bfloat16"] > 1.3 * speed["float32"] else "float32"


def matmul_flops_per_second(device: torch.device) -> dict[str, float]:
    """{dtype: floating-point operations per second} of a matrix product of the size a small model needs."""
    path = _measurement_cache_path(device)
    if path.is_file():
        known: dict[str, float] = read_json(path)
        return known
    measured = {name: _measure(device, getattr(torch, name)) for name in ("float32", "bfloat16")}
    try_write_json(path, measured)
    return measured


def _measurement_cache_path(device: torch.device) -> Path:
    return cache_root() / "hardware" / f"{fingerprint({**describe_hardware(), 'device': device.type})}.json"


def _measure(device: torch.device, dtype: torch.dtype) -> float:
    rows, width, columns = MATMUL_BENCHMARK_SHAPE
    left, right = (
        torch.randn(rows, width, device=device, dtype=dtype),
        torch.randn(columns, width, device=device, dtype=dtype),
    )
    best = float("inf")
    for _ in range(MATMUL_BENCHMARK_REPEATS):
        start = time.perf_counter()
        float((left @ right.t())[0, 0])  # reading a number waits for the device
        best = min(best, time.perf_counter() - start)
    return 2 * rows * width * columns / best


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    except OSError:
        return platform.processor()
