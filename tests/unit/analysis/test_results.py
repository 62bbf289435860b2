"""What is read out of runs.csv."""

import pandas as pd
import pytest

from distill_lit.analysis.results import has_several_teachers


@pytest.mark.parametrize(
    ("losses", "several"),
    [
        ({"a": [3.80, 3.80], "b": [2.90]}, False),  # other text, other loss
        ({"a": [3.800, 3.806]}, False),  # one teacher, read in two number formats
        ({"a": [3.80, 2.94]}, True),
        ({"a": [None, None]}, False),
    ],
)
def test_several_teachers_are_told_by_their_losses_on_the_same_text(losses: dict, several: bool) -> None:
    rows = [{"validation_data_fingerprint": text, "val_teacher_nll": nll} for text, of in losses.items() for nll in of]
    assert has_several_teachers(pd.DataFrame(rows).astype({"val_teacher_nll": float})) is several
