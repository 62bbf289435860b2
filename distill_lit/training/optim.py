"""Optimizer and learning-rate schedules: AdamW with decay on matrices only; linear warm-up, then a cosine, a line, a
constant, or a constant with a decay at the end (WSD).

Of N optimizer steps the first w = max(1, round(`warmup_fraction` · N)) warm up: step s = 0, 1, … is taken at (s + 1) / w of
the peak. That is transformers' warm-up, whose first step is taken at a rate of 0, a step earlier; after it, both agree.
"""

import logging
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from distill_lit.utils.exceptions import UserError

log = logging.getLogger(__name__)
MASTER, MOMENTS = 4, 8  # bytes per parameter that is trained: float32 weights, AdamW's two moments
CHECKPOINT_BYTES = MASTER + MOMENTS  # of a checkpoint, per parameter that is trained
OptimizerFactory = Callable[[list[torch.nn.Parameter]], Optimizer]
SchedulerFactory = Callable[[Optimizer, int], Any]  # (optimizer, optimizer steps of the training) → its schedule


def adamw(
    parameters: Iterable[torch.nn.Parameter],
    lr: float = 5e-4,
    weight_decay: float = 0.01,
    betas: tuple[float, float] = (0.9, 0.95),
    fused: bool = True,
) -> AdamW:
    """AdamW; norms and biases, which are no matrices, do not decay."""
    parameters = list(parameters)
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return AdamW(groups, lr=lr, betas=betas, fused=fused)


def allocate_moments(optimizer: Optimizer) -> None:
    """Has the moments of a fused AdamW that has taken no step allocated, as its first step would.

    That would put them between the freed activations of the first pass, and leave holes there that activations of the next
    one do not fit into: on a CPU a training of a small model then holds a quarter of its activations twice.
    """
    if type(optimizer) is not AdamW or optimizer.state:
        return
    for group in optimizer.param_groups:
        for parameter in group["params"] if group["fused"] and not group["amsgrad"] else ():
            optimizer.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
                "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
            }


def warmup_cosine(
    optimizer: Optimizer, total_steps: int, warmup_fraction: float = 0.1, min_lr_ratio: float = 0.1
) -> LambdaLR:
    """Warm-up, then r + (1 − r) · ½ (1 + cos(π · x)), x = (s − w) / (N − w), with r = `min_lr_ratio`: half a cosine from
    the peak to r of it (SGDR without restarts, Loshchilov and Hutter 2017, 1608.03983)."""

    def falling(step: int, warmup_steps: int) -> float:
        share = _share(step, warmup_steps, total_steps)
        return min_lr_ratio + (1 - min_lr_ratio) * 0.5 * (1 + math.cos(math.pi * share))

    return _warmup_then(falling, optimizer, total_steps, warmup_fraction)


def warmup_linear(
    optimizer: Optimizer, total_steps: int, warmup_fraction: float = 0.1, min_lr_ratio: float = 0.1
) -> LambdaLR:
    """Warm-up, then r + (1 − r) · (1 − x), x = (s − w) / (N − w), with r = `min_lr_ratio`: a line from the peak to r of
    it."""

    def falling(step: int, warmup_steps: int) -> float:
        return min_lr_ratio + (1 - min_lr_ratio) * (1 - _share(step, warmup_steps, total_steps))

    return _warmup_then(falling, optimizer, total_steps, warmup_fraction)


def warmup_constant(optimizer: Optimizer, total_steps: int, warmup_fraction: float = 0.1) -> LambdaLR:
    """Warm-up, then the peak to the end."""
    return _warmup_then(lambda step, warmup_steps: 1.0, optimizer, total_steps, warmup_fraction)


def warmup_stable_decay(
    optimizer: Optimizer,
    total_steps: int,
    warmup_fraction: float = 0.1,
    min_lr_ratio: float = 0.1,
    decay_fraction: float = 0.2,
) -> LambdaLR:
    """Warm-up, then the peak until the last d = max(1, round(`decay_fraction` · N)) steps, which follow a line from it to
    r = `min_lr_ratio` of it: r + (1 − r) · (1 − x), x = (s − (N − d)) / d (WSD: MiniCPM, 2404.06395; a linear decay as in
    Hägele et al. 2024, 2405.18392). No step of the warm-up decays."""
    decay_steps = max(1, round(decay_fraction * total_steps))

    def falling(step: int, warmup_steps: int) -> float:
        share = _share(step, max(warmup_steps, total_steps - decay_steps), total_steps)
        return min_lr_ratio + (1 - min_lr_ratio) * (1 - share)

    return _warmup_then(falling, optimizer, total_steps, warmup_fraction)


def _warmup_then(
    after: Callable[[int, int], float], optimizer: Optimizer, total_steps: int, warmup_fraction: float
) -> LambdaLR:
    """after: (step, steps of the warm-up) → the share of the peak at which a step after the warm-up is taken."""
    warmup_steps = max(1, round(warmup_fraction * total_steps))

    def multiplier(step: int) -> float:
        return (step + 1) / warmup_steps if step < warmup_steps else after(step, warmup_steps)

    return LambdaLR(optimizer, multiplier)


def _share(step: int, first: int, end: int) -> float:
    """How far a step is from `first` to `end`: 0 before it begins, 1 after it ends."""
    return min(1.0, max(0, step - first) / max(1, end - first))


def optimizer_and_schedule(
    parameters: list[torch.nn.Parameter],
    make_optimizer: OptimizerFactory,
    make_lr_scheduler: SchedulerFactory | None,
    total_steps: float,
) -> Any:
    """What `configure_optimizers` returns; the schedule is stepped after every optimizer step. Raises UserError for a
    schedule over steps without number."""
    optimizer = make_optimizer(parameters)
    if make_lr_scheduler is None:
        return optimizer
    check_steps_are_known("lr_scheduler", total_steps)
    schedule = make_lr_scheduler(optimizer, int(total_steps))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def check_steps_are_known(argument: str, total_steps: float) -> None:
    """Raises UserError, which names the argument with the schedule, for steps without number."""
    if total_steps == float("inf"):
        raise UserError(
            f"{argument}: a schedule needs the number of steps; give the Trainer max_steps, or max_epochs and a loader "
            "that has a length"
        )


def warn_of_rounding(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Logs a line where weights that are trained have 16 bits: of bfloat16's 8 significant ones, a step below 1/512 of a
    weight changes nothing."""
    short = [p for p in parameters if p.requires_grad and p.is_floating_point() and p.dtype.itemsize == 2]
    if short:
        log.warning(
            "student: %d weights to be trained are %s, which rounds small steps of the optimizer away; load it with "
            "dtype=torch.float32, and give the Trainer precision='bf16-mixed' for speed",
            sum(p.numel() for p in short),
            str(short[0].dtype).removeprefix("torch."),
        )
