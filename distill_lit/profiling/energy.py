"""Joules that the machine has used, where it tells: RAPL for processors, NVML for GPUs."""

from collections.abc import Callable
from pathlib import Path

import torch

POWERCAP = Path("/sys/class/powercap")
EnergyMeter = Callable[[], float]  # joules since some moment; a later reading is never smaller


def open_energy_meter(device: torch.device) -> EnergyMeter | None:
    """A counter of what the device uses, or None where the machine does not tell (or only to root)."""
    return _gpu_meter(device) if device.type == "cuda" else _processor_meter(POWERCAP)


def _processor_meter(root: Path) -> EnergyMeter | None:
    """All processor packages; domains below a package, such as its cores, are part of it."""
    packages = [folder for folder in sorted(root.glob("intel-rapl:*")) if folder.name.count(":") == 1]
    try:
        spans = [int((folder / "max_energy_range_uj").read_text()) for folder in packages]
        last = [int((folder / "energy_uj").read_text()) for folder in packages]
    except (OSError, ValueError):
        return None
    if not packages:
        return None
    total = 0

    def read() -> float:
        nonlocal total
        for n, folder in enumerate(packages):
            now = int((folder / "energy_uj").read_text())
            total += (now - last[n]) % (spans[n] + 1)  # the counter starts again at its end
            last[n] = now
        return total / 1e6

    return read


def _gpu_meter(device: torch.device) -> EnergyMeter | None:
    try:
        import pynvml

        pynvml.nvmlInit()
        # by its own name: CUDA_VISIBLE_DEVICES numbers the cards anew
        card = torch.cuda.get_device_properties(device).uuid
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{card}")
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except Exception:  # not installed, or a card that does not count
        return None
    return lambda: float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1e3
