"""What torch.compile costs on this machine and what it saves, measured once and remembered.

Backbones of transformers are compiled by a process of its own, whose caches are new: what others have compiled here does
not count, and what they lock does not hold it up. A graph is compiled once for all runs, each of which finds it on disk;
looking it up takes time too. On a processor all is measured by the processor time of one thread, which other programs do
not change.
"""

import functools
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from distill_lit.utils import hardware
from distill_lit.utils.exceptions import UserError
from distill_lit.utils.files import cache_root, fingerprint, read_json, try_write_json

TIMEOUT_SECONDS = 900.0  # of the whole measurement
TRIAL_SECONDS = 180.0  # of compiling one line
LAYERS = (1, 3)  # of the backbones that are compiled
ROUNDS = 4  # of timing both, in alternation
BATCH, LENGTH = 2, 256  # of a processor; a GPU reads eight times as many tokens
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CompilationCost:
    """Seconds to compile the training graph of a backbone (first) and to find it on disk again (again), each without its
    layers and for one of them; and by what factor passes with and without a gradient are faster then."""

    first: float
    first_per_layer: float
    again: float
    again_per_layer: float
    training_speedup: float
    forward_speedup: float

    def seconds(self, layers: int, runs: int) -> float:
        """Of a backbone of so many layers in so many runs."""
        once = self.first + layers * self.first_per_layer
        return once + (runs - 1) * (self.again + layers * self.again_per_layer)


def compilation_cost(device: torch.device, dtype: str) -> CompilationCost:
    """Of this machine, for float32 or bfloat16. Raises UserError where it cannot compile."""
    machine = {**hardware.describe_hardware(), "threads": 1, "device": device.type, "dtype": dtype}
    path = cache_root() / "hardware" / f"compilation-{fingerprint(machine)}.json"
    if path.is_file():
        return CompilationCost(**read_json(path))
    cost = _measure_in_process(device.type, dtype)
    try_write_json(path, asdict(cost))
    return cost


def _measure_in_process(device: str, dtype: str) -> CompilationCost:
    with tempfile.TemporaryDirectory(prefix="distill-lit-compile-") as folder:
        places = {"TMPDIR": folder, "TORCHINDUCTOR_CACHE_DIR": folder, "TRITON_CACHE_DIR": folder}
        try:
            printed = _run_python("-m", __name__, device, dtype, seconds=TIMEOUT_SECONDS, **places)
        except UserError as error:
            raise UserError(f"torch.compile: {error}") from error
    return CompilationCost(**json.loads(printed.strip().splitlines()[-1]))


def compile_error(device: torch.device) -> str:
    """Why torch.compile fails on a device; empty where it works. A process of its own tries it, so that it may hang."""
    code = f"import torch; torch.compile(lambda x: x.sin() + 1)(torch.ones(9, device='{device.type}')).sum().item()"
    try:
        _run_python("-c", code, seconds=TRIAL_SECONDS)
    except UserError as error:
        return str(error)
    return ""


def _run_python(*words: str, seconds: float, **environment: str) -> str:
    """What it prints. Raises UserError with the last line that it leaves, or for one that takes longer."""
    command = [sys.executable, *words]
    variables = {**os.environ, **environment}
    try:
        done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        raise UserError(f"it took more than {seconds:.0f} s") from None
    if done.returncode:
        log.debug("%s", done.stderr)
        raise UserError((done.stderr.strip().splitlines() or ["it failed"])[-1][:200])
    return done.stdout


# ---------------------------------------------------------------- in the process


def measure(device: torch.device, dtype: str) -> CompilationCost:
    """Compiles and times; slow the first time that a machine does it."""
    torch.set_num_threads(1)
    clock = _processor_seconds if device.type == "cpu" else time.perf_counter
    first: list[float] = []
    again: list[float] = []
    for layers in LAYERS:
        plain, compiled = _Backbone(layers, device, dtype), _Backbone(layers, device, dtype)
        for times in (first, again):
            torch._dynamo.reset()
            compiled.model.compile()
            times.append(_timed(compiled.train, clock))
    compiled.read()
    speedups = [_speedup(getattr(plain, name), getattr(compiled, name), clock) for name in ("train", "read")]
    # the kernels of one layer are most of what all layers need: by the second backbone each is dear rather than cheap
    return CompilationCost(first[0], first[1] / LAYERS[1], again[0], again[1] / LAYERS[1], *speedups)


def _speedup(plain: Callable[[], None], compiled: Callable[[], None], clock: Callable[[], float]) -> float:
    pairs = [(_timed(plain, clock), _timed(compiled, clock)) for _ in range(ROUNDS)]
    return min(pair[0] for pair in pairs) / min(pair[1] for pair in pairs)


def _timed(call: Callable[[], None], clock: Callable[[], float]) -> float:
    began = clock()
    call()
    return clock() - began


def _processor_seconds() -> float:
    """Of this process and of the compilers that it has started."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


class _Backbone:
    """A small Llama without its lm_head, reading rows of two documents."""

    def __init__(self, layers: int, device: torch.device, dtype: str) -> None:
        from transformers import LlamaConfig, LlamaModel

        batch = BATCH if device.type == "cpu" else 8 * BATCH
        width, heads = (576, 9) if device.type == "cpu" else (2048, 32)
        config = LlamaConfig(
            vocab_size=1024, hidden_size=width, intermediate_size=width * 8 // 3, num_hidden_layers=layers,
            num_attention_heads=heads, num_key_value_heads=heads // 3 if heads % 3 == 0 else heads // 4,
        )  # fmt: skip
        self.model = LlamaModel(config).to(device).train()
        self.autocast = functools.partial(torch.autocast, device.type, torch.bfloat16, enabled=dtype == "bfloat16")
        half = torch.arange(LENGTH // 2).repeat(2)
        document = torch.arange(LENGTH) // (LENGTH // 2)
        mask = (document[:, None] == document) & torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
        self.inputs: dict[str, Any] = {
            "input_ids": torch.arange(batch * LENGTH).view(batch, LENGTH).remainder(1024).to(device),
            "position_ids": half.expand(batch, LENGTH).to(device),
            "attention_mask": mask.expand(batch, 1, LENGTH, LENGTH).to(device),
        }

    def _hidden(self) -> torch.Tensor:
        with self.autocast():
            hidden: torch.Tensor = self.model(**self.inputs, use_cache=False).last_hidden_state
        return hidden

    def train(self) -> None:
        """A forward and a backward pass."""
        self.model.zero_grad()
        loss = self._hidden().float().square().mean()
        loss.backward()
        loss.item()  # waits for the device

    @torch.inference_mode()
    def read(self) -> None:
        """A forward pass."""
        self._hidden()[0, 0, 0].item()


if __name__ == "__main__":
    print(json.dumps(asdict(measure(torch.device(sys.argv[1]), sys.argv[2]))), flush=True)
