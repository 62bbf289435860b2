"""Means over tokens of losses and metrics, over micro-batches and ranks."""

import math
from typing import Any

import torch
from torchmetrics import MeanMetric

from distill_lit.losses import LossOutput, Objective


class TokenMeans:
    """Means per supervised token of what was collected since the last reset, over all ranks."""

    def __init__(self) -> None:
        self._terms: dict[str, MeanMetric] = {}
        self._metrics: dict[str, MeanMetric] = {}

    def update(self, objective: Objective, losses: LossOutput) -> None:
        """Adds the losses of a batch."""
        tokens = losses.num_tokens
        for name, total in zip(objective.term_names, losses.term_sums, strict=True):
            self._add(self._terms, name, total / max(tokens, 1), tokens)
        for name, (mean, count) in losses.metric_means().items():
            self._add(self._metrics, name, mean, count)

    def _add(self, metrics: dict[str, MeanMetric], name: str, mean: torch.Tensor, count: Any) -> None:
        if name not in metrics:
            with torch.inference_mode(False):  # or it could not be updated outside
                metric = MeanMetric().to(mean.device)
                metric.set_dtype(torch.float32)  # not the default format that Lightning sets for bf16-true
                metrics[name] = metric
        metrics[name].update(mean.detach(), weight=count)

    def compute(self, stage: str) -> dict[str, float]:
        """{stage/name: mean}; a metric gives way to a term of the same name, and is left out where it is of no token."""
        metrics = {f"{stage}/{name}": float(metric.compute()) for name, metric in self._metrics.items()}
        terms = {f"{stage}/{name}": float(metric.compute()) for name, metric in self._terms.items()}
        return {name: value for name, value in metrics.items() if not math.isnan(value)} | terms

    def reset(self) -> None:
        """Begins anew."""
        with torch.inference_mode(False):
            for metric in (*self._terms.values(), *self._metrics.values()):
                metric.reset()
