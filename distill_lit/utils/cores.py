"""The cores of this machine that are ours."""

import os


def usable_cores() -> int:
    """Cores that this process may use: an allocation, or `taskset`, leaves it some of the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
