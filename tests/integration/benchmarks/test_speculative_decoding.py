"""benchmarks/speculative_decoding.py on models whose distributions are known."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from benchmarks import speculative_decoding as benchmark

P, Q = [0.5, 0.3, 0.2], [0.2, 0.3, 0.5]  # Σ min = 0.2 + 0.3 + 0.2
ALPHA = 0.7


def always(probabilities: list[float]) -> PreTrainedModel:
    """A model that says the same of every token."""
    sizes = {"vocab_size": 3, "hidden_size": 8, "intermediate_size": 8, "max_position_embeddings": 512}
    layers = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(**sizes, **layers, bos_token_id=None, eos_token_id=None)).eval()
    torch.nn.init.zeros_(model.lm_head.weight)
    model.lm_head.bias = torch.nn.Parameter(torch.tensor(probabilities).log())
    return model


def test_fidelity_by_hand() -> None:
    found = benchmark.fidelity(always(P), always(Q), [0, 1, 2, 0], 2)
    assert found.alpha.tolist() == pytest.approx([ALPHA, ALPHA], abs=1e-6)
    assert found.kl.tolist() == pytest.approx([0.5 * np.log(2.5) + 0.2 * np.log(0.4)] * 2, abs=1e-6)
    assert found.agreement.tolist() == [0, 0]


def test_tokens_per_call_by_hand() -> None:
    """γ = 2: 1, 2 or 3 tokens with probability 0.3, 0.7 · 0.3, 0.49."""
    by_hand = 1 * 0.3 + 2 * 0.21 + 3 * 0.49
    assert benchmark.tokens_per_call(ALPHA, 2) == pytest.approx(by_hand)
    assert benchmark.tokens_per_call(1.0, 4) == 5
    assert benchmark.expected_tokens_per_call([ALPHA] * 4000, 2) == pytest.approx(by_hand)
    # never and always accepted in turn: a call at an accepted token yields 2, and starts the next at an accepted one
    assert benchmark.expected_tokens_per_call([1.0, 0.0] * 2000, 2) == pytest.approx(2, abs=0.01)


def test_acceptance_is_what_alpha_says() -> None:
    target, draft = always(P), always(Q)
    prompts = [[0, 1], [2, 0], [1, 1]]
    texts = benchmark.continue_texts(target, prompts, 100, 0)
    found = benchmark.measure_draft(target, draft, prompts, texts, 2)
    assert found["draft_acceptance"] == found["draft_acceptance_tested"] == pytest.approx(ALPHA, abs=1e-5)
    assert found["accepted"] == pytest.approx(ALPHA, abs=4 * (ALPHA * (1 - ALPHA) / found["tested"]) ** 0.5)
    assert abs(found["z"]) < 4
    assert found["tokens"] == pytest.approx(benchmark.tokens_per_call(ALPHA, 2), rel=0.2)
    shares = np.bincount(np.concatenate([text[2:] for text in texts]), minlength=3) / 300
    assert shares == pytest.approx(P, abs=0.1)


def test_a_draft_that_is_the_target_is_always_accepted() -> None:
    target = always(P)
    texts = benchmark.continue_texts(target, [[0]], 30, 0)
    found = benchmark.measure_draft(target, always(P), [[0]], texts, 4)
    assert found["accepted"] == 1
    assert found["tokens"] == pytest.approx(5)
    assert found["tokens_iid"] == pytest.approx(5)


def test_rows_of_other_drafts_on_the_same_text_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert benchmark.evenly_spaced(2) == [0, 29]
    assert benchmark.evenly_spaced(30) == list(range(30))
    monkeypatch.setattr(benchmark, "TABLE", tmp_path / "table.csv")
    numbers = ("kl", "agreement", "draft_acceptance", "draft_acceptance_se", "accepted", "accepted_se", "tokens_iid",
               "draft_acceptance_tested", "z", "tested", "tokens_expected", "tokens")  # fmt: skip
    row = {"parameters": 1e6, "gamma": 4, "prompts": 8, "new_tokens": 32, **dict.fromkeys(numbers, 0.5)}
    for name, changes in (("a", {}), ("b", {"tokens": 0.6}), ("a", {"z": -2.0})):
        benchmark.write_row({**row, "draft": name, **changes})
    found = pd.read_csv(benchmark.TABLE)
    assert found[["draft", "z"]].to_numpy().tolist() == [["b", 0.5], ["a", -2.0]]
    page = (tmp_path / "table.md").read_text()
    assert "within 2.0 standard errors" in page and "within 20% of what α predicts" in page
    benchmark.write_row({**row, "draft": "c", "prompts": 9})
    assert pd.read_csv(benchmark.TABLE)["draft"].tolist() == ["c"]
