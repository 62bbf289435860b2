"""The peak memory of this process since a moment, in bytes: resident pages on CPUs, allocations on a GPU."""

import contextlib
import ctypes
import gc
import resource
import sys
from pathlib import Path

import torch

PROC_STATUS, PROC_CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def reset_peak_memory(device: torch.device) -> int:
    """Forgets the peak so far; returns the bytes in use now."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # glibc: what was freed would otherwise be used again unseen
    with contextlib.suppress(OSError):
        PROC_CLEAR_REFS.write_text("5")  # Linux: sets the peak to what is resident now
    return _read_proc_status("VmRSS") or read_peak_memory(device)


def read_peak_memory(device: torch.device) -> int:
    """The most bytes in use since `reset_peak_memory` (where the system cannot forget: since the process began)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return _read_proc_status("VmHWM") or most * (1 if sys.platform == "darwin" else 1024)


def _read_proc_status(name: str) -> int:
    """A line of /proc/self/status in bytes; 0 where there is none."""
    try:
        lines = PROC_STATUS.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), 0)
