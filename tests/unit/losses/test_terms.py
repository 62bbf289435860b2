"""Losses as objects, weighted sums, schedules, and losses of one's own under the laws of ours."""

import inspect
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from helpers.loss_inputs import DENSE
from torch import Tensor

from distill_lit import losses
from distill_lit.config import TermConfig
from distill_lit.losses import (
    FEATURE_LOSSES,
    LOGIT_LOSSES,
    build_objective,
    check_teacher_supports_objective,
    distillation_loss,
)
from distill_lit.losses.hidden_states import FeatureLossSpec
from distill_lit.losses.reduction import TokenLogits, apply_temperature, compute_metric_sums, engine_gap_sums
from distill_lit.losses.targets import TopKTarget
from distill_lit.utils.exceptions import UserError

CLASSES = [
    losses.CrossEntropy,
    losses.ForwardKL,
    losses.ReverseKL,
    losses.SymmetricKL,
    losses.JensenShannon,
    losses.SkewForwardKL,
    losses.SkewReverseKL,
    losses.AdaptiveKL,
    losses.AlphaBeta,
    losses.SoftCrossEntropy,
    losses.TotalVariation,
    losses.LogitMSE,
    losses.ContrastiveSkewKL,
    losses.TopKKL,
    losses.TruncatedKL,
    losses.TopKTailKL,
    losses.SampledKL,
    losses.PairwiseRanking,
    losses.ULD,
    losses.ALM,
    losses.PolicyGradientReverseKL,
    losses.HiddenStates,
    losses.Attention,
    losses.QKVRelations,
]


def test_every_entry_of_the_registry_is_an_object_and_what_a_config_builds() -> None:
    terms = [make() for make in CLASSES]
    assert [term.kind for term in terms] == [*LOGIT_LOSSES, *FEATURE_LOSSES]
    for term in terms:
        assert losses.as_objective(term) == build_objective({term.kind: TermConfig()})


@pytest.mark.parametrize("make", CLASSES)
def test_a_constructor_has_the_options_and_defaults_of_its_entry(make: Any) -> None:
    """And a temperature where the loss has one: what is written twice stays one thing."""
    spec = make().loss_spec
    if isinstance(spec, FeatureLossSpec):
        expected = spec.defaults
    else:
        parameters = inspect.signature(spec.function).parameters
        expected = {name: parameters[name].default for name in spec.options}
        expected |= {"temperature": 1.0} if spec.softenable_forms else {}
    common = {"weight": 1.0, "name": ""}
    found = {name: parameter.default for name, parameter in inspect.signature(make).parameters.items()}
    assert found == {**expected, **common}


def test_every_entry_of_the_registry_is_found_by_its_name() -> None:
    for make in CLASSES:
        assert losses.Loss(make().kind) == make()
    assert losses.Loss("hidden_states", layers="last", weight=0.5) == 0.5 * losses.HiddenStates(layers="last")


def test_a_weighted_sum_is_the_objective_of_a_config() -> None:
    loss = 0.5 * losses.CrossEntropy() + losses.JensenShannon(beta=0.3, temperature=2.0, name="jsd") * 2
    ramp = {"shape": "cosine", "start": 1.0, "end": 0.0, "until": 0.5}
    loss = loss + losses.cosine(1.0, 0.0, until=0.5) * losses.HiddenStates(layers=[(0, 1)], loss="cosine")
    expected = {
        "ce": TermConfig(weight=0.5),
        "jsd": TermConfig(kind="jensen_shannon", weight=2, temperature=2, options={"beta": 0.3}),
        "hidden_states": TermConfig(weight=ramp, options={"layers": [[0, 1]], "loss": "cosine"}),
    }
    assert loss == build_objective(expected)
    assert losses.as_objective(loss.facts()) == loss
    assert sum([losses.CrossEntropy(), losses.ForwardKL()]) == losses.CrossEntropy() + losses.ForwardKL()


def test_weights_by_hand() -> None:
    loss = 0.5 * (losses.linear(1.0, 0.0) * losses.CrossEntropy() + losses.ForwardKL(temperature=3.0))
    assert loss.weights(0.25) == pytest.approx({"ce": 0.375, "forward_kl": 0.5 * 9})
    steps = losses.piecewise({0.0: 1.0, 0.5: 4.0})
    assert [losses.as_objective(losses.ForwardKL(weight=steps)).weights(x)["forward_kl"] for x in (0.4, 0.6)] == [1, 4]


def test_a_part_without_weight_is_left_out_of_a_sum() -> None:
    """α · A + (1 − α) · B at both ends of a sweep."""
    gkd, ce = losses.preset("gkd"), losses.CrossEntropy()
    assert 0.0 * ce + 1.0 * gkd == gkd
    assert 0.0 * gkd + 1.0 * ce == losses.as_objective(ce)
    assert 0.0 * (ce + losses.ForwardKL(temperature=2)) + gkd == gkd
    assert sum([0 * ce, 0 * losses.ForwardKL(), losses.ReverseKL()]) == losses.as_objective(losses.ReverseKL())
    for nothing in (0 * gkd, 0 * ce + 0 * losses.ForwardKL(), (0 * gkd).with_temperature_scaling("hinton")):
        with pytest.raises(UserError, match="no term has a weight"):
            losses.as_objective(nothing)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: losses.JensenShannon(beta=2), r"losses.JensenShannon\(beta\): 2 is not a number between 0 and 1"),
        (lambda: -1 * losses.ForwardKL(), r"losses.ForwardKL\(weight\): -1.0 must be a number of at least 0"),
        (lambda: losses.ForwardKL(temperature=0), r"losses.ForwardKL\(temperature\): 0.0 must be a number above 0"),
        (lambda: losses.ForwardKL() + losses.ForwardKL(), "two terms are called 'forward_kl'"),
        (lambda: losses.ForwardKL() * losses.ForwardKL(), "not with another loss"),
        (lambda: losses.Loss("attention", temperature=2.0), r"losses.Loss\(temperature\): attention has no temperature"),
        (lambda: losses.Loss("hidden_states", layer="last"), "losses.Loss: unknown option 'layer'"),
        (lambda: losses.Loss("forwardkl"), "unknown loss 'forwardkl'; did you mean 'forward_kl'"),
        (lambda: losses.Loss("forward_kl", beta=1), "losses.Loss: unknown option 'beta'"),
        (lambda: losses.linear(0, 1) * losses.ForwardKL(weight=losses.linear(1, 0)), "two schedules"),
        (lambda: losses.ForwardKL(weight=losses.linear(0, 1, begin=0.5, until=0.2)), "must rise"),
        (lambda: losses.as_objective(0 * losses.ForwardKL()), "no term has a weight"),
    ],
)
def test_errors_name_the_argument(make: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        make()


# ---------------------------------------------------------------- losses of one's own


@pytest.fixture(autouse=True)
def _registry_as_it_was() -> Iterator[None]:
    before = dict(LOGIT_LOSSES)
    yield
    LOGIT_LOSSES.clear()
    LOGIT_LOSSES.update(before)


@pytest.mark.parametrize("kind", DENSE)
def test_ours_keep_the_laws(kind: str) -> None:
    losses.check_loss(kind)


def test_a_registered_loss_is_like_ours() -> None:
    """½ Σ |p − q| again: the same numbers in a config and in Python."""

    @losses.register("half_l1", is_divergence=True, temperature_power=1)
    def half_l1(log_q: Tensor, log_p: Tensor, factor: float = 1.0) -> Tensor:
        return factor * 0.5 * (log_q.exp() - log_p.exp()).abs().sum(-1)

    student, teacher, labels = torch.randn(4, 9), torch.randn(4, 9), torch.zeros(4, dtype=torch.long)
    arguments = (student, teacher, labels)
    ours = distillation_loss(losses.as_objective(losses.TotalVariation(temperature=2.0)), *arguments, denominator=labels[0])
    config = build_objective({"mine": TermConfig(kind="half_l1", temperature=2.0, options={"factor": 2.0})})
    theirs = distillation_loss(config, *arguments, denominator=labels[0])
    torch.testing.assert_close(theirs.total, 2 * ours.total)
    objective = losses.as_objective(losses.Loss("half_l1", factor=2.0, temperature=2.0, name="mine"))
    assert objective == config
    with pytest.raises(UserError, match=r"losses.Loss\(factor\): 'x' is not a number"):
        losses.Loss("half_l1", factor="x")


def test_a_loss_may_read_labels_and_logits() -> None:
    @losses.register("teacher_where_wrong")
    def teacher_where_wrong(log_q: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
        return -log_q.gather(-1, labels[:, None])[:, 0] * (teacher_logits.argmax(-1) == labels)

    assert LOGIT_LOSSES["teacher_where_wrong"].inputs == ("log_q", "teacher_logits", "labels")
    assert losses.as_objective(losses.Loss("teacher_where_wrong")).needs_teacher


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda log_q, log_p: (log_p - log_q).sum(), r"8 tokens gave \(\); return one value per token"),
        (lambda log_q, log_p: log_p.exp(), r"8 tokens gave \(8, 11\)"),
        (lambda log_q, log_p: (log_p.exp() / log_q.exp().round()).sum(-1), "inf for a token"),
        (lambda log_q, log_p: (log_p.exp() * (log_p - log_q) + 0 * log_q.exp().sqrt()).sum(-1), "its gradient is nan"),
        (lambda log_q, log_p: (log_q - log_q.mean(0)).square().sum(-1), "changes with the other tokens"),
        (lambda log_q, log_p: (log_p.exp() * log_q).sum(-1), "is negative, which a divergence never is"),
        (lambda log_q, log_p: -(log_p.exp() * log_q).sum(-1), "where student and teacher agree"),
        (lambda log_q, log_p: log_p.exp().sum(-1), "does not depend on the student"),
        (lambda log_q, log_p: log_q.reshape(3, 3), "it raises RuntimeError: shape"),
        (lambda log_q, reference: log_q.sum(-1), "'reference' is none of log_q, log_p, labels"),
    ],
)
def test_what_breaks_a_law_is_refused_and_not_registered(function: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        losses.register("mine", is_divergence=True)(function)
    assert "mine" not in LOGIT_LOSSES


def test_a_name_of_ours_is_taken_and_ones_own_can_be_defined_again() -> None:
    with pytest.raises(UserError, match=r"losses.register\('forward_kl'\): what has this name is part of distill_lit"):
        losses.register("forward_kl")(lambda log_q, log_p: (log_p - log_q).square().sum(-1))
    for factor in (1.0, 2.0):
        losses.register("again")(lambda log_q, log_p, factor=factor: factor * (log_p - log_q).square().sum(-1))
    assert LOGIT_LOSSES["again"].function.__defaults__ == (2.0,)


@pytest.mark.parametrize(
    ("name", "function", "words"),
    [
        ("mine", max, "is no Python function"),
        ("mine", 5, "5 is no Python function"),
        ("", lambda log_q: log_q.sum(-1), "it needs a name"),
        (lambda log_q: log_q.sum(-1), None, "it needs a name"),
        ("hidden_states", lambda log_q: log_q.sum(-1), "what has this name is part of distill_lit"),
        ("mine", lambda log_q, k=None: log_q.sum(-1), r"k is None by default.*options=\{'k': losses.NumberOption"),
        ("mine", lambda log_q, powers=(1, 2): log_q.sum(-1), r"powers is \(1, 2\) by default"),
    ],
)
def test_what_cannot_be_registered_is_said(name: Any, function: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        losses.register(name)(function)


@pytest.mark.parametrize(
    ("arguments", "function", "words"),
    [
        ({"options": {"powr": losses.BoolOption()}}, lambda log_q, power=1.0: log_q.sum(-1), "did you mean 'power'"),
        ({"target_forms": ("topk",)}, lambda log_q, teacher: log_q.sum(-1), "unknown value 'topk'; did you mean 'top_k'"),
        ({"target_forms": ("top_k",)}, lambda log_q, log_p: log_q.sum(-1), "is read by an argument called teacher"),
        (
            {"target_forms": ("top_k",)},
            lambda log_q, teacher: (teacher.logprobs.exp() * teacher.logprobs).sum(-1) + log_q[:, 0],
            "of a top_k teacher: nan for a token",
        ),
    ],
)
def test_options_and_forms_are_checked(arguments: dict, function: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        losses.register("mine", **arguments)(function)


@pytest.mark.filterwarnings("error")
def test_a_loss_that_is_not_a_number_is_one_line_and_no_warning() -> None:
    with pytest.raises(UserError, match="nan for a token"):
        losses.register("mine")(lambda log_q, log_p: (log_q - log_q).log().sum(-1) * 0)


def test_an_option_may_have_any_default_that_a_check_knows() -> None:
    """None stays None, 3 an integer; a loss without documentation has nothing about it."""
    options = {"k": losses.NumberOption(1, is_integer=True)}
    losses.register("first_k", options=options)(lambda log_q, labels, k=None: -log_q[:, :k].sum(-1))
    assert losses.Loss("first_k", k=3).options == {"k": 3}
    assert type(losses.Loss("first_k", k=3).options["k"]) is int
    assert losses.Loss("first_k", k=None).options == {}
    assert LOGIT_LOSSES["first_k"].about == ""


def test_a_loss_of_ones_own_learns_from_a_few_tokens() -> None:
    """½ Σ |q − p| over the two best tokens of the teacher by hand, from whole logits and from a cache."""

    @losses.register("top_k_variation", target_forms=("dense", "top_k"))
    def top_k_variation(log_q: Tensor, teacher: Any, k: int = 16) -> Tensor:
        best_q, best_p = losses.top_k_logprobs(log_q, teacher, k)
        return 0.5 * (best_q.exp() - best_p.exp()).abs().sum(-1)

    q, p = torch.tensor([[0.2, 0.2, 0.6]]).log(), torch.tensor([[0.5, 0.3, 0.2]]).log()
    labels, objective = torch.tensor([0]), losses.as_objective(losses.Loss("top_k_variation", k=2))
    for teacher in (p, TopKTarget(torch.tensor([[0, 1]]), p[:, :2], p[:, 0])):
        found = distillation_loss(objective, q, teacher, labels, denominator=1).total
        assert float(found) == pytest.approx((0.3 + 0.1) / 2)
    check_teacher_supports_objective(objective, "top_k", "this cache")
    with pytest.raises(UserError, match="needs a teacher that is dense or top_k, and this cache is sampled"):
        check_teacher_supports_objective(objective, "sampled", "this cache")


def test_an_unknown_loss_is_not_checked() -> None:
    with pytest.raises(UserError, match="unknown loss 'forward_k'; did you mean 'forward_kl'"):
        losses.check_loss("forward_k")


# what is watched


def test_draft_acceptance_is_what_speculative_decoding_accepts() -> None:
    """Σ min(p, q) by hand, and the share of drafted tokens that a teacher accepts with probability min(1, p/q)."""
    p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.2, 0.6])
    inputs = apply_temperature(TokenLogits(q.log()[None], p.log()[None], torch.tensor([0])), None)
    found = float(compute_metric_sums(inputs)["draft_acceptance"])
    assert found == pytest.approx(0.2 + 0.2 + 0.2)
    drafted = torch.multinomial(q, 40_000, replacement=True, generator=torch.Generator().manual_seed(0))
    accepted = torch.rand(40_000, generator=torch.Generator().manual_seed(1)) < (p / q).clamp(max=1)[drafted]
    assert float(accepted.float().mean()) == pytest.approx(found, abs=0.01)
    same = apply_temperature(TokenLogits(p.log()[None], p.log()[None], torch.tensor([0])), None)
    assert float(compute_metric_sums(same)["draft_acceptance"]) == pytest.approx(1.0)


def test_the_gap_between_engines_is_of_the_tokens_that_one_of_them_wrote() -> None:
    """By hand: differences of 0.5 and −1 on two tokens of three."""
    ours, theirs = torch.tensor([-1.0, -3.0, -2.0]), torch.tensor([-1.5, -2.0, torch.nan])
    sums = engine_gap_sums(ours, theirs)
    assert sums["engine_tokens"] == 2
    assert float(sums["engine_gap"]) == pytest.approx(1.5)
    assert float(sums["importance_ratio"]) == pytest.approx(math.exp(0.5) + math.exp(-1))
