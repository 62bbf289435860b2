"""Importance scores of width pruning: how much each channel, head and neuron is used on calibration text, and what norms
need when channels are gone."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from distill_lit.models.pruning.architecture import (
    ATTENTION_OUTPUTS,
    FFN_OUTPUTS,
    get_head_dim,
    residual_norms,
    submodules,
    subtracts_mean,
)
from distill_lit.models.pruning.calibration import with_valid_tokens
from distill_lit.models.pruning.depth import run_with_hooks
from distill_lit.utils.exceptions import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Importance:
    """hidden: (D,); heads: (layers, query heads); neurons: (layers, FFN width). Larger is used more."""

    hidden: Tensor
    heads: Tensor
    neurons: Tensor


class ActivationProbe(NamedTuple):
    """Where to look, at what goes in or comes out, and what to make of the tokens seen there: (N, D) → (N, …)."""

    module: nn.Module
    is_input: bool
    function: Callable[[Tensor], Tensor]


def measure_importance(model: PreTrainedModel, batches: Iterable[Mapping[str, Tensor]]) -> Importance:
    """Activation-based importance: means over valid tokens. Muralidharan et al. 2024 (Minitron), 2407.14679 §2.2.

    A hidden channel: |output| of every norm of the residual stream, summed over the norms. A head: the length of its
    output. A neuron: |activation| behind the non-linearity.
    """
    width = get_head_dim(model.config.get_text_config())
    norms = list(residual_norms(model).values())
    if not norms:
        raise UserError(f"width: the norms of {type(model).__name__} have no weights, by which a cut is made good")
    heads, neurons = submodules(model, ATTENTION_OUTPUTS), submodules(model, FFN_OUTPUTS)
    probes = [
        *(ActivationProbe(module, False, torch.abs) for module in norms),
        *(ActivationProbe(module, True, lambda x: x.unflatten(-1, (-1, width)).norm(dim=-1)) for module in heads),
        *(ActivationProbe(module, True, torch.abs) for module in neurons),
    ]
    means = token_means(model, batches, probes)
    rest = means[len(norms) :]
    return Importance(
        torch.stack(means[: len(norms)]).sum(0), torch.stack(rest[: len(heads)]), torch.stack(rest[len(heads) :])
    )


def norm_corrections(
    model: PreTrainedModel, batches: Iterable[Mapping[str, Tensor]], retained_channels: list[int]
) -> dict[str, tuple[float, float]]:
    """{name of a norm: (factor, shift)} that make a norm over the `retained_channels` channels alone say what it said
    before.

    A norm divides by the spread over all channels; over the kept ones the spread is another. The factor is the mean
    over valid tokens of spread(kept) / spread(all); the shift, for a LayerNorm, of (mean(kept) − mean(all)) / spread(all).
    A LayerNorm without a bias (Cohere) has no place for it.
    """
    norms = residual_norms(model)
    channels = torch.tensor(retained_channels, device=model.device)

    def compare_root_mean_squares(x: Tensor) -> Tensor:
        ratio = _root_mean_square(x[:, channels]) / _root_mean_square(x)
        return torch.stack([ratio, torch.zeros_like(ratio)], -1)

    def compare_deviations(x: Tensor) -> Tensor:
        part, spread = x[:, channels], x.std(-1, correction=0).clamp(min=1e-12)
        return torch.stack([part.std(-1, correction=0) / spread, (part.mean(-1) - x.mean(-1)) / spread], -1)

    means = token_means(
        model,
        batches,
        [
            ActivationProbe(norm, True, compare_deviations if subtracts_mean(norm) else compare_root_mean_squares)
            for norm in norms.values()
        ],
    )
    return {name: (float(factor), float(shift)) for name, (factor, shift) in zip(norms, means, strict=True)}


def _root_mean_square(x: Tensor) -> Tensor:
    return x.pow(2).mean(-1).sqrt().clamp(min=1e-12)


@torch.inference_mode()
def token_means(
    model: PreTrainedModel, batches: Iterable[Mapping[str, Tensor]], probes: list[ActivationProbe]
) -> list[Tensor]:
    """For each probe, the mean of its function over the valid tokens of all batches, in float64 on the CPU."""
    batches, sums = with_valid_tokens(batches), [torch.zeros((), dtype=torch.float64) for _ in probes]

    def add(number: int, valid: Tensor, before: Tensor, after: Tensor) -> None:
        probe = probes[number]
        values = before if probe.is_input else after
        sums[number] = sums[number] + probe.function(values[valid].float()).double().sum(0).cpu()

    count = run_with_hooks(model, batches, [(probe.module, functools.partial(add, i)) for i, probe in enumerate(probes)])
    return [total / count for total in sums]
