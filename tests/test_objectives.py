"""Divergences, schedules and the objective against hand arithmetic and laws."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distill_lit.config import TermConfig
from distill_lit.errors import UserError
from distill_lit.objectives import DIVERGENCES, build_objective, plain_losses
from distill_lit.objectives.divergences import forward_kl, jensen_shannon, reverse_kl
from distill_lit.objectives.objective import term_sums
from distill_lit.objectives.schedules import parse_schedule

P = torch.tensor([[0.5, 0.25, 0.25]], dtype=torch.float64)
Q = torch.tensor([[0.25, 0.25, 0.5]], dtype=torch.float64)
KINDS = sorted(DIVERGENCES)


def one_term(kind: str, **changes: object) -> object:
    return build_objective({kind: TermConfig(**changes)})


def test_forward_kl_by_hand() -> None:
    # ½ ln 2 + ¼ ln 1 + ¼ ln ½ = ¼ ln 2
    assert forward_kl(Q.log(), P.log()).item() == pytest.approx(0.25 * math.log(2), abs=1e-12)


def test_reverse_kl_by_hand() -> None:
    # ¼ ln ½ + ¼ ln 1 + ½ ln 2 = ¼ ln 2; and it is the forward KL with the roles changed
    assert reverse_kl(Q.log(), P.log()).item() == pytest.approx(0.25 * math.log(2), abs=1e-12)
    third = torch.tensor([[0.1, 0.2, 0.7]], dtype=torch.float64)
    assert reverse_kl(Q.log(), third.log()).item() == pytest.approx(forward_kl(third.log(), Q.log()).item(), abs=1e-12)


def test_jensen_shannon_by_hand() -> None:
    # m = (0.375, 0.25, 0.375): ½ [½ ln(4/3) + ¼ ln(2/3)] twice, by symmetry
    expected = 0.5 * math.log(4 / 3) + 0.25 * math.log(2 / 3)
    assert jensen_shannon(Q.log(), P.log(), beta=0.5).item() == pytest.approx(expected, abs=1e-12)


def test_jensen_shannon_beta_weighs_the_teacher() -> None:
    # GKD's β, not KDFlow's: β = 0.1 puts the mixture near the student, so that JSD/β tends to KL(p ‖ q)
    third = torch.tensor([[0.1, 0.2, 0.7]], dtype=torch.float64)
    small = jensen_shannon(Q.log(), third.log(), beta=1e-6).item() / 1e-6
    assert small == pytest.approx(forward_kl(Q.log(), third.log()).item(), rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
class TestLaws:
    def test_zero_at_equality(self, kind: str) -> None:
        logits = torch.randn(5, 11, dtype=torch.float64)
        sums = term_sums(one_term(kind), logits, logits + 3.0, torch.zeros(5, dtype=torch.long), torch.ones(1).double())
        assert sums.item() == pytest.approx(0.0, abs=1e-12)

    def test_positive_when_different(self, kind: str) -> None:
        torch.manual_seed(0)
        function = DIVERGENCES[kind].function
        values = function(torch.randn(50, 11).double().log_softmax(-1), torch.randn(50, 11).double().log_softmax(-1))
        assert (values > 0).all()

    def test_finite_for_extreme_logits(self, kind: str) -> None:
        student = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0]], requires_grad=True)
        teacher = torch.tensor([[-1e4, 1e4, 0.0], [1e4, -1e4, 0.0]])
        losses = plain_losses(one_term(kind), student, teacher, torch.tensor([0, 1]), denominator=torch.tensor(2))
        losses.total.backward()
        assert torch.isfinite(losses.total)
        assert torch.isfinite(student.grad).all()

    def test_gradient_against_finite_differences(self, kind: str) -> None:
        torch.manual_seed(1)
        student, teacher = (
            torch.randn(3, 7, dtype=torch.float64, requires_grad=True),
            torch.randn(3, 7, dtype=torch.float64),
        )
        objective = build_objective({kind: TermConfig(temperature=1.7, weight=0.3)})

        def loss(logits: torch.Tensor) -> torch.Tensor:
            return plain_losses(
                objective, logits, teacher, torch.zeros(3, dtype=torch.long), denominator=torch.tensor(3)
            ).total

        assert torch.autograd.gradcheck(loss, (student,))


def test_temperature_and_its_square_by_hand() -> None:
    student, teacher = torch.tensor([[0.0, 2.0]]).double(), torch.tensor([[0.0, 0.0]]).double()
    q = 1 / (1 + math.exp(-1.0))  # softmax of (0, 2)/2
    expected = 4 * (0.5 * math.log(0.5 / (1 - q)) + 0.5 * math.log(0.5 / q))
    labels, one = torch.tensor([0]), torch.tensor(1)
    term = {"kl": TermConfig(kind="forward_kl", temperature=2.0)}
    hinton = plain_losses(build_objective(term), student, teacher, labels, denominator=one)
    plain = plain_losses(build_objective(term, "none"), student, teacher, labels, denominator=one)
    assert hinton.total.item() == pytest.approx(expected, rel=1e-12)
    assert plain.total.item() == pytest.approx(expected / 4, rel=1e-12)
    assert hinton.terms.item() == pytest.approx(expected / 4, rel=1e-12)  # logged without the factor


def test_mixture_is_the_weighted_sum() -> None:
    torch.manual_seed(2)
    student, teacher, labels = torch.randn(6, 9).double(), torch.randn(6, 9).double(), torch.randint(0, 9, (6,))
    terms = {"ce": TermConfig(weight=0.25), "kl": TermConfig(kind="forward_kl", weight=0.75)}
    mixed = plain_losses(build_objective(terms), student, teacher, labels, denominator=torch.tensor(6))
    ce = torch.nn.functional.cross_entropy(student, labels)
    kl = torch.nn.functional.kl_div(
        student.log_softmax(-1), teacher.log_softmax(-1), log_target=True, reduction="batchmean"
    )
    assert mixed.total.item() == pytest.approx((0.25 * ce + 0.75 * kl).item(), rel=1e-12)


def test_label_smoothing_equals_torch() -> None:
    torch.manual_seed(3)
    student, labels = torch.randn(6, 9).double(), torch.randint(0, 9, (6,))
    objective = build_objective({"ce": TermConfig(options={"label_smoothing": 0.1})})
    ours = plain_losses(objective, student, None, labels, denominator=torch.tensor(6)).total
    theirs = torch.nn.functional.cross_entropy(student, labels, label_smoothing=0.1)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-12)


@pytest.mark.parametrize(
    ("value", "done", "expected"),
    [
        (2.0, 0.3, 2.0),
        ({"shape": "linear", "start": 1.0, "end": 0.0}, 0.25, 0.75),
        ({"start": 4.0, "end": 1.0, "from": 0.5, "until": 1.0}, 0.75, 2.5),
        ({"shape": "cosine", "start": 1.0, "end": 0.0}, 0.5, 0.5),
        ({"shape": "cosine", "start": 1.0, "end": 0.0}, 1 / 3, 0.75),
        ({"shape": "piecewise", "points": {0.0: 1.0, 0.5: 0.1}}, 0.49, 1.0),
        ({"shape": "piecewise", "points": {0.0: 1.0, 0.5: 0.1}}, 0.5, 0.1),
    ],
)
def test_schedules_by_hand(value: object, done: float, expected: float) -> None:
    assert parse_schedule("k", value, low=0)(done) == pytest.approx(expected)


@given(start=st.floats(0, 10), end=st.floats(0, 10), done=st.floats(0, 1), shape=st.sampled_from(["linear", "cosine"]))
@settings(max_examples=50, deadline=None)
def test_schedules_stay_between_their_ends(start: float, end: float, done: float, shape: str) -> None:
    value = parse_schedule("k", {"shape": shape, "start": start, "end": end}, low=0)(done)
    assert min(start, end) - 1e-9 <= value <= max(start, end) + 1e-9


@pytest.mark.parametrize(
    ("terms", "words"),
    [
        ({"forward_kls": TermConfig()}, "did you mean 'forward_kl'"),
        ({"kl": TermConfig(kind="forward_kl", weight=-1)}, "objective.terms.kl.weight"),
        ({"kl": TermConfig(kind="forward_kl", weight="0.5")}, "neither a number nor a schedule"),
        ({"kl": TermConfig(kind="forward_kl", temperature=0)}, "above 0"),
        ({"kl": TermConfig(kind="forward_kl", temperature=float("nan"))}, "objective.terms.kl.temperature"),
        ({"kl": TermConfig(kind="forward_kl", temperature={"start": 1, "end": 0})}, "above 0"),
        ({"ce": TermConfig(temperature=2.0)}, "labels have no temperature"),
        ({"js": TermConfig(kind="jensen_shannon", options={"beta": 0.0})}, "objective.terms.js.options.beta"),
        ({"js": TermConfig(kind="jensen_shannon", options={"beta": 1})}, "objective.terms.js.options.beta"),
        ({"js": TermConfig(kind="jensen_shannon", options={"bta": 0.5})}, "did you mean 'beta'"),
        ({"kl": TermConfig(kind="forward_kl", weight={"start": 1, "end": 0, "util": 1})}, "unknown key 'util'"),
        ({}, "at least one term"),
        ({"ce": TermConfig(weight=0), "kl": None}, "at least one term"),
    ],
)
def test_refusals_name_the_key(terms: dict, words: str) -> None:
    with pytest.raises(UserError, match=words.replace(".", r"\.")):
        build_objective(terms)
