"""Two processes: the gradient of the fused head under DDP and under FSDP2 is that of one process with all tokens."""

import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.distillation import VOCABULARY
from helpers.tiny_models import make_model
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from distill_lit.config import TermConfig
from distill_lit.losses import build_objective
from distill_lit.models import load_model
from distill_lit.teachers import OnlineTeacher
from distill_lit.training.distiller import Distiller
from distill_lit.training.loss import FusedLossSettings

TERMS = {"ce": TermConfig(weight=0.5), "kl": TermConfig(kind="forward_kl", temperature=2.0)}
RANKS = 2


class Step(nn.Module):
    """What DDP wraps: the loss of a batch from all of its parameters."""

    def __init__(self, distiller: Distiller) -> None:
        super().__init__()
        self.distiller = distiller

    def forward(self, batch: dict[str, Tensor], denominator: Tensor) -> Tensor:
        losses = self.distiller.loss(self.distiller.student, batch, denominator=denominator, compute_metrics=True)
        return losses.total * RANKS  # both strategies average over ranks, as `Distiller.training_step` knows


def new_distiller(folder: Path) -> Distiller:
    student, teacher = load_model(folder / "student").train(), load_model(folder / "teacher")
    settings = FusedLossSettings(7, False, torch.float32)
    return Distiller(student, OnlineTeacher(teacher, VOCABULARY), build_objective(TERMS), fused_loss_settings=settings)


def batches() -> list[dict[str, Tensor]]:
    """One batch per rank; the second has fewer supervised tokens."""
    torch.manual_seed(0)
    found = []
    for rank in range(RANKS):
        ids = torch.randint(3, VOCABULARY, (2, 12))
        labels = ids.clone()
        labels[:, : 1 + 6 * rank] = -100
        positions = torch.arange(12).expand(2, 12)
        found.append({"input_ids": ids, "labels": labels, "position_ids": positions, "document_ids": torch.ones_like(ids)})
    return found


def count(rows: list[dict[str, Tensor]]) -> Tensor:
    return torch.stack([(batch["labels"][:, 1:] != -100).sum() for batch in rows]).sum()


def gradients(student: Any) -> dict[str, Tensor]:
    """{parameter: its whole gradient}."""
    found = {}
    for name, parameter in student.named_parameters():
        gradient = parameter.grad
        found[name] = gradient.full_tensor() if isinstance(gradient, DTensor) else gradient
    return found


def work(rank: int, kind: str, folder: str, port: int) -> None:
    """One rank: a backward pass; the first saves its gradients."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=RANKS)
    distiller, rows = new_distiller(Path(folder)), batches()
    if kind == "ddp":
        wrapped = DistributedDataParallel(Step(distiller))
        total = wrapped(rows[rank], count(rows))
    else:
        mesh = dist.init_device_mesh("cpu", (RANKS,))
        for layer in distiller.student.model.layers:
            fully_shard(layer, mesh=mesh)
        wrapped = Step(distiller)
        fully_shard(wrapped, mesh=mesh)
        assert isinstance(distiller.student.get_output_embeddings().weight, DTensor)
        total = wrapped(rows[rank], count(rows))
    total.backward()
    found = gradients(distiller.student)
    if rank == 0:
        torch.save(found, Path(folder) / f"{kind}.pt")
    # gloo's thread needs the interpreter's lock to let go of the last reduction, and torch's destructor waits for that
    # thread with the lock held: without a pause the process stands still one time in four
    time.sleep(1)
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("ranks")
    make_model(place / "student", num_layers=1, seed=1)
    make_model(place / "teacher", num_layers=2, seed=2)
    return place


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_gradient_of_two_ranks_is_that_of_one(kind: str, folder: Path) -> None:
    distiller, rows = new_distiller(folder), batches()
    sum(distiller.loss(distiller.student, batch, denominator=count(rows)).total for batch in rows).backward()
    wanted = gradients(distiller.student)
    port = 29500 + os.getpid() % 2000 + (kind == "ddp")
    torch.multiprocessing.spawn(work, (kind, str(folder), port), nprocs=RANKS)
    found = torch.load(folder / f"{kind}.pt")
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6, msg=name)
