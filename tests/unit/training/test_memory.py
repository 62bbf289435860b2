"""What a training keeps in memory: moments from the first step on, no gradients between steps, the head of a teacher."""

from typing import Any

import lightning as L
import torch
from torch import nn
from torch.utils.data import DataLoader

from distill_lit import Distiller, losses
from distill_lit.losses.lm_head import get_lm_head
from distill_lit.models import load_model
from distill_lit.training.optim import adamw, allocate_moments


def three_steps(is_allocated: bool) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 1))
    optimizer = adamw(model.parameters(), lr=0.1)
    if is_allocated:
        allocate_moments(optimizer)
        assert all(not state["exp_avg"].any() for state in optimizer.state.values())
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(4, 5)).square().sum().backward()
        optimizer.step()
        allocate_moments(optimizer)  # nothing, after a step
    return model, optimizer


def test_moments_that_are_allocated_beforehand_change_no_bit() -> None:
    (one, first), (other, second) = three_steps(False), three_steps(True)
    assert torch.equal(nn.utils.parameters_to_vector(one.parameters()), nn.utils.parameters_to_vector(other.parameters()))
    torch.testing.assert_close(first.state_dict(), second.state_dict(), rtol=0, atol=0)


def test_an_optimizer_that_is_not_fused_is_left_alone() -> None:
    optimizer = adamw(nn.Linear(2, 2).parameters(), fused=False)
    allocate_moments(optimizer)
    assert not optimizer.state


class Watch(L.Callback):
    """How many parameters have a gradient, and a moment, after each micro-batch and at the start."""

    def __init__(self) -> None:
        self.gradients: list[int] = []
        self.moments: list[int] = []

    def on_train_batch_start(self, trainer: L.Trainer, module: Any, *_: Any) -> None:
        self.moments.append(len(trainer.optimizers[0].state))

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, *_: Any) -> None:
        self.gradients.append(sum(parameter.grad is not None for parameter in module.parameters()))


def test_gradients_are_freed_by_the_step_and_moments_are_there_before_it(tiny_teacher: Any) -> None:
    student = load_model(tiny_teacher)
    ids = torch.arange(16).view(2, 8)
    loader = DataLoader([{"input_ids": ids, "labels": ids}] * 4, batch_size=None)
    watch, count = Watch(), len(list(student.parameters()))
    trainer = L.Trainer(
        max_steps=2, accumulate_grad_batches=2, callbacks=[watch], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, accelerator="cpu",
    )  # fmt: skip
    trainer.fit(Distiller(student, loss=1.0 * losses.CrossEntropy()), loader)
    assert watch.gradients == [count, 0, count, 0]
    assert watch.moments == [count] * 4


def test_a_copied_head_is_the_same_and_holds_nothing_of_the_model(tiny_teacher: Any) -> None:
    head = get_lm_head(load_model(tiny_teacher), 290)
    copied = head.copy()
    assert torch.equal(copied.weight, head.weight)
    assert copied.weight.untyped_storage().data_ptr() != head.weight.untyped_storage().data_ptr()
    assert copied._replace(weight=head.weight) == head
