"""Curves over seeds, and over stages of one student."""

import pandas as pd

from distill_lit.report.figures.training_curves import seed_band


def test_a_border_of_stages_is_a_jump_and_no_spread_of_seeds() -> None:
    """Two seeds, each with the loss of the first stage's end and of the second one's beginning at step 2."""
    rows = [
        ("a", 0, 5.0),
        ("a", 2, 3.0),
        ("a", 2, 4.0),
        ("a", 3, 2.0),
        ("b", 0, 5.0),
        ("b", 2, 3.2),
        ("b", 2, 4.4),
        ("b", 3, 2.0),
    ]
    curves = pd.DataFrame(rows, columns=["model", "step", "loss"])
    curves.loc[len(curves)] = ["a", 1, None]  # a row of other quantities
    band = seed_band(curves, "loss")
    assert list(band.index) == [0, 2, 2, 3]
    assert [tuple(round(value, 6) for value in row) for row in band.to_numpy()] == [
        (5.0, 5.0, 5.0), (3.1, 3.0, 3.2), (4.2, 4.0, 4.4), (2.0, 2.0, 2.0)
    ]  # fmt: skip
