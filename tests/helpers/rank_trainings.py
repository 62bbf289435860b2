"""Tiny trainings over several ranks that stop at given steps and go on under another strategy."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch

from distill_lit import data
from distill_lit.config import TrainingConfig
from distill_lit.config.data import CorpusConfig, DataConfig
from distill_lit.config.models import LoraConfig
from distill_lit.models.sharding import gather_model, meta_copy
from distill_lit.training.trainer import TrainingJob, train
from distill_lit.utils.distributed.node import Node
from distill_lit.utils.distributed.ranks import get_rank, is_sharded
from distill_lit.utils.distributed.spawn import spawn_ranks
from distill_lit.utils.exceptions import Preempted
from helpers import ROOT, distillation

EVERY_NODE = -1


class Leg(NamedTuple):
    """A part of a training. stop: the step at which `rank`, or who started the ranks of each node, gets SIGTERM; 0: it goes
    on to the end."""

    strategy: str
    checkpoint: str = "whole"
    stop: int = 0
    rank: int = 0
    teacher_shards: int = 0


class _Stop(L.Callback):
    """Sends SIGTERM to a process within a step."""

    def __init__(self, step: int, process: int) -> None:
        self.step, self.process = step, process

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step - 1 and self.process:
            os.kill(self.process, signal.SIGTERM)
            self.process = 0


def run_legs(
    folder: Path,
    teacher: Path,
    prepared: data.PreparedData,
    training: TrainingConfig,
    legs: list[Leg],
    _: Any = None,
    lora: LoraConfig | None = None,
) -> tuple[torch.Tensor, list[list[str]], bool]:
    """(the student's weights, the files of the checkpoints behind each leg, whether weights were ever in shards)."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # one that comes late is not for the next leg
    files, sharded = [], False
    for leg in legs:
        shapes: list[Any] = []

        def how(job: TrainingJob, leg: Leg = leg, shapes: list[Any] = shapes) -> dict[str, float]:
            shapes.append(meta_copy(job.distiller.student))
            if leg.stop and leg.rank in (get_rank(), EVERY_NODE):
                job.callbacks.append(_Stop(leg.stop, os.getppid() if leg.rank == EVERY_NODE else os.getpid()))
            try:
                return train(job)
            except Preempted:
                return {}

        chosen = {"strategy": leg.strategy, "checkpoint": leg.checkpoint, "teacher_shards": leg.teacher_shards}
        config = replace(training, **chosen)
        student, _metrics = distillation.run(folder, teacher, prepared, config, how=how, lora=lora)
        (layer, *_) = (value for name, value in student.named_parameters() if "q_proj" in name)
        sharded = sharded or (is_sharded(layer) and len(layer.to_local()) < len(layer))
        files.append(sorted(str(p.relative_to(folder / "checkpoints")) for p in (folder / "checkpoints").rglob("*")))
    if is_sharded(layer):
        student = gather_model(shapes[0], student)
    return distillation.weights(student) if student is not None else torch.zeros(0), files, sharded


def run_legs_of_adapters(
    folder: Path,
    teacher: Path,
    prepared: data.PreparedData,
    training: TrainingConfig,
    legs: list[Leg],
    lora: LoraConfig,
    _: Any = None,
) -> tuple[torch.Tensor, list[list[str]], bool]:
    """`run_legs` of a student with adapters."""
    return run_legs(folder, teacher, prepared, training, legs, lora=lora)


def run_several(
    folder: Path, teacher: Path, prepared: data.PreparedData, trainings: dict[str, TrainingConfig], _: Any = None
) -> dict[str, torch.Tensor]:
    """{name: the student's weights} of whole trainings, each in a folder of its name."""
    return {
        name: run_legs(folder / name, teacher, prepared, training, [Leg(training.strategy)])[0]
        for name, training in trainings.items()
    }


def prepare(teacher: Path, corpus: Path) -> data.PreparedData:
    """Rows of 32 tokens, four of them held out."""
    corpora = {"text": CorpusConfig(path=f"file:{corpus}")}
    return data.prepare_datasets(DataConfig(corpora=corpora, sequence_length=32, validation_sequences=4), teacher, "pypi")


def run_node(folder: str, teacher: str, corpus: str, devices: int, count: int, rank: int, port: int, legs: list) -> None:
    """`run_legs` on the ranks of one of several nodes; the first writes `folder`/weights.pt."""
    training = replace(distillation.TRAINING, micro_batch_size=2, devices=devices, nodes=count)
    node, rows = Node(rank, count, "127.0.0.1", port), prepare(Path(teacher), Path(corpus))
    parts = [Leg(*leg) for leg in legs]
    found = spawn_ranks(devices, run_legs, Path(folder), Path(teacher), rows, training, parts, node=node)
    if rank == 0:
        torch.save(found[0], Path(folder) / "weights.pt")


def start_node(*arguments: Any) -> subprocess.Popen[bytes]:
    """`run_node` in a process of its own, as on another machine."""
    code = "import json, sys\nfrom helpers import rank_trainings\nrank_trainings.run_node(*json.loads(sys.argv[1]))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])}
    return subprocess.Popen([sys.executable, "-c", code, json.dumps(arguments, default=str)], env=environment)


def logged(folder: Path) -> dict[int, dict[str, float]]:
    """{step: training and validation losses}."""
    found: dict[int, dict[str, float]] = {}
    for line in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()):
        losses = {name: value for name, value in line.items() if "loss" in name or name in ("train/tokens", "train/kl")}
        found.setdefault(line["step"], {}).update(losses)
    return found
