"""Every loss of the family: hand arithmetic or the authors' formula, and the laws that hold for all of them."""

import math
from collections.abc import Callable

import pytest
import torch
from helpers.loss_inputs import DENSE, DIFFERENTIABLE, DIVERGENCES, authors, one_term, softened
from torch import Tensor

from distill_lit import UserError, losses
from distill_lit.config import TermConfig
from distill_lit.losses import LOGIT_LOSSES, build_objective, distillation_loss
from distill_lit.losses import divergences as dv
from distill_lit.losses import sparse as sp
from distill_lit.losses.targets import SampledTarget, TopKTarget

P = torch.tensor([[0.5, 0.25, 0.25]], dtype=torch.float64)
Q = torch.tensor([[0.25, 0.25, 0.5]], dtype=torch.float64)
THIRD = torch.tensor([[0.1, 0.2, 0.7]], dtype=torch.float64)
LN2 = math.log(2)


def draw_logits(rows: int = 6, columns: int = 11, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """(student, teacher, labels) in float64."""
    torch.manual_seed(seed)
    student, teacher = torch.randn(2, rows, columns, dtype=torch.float64) * 2
    return student, teacher, torch.randint(0, columns, (rows,))


def total(kind: str, student: Tensor, teacher: Tensor, labels: Tensor, **changes: object) -> Tensor:
    """The sum over tokens of one loss."""
    torch.manual_seed(0)  # the same draws every time
    flags, one = authors(len(labels)), torch.tensor(1)
    return distillation_loss(
        one_term(kind, **changes), student, teacher, labels, denominator=one, on_policy_mask=flags
    ).total


# ---------------------------------------------------------------- hand arithmetic


@pytest.mark.parametrize(
    ("function", "options", "expected"),
    [
        (dv.forward_kl, {}, 0.25 * LN2),  # ½ ln 2 + ¼ ln 1 + ¼ ln ½
        (dv.reverse_kl, {}, 0.25 * LN2),  # ¼ ln ½ + ¼ ln 1 + ½ ln 2
        (dv.symmetric_kl, {"forward_weight": 0.3}, 0.25 * LN2),
        # m = (⅜, ¼, ⅜): ½ [½ ln(4/3) + ¼ ln(2/3)] twice, by symmetry
        (dv.jensen_shannon, {"beta": 0.5}, 0.5 * math.log(4 / 3) + 0.25 * math.log(2 / 3)),
        # m = ½p + ½q
        (dv.skew_forward_kl, {"skew": 0.5}, 0.5 * math.log(4 / 3) + 0.25 * math.log(2 / 3)),
        # m = 0.1 p + 0.9 q = (0.275, 0.25, 0.475)
        (dv.skew_forward_kl, {"skew": 0.1}, 0.5 * math.log(0.5 / 0.275) + 0.25 * math.log(0.25 / 0.475)),
        # m = 0.1 q + 0.9 p = (0.475, 0.25, 0.275)
        (dv.skew_reverse_kl, {"skew": 0.1}, 0.25 * math.log(0.25 / 0.475) + 0.5 * math.log(0.5 / 0.275)),
        (dv.total_variation, {}, 0.25),
        (dv.alpha_beta, {"alpha": 1, "beta": 0}, 0.25 * LN2),  # the forward KL
        (dv.alpha_beta, {"alpha": 0, "beta": 1}, 0.25 * LN2),  # the reverse KL
        (dv.alpha_beta, {"alpha": 0, "beta": 0}, LN2**2),  # ½ (ln² 2 + 0 + ln² 2)
        (dv.alpha_beta, {"alpha": 1, "beta": 1}, 0.0625),  # ½ Σ (p − q)² = ½ (1/16 + 1/16)
        # (1/α²) Σ [ln(q/p) + p/q − 1] at α = 1: (−ln 2 + 2 − 1) + 0 + (ln 2 + ½ − 1)
        (dv.alpha_beta, {"alpha": 1, "beta": -1}, 0.5),
        (dv.soft_cross_entropy, {}, 0.5 * math.log(4) + 0.25 * math.log(4) + 0.25 * LN2),
    ],
)
def test_divergences_by_hand(function: Callable[..., Tensor], options: dict, expected: float) -> None:
    assert function(Q.log(), P.log(), **options).item() == pytest.approx(expected, abs=1e-12)


def test_reverse_kl_is_the_forward_kl_of_changed_roles() -> None:
    assert dv.reverse_kl(Q.log(), THIRD.log()).item() == pytest.approx(dv.forward_kl(THIRD.log(), Q.log()).item())


def test_jensen_shannon_beta_weighs_the_teacher() -> None:
    # GKD's β, not KDFlow's: β = 0.1 puts the mixture near the student, so that JSD/β tends to KL(p ‖ q)
    small = dv.jensen_shannon(Q.log(), THIRD.log(), beta=1e-6).item() / 1e-6
    assert small == pytest.approx(dv.forward_kl(Q.log(), THIRD.log()).item(), rel=1e-4)


def test_adaptive_kl_equals_the_authors_formula() -> None:
    student, teacher, _ = draw_logits(50, 30)
    p, q = teacher.softmax(-1), student.softmax(-1)
    ranked, order = p.sort(-1, descending=True)
    gaps = (ranked - q.gather(-1, order)).abs()
    tail = ranked.cumsum(-1) > 0.5
    tail[:, 0] = False
    head_gap, tail_gap = gaps.masked_fill(tail, 0).sum(-1), gaps.masked_fill(~tail, 0).sum(-1)
    forward = (p * (p.log() - q.log())).sum(-1)
    reverse = (q * (q.log() - p.log())).sum(-1)
    expected = (head_gap * forward + tail_gap * reverse) / (head_gap + tail_gap)
    torch.testing.assert_close(dv.adaptive_kl(q.log(), p.log()), expected)


@pytest.mark.parametrize(("alpha", "beta"), [(0.2, 0.7), (0.7, 0.2), (1.5, 0.5), (-0.5, 1.2), (2.0, -0.4), (0.9, 0.9)])
def test_alpha_beta_equals_its_definition(alpha: float, beta: float) -> None:
    student, teacher, _ = draw_logits()
    p, q, s = teacher.softmax(-1), student.softmax(-1), alpha + beta
    terms = p**alpha * q**beta - alpha / s * p**s - beta / s * q**s
    expected = -terms.sum(-1) / (alpha * beta)
    torch.testing.assert_close(dv.alpha_beta(q.log(), p.log(), alpha, beta), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("direction", [(1.0, 0.5), (-0.3, 1.0), (1.0, -0.999)])
@pytest.mark.parametrize("limit", [(0.0, 0.7), (0.7, 0.0), (0.6, -0.6), (0.0, 0.0), (1.0, 0.0), (0.0, 1.0)])
def test_alpha_beta_is_continuous_in_its_limits(limit: tuple, direction: tuple) -> None:
    student, teacher, _ = draw_logits()
    log_q, log_p = student.log_softmax(-1), teacher.log_softmax(-1)
    exact = dv.alpha_beta(log_q, log_p, *limit)
    for step, tolerance in ((1e-2, 0.3), (2e-3, 6e-2), (1e-4, 3e-3), (1e-7, 3e-6), (1e-12, 1e-9)):
        near = dv.alpha_beta(log_q, log_p, limit[0] + step * direction[0], limit[1] + step * direction[1])
        torch.testing.assert_close(near, exact, rtol=tolerance, atol=0)


def test_alpha_beta_limits_in_float32() -> None:
    student, teacher, _ = draw_logits()
    exact = dv.alpha_beta(student.log_softmax(-1), teacher.log_softmax(-1), 0.0, 0.7)
    for alpha in (1e-3, 1e-5, 1e-8, 0.0):
        single = dv.alpha_beta(student.float().log_softmax(-1), teacher.float().log_softmax(-1), alpha, 0.7)
        torch.testing.assert_close(single.double(), exact, rtol=2e-2 if alpha == 1e-3 else 3e-4, atol=0)


@pytest.mark.parametrize(("alpha", "beta"), [(-1.0, -1.0), (-1.0, 9.9), (9.9, -1.0), (-1.0, 0.0), (0.0, -1.0), (-0.5, 0.5)])
def test_alpha_beta_is_finite_at_its_limits(alpha: float, beta: float) -> None:
    """Of certain and of random distributions over 150,000 tokens, with their gradients."""
    options = losses.AlphaBeta(alpha=alpha, beta=beta).options
    certain, other = torch.full((2, 150_000), -200.0), torch.full((2, 150_000), -200.0)
    certain[:, 0] = other[:, 1] = 200.0
    for student, teacher in ((certain, other), (torch.randn(2, 150_000), certain), (other, torch.randn(2, 150_000))):
        leaf = student.clone().requires_grad_()
        value = dv.alpha_beta(leaf.log_softmax(-1), teacher.log_softmax(-1), **options)
        value.sum().backward()
        assert value.isfinite().all() and leaf.grad.isfinite().all()


@pytest.mark.parametrize("exponents", [{"alpha": -9.0, "beta": -1.0}, {"alpha": 1.0, "beta": -1.01}])
def test_alpha_beta_refuses_exponents_beyond_float32(exponents: dict[str, float]) -> None:
    with pytest.raises(UserError, match=r"is not a number between -1 and 10, 10 exclusive; .* beyond float32"):
        losses.AlphaBeta(**exponents)


def test_logit_mse_by_hand() -> None:
    student, teacher = torch.tensor([[0.0, 2.0]]), torch.tensor([[1.0, 5.0]])
    assert dv.logit_mse(student, teacher).item() == 5.0  # (1² + 3²)/2
    assert dv.logit_mse(student, teacher, center=True).item() == 1.0  # (−1, 1) against (−2, 2)
    assert dv.logit_mse(student, student + 7, center=True).item() == 0.0


def test_centred_logit_mse_needs_log_probabilities_only() -> None:
    student, teacher, _ = draw_logits()
    torch.testing.assert_close(
        dv.logit_mse(student.log_softmax(-1), teacher.log_softmax(-1), center=True),
        dv.logit_mse(student, teacher, center=True),
    )


def test_contrastive_takes_the_direction_of_its_author() -> None:
    log_q, log_p = Q.log().repeat(2, 1), THIRD.log().repeat(2, 1)
    values = dv.contrastive_skew_kl(log_q, log_p, torch.tensor([False, True]), skew=0.1)
    assert values[0].item() == dv.skew_forward_kl(Q.log(), THIRD.log(), 0.1).item()
    assert values[1].item() == dv.skew_reverse_kl(Q.log(), THIRD.log(), 0.1).item()


# ---------------------------------------------------------------- a few tokens of the teacher


def test_top_k_kl_by_hand() -> None:
    # of p the two best, one half and one quarter, become ⅔ and ⅓; of q the same tokens, one quarter each, become ½
    tied = torch.tensor([[0.5, 0.26, 0.24]], dtype=torch.float64)
    p, q = torch.tensor([50 / 76, 26 / 76]), torch.tensor([0.5, 0.5])
    assert sp.top_k_kl(Q.log(), tied.log(), k=2).item() == pytest.approx(float((p * (p / q).log()).sum()), abs=1e-6)


def test_truncated_kl_by_hand() -> None:
    # of p the two best become 50/76 and 26/76; of q the same tokens stay one quarter each
    tied = torch.tensor([[0.5, 0.26, 0.24]], dtype=torch.float64)
    expected = 50 / 76 * math.log(50 / 76 * 4) + 26 / 76 * math.log(26 / 76 * 4)
    assert sp.truncated_kl(Q.log(), tied.log(), k=2).item() == pytest.approx(expected, abs=1e-12)
    # a student that is the teacher still pays for its third token: −ln 0.76
    assert sp.truncated_kl(tied.log(), tied.log(), k=2).item() == pytest.approx(-math.log(0.76), abs=1e-12)


def test_truncated_kl_is_a_kl_to_the_truncated_teacher() -> None:
    student, teacher, _ = draw_logits(40, 30)
    cut = teacher.where(teacher >= teacher.topk(5).values[:, -1:], -torch.inf)
    log_q, p = student.log_softmax(-1), cut.softmax(-1)
    theirs = torch.nn.functional.kl_div(log_q, p, reduction="none").sum(-1)
    torch.testing.assert_close(sp.truncated_kl(log_q, teacher.log_softmax(-1), k=5), theirs)
    assert (theirs > 0).all() and sp.truncated_kl(cut.log_softmax(-1), teacher.log_softmax(-1), k=5).abs().max() < 1e-12


@pytest.mark.parametrize("function", [sp.top_k_kl, sp.truncated_kl])
def test_the_best_tokens_of_a_softened_cache_are_those_of_the_softened_teacher(function: Callable[..., Tensor]) -> None:
    student, teacher, _ = draw_logits(40, 30)
    values, ids = teacher.log_softmax(-1).topk(8)
    cache = TopKTarget(ids, values / 3, values[:, 0])
    log_q = (student / 3).log_softmax(-1)
    torch.testing.assert_close(function(log_q, cache, k=8), function(log_q, (teacher / 3).log_softmax(-1), k=8))


def test_top_k_tail_kl_by_hand() -> None:
    tied = torch.tensor([[0.5, 0.26, 0.24]], dtype=torch.float64)
    # (0.5, rest 0.5) against (0.25, rest 0.75)
    expected = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert sp.top_k_tail_kl(Q.log(), tied.log(), k=1).item() == pytest.approx(expected, abs=1e-12)


def test_top_k_forms_are_bounded_by_the_whole_kl_and_reach_it() -> None:
    student, teacher, _ = draw_logits(40, 30)
    log_q, log_p = student.log_softmax(-1), teacher.log_softmax(-1)
    whole = dv.forward_kl(log_q, log_p)
    tails = [sp.top_k_tail_kl(log_q, log_p, k) for k in (1, 3, 10, 29)]
    assert all((a <= b + 1e-12).all() for a, b in zip(tails, [*tails[1:], whole], strict=True))
    torch.testing.assert_close(sp.top_k_kl(log_q, log_p, 30), whole)
    torch.testing.assert_close(sp.truncated_kl(log_q, log_p, 30), whole)
    torch.testing.assert_close(sp.top_k_tail_kl(log_q, log_p, 30), whole)


@pytest.mark.parametrize("function", [sp.top_k_kl, sp.truncated_kl, sp.top_k_tail_kl, sp.pairwise_ranking])
def test_a_cache_of_k_tokens_trains_like_the_teacher(function: Callable[..., Tensor]) -> None:
    student, teacher, labels = draw_logits(40, 30)
    log_q, log_p = student.log_softmax(-1), teacher.log_softmax(-1)
    values, ids = log_p.topk(8)
    cache = TopKTarget(ids, values, log_p.gather(-1, labels[:, None])[:, 0])
    torch.testing.assert_close(function(log_q, cache, k=5), function(log_q, log_p, k=5))


def test_sampled_kl_has_the_whole_kl_as_its_mean() -> None:
    torch.manual_seed(0)
    log_q, log_p = Q.log().repeat(4000, 1), P.log().repeat(4000, 1)
    values = sp.sampled_kl(log_q, log_p, num_samples=25)
    # one draw's deviation is below ln 2, so the mean of 100,000 is known to about 0.002
    assert values.mean().item() == pytest.approx(0.25 * LN2, abs=0.01)
    assert values.std().item() > 0.05


def test_sampled_kl_of_counts_and_of_a_proposal_by_hand() -> None:
    # a drawn three times of four, b once
    log_p, log_q = P.log(), Q.log()
    ids = torch.tensor([[0, 1]])
    counts = SampledTarget(ids, log_p[:, :2], torch.tensor([[0.75, 0.25]], dtype=torch.float64), log_p[:, 0])
    assert sp.sampled_kl(log_q, counts).item() == pytest.approx(0.75 * LN2, abs=1e-12)
    # drawn evenly from all three tokens: weights p/(⅓ · 3)
    every = SampledTarget(torch.tensor([[0, 1, 2]]), log_p, P, log_p[:, 0])
    assert sp.sampled_kl(log_q, every).item() == pytest.approx(0.25 * LN2, abs=1e-12)


def test_ranking_by_hand() -> None:
    p = torch.tensor([[0.6, 0.3, 0.1]], dtype=torch.float64)
    q = torch.tensor([[0.2, 0.5, 0.3]], dtype=torch.float64)
    # pairs (a, b), (a, c), (b, c); q gaps −0.3, −0.1, 0.2; teacher's 0.3, 0.5, 0.2
    hinge = sp.pairwise_ranking(q.log(), p.log(), k=3).item()
    assert hinge == pytest.approx((0.6 + 0.6 + 0.0) / 3, abs=1e-12)
    assert sp.pairwise_ranking(q.log(), p.log(), k=3, margin=0.1).item() == pytest.approx((0.4 + 0.2 + 0.0) / 3, abs=1e-12)
    # log(1 + q_j/q_i)
    logistic = (math.log(1 + 5 / 2) + math.log(1 + 3 / 2) + math.log(1 + 3 / 5)) / 3
    assert sp.pairwise_ranking(q.log(), p.log(), loss="logistic", k=3).item() == pytest.approx(logistic, abs=1e-12)


def test_ranking_is_zero_for_any_student_in_the_teachers_order_without_margin() -> None:
    _, teacher, _ = draw_logits()
    assert sp.pairwise_ranking((3 * teacher).log_softmax(-1), teacher.log_softmax(-1), margin=0.0).abs().max() == 0


def test_label_smoothing_equals_torch() -> None:
    student, _, labels = draw_logits()
    ours = sp.cross_entropy(student.log_softmax(-1), labels, 0.1)
    theirs = torch.nn.functional.cross_entropy(student, labels, label_smoothing=0.1, reduction="none")
    torch.testing.assert_close(ours, theirs)


def test_policy_reverse_kl_has_value_and_gradient_of_the_reverse_kl_in_the_mean() -> None:
    logits = torch.tensor([[0.3, -0.4, 1.0]], dtype=torch.float64, requires_grad=True)
    q = logits.detach().softmax(-1)
    labels = torch.arange(3)  # every token once, weighted by its probability: the exact mean
    own = torch.ones(3, dtype=torch.bool)
    each = sp.policy_gradient_reverse_kl(logits.log_softmax(-1).expand(3, 3), P.log().expand(3, 3), labels, own)
    mean = (q[0] * each).sum()
    (gradient,) = torch.autograd.grad(mean, logits)
    exact = dv.reverse_kl(logits.log_softmax(-1), P.log()).sum()
    torch.testing.assert_close(mean, exact)
    torch.testing.assert_close(gradient, torch.autograd.grad(exact, logits)[0])


def test_policy_reverse_kl_leaves_the_text_of_others_alone() -> None:
    student, teacher, labels = draw_logits(4)
    own = torch.tensor([True, False, False, True])
    values = sp.policy_gradient_reverse_kl(student.log_softmax(-1), teacher.log_softmax(-1), labels, own)
    assert (values[1:3] == 0).all() and (values[[0, 3]] != 0).all()


# ---------------------------------------------------------------- laws of the whole family


@pytest.mark.parametrize("kind", [*DIVERGENCES, "sampled_kl", "pairwise_ranking", "policy_gradient_reverse_kl"])
def test_zero_at_equality(kind: str) -> None:
    student, _, labels = draw_logits()
    shift = 0.0 if kind == "logit_mse" else 3.0
    assert total(kind, student, student + shift, labels).item() == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_positive_when_different(kind: str) -> None:
    student, teacher, labels = draw_logits(50)
    for row in range(50):
        rows = slice(row, row + 1)
        assert total(kind, student[rows], teacher[rows], labels[rows]) > 0


@pytest.mark.parametrize("options", [{}, {"alpha": -0.5, "beta": 1.2}, {"alpha": 0, "beta": 0}])
def test_alpha_beta_is_finite_for_extreme_logits(options: dict) -> None:
    check_finite("alpha_beta", options)


@pytest.mark.parametrize("kind", DENSE)
def test_finite_for_extreme_logits(kind: str) -> None:
    check_finite(kind, {})


def check_finite(kind: str, options: dict) -> None:
    student = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0], [1e4, 1e4, -1e4]], requires_grad=True)
    teacher = torch.tensor([[-1e4, 1e4, 0.0], [1e4, -1e4, 0.0], [-1e4, -1e4, 1e4]])
    value = total(kind, student, teacher, torch.tensor([0, 1, 2]), options=options)
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("kind", DIFFERENTIABLE)
def test_gradient_equals_finite_differences(kind: str) -> None:
    student, teacher, labels = draw_logits(3, 7, seed=1)
    student.requires_grad_()
    objective = build_objective(softened(kind, 1.7))

    def loss(logits: Tensor) -> Tensor:
        flags = authors(3)
        return distillation_loss(
            objective, logits, teacher, labels, denominator=torch.tensor(3), on_policy_mask=flags
        ).total

    assert torch.autograd.gradcheck(loss, (student,))


@pytest.mark.parametrize("kind", [kind for kind in DENSE if kind != "sampled_kl"])  # draws depend on the number format
def test_float32_agrees_with_float64(kind: str) -> None:
    student, teacher, labels = draw_logits(8, 13)
    found = []
    for number in (torch.float64, torch.float32):
        logits = student.to(number, copy=True).requires_grad_()
        value = total(kind, logits, teacher.to(number), labels)
        value.backward()
        found.append((value.detach().double(), logits.grad.double()))
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[1][1], found[0][1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [kind for kind in DENSE if kind != "sampled_kl"])
def test_tokens_are_judged_one_by_one(kind: str) -> None:
    """So neither padding, nor the split into micro-batches, nor accumulation can matter."""
    student, teacher, labels = draw_logits(8)
    flags, objective = authors(8), build_objective({kind: TermConfig()})

    def value(rows: slice) -> Tensor:
        return distillation_loss(
            objective,
            student[rows],
            teacher[rows],
            labels[rows],
            denominator=torch.tensor(8),
            on_policy_mask=flags[rows],
        ).total

    torch.testing.assert_close(value(slice(0, 3)) + value(slice(3, 8)), value(slice(0, 8)))


@pytest.mark.parametrize(
    ("kind", "power"), [("forward_kl", 2), ("reverse_kl", 2), ("jensen_shannon", 2), ("total_variation", 1)]
)
def test_hintons_scaling_keeps_the_gradient_at_high_temperatures(kind: str, power: int) -> None:
    student, teacher, labels = draw_logits()
    assert LOGIT_LOSSES[kind].temperature_power == power
    norms = []
    for temperature in (300.0, 600.0):
        logits = student.clone().requires_grad_()
        total(kind, logits, teacher, labels, temperature=temperature).backward()
        norms.append(logits.grad.norm().item())
    assert norms[0] == pytest.approx(norms[1], rel=0.02)
