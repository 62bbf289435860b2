"""Texts that are drawn: from the model's own distribution, by whichever engine, and by the sequence's own numbers."""

from typing import Any

import pytest
import torch
from helpers.all_architectures import tiny_model
from helpers.tiny_architectures import VOCABULARY, make_family
from transformers import TopPLogitsWarper

from distill_lit.generation import sampling
from distill_lit.generation.sampling import SamplingParams, generate_batch
from distill_lit.models.drawing import draw_tokens, top_p_filter
from distill_lit.models.generation_check import SlotMode


def test_a_number_decides_by_the_cumulative_probability() -> None:
    logits = torch.tensor([0.2, 0.0, 0.5, 0.3]).log().expand(6, 4)
    numbers = torch.tensor([0.0, 0.19, 0.21, 0.69, 0.71, 1 - 2**-53], dtype=torch.float64)
    assert draw_tokens(logits, numbers).tolist() == [0, 0, 2, 2, 3, 3]
    last = torch.tensor([[0.5, 0.5, 0.0]]).log()
    assert draw_tokens(last, numbers[-1:]).tolist() == [1]  # never behind the last that has a probability


@pytest.mark.parametrize(("scale", "top_p"), [(3.0, 0.9), (0.1, 0.9), (1.0, 0.999), (1.0, 0.01), (5.0, 0.5)])
def test_the_nucleus_is_that_of_transformers(scale: float, top_p: float) -> None:
    logits = scale * torch.randn(5, 3000, generator=torch.Generator().manual_seed(0))
    expected = TopPLogitsWarper(top_p)(torch.zeros(5, 0, dtype=torch.int64), logits)
    assert torch.equal(top_p_filter(logits, top_p), expected)


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (1.7, 0.8)])
def test_pairs_of_tokens_follow_the_models_distribution(temperature: float, top_p: float) -> None:
    """χ² of 6000 texts of two tokens against every pair's own probability, by whole forward passes."""
    model = make_family("llama")
    with torch.no_grad():
        model.lm_head.weight.mul_(3.0)  # few tokens are likely, so that pairs are drawn often
    prompt, count = [5, 9, 40], 6000
    asked = SamplingParams(temperature, top_p, 2)
    texts = generate_batch(model, [prompt] * count, [1], asked, 3, vocab_size=VOCABULARY, num_slots=500)
    seen = torch.zeros(VOCABULARY, VOCABULARY)
    for text in texts:
        if len(text.token_ids) == 2:
            seen[text.token_ids[0], text.token_ids[1]] += 1

    def distribution(rows: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            logits = model(rows).logits[:, -1] / temperature
        if top_p < 1:
            logits = TopPLogitsWarper(top_p)(rows, logits)
        return logits.double().softmax(-1)

    first = distribution(torch.tensor([prompt]))[0]
    second = distribution(torch.tensor([[*prompt, token] for token in range(VOCABULARY)]))
    expected = count * first[:, None] * second
    expected[1] = 0  # an end token ends the text
    frequent = expected > 8
    degrees = int(frequent.sum())
    assert degrees > 20
    chi2 = float(((seen - expected)[frequent].square() / expected[frequent]).sum())
    assert abs(chi2 - degrees) < 4 * (2 * degrees) ** 0.5
    assert float(seen[expected == 0].sum()) == 0


@pytest.mark.parametrize("asked", [SamplingParams(0, 1, 12), SamplingParams(1.2, 0.9, 12)])
def test_both_engines_write_the_same(asked: SamplingParams, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with fewer slots, so that what is written beside a text does not matter. Log-probabilities are the model's."""
    model = make_family("qwen3")
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randint(3, VOCABULARY, (1 + n % 6,), generator=generator).tolist() for n in range(11)]

    def written(num_slots: int) -> list[Any]:
        return generate_batch(model, prompts, [2, 7], asked, 5, vocab_size=VOCABULARY - 3, num_slots=num_slots)

    by_slots, by_fewer = written(0), written(3)
    monkeypatch.setattr(sampling, "supported_slot_mode", lambda *_: SlotMode(False, "not here"))
    for other in (by_fewer, written(0), written(4)):
        assert [text.token_ids for text in other] == [text.token_ids for text in by_slots]
        assert [text.is_finished for text in other] == [text.is_finished for text in by_slots]
        for one, two in zip(other, by_slots, strict=True):
            assert one.logprobs == pytest.approx(two.logprobs, abs=2e-3)
    text, prompt = by_slots[4], prompts[4]
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *text.token_ids[:-1]]])).logits[0, len(prompt) - 1 :, : VOCABULARY - 3]
    expected = logits.log_softmax(-1).gather(-1, torch.tensor(text.token_ids)[:, None])[:, 0]
    assert text.logprobs == pytest.approx(expected.tolist(), abs=2e-3)


def test_a_model_without_a_static_cache_writes_all_the_same() -> None:
    model = tiny_model("mamba")
    written = generate_batch(model, [[5, 6], [7, 8, 9]], [2], SamplingParams(0, 1, 4), 0)
    for prompt, text in zip([[5, 6], [7, 8, 9]], written, strict=True):
        ids = list(prompt)
        for token in text.token_ids:
            with torch.no_grad():
                assert token == int(model(torch.tensor([ids])).logits[0, -1].argmax())
            ids.append(token)


def test_nothing_is_asked() -> None:
    assert generate_batch(make_family("gpt2"), [], [2], SamplingParams(0, 1, 4), 0) == []
