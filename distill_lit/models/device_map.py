"""A model that is larger than a device, its layers spread over all devices of this machine, then its memory, then its disk.

For reading alone. Embeddings, final norm and lm_head stay on the first device, where the fused head reads them; of the
layers each is moved there by accelerate while it is read, if it lies in main memory or on disk. Slow, but it fits.
"""

from pathlib import Path
from typing import Any

import torch

from distill_lit.models.loading import build_on_meta, load_model, load_model_config
from distill_lit.models.sharding import decoder_layers
from distill_lit.utils import hardware

USABLE_SHARE = 0.8  # of what is free on a device, the rest is for activations and logits
DISK = "disk"
Capacities = list[tuple[str, float]]  # (device, bytes that layers may take), in the order they are filled


def capacities_here(ends_bytes: int = 0) -> Capacities:
    """What layers may take of this machine. ends_bytes: what is on the first device beside them."""
    devices = [torch.device("cuda", number) for number in range(hardware.num_gpus())] + [torch.device("cpu")]
    found = [(str(device), hardware.free_memory(device) * USABLE_SHARE) for device in devices]
    return [(found[0][0], found[0][1] - ends_bytes), *found[1:]]


def spread_layers(folder: Path, dtype: torch.dtype, capacities: Capacities | None = None) -> dict[str, str]:
    """{part of the model in a folder: device}, from its config alone: layers in their order, each where there is room left,
    everything else on the first device."""
    model = build_on_meta(load_model_config(folder), dtype=dtype)
    layers = list(decoder_layers(model))
    inside = {id(parameter) for layer in layers for parameter in layer.parameters()}
    ends = sum(p.numel() * p.element_size() for p in model.parameters() if id(p) not in inside)
    left = [*(capacities_here(ends) if capacities is None else capacities), (DISK, float("inf"))]
    first, found = left[0][0], {}
    names = {id(module): name for name, module in model.named_modules()}
    for layer in layers:
        size = sum(tensor.numel() * tensor.element_size() for tensor in (*layer.parameters(), *layer.buffers()))
        while left[0][1] < size:
            del left[0]
        left[0] = (left[0][0], left[0][1] - size)
        found[names[id(layer)]] = left[0][0]
    for name, module in model.named_modules():
        own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        if own and not any(name == layer or name.startswith(f"{layer}.") for layer in found):
            found[name] = first
    return found


def load_over_devices(folder: Path, dtype: torch.dtype, capacities: Capacities | None = None) -> Any:
    """The model in a folder, in evaluation mode, spread by `spread_layers`. It stays where it is: no `.to`."""
    return load_model(folder, dtype, device_map=spread_layers(folder, dtype, capacities))
