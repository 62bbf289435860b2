"""What a frozen teacher says of held-out rows is kept to the bit, within bounds, and only where the batch is the same."""

from typing import Any

import pytest
import torch
from torch import Tensor

from distill_lit.losses.lm_head import LMHead
from distill_lit.losses.targets import DenseTarget, MixtureTarget
from distill_lit.teachers import EMATeacher, MixtureTeacher, OnlineTeacher
from distill_lit.training.target_cache import TargetCache, TeacherAnswer, is_frozen

HEAD = LMHead(torch.randn(7, 4), None, 1.0, 0.0, 7)


def batch_of(ids: list[int]) -> dict[str, Tensor]:
    return {"input_ids": torch.tensor([ids]), "step_tokens": torch.tensor(2)}


class Asked:
    """Counts how often it is asked; each answer is another one."""

    def __init__(self) -> None:
        self.answers: list[TeacherAnswer] = []

    def __call__(self) -> TeacherAnswer:
        states = torch.randn(5, 4, dtype=torch.bfloat16)
        mixed = MixtureTarget(
            ("a",), "arithmetic", torch.ones(5, 1), (DenseTarget(states, HEAD),), (torch.arange(5),), None
        )
        self.answers.append((mixed, {("hidden_states", 0): torch.randn(1, 5, 4)}))
        return self.answers[-1]


def test_a_batch_is_asked_once_and_answered_to_the_bit() -> None:
    cache, ask = TargetCache(), Asked()
    first, again, other = (cache.get(batch_of(ids), ask) for ids in ([1, 2, 3], [1, 2, 3], [1, 2, 4]))
    assert len(ask.answers) == 2
    assert again[0].targets[0].lm_head is HEAD
    for one, two in zip(first[0].targets[0][:1] + first[0].tokens, again[0].targets[0][:1] + again[0].tokens, strict=True):
        assert torch.equal(one, two)
    assert torch.equal(first[1]["hidden_states", 0], again[1]["hidden_states", 0])
    assert not torch.equal(first[1]["hidden_states", 0], other[1]["hidden_states", 0])


class Elsewhere(torch.Tensor):
    """A tensor that says it is on another device."""

    device = torch.device("cuda", 1)


def test_a_module_that_moves_to_another_device_asks_anew() -> None:
    """What was kept would come back to the old one."""
    cache, ask, batch = TargetCache(), Asked(), batch_of([1, 2, 3])
    cache.get(batch, ask)
    cache.get({name: value.as_subclass(Elsewhere) for name, value in batch.items()}, ask)
    assert len(ask.answers) == 2


@pytest.mark.parametrize(
    "change", [{"labels": torch.tensor([[1, 2, 3]])}, {"input_ids": torch.tensor([[1], [2], [3]])}, {"note": "other"}]
)
def test_whatever_differs_in_a_batch_is_another_batch(change: dict[str, Any]) -> None:
    cache, ask = TargetCache(), Asked()
    cache.get(batch_of([1, 2, 3]), ask)
    cache.get(batch_of([1, 2, 3]) | change, ask)
    assert len(ask.answers) == 2


def test_what_does_not_fit_is_asked_each_time() -> None:
    """An answer has 5 × 4 states of 2 bytes, 5 weights of 4, 5 numbers of 8 and 20 states of 4: 180 bytes."""
    cache, ask = TargetCache(max_bytes=2 * 180 - 1), Asked()
    for ids in ([1], [2], [1], [2]):
        cache.get(batch_of(ids), ask)
    assert len(ask.answers) == 3


def test_only_teachers_that_follow_the_student_change() -> None:
    model = torch.nn.Linear(2, 2)
    ema, online = EMATeacher.__new__(EMATeacher), OnlineTeacher.__new__(OnlineTeacher)
    ema.model, online.model, ema._long_averages = model, model, {}
    mixtures = [MixtureTeacher({"a": online, "b": one}, {"a": 0.5, "b": 0.5}) for one in (ema, online)]
    assert [is_frozen(teacher) for teacher in (online, ema, *mixtures)] == [True, False, False, True]
