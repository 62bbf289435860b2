"""Estimates of the gradient of the reverse KL: over all draws their means are what they are said to estimate."""

import pytest
import torch
from torch import Tensor

from benchmarks import reverse_kl_gradients as benchmark
from distill_lit.losses.divergences import forward_kl, reverse_kl

GENERATOR = torch.Generator().manual_seed(3)
LOGITS, TEACHER = torch.randn(2, 1, 6, generator=GENERATOR).double()
LOG_P = TEACHER.log_softmax(-1)


def gradient(loss: Tensor, leaf: Tensor) -> Tensor:
    return torch.autograd.grad(loss.sum(), leaf, retain_graph=True)[0]


def mean_over_draws(monkeypatch: pytest.MonkeyPatch, name: str, count: int) -> Tensor:
    """The expected gradient (1, V): every tuple of `count` tokens by its probability."""
    leaf = LOGITS.clone().requires_grad_()
    log_q = leaf.log_softmax(-1)
    mean = torch.zeros_like(LOGITS)
    for drawn in torch.cartesian_prod(*[torch.arange(LOGITS.shape[-1])] * count).reshape(-1, count):
        monkeypatch.setattr(benchmark.torch, "multinomial", lambda *_, drawn=drawn, **__: drawn.unsqueeze(0))
        probability = log_q.detach()[0, drawn].sum().exp()
        mean += probability * gradient(benchmark.estimates(log_q, LOG_P, count)[name], leaf)
    return mean


def exact(divergence: object) -> Tensor:
    leaf = LOGITS.clone().requires_grad_()
    return gradient(divergence(leaf.log_softmax(-1), LOG_P), leaf)


@pytest.mark.parametrize(("name", "count"), [(benchmark.SCORE, 1), (benchmark.SCORE, 2), (benchmark.CENTERED, 3)])
def test_unbiased_ones_are_the_reverse_kl_on_average(monkeypatch: pytest.MonkeyPatch, name: str, count: int) -> None:
    torch.testing.assert_close(mean_over_draws(monkeypatch, name, count), exact(reverse_kl))


def test_k3_as_a_loss_is_the_forward_kl_and_k1_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.testing.assert_close(mean_over_draws(monkeypatch, benchmark.K3, 1), exact(forward_kl))
    torch.testing.assert_close(mean_over_draws(monkeypatch, benchmark.K1, 1), torch.zeros_like(LOGITS))


@pytest.mark.parametrize("name", [benchmark.STUDENT_BEST, benchmark.TEACHER_BEST])
def test_best_tokens_are_exact_where_they_are_nearly_all(name: str) -> None:
    leaf = LOGITS.clone().requires_grad_()
    loss = benchmark.estimates(leaf.log_softmax(-1), LOG_P, LOGITS.shape[-1] - 1)[name]
    torch.testing.assert_close(gradient(loss, leaf), exact(reverse_kl))
