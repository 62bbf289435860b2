"""The benchmark of generation: how much faster, by hand."""

import sys

import numpy as np
import pytest
from helpers.all_architectures import tiny_model

from benchmarks.generation import forward_passes, linear_floor, main, token_time_ratios
from distill_lit.generation.sampling import SamplingParams, generate_batch


def test_each_round_is_divided_by_the_tokens_that_it_wrote() -> None:
    """`generate` takes half a second a token in both rounds, and ours a quarter, whatever is drawn."""
    times = {"generate": [(50.0, 100.0), (5.0, 10.0)], "ours": [(10.0, 20.0), (10.0, 40.0)]}
    ratios = token_time_ratios(times, {"generate": [100, 10], "ours": [40, 40]})
    assert ratios == pytest.approx(np.array([[2.0, 2.0], [2.0, 1.0]]))


def test_the_floor_is_of_the_passes_that_are_made() -> None:
    """Prompts of 4 and 5 tokens are read as 2 × 5, the last token of each is asked; then two tokens are read at a time."""
    model, prompts = tiny_model("llama").eval(), [[5, 6, 7, 8], [5, 6, 7, 8, 9]]
    sampling = SamplingParams(temperature=0.0, top_p=1.0, max_new_tokens=3)
    generate_batch(model, prompts, [-1], sampling, 0)  # checks itself once
    passes = forward_passes(model, lambda: generate_batch(model, prompts, [-1], sampling, 0))
    assert passes == [(10, 2), (2, 2), (2, 2)]
    assert 0 < linear_floor(model, passes) < 1


@pytest.mark.parametrize("options", [["--cases", "7"], ["--cases", "-1"], ["--rounds", "0"]])
def test_numbers_that_are_none_are_refused(options: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["generation.py", *options])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
