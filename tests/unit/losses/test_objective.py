"""Schedules and the mixture of terms against hand arithmetic; what identifies them; what is refused."""

import json
import math
import re
from dataclasses import fields
from typing import Any

import pytest
import torch
from helpers.loss_inputs import DENSE
from hypothesis import given, settings
from hypothesis import strategies as st

from distill_lit.config import TermConfig
from distill_lit.losses import Objective, build_objective, check_teacher_supports_objective, distillation_loss
from distill_lit.losses.kernels.terms import kernel_terms
from distill_lit.losses.schedules import parse_schedule
from distill_lit.utils.exceptions import UserError


def test_equal_objectives_are_one_key_and_options_tell_others_apart() -> None:
    """What the kernel computes of an objective is looked up by it in every micro-batch."""
    one, same, other = (
        build_objective({"js": TermConfig(kind="jensen_shannon", options={"beta": beta})}) for beta in (0.25, 0.25, 0.5)
    )
    assert hash(one) == hash(same)
    assert kernel_terms(one) is kernel_terms(same)
    found = [kernel_terms(objective) for objective in (one, other)]
    assert [terms.share for terms in found if terms is not None] == [0.25, 0.5]


def test_temperature_and_its_square_by_hand() -> None:
    student, teacher = torch.tensor([[0.0, 2.0]]).double(), torch.tensor([[0.0, 0.0]]).double()
    q = 1 / (1 + math.exp(-1.0))  # softmax of (0, 2)/2
    expected = 4 * (0.5 * math.log(0.5 / (1 - q)) + 0.5 * math.log(0.5 / q))
    labels, one = torch.tensor([0]), torch.tensor(1)
    term = {"kl": TermConfig(kind="forward_kl", temperature=2.0)}
    hinton = distillation_loss(build_objective(term), student, teacher, labels, denominator=one)
    plain = distillation_loss(build_objective(term, "none"), student, teacher, labels, denominator=one)
    assert hinton.total.item() == pytest.approx(expected, rel=1e-12)
    assert plain.total.item() == pytest.approx(expected / 4, rel=1e-12)
    assert hinton.term_sums.item() == pytest.approx(expected / 4, rel=1e-12)  # logged without the factor


IDENTIFIED = {
    "ce": TermConfig(weight={"shape": "cosine", "start": 1, "end": 0, "until": 0.5}),
    "kl": TermConfig(kind="skew_forward_kl", temperature=2, options={"skew": 0.3}),
    "inner": TermConfig(kind="hidden_states", weight=0.5, options={"layers": [[0, 1]]}),
}


def test_what_identifies_an_objective_is_plain_values() -> None:
    always = {"shape": "linear", "points": [[0.0, 1.0]]}
    assert json.loads(json.dumps(build_objective(IDENTIFIED).facts())) == {
        "terms": [
            {
                "name": "ce",
                "kind": "ce",
                "weight": {"shape": "cosine", "points": [[0.0, 1.0], [0.5, 0.0]]},
                "temperature": always,
                "options": {},
            },
            {
                "name": "kl",
                "kind": "skew_forward_kl",
                "weight": always,
                "temperature": {"shape": "linear", "points": [[0.0, 2.0]]},
                "options": {"skew": 0.3},
            },
            {
                "name": "inner",
                "kind": "hidden_states",
                "weight": {"shape": "linear", "points": [[0.0, 0.5]]},
                "options": {"loss": "mse", "layers": [[0, 1]], "projector": False},
            },
        ],
        "scaling": "hinton",
    }
    assert build_objective(IDENTIFIED, "none").facts()["scaling"] == "none"


def test_an_objective_of_renamed_classes_is_the_same() -> None:
    def renamed(thing: Any) -> Any:
        kind = type(thing)
        values = {field.name: getattr(thing, field.name) for field in fields(thing)}
        parts = {key: tuple(map(renamed, value)) for key, value in values.items() if key in ("terms", "representations")}
        parts |= {key: renamed(value) for key, value in values.items() if key in ("weight", "temperature")}
        return type(f"Other{kind.__name__}", (kind,), {})(**{**values, **parts})

    objective: Objective = build_objective(IDENTIFIED)
    other = renamed(objective)
    assert repr(other) != repr(objective)
    assert other.facts() == objective.facts()


def test_every_change_of_an_objective_identifies_another() -> None:
    changes = [
        {},
        {"ce": TermConfig()},
        {"ce": None},
        {"kl": TermConfig(kind="skew_forward_kl", options={"skew": 0.3})},
        {"kl": TermConfig(kind="skew_forward_kl", temperature=2, options={"skew": 0.4})},
        {"kl": TermConfig(kind="skew_reverse_kl", temperature=2, options={"skew": 0.3})},
        {"inner": TermConfig(kind="hidden_states", weight=0.5)},
        {"inner": TermConfig(kind="hidden_states", weight=0.6, options={"layers": [[0, 1]]})},
        {"another": TermConfig(kind="ce")},
    ]
    found = [json.dumps(build_objective({**IDENTIFIED, **change}).facts(), sort_keys=True) for change in changes]
    assert len(set(found)) == len(found)


def test_mixture_is_the_weighted_sum() -> None:
    torch.manual_seed(2)
    student, teacher, labels = torch.randn(6, 9).double(), torch.randn(6, 9).double(), torch.randint(0, 9, (6,))
    terms = {"ce": TermConfig(weight=0.25), "kl": TermConfig(kind="forward_kl", weight=0.75)}
    mixed = distillation_loss(build_objective(terms), student, teacher, labels, denominator=torch.tensor(6))
    ce = torch.nn.functional.cross_entropy(student, labels)
    kl = torch.nn.functional.kl_div(
        student.log_softmax(-1), teacher.log_softmax(-1), log_target=True, reduction="batchmean"
    )
    assert mixed.total.item() == pytest.approx((0.25 * ce + 0.75 * kl).item(), rel=1e-12)


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
    ("value", "words"),
    [
        (-1, "k: -1.0 must be a number above 0"),
        (0, "k: 0.0 must be a number above 0"),
        (float("nan"), "k: nan must be a number above 0"),
        ("0.5", "k: '0.5' is neither a number nor a schedule"),
        ({"start": 1, "end": 0.5, "util": 1}, "k: unknown key 'util'; did you mean 'until'"),
        ({"start": 1, "end": 0.5, "until": 0}, "k: its points must rise within [0, 1], got [0.0, 0.0]"),
        ({"shape": "cosin"}, "k.shape: unknown value 'cosin'; did you mean 'cosine'"),
    ],
)
def test_what_is_no_schedule_is_refused(value: object, words: str) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(words)}"):
        parse_schedule("k", value, low=0, exclusive=True)


@pytest.mark.parametrize(
    ("terms", "words"),
    [
        ({"forward_kls": TermConfig()}, "did you mean 'forward_kl'"),
        ({"kl": TermConfig(kind="forward_kl", temperature={"start": 1, "end": 0})}, "above 0"),
        ({"ce": TermConfig(temperature=2.0)}, "ce has no temperature"),
        ({"js": TermConfig(kind="jensen_shannon", options={"beta": 0.0})}, "objective.terms.js.options.beta"),
        ({"js": TermConfig(kind="jensen_shannon", options={"beta": 1})}, "objective.terms.js.options.beta"),
        ({"js": TermConfig(kind="jensen_shannon", options={"bta": 0.5})}, "did you mean 'beta'"),
        ({"mse": TermConfig(kind="logit_mse", temperature=2.0)}, "logit_mse has no temperature"),
        ({"mse": TermConfig(kind="logit_mse", options={"center": 1})}, "neither true nor false"),
        ({"top_k_kl": TermConfig(options={"k": 2.5})}, "a whole number of at least 1"),
        ({"top_k_kl": TermConfig(options={"k": True})}, "a whole number of at least 1"),
        ({"pairwise_ranking": TermConfig(options={"loss": "hing"})}, "did you mean 'hinge'"),
        ({"pairwise_ranking": TermConfig(options={"margin": -1})}, "a number of at least 0"),
        ({"ce": TermConfig(options={"label_smoothing": 1})}, "between 0 and 1, 1 exclusive"),
        ({"alpha_beta": TermConfig(options={"alpha": float("nan")})}, "objective.terms.alpha_beta.options.alpha"),
        ({}, "at least one term"),
        ({"ce": TermConfig(weight=0), "kl": None}, "at least one term"),
    ],
)
def test_refusals_name_the_key(terms: dict, words: str) -> None:
    with pytest.raises(UserError, match=words.replace(".", r"\.")):
        build_objective(terms)


@pytest.mark.parametrize(
    ("terms", "form", "words"),
    [
        ({"forward_kl": TermConfig()}, "top_k", "forward_kl needs a teacher that is dense, and this cache is top_k"),
        ({"reverse_kl": TermConfig()}, "sampled", "choose from sampled_kl, policy_gradient_reverse_kl"),
        ({"top_k_tail_kl": TermConfig(temperature=2)}, "top_k", "objective.terms.top_k_tail_kl.temperature"),
        ({"sampled_kl": TermConfig(temperature=2)}, "sampled", "cannot soften"),
        ({"contrastive_skew_kl": TermConfig()}, "dense", "does not tell them apart"),
    ],
)
def test_a_signal_that_cannot_feed_a_term_is_refused(terms: dict, form: str, words: str) -> None:
    with pytest.raises(UserError, match=words.replace(".", r"\.")):
        check_teacher_supports_objective(build_objective(terms), form, "this cache")


def test_a_signal_that_feeds_every_term_is_accepted() -> None:
    top_k = {
        "ce": TermConfig(),
        "top_k_kl": TermConfig(temperature=2),
        "truncated_kl": TermConfig(temperature=2),
        "top_k_tail_kl": TermConfig(),
        "pairwise_ranking": TermConfig(),
    }
    check_teacher_supports_objective(build_objective(top_k), "top_k", "this cache")
    check_teacher_supports_objective(build_objective({"sampled_kl": TermConfig()}), "sampled", "this cache")
    check_teacher_supports_objective(
        build_objective({kind: TermConfig() for kind in DENSE}), "dense", "this cache", has_on_policy_mask=True
    )
