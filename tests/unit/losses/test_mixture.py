"""Mixtures of teachers in the fused head, against plain torch on whole logits."""

import numpy as np
import pytest
import torch
from torch import Tensor

from distill_lit.config import TermConfig
from distill_lit.losses import build_objective, fused_linear_loss
from distill_lit.losses.lm_head import LMHead
from distill_lit.losses.mixture import mix_logits
from distill_lit.losses.targets import DenseTarget, MixtureTarget

N, V = 23, 17
WIDTHS = (6, 9, 4)  # of three teachers
MIXED = torch.tensor([[0.2, 0.5, 0.3]], dtype=torch.float64)
# the first token to all, then each to one, then two at a time
ROUTED = torch.tensor([[0.2, 0.5, 0.3], [1, 0, 0], [0, 1, 0], [0, 0, 1], [0.4, 0.6, 0], [0, 0.9, 0.1]], dtype=torch.float64)


def teachers(dtype: torch.dtype = torch.float64) -> list[tuple[Tensor, LMHead]]:
    """(hidden states (N, D), head) of each; the second has a scale, the third a cap."""
    draw = torch.Generator().manual_seed(0)
    found = []
    for width, scale, softcap in zip(WIDTHS, (1.0, 0.5, 1.0), (0.0, 0.0, 4.0), strict=True):
        weight = torch.randn(V + 2, width, generator=draw, dtype=dtype)
        found.append((torch.randn(N, width, generator=draw, dtype=dtype), LMHead(weight, None, scale, softcap, V)))
    return found


def mixture_target(kind: str, weights: Tensor) -> MixtureTarget:
    """As `MixtureTeacher` makes it: of each teacher the tokens where it has a weight."""
    tokens = [row.nonzero()[:, 0] for row in (weights > 0).T]
    targets = [
        DenseTarget(hidden[at], head) if len(at) else None for (hidden, head), at in zip(teachers(), tokens, strict=True)
    ]
    counts = np.concatenate([np.zeros((3, 1), int), np.cumsum((weights > 0).T.numpy(), axis=1)], axis=1)
    return MixtureTarget(("a", "b", "c"), kind, weights, tuple(targets), tuple(tokens), counts)


def whole_logprobs() -> list[Tensor]:
    return [head.scale_and_cap(head.project(hidden)).log_softmax(-1) for hidden, head in teachers()]


def plain_logprobs(kind: str, weights: Tensor) -> Tensor:
    """The mixture written down as in its definition."""
    log_p = torch.stack(whole_logprobs(), 1)  # (N, K, V)
    if kind == "arithmetic":
        return (weights[..., None] * log_p.exp()).sum(1).log()
    return (weights[..., None] * log_p).sum(1).log_softmax(-1)


def plain_loss(kind: str, log_p: Tensor, logits: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """The sum over tokens of a loss, from its textbook formula."""
    log_p, log_q = (log_p / temperature).log_softmax(-1), (logits / temperature).log_softmax(-1)
    if kind == "forward_kl":
        return (log_p.exp() * (log_p - log_q)).sum() * temperature**2
    if kind == "reverse_kl":
        return (log_q.exp() * (log_q - log_p)).sum() * temperature**2
    if kind == "total_variation":
        return 0.5 * (log_p.exp() - log_q.exp()).abs().sum() * temperature
    assert kind == "ce"
    return -log_q.gather(-1, labels[:, None]).sum()


@pytest.mark.parametrize("kind", ["arithmetic", "geometric"])
@pytest.mark.parametrize("pattern", [MIXED, ROUTED], ids=["mixed", "routed"])
@pytest.mark.parametrize(("loss", "temperature"), [("forward_kl", 2.0), ("reverse_kl", 1.0), ("total_variation", 3.0)])
def test_value_and_gradient_are_those_of_plain_torch(kind: str, pattern: Tensor, loss: str, temperature: float) -> None:
    weights = pattern.repeat(N // len(pattern) + 1, 1)[:N]
    torch.manual_seed(1)
    hidden = torch.randn(N, 8, dtype=torch.float64, requires_grad=True)
    head_weight = torch.randn(V, 8, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(V, (N,))
    objective = build_objective({"ce": TermConfig(weight=0.3), "kd": TermConfig(kind=loss, temperature=temperature)})
    found = fused_linear_loss(
        objective,
        hidden,
        LMHead(head_weight, None, 1.0, 0.0, V),
        mixture_target(kind, weights),
        labels,
        denominator=torch.tensor(N),
        chunk_size=7,
        compute_metrics=True,
    )
    ours = torch.autograd.grad(found.total, (hidden, head_weight))
    logits = hidden @ head_weight.T
    log_p = plain_logprobs(kind, weights)
    expected = plain_loss("ce", log_p, logits, labels, 1.0) * 0.3 + plain_loss(loss, log_p, logits, labels, temperature)
    torch.testing.assert_close(found.total, expected / N, rtol=1e-11, atol=1e-12)
    for one, other in zip(ours, torch.autograd.grad(expected / N, (hidden, head_weight)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
    label_logprobs = log_p.gather(-1, labels[:, None]).sum()
    torch.testing.assert_close(found.metric_sums["teacher_nll"], -label_logprobs, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("kind", ["arithmetic", "geometric"])
def test_shares_and_the_kl_to_each_teacher(kind: str) -> None:
    weights = ROUTED.repeat(4, 1)[:N]
    torch.manual_seed(2)
    hidden, head = torch.randn(N, 8, dtype=torch.float64), LMHead(torch.randn(V, 8, dtype=torch.float64), None, 1.0, 0.0, V)
    labels = torch.randint(V, (N,))
    with torch.no_grad():
        found = fused_linear_loss(
            build_objective({"kd": TermConfig(kind="forward_kl")}),
            hidden,
            head,
            mixture_target(kind, weights),
            labels,
            denominator=torch.tensor(N),
            chunk_size=5,
            compute_metrics=True,
        )
    means = found.metric_means()
    log_q = head.project(hidden).log_softmax(-1)
    at_label = torch.stack([log_p.gather(-1, labels[:, None])[:, 0].exp() for log_p in whole_logprobs()], 1)
    joint = weights * at_label
    shares = joint / joint.sum(1, keepdim=True) if kind == "arithmetic" else weights
    for number, (name, log_p) in enumerate(zip("abc", whole_logprobs(), strict=True)):
        asked = weights[:, number] > 0
        kl = (log_p.exp() * (log_p - log_q)).sum(-1)[asked].mean()
        torch.testing.assert_close(means[f"teacher_kl/{name}"][0], kl)
        assert float(means[f"teacher_kl/{name}"][1]) == int(asked.sum())
        torch.testing.assert_close(means[f"teacher_share/{name}"][0], shares[:, number].mean())
        assert float(means[f"scored_by/{name}"][0]) == pytest.approx(float(asked.double().mean()))
    assert sum(float(means[f"teacher_share/{name}"][0]) for name in "abc") == pytest.approx(1.0)


@pytest.mark.parametrize("kind", ["arithmetic", "geometric"])
def test_a_weight_of_one_is_that_teacher_itself_logits_and_all(kind: str) -> None:
    logits = [torch.tensor([[1.0, -2.0, 0.5], [3.0, 0.0, 4.0]]), torch.tensor([[0.0, 9.0, 1.0], [-1.0, 2.0, 2.0]])]
    mixed = mix_logits(logits, torch.tensor([[1.0, 0.0], [0.0, 1.0]]), kind)
    torch.testing.assert_close(mixed, torch.stack([logits[0][0], logits[1][1]]))


def test_two_teachers_of_two_tokens_by_hand() -> None:
    """p = (0.8, 0.2) and (0.2, 0.8): the mean of probabilities at weights ¾ and ¼ is (0.65, 0.35); of logits the odds are
    4^(¾ − ¼) = 2."""
    logits = [torch.tensor([[0.8, 0.2]]).log() + 5, torch.tensor([[0.2, 0.8]]).log() - 1]
    weights = torch.tensor([0.75, 0.25])
    torch.testing.assert_close(mix_logits(logits, weights).softmax(-1), torch.tensor([[0.65, 0.35]]))
    torch.testing.assert_close(mix_logits(logits, weights, "geometric").softmax(-1), torch.tensor([[2 / 3, 1 / 3]]))


def test_probabilities_that_underflow_stay_finite() -> None:
    far = torch.tensor([[0.0, -300.0, -400.0]])
    mixed = mix_logits([far, far.flip(-1)], torch.tensor([0.5, 0.5]))
    assert torch.isfinite(mixed).all()
    torch.testing.assert_close(mixed.log_softmax(-1)[0, 1], torch.tensor(-300.0))


def test_a_batch_without_supervised_tokens_has_a_loss_of_zero() -> None:
    empty = MixtureTarget(
        ("a", "b"),
        "arithmetic",
        torch.zeros(0, 2),
        (None, None),
        (torch.zeros(0, dtype=torch.long),) * 2,
        np.zeros((2, 1), int),
    )
    hidden = torch.zeros(0, 8, requires_grad=True)
    found = fused_linear_loss(
        build_objective({"kd": TermConfig(kind="forward_kl")}),
        hidden,
        LMHead(torch.randn(V, 8), None, 1.0, 0.0, V),
        empty,
        torch.zeros(0, dtype=torch.long),
        denominator=torch.tensor(4),
        compute_metrics=True,
    )
    found.total.backward()
    assert float(found.total) == 0
    assert float(found.metric_sums["teacher_share/a"]) == 0
