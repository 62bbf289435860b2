"""Text of the student from plain batches of transformers, and what a loss on such text needs."""

import functools
from typing import Any

import pytest
import torch
from helpers.tiny_architectures import make_family
from torch import Tensor

from distill_lit import Distiller, OnPolicyGenerator, losses
from distill_lit.config import OnPolicyConfig
from distill_lit.utils.exceptions import UserError

MAX_NEW_TOKENS = 4
make_model = functools.cache(make_family)


def plain_batch(padding: str) -> dict[str, Tensor]:
    """Five tokens of plain text, and a prompt of three with one answered, padded on one side."""
    ids, labels, mask = [7, 2, 11, 6], [-100, -100, -100, 6], [1, 1, 1, 1]
    left, right = ([0], []) if padding == "left" else ([], [0])
    ignored = [[-100] * len(side) for side in (left, right)]
    return {
        "input_ids": torch.tensor([[5, 9, 14, 3, 8], [*left, *ids, *right]]),
        "labels": torch.tensor([[5, 9, 14, 3, 8], [*ignored[0], *labels, *ignored[1]]]),
        "attention_mask": torch.tensor([[1] * 5, [*left, *mask, *right]]),
        "token_type_ids": torch.zeros(2, 5, dtype=torch.long),
    }


def generator(**changes: Any) -> OnPolicyGenerator:
    config = OnPolicyConfig(**{"fraction": 1.0, "max_new_tokens": MAX_NEW_TOKENS, "prompt_fraction": 0.4, **changes})
    return OnPolicyGenerator(config, [2], 120)


@pytest.mark.parametrize("padding", ["left", "right"])
def test_the_student_continues_plain_batches(padding: str) -> None:
    """0.4 of five tokens are two; a response begins with its first label."""
    student, batch = make_model("llama", 0), plain_batch(padding)
    module = Distiller(student, make_model("llama", 1), losses.PolicyGradientReverseKL(), on_policy_generator=generator())
    made = module.on_policy_generator.next_batch(batch, student, 0, 0, micro_batches=1)
    own = made["on_policy_mask"]
    assert own.shape == (2, 5 + MAX_NEW_TOKENS)
    for row, prompt in enumerate(([5, 9], [7, 2, 11])):
        assert made["input_ids"][row, : len(prompt)].tolist() == prompt
        assert own[row].nonzero()[:, 0].tolist() == list(range(len(prompt), len(prompt) + int(own[row].sum())))
        assert 1 <= int(own[row].sum()) <= MAX_NEW_TOKENS
        assert made["document_ids"][row].sum() == len(prompt) + own[row].sum()
    assert torch.equal(made["labels"] != -100, own)
    assert int(made["step_tokens"]) == int(own.sum())
    assert module.loss(student, made).total.isfinite()


def test_a_plain_batch_that_is_read_as_it_is_stays_plain() -> None:
    batch = plain_batch("right")
    read = generator(fraction=0.0).next_batch(batch, make_model("llama", 0), 0, 0, 1)
    assert all(torch.equal(read[name], value) for name, value in batch.items())
    assert not read["on_policy_mask"].any()


@pytest.mark.parametrize("term", [losses.PolicyGradientReverseKL(), losses.CrossEntropy() + losses.ContrastiveSkewKL()])
def test_a_loss_on_text_of_the_student_needs_batches_that_say_which_it_is(term: Any) -> None:
    student, batch = make_model("llama", 0), plain_batch("right")
    module = Distiller(student, make_model("llama", 1), term)
    with pytest.raises(UserError, match="does not tell them apart; give Distiller an on_policy_generator="):
        module.loss(student, batch)
    own = {**batch, "on_policy_mask": torch.ones_like(batch["input_ids"], dtype=torch.bool)}
    assert module.loss(student, own).total.isfinite()


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"teacher_mix_fraction": 0.2}, "give teacher_model="), ({"replay_buffer_size": 3}, "give max_steps=")],
)
def test_what_the_config_of_the_text_needs_is_asked_for(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        generator(**changes)


@pytest.mark.parametrize(
    ("term", "changes", "words"),
    [
        (losses.PolicyGradientReverseKL(temperature=2.0), {}, r"PolicyGradientReverseKL\(temperature\): .* leave it at 1"),
        (losses.PolicyGradientReverseKL(), {"temperature": 0.7}, "leave temperature and top_p at 1"),
        (losses.PolicyGradientReverseKL(), {"fraction": 0.5}, "set on_policy.fraction to 1"),
    ],
)
def test_a_policy_gradient_of_another_distribution_than_was_drawn_from_is_refused(
    term: Any, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        Distiller(make_model("llama", 0), make_model("llama", 1), term, on_policy_generator=generator(**changes))


def test_texts_of_another_number_of_ranks_are_not_replayed() -> None:
    settings = OnPolicyConfig(fraction=1.0, replay_buffer_size=1)
    kept = [{"input_ids": torch.tensor([[1, 2]])}]
    for buffers, expected in (([kept], kept), ([kept, kept], []), ([], [])):
        text = OnPolicyGenerator(settings, [2], 120, max_steps=4)
        text.load_state_dict({"fraction": 1.0, "best": 2.0, "replay_buffer": buffers})
        assert text.state_dict()["replay_buffer"] == [expected]
