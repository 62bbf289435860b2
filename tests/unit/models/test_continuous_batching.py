"""Continuous batching writes what transformers' `generate` writes after one prompt at a time."""

import logging
from typing import Any

import pytest
import torch
from helpers.all_architectures import tiny_model
from helpers.tiny_architectures import FAMILIES, SHAPE, VOCABULARY, make_family
from transformers import MistralConfig, MistralForCausalLM

from distill_lit.models import continuous_batching, generation_check, slot_cache
from distill_lit.models.continuous_batching import write_continuously
from distill_lit.models.generation_check import supported_slot_mode, without_model_generation_config
from distill_lit.models.packed_linears import packed_linears
from distill_lit.models.processed_choice import ProcessedChoice
from distill_lit.models.slot_cache import SlotDecoder, prompt_groups

EOS = list(range(2, 30))
NEW_TOKENS = 16


def prompts(count: int = 10, longest: int = 30, seed: int = 0) -> list[list[int]]:
    """Of mixed length, two of them alike."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, longest, (count - 1,), generator=generator).tolist()
    found = [torch.randint(3, VOCABULARY, (size,), generator=generator).tolist() for size in sizes]
    return [*found, found[2]]


def alone(model: Any, prompt: list[int], **options: Any) -> list[int]:
    with without_model_generation_config(model):
        ids = torch.tensor([prompt])
        return model.generate(ids, attention_mask=torch.ones_like(ids), **options)[0, len(prompt) :].tolist()


@pytest.fixture(autouse=True)
def pack_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that texts of tests are written with packed weights, too."""
    monkeypatch.setattr(continuous_batching, "PACK_AFTER_STEPS", 2)


def in_slots(model: Any, asked: list[list[int]], num_slots: int = 4, **options: Any) -> list[list[int]]:
    new_tokens = options.pop("max_new_tokens")
    mode = supported_slot_mode(model, max(map(len, asked)), new_tokens)
    assert not mode.fallback_reason, mode
    with without_model_generation_config(model):
        choice = ProcessedChoice(model, asked, options, new_tokens, 0, range(len(asked)))
        assert choice.is_supported

        def ends(active: list[Any]) -> list[bool]:
            return [each.token_ids[-1] in choice.eos_token_ids for each in active]

        written = write_continuously(model, asked, new_tokens, num_slots, mode.mask_per_kind, choice, ends)
    assert [each.number for each in written] == list(range(len(asked)))
    assert all(each.is_finished == (each.token_ids[-1] in choice.eos_token_ids) for each in written)
    return [each.token_ids for each in written]


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_are_those_of_generate(family: str) -> None:
    """With fewer slots than prompts, windows of five tokens in gemma, and rows that end at different places."""
    model, asked = make_family(family), prompts()
    options = {"do_sample": False, "max_new_tokens": NEW_TOKENS, "eos_token_id": EOS, "pad_token_id": 0}
    found = in_slots(model, asked, **options)
    assert found == [alone(model, prompt, **options) for prompt in asked]
    assert len(set(map(len, found))) > 1


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_window_that_only_new_tokens_reach(attention: str) -> None:
    """Prompts are shorter than the window, texts longer: a mask that forgets it would show here and nowhere before."""
    torch.manual_seed(0)
    config = MistralConfig(**{**SHAPE, "head_dim": 6}, sliding_window=10, attn_implementation=attention)
    model, asked = MistralForCausalLM(config).eval(), prompts(longest=6)
    options = {"do_sample": False, "max_new_tokens": 40, "pad_token_id": 0}
    assert in_slots(model, asked, **options) == [alone(model, prompt, **options) for prompt in asked]


@pytest.mark.parametrize(
    "options",
    [
        {"repetition_penalty": 1.8},
        {"no_repeat_ngram_size": 2},
        {"min_new_tokens": 9},
        {"bad_words_ids": [[88], [106, 97]], "suppress_tokens": [8]},
        {"exponential_decay_length_penalty": (3, 1.5)},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_of_generate_do_the_same(options: dict[str, Any]) -> None:
    model, asked = make_family("llama", seed=1), prompts(6)
    usual = {"do_sample": False, "max_new_tokens": NEW_TOKENS, "eos_token_id": EOS, "pad_token_id": 0}
    options = {**options, **usual}
    plain = [alone(model, prompt, **usual) for prompt in asked]
    expected = [alone(model, prompt, **options) for prompt in asked]
    assert in_slots(model, asked, **options) == expected != plain


def test_what_generate_does_beyond_logits_is_left_to_it() -> None:
    model, asked = make_family("llama"), prompts(4)
    for options in ({"guidance_scale": 1.5}, {"num_beams": 3}, {"use_cache": False}, {"num_return_sequences": 2}):
        options = {"do_sample": "num_return_sequences" in options, "pad_token_id": 0, **options}
        assert not ProcessedChoice(model, asked, options, 4, 0, range(4)).is_supported, options


def test_a_model_that_takes_no_static_cache_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_model("mamba")
    with caplog.at_level(logging.INFO):
        assert supported_slot_mode(model, 8, 4).fallback_reason
        assert supported_slot_mode(model, 9, 4).fallback_reason
    assert sum("transformers' generate writes" in record.message for record in caplog.records) == 1


def test_a_mask_that_is_wrong_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Columns of a slot's previous text, or those beyond a window, that attention would see."""
    model = make_family("llama")
    assert not supported_slot_mode(model, 8, 4).fallback_reason
    monkeypatch.setattr(slot_cache, "attention_windows", lambda config: {"full_attention": lambda at: at - 2})
    generation_check._slot_modes.clear()
    assert "not those of the whole text" in supported_slot_mode(model, 8, 4).fallback_reason


def test_slots_are_filled_by_hand() -> None:
    decoder = SlotDecoder(make_family("llama"), 5, 40, False)
    with torch.inference_mode():
        decoder.add([[5] * 3, [6] * 4, [7] * 5, [8] * 6, [9] * 7])
        assert decoder.lengths == [3, 4, 5, 6, 7]
        assert decoder.drop([True, False, True, False, False]) == [3, 1, 4]  # the last ones fill the gaps
        assert decoder.lengths == [6, 4, 7]
        decoder.step(torch.tensor([1, 1, 1]))
    assert decoder.lengths == [7, 5, 8]


def test_prompts_that_are_read_together_by_hand() -> None:
    texts = [[0] * size for size in (40, 36, 33, 18, 18, 3)]
    assert [[len(text) for text in group] for group in prompt_groups(texts)] == [[40, 36, 33], [18, 18], [3]]


def test_packed_weights_give_the_same_products_and_are_gone_afterwards() -> None:
    """They follow weights that change between two uses, as a student's do between two batches."""
    model = make_family("llama_bias")
    ids = torch.randint(3, VOCABULARY, (2, 5), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        before = model(ids).logits
        with packed_linears(model):
            assert "forward" in model.lm_head.__dict__
            torch.testing.assert_close(model(ids).logits, before, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        model.lm_head.weight.mul_(2.0)
    with torch.inference_mode(), packed_linears(model):
        torch.testing.assert_close(model(ids).logits, 2 * before, rtol=1e-4, atol=1e-4)
    assert not any("forward" in module.__dict__ for module in model.modules())
    with packed_linears(model.bfloat16()):
        assert "forward" not in model.lm_head.__dict__
