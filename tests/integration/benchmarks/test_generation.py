"""The benchmark of generation: how much faster, by hand."""

import numpy as np
import pytest

from benchmarks.generation import token_time_ratios


def test_each_round_is_divided_by_the_tokens_that_it_wrote() -> None:
    """`generate` takes half a second a token in both rounds, and ours a quarter, whatever is drawn."""
    times = {"generate": [(50.0, 100.0), (5.0, 10.0)], "ours": [(10.0, 20.0), (10.0, 40.0)]}
    ratios = token_time_ratios(times, {"generate": [100, 10], "ours": [40, 40]})
    assert ratios == pytest.approx(np.array([[2.0, 2.0], [2.0, 1.0]]))
