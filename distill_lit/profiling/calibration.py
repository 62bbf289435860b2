"""How fast this machine does what experiments do: forward passes, training passes, optimizer steps.

A small decoder of its own is timed, since a plain matrix product says little: in bfloat16 with AMX it is four times as
fast as a training pass, whose casts, norms and softmaxes it does not have. Everything is timed in turn, several times, and
the fastest counts, because other programs only ever make it slower. Where other programs are at work, the clock on the wall
says what they leave; one thread alone is timed by the processor time that it gets, which is its own, so that counts there
until a later plan finds the machine idle. A number format that a processor has no units for is a hundred times slower than
float32 and is timed on fewer tokens: otherwise it alone would take a minute.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill_lit.utils import hardware
from distill_lit.utils.files import cache_root, fingerprint, read_json, try_write_json

DTYPES = ("float32", "bfloat16")
MIN_ROUNDS, MAX_ROUNDS = 3, 6  # of timing everything in turn
AGREEMENT = 1.1  # a time that was reached twice within this is not an accident of the moment
BUSY_SHARE = 0.1  # of the time that this process has waited for a core, from which the machine is not idle
MAX_MEASUREMENTS = 5  # on a machine that is never idle
SLOW_FORMAT = 4.0  # times as slow as float32: nobody takes it, and a rough number will do
SLOW_FORMAT_SHARE = 8  # of the tokens that such a format is timed on
PARALLEL_SHARE = 0.85  # of as many times one thread's speed, which several threads reach together
Clock = Callable[[], float]  # seconds since some moment
Tasks = Mapping[str, tuple[float, Callable[[], None]]]  # {what: (work in a call, the call)}


@dataclass(frozen=True)
class ProbeShape:
    """The decoder that is timed."""

    width: int = 576  # of SmolLM2-135M, whose speed is that of small models
    intermediate: int = 1536
    heads: int = 9
    layers: int = 1
    vocabulary: int = 4096
    batch: int = 2
    length: int = 256


GPU_PROBE = ProbeShape(width=2048, intermediate=8192, heads=16, layers=2, vocabulary=32768, batch=4, length=1024)


@dataclass(frozen=True)
class Calibration:
    """forward, training: {dtype: floating-point operations per second} of whole passes, counted as
    `ModelSize.flops_per_token` does; optimizer: parameters per second that AdamW updates; is_quiet: whether nothing else
    ran; measurements: how often this machine has been measured, of which this is the best."""

    forward: Mapping[str, float]
    training: Mapping[str, float]
    optimizer: float
    is_quiet: bool
    measurements: int = 1

    @property
    def is_final(self) -> bool:
        """Whether measuring again would tell nothing new."""
        return self.is_quiet or self.measurements >= MAX_MEASUREMENTS

    def best_with(self, other: "Calibration") -> "Calibration":
        """Of two measurements of the same machine the one that nothing disturbed; of two that were disturbed the faster,
        speed by speed."""
        count = self.measurements + other.measurements
        if self.is_quiet or other.is_quiet:
            return replace(self if self.is_quiet else other, measurements=count)
        return Calibration(
            {name: max(speed, other.forward[name]) for name, speed in self.forward.items()},
            {name: max(speed, other.training[name]) for name, speed in self.training.items()},
            max(self.optimizer, other.optimizer),
            False,
            count,
        )


def calibrate(device: torch.device, threads: int) -> Calibration:
    """The speed of this machine with so many threads, measured once and remembered; again where it was busy."""
    machine = {**hardware.describe_hardware(), "threads": threads, "device": device.type}
    path = cache_root() / "hardware" / f"passes-{fingerprint(machine)}.json"
    known = Calibration(**read_json(path)) if path.is_file() else None
    if known is not None and (known.is_final or hardware.load_per_core() > hardware.BUSY_LOAD):
        return known
    tasks = SpeedProbe(device, GPU_PROBE if device.type == "cuda" else ProbeShape()).tasks()
    measured = measure_passes(tasks) if device.type == "cuda" else _calibrate_processor(tasks, threads)
    best = measured if known is None else known.best_with(measured)
    try_write_json(path, asdict(best))
    return best


def _calibrate_processor(tasks: Tasks, threads: int) -> Calibration:
    """One thread by its processor time; all of them by the clock on the wall, unless others are at work."""
    with _threads(1):
        alone = measure_passes(tasks, time.process_time)
    if not alone.is_quiet or threads == 1:
        return scaled_to_threads(alone, threads)
    with _threads(threads):
        together = measure_passes(tasks)
    return together if together.is_quiet else scaled_to_threads(alone, threads)


def scaled_to_threads(alone: Calibration, threads: int) -> Calibration:
    """What several threads reach, from the speed of one by its processor time."""
    factor = threads * PARALLEL_SHARE if threads > 1 else 1.0
    return Calibration(
        {name: factor * speed for name, speed in alone.forward.items()},
        {name: factor * speed for name, speed in alone.training.items()},
        factor * alone.optimizer,
        alone.is_quiet and threads == 1,
    )


def measure_passes(tasks: Tasks, clock: Clock = time.perf_counter, waited: Clock | None = None) -> Calibration:
    """Times all tasks in turn until the best of each is reached twice.

    Args:
        tasks: {`forward/float32`, `training/bfloat16`, …, `optimizer`: (work in a call, the call)}.
        clock: what calls are timed by.
        waited: seconds that this process has waited for a core; the system's.
    """
    waited = waited or seconds_waited
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for _, call in tasks.values():
        call()  # first calls allocate
    start, before = clock(), waited()
    for _ in range(MAX_ROUNDS):
        for name, (_, call) in tasks.items():
            began = clock()
            call()
            times[name].append(clock() - began)
        if all(map(_is_steady, times.values())):
            break
    speeds = {name: work / min(times[name]) for name, (work, _) in tasks.items()}
    kinds = {
        kind: {dtype: speeds[f"{kind}/{dtype}"] for dtype in DTYPES if f"{kind}/{dtype}" in speeds}
        for kind in ("forward", "training")
    }
    is_alone = waited() - before <= BUSY_SHARE * (clock() - start)
    is_quiet = is_alone and all(map(_is_steady, times.values()))
    return Calibration(kinds["forward"], kinds["training"], speeds["optimizer"], is_quiet)


def _is_steady(times: list[float]) -> bool:
    return len(times) >= MIN_ROUNDS and sorted(times)[1] <= AGREEMENT * min(times)


def seconds_waited() -> float:
    """Seconds that the threads of this process have been ready to run and had no core, all together; 0 where the system
    does not tell."""
    total = 0
    for path in Path("/proc/self/task").glob("*/schedstat"):
        try:
            total += int(path.read_text().split()[1])
        except (OSError, ValueError, IndexError):
            continue
    return total / 1e9


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# ---------------------------------------------------------------- what is timed


class SpeedProbe:
    """A decoder of a few layers as Llama's, with random weights, and what is done with it."""

    def __init__(self, device: torch.device, shape: ProbeShape) -> None:
        generator = torch.Generator().manual_seed(0)
        self.device, self.shape = device, shape
        self.model = _Decoder(shape).to(device)
        self.ids = torch.randint(0, shape.vocabulary, (shape.batch, shape.length), generator=generator).to(device)
        speeds = hardware.matmul_flops_per_second(device)
        few = shape.batch * shape.length // SLOW_FORMAT_SHARE
        self.inputs = {
            name: self.ids.flatten()[None, :few] if speeds[name] * SLOW_FORMAT < speeds["float32"] else self.ids
            for name in DTYPES
        }
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.0)
        self.copies = {name: _Decoder(shape).to(device, getattr(torch, name)).requires_grad_(False) for name in DTYPES}

    def flops(self, dtype: str) -> float:
        """Of a forward pass, as `ModelSize.flops_per_token` counts them: 2 per weight and token, the table aside."""
        weights = sum(weight.numel() for weight in self.model.parameters()) - self.model.table.weight.numel()
        return 2.0 * weights * self.inputs[dtype].numel()

    def tasks(self) -> Tasks:
        """What `measure_passes` times."""
        parameters = float(sum(weight.numel() for weight in self.model.parameters()))
        found: dict[str, tuple[float, Callable[[], None]]] = {}
        for name in DTYPES:
            found[f"forward/{name}"] = (self.flops(name), lambda name=name: self._forward(name))  # type: ignore[misc]
            found[f"training/{name}"] = (3 * self.flops(name), lambda name=name: self._train(name))  # type: ignore[misc]
        found["optimizer"] = (parameters, self._update)
        return found

    @torch.inference_mode()
    def _forward(self, dtype: str) -> None:
        self._wait(F.log_softmax(self.copies[dtype](self.inputs[dtype]).float(), -1).sum())

    def _train(self, dtype: str) -> None:
        self.optimizer.zero_grad()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
            logits = self.model(self.inputs[dtype])
        loss = F.cross_entropy(logits.float().flatten(0, 1), self.inputs[dtype].flatten())
        loss.backward()
        self._wait(loss)

    def _update(self) -> None:
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self._wait(self.model.head.weight[0, 0])

    @staticmethod
    def _wait(value: Tensor) -> None:
        value.item()  # reading a number waits for the device


class _Decoder(nn.Module):
    """Embedding, blocks, head; without positions, which cost next to nothing."""

    def __init__(self, shape: ProbeShape) -> None:
        super().__init__()
        self.table = nn.Embedding(shape.vocabulary, shape.width)
        self.blocks = nn.ModuleList([_Block(shape) for _ in range(shape.layers)])
        self.head = nn.Linear(shape.width, shape.vocabulary, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        states = self.table(ids)
        for block in self.blocks:
            states = block(states)
        logits: Tensor = self.head(states)
        return logits


class _Block(nn.Module):
    """Causal attention and a gated MLP, each after a norm."""

    def __init__(self, shape: ProbeShape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.norms = nn.ModuleList([nn.RMSNorm(shape.width) for _ in range(2)])
        self.qkv = nn.Linear(shape.width, 3 * shape.width, bias=False)
        self.out = nn.Linear(shape.width, shape.width, bias=False)
        self.gate_up = nn.Linear(shape.width, 2 * shape.intermediate, bias=False)
        self.down = nn.Linear(shape.intermediate, shape.width, bias=False)

    def forward(self, states: Tensor) -> Tensor:
        batch, length, width = states.shape
        qkv = self.qkv(self.norms[0](states)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2], is_causal=True)
        states = states + self.out(attended.transpose(1, 2).reshape(batch, length, width))
        gate, up = self.gate_up(self.norms[1](states)).chunk(2, -1)
        added: Tensor = self.down(F.silu(gate) * up)
        return states + added
