"""The Triton kernel against plain PyTorch in float64: on a GPU where there is one, else in Triton's interpreter
(`make test-kernels`). Skipped without Triton."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import warm_processes
from helpers.loss_inputs import authors
from torch import Tensor

from distill_lit import losses
from distill_lit.config import TermConfig
from distill_lit.losses import LossOutput, Objective, build_objective, distillation_loss, fused_linear, fused_linear_loss
from distill_lit.losses.kernels.terms import kernel_terms
from distill_lit.losses.lm_head import LMHead
from distill_lit.losses.mixture import mix_logits
from distill_lit.losses.targets import DenseTarget, MixtureTarget

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytest.importorskip("triton")
if DEVICE == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":  # read where Triton is imported
    pytest.skip("without a GPU it needs TRITON_INTERPRET=1, as `make test-kernels` has it", allow_module_level=True)

pytestmark = pytest.mark.gpu
N, D, V = 4, 8, 37  # a vocabulary that fills no tile: 16 + 16 + 5
HEADS = {"plain": (1.0, 0.0), "scaled and capped": (2.0, 3.0)}


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("distill_lit.losses.kernels.rows.BLOCK_SIZE", 16)
    if DEVICE == "cpu":
        monkeypatch.setattr(fused_linear, "has_kernel", lambda device, dtype: dtype != torch.float64)
    with torch.device(DEVICE):
        yield


def objective_of(temperature: float, *kinds: str, **more: TermConfig) -> Objective:
    """A term of each kind with a weight of its own, softened, and `more`."""
    terms = {kind: TermConfig(weight=0.3 + 0.1 * i, temperature=temperature) for i, kind in enumerate(kinds)}
    return build_objective({**terms, **more})


CE = TermConfig(weight=0.4)
OBJECTIVES = {
    "labels": objective_of(1, ce=TermConfig(options={"label_smoothing": 0.1})),
    "hinton": objective_of(2, "forward_kl", ce=CE),
    "both directions": objective_of(1, "reverse_kl", "soft_cross_entropy", ce=CE),
    "symmetric": objective_of(0.7, "symmetric_kl", "reverse_kl"),
    "jensen_shannon": objective_of(1, jsd=TermConfig(kind="jensen_shannon", options={"beta": 0.2})),
    "skewed": objective_of(1.5, "skew_forward_kl", "total_variation", ce=CE),
    "skew_reverse_kl": objective_of(2, "skew_reverse_kl"),
    "contrastive": objective_of(1, "contrastive_skew_kl", ce=CE),
    "logits": objective_of(2, "forward_kl", mse=TermConfig(kind="logit_mse")),
    "centred logits": objective_of(1, mse=TermConfig(kind="logit_mse", options={"center": True})),
}


def make(head: tuple[float, float], has_bias: bool) -> tuple[Tensor, LMHead, DenseTarget, Tensor]:
    """(hidden, head, target, labels) in float32: padded heads, and a teacher of another width and another cap."""
    torch.manual_seed(0)
    hidden, weight = torch.randn(N, D, requires_grad=True), torch.randn(V + 3, D, requires_grad=True)
    bias = torch.randn(V + 3, requires_grad=True) if has_bias else None
    teacher_head = LMHead(torch.randn(V + 5, 12), None, 0.5 * head[0], 2 * head[1], V)
    return hidden, LMHead(weight, bias, *head, V), DenseTarget(torch.randn(N, 12), teacher_head), torch.randint(0, V, (N,))


def gradients(total: Tensor, hidden: Tensor, head: LMHead) -> list[Tensor]:
    return list(torch.autograd.grad(total, [tensor for tensor in (hidden, head.weight, head.bias) if tensor is not None]))


def assert_equal(
    objective: Objective, hidden: Tensor, head: LMHead, target: DenseTarget | None, labels: Tensor
) -> LossOutput:
    """The kernel's losses, measures and gradients in float32 are those of autograd on whole logits in float64."""
    assert kernel_terms(objective) is not None
    options = {"denominator": torch.tensor(50), "on_policy_mask": authors(N).to(DEVICE), "compute_metrics": True}
    found = fused_linear_loss(objective, hidden, head, target, labels, chunk_size=3, **options)
    exact_hidden, exact_head = hidden.detach().double().requires_grad_(), head._replace(weight=head.weight.double())
    if head.bias is not None:
        exact_head = exact_head._replace(bias=head.bias.double())
    logits = exact_head.scale_and_cap(exact_head.project(exact_hidden))
    teacher_logits = None if target is None else exact_logits(target)
    wanted = distillation_loss(objective, logits, teacher_logits, labels, **options)
    torch.testing.assert_close(found.total.double(), wanted.total, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.term_sums.double(), wanted.term_sums, rtol=1e-5, atol=1e-5)
    assert found.metric_sums.keys() == wanted.metric_sums.keys()
    for name, value in wanted.metric_sums.items():
        torch.testing.assert_close(found.metric_sums[name].double(), value, rtol=1e-5, atol=1e-5, msg=name)
    exact = gradients(wanted.total, exact_hidden, exact_head)
    for ours, theirs in zip(gradients(found.total, hidden, head), exact, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=2e-4, atol=2e-6)
    return found


def exact_logits(target: DenseTarget) -> Tensor:
    head = target.lm_head.cast(torch.float64)
    return head.scale_and_cap(head.project(target.hidden_states.double()))


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS.keys())
@pytest.mark.parametrize("name", OBJECTIVES)
def test_losses_and_gradients_are_those_of_autograd(name: str, head: tuple[float, float]) -> None:
    hidden, student, target, labels = make(head, has_bias=name == "hinton")
    assert_equal(OBJECTIVES[name], hidden, student, target, labels)


def test_labels_need_no_teacher() -> None:
    hidden, student, _, labels = make(HEADS["plain"], has_bias=False)
    found = assert_equal(OBJECTIVES["labels"], hidden, student, None, labels)
    assert set(found.metric_sums) == {"student_nll", "student_entropy"}


@pytest.mark.parametrize("kind", ["arithmetic", "geometric"])
def test_mixtures_of_teachers(kind: str) -> None:
    hidden, student, target, labels = make(HEADS["scaled and capped"], has_bias=False)
    other = DenseTarget(torch.randn(N, 5), LMHead(torch.randn(V, 5), None, 1.0, 0.0, V))
    every, counts = torch.arange(N), np.tile(np.arange(N + 1), (2, 1))
    weights = torch.tensor([0.3, 0.7]).expand(N, 2)
    mixture = MixtureTarget(("a", "b"), kind, weights, (target, other), (every, every), counts)
    mixed = mix_logits([exact_logits(target), exact_logits(other)], weights.double(), kind)
    objective = objective_of(2, "forward_kl", "jensen_shannon")
    options = {"denominator": torch.tensor(9), "chunk_size": 3}
    found = fused_linear_loss(objective, hidden, student, mixture, labels, **options)
    exact_hidden, exact_head = hidden.detach().double().requires_grad_(), student._replace(weight=student.weight.double())
    logits = exact_head.scale_and_cap(exact_head.project(exact_hidden))
    wanted = distillation_loss(objective, logits, mixed, labels, denominator=torch.tensor(9))
    torch.testing.assert_close(found.term_sums.double(), wanted.term_sums, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(
        gradients(found.total, hidden, student), gradients(wanted.total, exact_hidden, exact_head), strict=True
    ):
        torch.testing.assert_close(ours.double(), theirs, rtol=2e-4, atol=2e-6)


@pytest.mark.parametrize("excluded", [-1e4, -1e30])
def test_words_that_a_bias_excludes(excluded: float) -> None:
    """A whole tile of the student's and the last word of the teacher's: probabilities of 0, and no NaN."""
    hidden, student, target, _ = make(HEADS["plain"], has_bias=True)
    bias = torch.zeros(V + 3)
    bias[:16] = excluded
    student = student._replace(bias=bias.requires_grad_())
    teacher_bias = torch.zeros(V + 5)
    teacher_bias[:17] = excluded
    target = target._replace(lm_head=target.lm_head._replace(bias=teacher_bias))
    labels = torch.full((N,), 20)
    found = assert_equal(objective_of(2, "forward_kl", "jensen_shannon", ce=CE), hidden, student, target, labels)
    assert torch.isfinite(found.total)


def test_a_student_that_has_become_the_teacher_has_no_gradient() -> None:
    hidden, student, _, labels = make(HEADS["plain"], has_bias=False)
    target = DenseTarget(hidden.detach(), student._replace(weight=student.weight.detach()))
    objective = objective_of(2, "forward_kl", "reverse_kl", "jensen_shannon", "total_variation")
    found = fused_linear_loss(objective, hidden, student, target, labels, denominator=torch.tensor(N))
    assert found.term_sums.abs().max() < 1e-5
    assert max(gradient.abs().max() for gradient in gradients(found.total, hidden, student)) < 1e-6


@pytest.mark.parametrize(("dtype", "tokens"), [(torch.bfloat16, N), (torch.float16, N), (torch.float16, 2**25)])
def test_short_products_give_the_gradient_of_the_plain_path(dtype: torch.dtype, tokens: int) -> None:
    """In float16 too where a token is a small part of its step."""
    hidden, student, target, labels = make(HEADS["plain"], has_bias=False)
    states = hidden.detach().to(dtype).requires_grad_()
    target = DenseTarget(target.hidden_states.to(dtype), target.lm_head.cast(dtype))
    options = {"denominator": torch.tensor(tokens), "chunk_size": 3}
    results = [
        fused_linear_loss(OBJECTIVES["hinton"], states, student, target, labels, kernel=kernel, **options)
        for kernel in (True, False)
    ]
    torch.testing.assert_close(results[0].term_sums, results[1].term_sums, rtol=1e-5, atol=1e-5)
    near, wanted = (gradients(result.total * tokens, states, student) for result in results)
    for ours, theirs in zip(near, wanted, strict=True):
        assert theirs.abs().max() > 0.01
        assert ours.dtype == theirs.dtype
        assert (ours - theirs).float().norm() < 0.01 * theirs.float().norm()


def test_ignored_labels_and_no_labels() -> None:
    """−100 is left out as `fused_linear_distillation_loss` leaves it out; of no token at all loss and gradient are 0."""
    hidden, student, target, labels = make(HEADS["plain"], has_bias=False)
    arguments = (student.weight, target.hidden_states, target.lm_head.weight)
    some = labels.clone()
    some[1] = -100
    of_some, of_rest = (
        losses.fused_linear_distillation_loss(states, weight, teacher, head, chosen, vocab_size=V)
        for states, weight, teacher, head, chosen in (
            (hidden, *arguments, some),
            (hidden[[0, 2, 3]], arguments[0], arguments[1][[0, 2, 3]], arguments[2], labels[[0, 2, 3]]),
        )
    )
    assert of_some.item() == of_rest.item()
    nothing = losses.fused_linear_distillation_loss(hidden, *arguments, torch.full((N,), -100), vocab_size=V)
    assert nothing.item() == 0
    assert gradients(nothing, hidden, student)[1].abs().max() == 0


@pytest.mark.parametrize(
    "objective",
    [
        objective_of(1, "alpha_beta"),
        objective_of(1, "adaptive_kl"),
        objective_of(1, "truncated_kl"),
        objective_of(1, "forward_kl", other=TermConfig(kind="reverse_kl", temperature=2.0)),
        objective_of(1, "jensen_shannon", "skew_forward_kl"),
        objective_of(1, "logit_mse", other=TermConfig(kind="logit_mse", options={"center": True})),
    ],
    ids=["alpha_beta", "adaptive_kl", "truncated_kl", "two temperatures", "two mixtures", "centred and not"],
)
def test_what_the_kernel_does_not_know_is_left_to_pytorch(objective: Objective) -> None:
    assert kernel_terms(objective) is None
    hidden, student, target, labels = make(HEADS["plain"], has_bias=False)
    options = {"denominator": torch.tensor(N), "compute_metrics": True}
    first, second = (
        fused_linear_loss(objective, hidden, student, target, labels, kernel=kernel, **options) for kernel in (True, False)
    )
    assert torch.equal(first.total, second.total)


@pytest.mark.slow
def test_the_kernels_compile_for_gpus_without_one() -> None:
    """By Triton's own compiler and assembler: no register is spilled to memory, and tiles are read 16 bytes at a time."""
    script = Path(__file__).parents[2] / "helpers" / "compile_kernels.py"
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    with warm_processes.cold():
        printed = subprocess.run(
            [sys.executable, script], check=True, capture_output=True, text=True, env=environment
        ).stdout
    lines = [line.split() for line in printed.splitlines()]
    assert {line[0] for line in lines} == {"80", "90", "100"}
    for _, name, registers, stack, local, wide_loads in lines:
        assert int(registers) <= 128 and local == "0", name
        assert stack == "0" or name == "everything"  # nine parts at once, which nobody asks for
        assert int(wide_loads) >= 2, name
