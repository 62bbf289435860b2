"""Tiny trainings over several ranks that stop at given steps and go on under another strategy."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch

from distill_lit import data
from distill_lit.config import TrainingConfig
from distill_lit.models.sharding import gather_model, meta_copy
from distill_lit.training.trainer import TrainingJob, train
from distill_lit.utils.distributed.ranks import get_rank, is_sharded
from distill_lit.utils.exceptions import Preempted
from helpers import distillation


class Leg(NamedTuple):
    """A part of a training. stop: the step at which `rank` is asked to stop; 0: it goes on to the end."""

    strategy: str
    checkpoint: str = "whole"
    stop: int = 0
    rank: int = 0


class _Stop(L.Callback):
    """Sends this process SIGTERM within a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        import os
        import signal

        if trainer.global_step == self.step - 1:
            os.kill(os.getpid(), signal.SIGTERM)


def run_legs(
    folder: Path, teacher: Path, prepared: data.PreparedData, training: TrainingConfig, legs: list[Leg], _: Any = None
) -> tuple[torch.Tensor, list[list[str]], bool]:
    """(the student's weights, the files of the checkpoints behind each leg, whether weights were ever in shards)."""
    files, sharded = [], False
    for leg in legs:
        shapes: list[Any] = []

        def how(job: TrainingJob, leg: Leg = leg, shapes: list[Any] = shapes) -> dict[str, float]:
            shapes.append(meta_copy(job.distiller.student))
            if leg.stop and get_rank() == leg.rank:
                job.callbacks.append(_Stop(leg.stop))
            try:
                return train(job)
            except Preempted:
                return {}

        config = replace(training, strategy=leg.strategy, checkpoint=leg.checkpoint, keep_checkpoints=False)
        student, _metrics = distillation.run(folder, teacher, prepared, config, how=how)
        layer = student.model.layers[0].self_attn.q_proj.weight
        sharded = sharded or (is_sharded(layer) and len(layer.to_local()) < len(layer))
        files.append(sorted(str(p.relative_to(folder / "checkpoints")) for p in (folder / "checkpoints").rglob("*")))
    if is_sharded(layer):
        student = gather_model(shapes[0], student)
    return distillation.weights(student) if student is not None else torch.zeros(0), files, sharded


def logged(folder: Path) -> dict[int, dict[str, float]]:
    """{step: training and validation losses}."""
    found: dict[int, dict[str, float]] = {}
    for line in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()):
        losses = {name: value for name, value in line.items() if "loss" in name or name in ("train/tokens", "train/kl")}
        found.setdefault(line["step"], {}).update(losses)
    return found
