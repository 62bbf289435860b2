"""What is read out of runs.csv."""

from pathlib import Path

import pandas as pd
import pytest

from distill_lit.analysis.results import has_several_teachers, load_runs_table
from distill_lit.config.grid_points import comparable_text, short_texts
from distill_lit.experiment.collect import _cell, _write_frame
from distill_lit.experiment.planning.run_labels import run_label


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


def test_mappings_of_a_grid_are_shown_by_what_differs(tmp_path: Path) -> None:
    big, small = (
        "{'model': 'run:big', 'dtype': 'float32'}",
        "{model: run:small, dtype: float32}",
    )
    rows = [("a", big), ("b", small), ("c", f"{small} or {big}"), ("d", None)]
    runs = pd.DataFrame([{"model": m, "role": "distilled", "student": "s", "grid.teacher": value} for m, value in rows])
    runs["grid.width"] = ["[1, 2]", "[3, 4]", "{a: 1}", "{b: 1}"]
    runs.to_csv(tmp_path / "runs.csv", index=False)
    found = load_runs_table(tmp_path / "runs.csv")
    assert found["grid.teacher"].tolist()[:3] == ["run:big", "run:small", "run:small or run:big"]
    assert pd.isna(found["grid.teacher"][3])
    assert found["grid.width"].tolist() == ["[1, 2]", "[3, 4]", "{a: 1}", "{b: 1}"]


def test_a_mapping_in_the_label_of_a_run_has_no_quotes() -> None:
    teacher = {"model": "run:big", "dtype": "float32"}
    assert run_label("distilled", "d18", {"teacher": teacher}, 0, ["teacher", "seed"]) == (
        "d18-teacher={model:run:big,dtype:float32}-seed=0"
    )
    assert short_texts([{"a": 1, "c": 2}, {"a": 2, "c": 2}, {"a": 2, "c": 3}]) == [
        "{a: 1, c: 2}",
        "{a: 2, c: 2}",
        "{a: 2, c: 3}",
    ]
    assert short_texts(["one", teacher]) == ["one", "{model: run:big, dtype: float32}"]


def test_numbers_of_a_grid_keep_all_their_digits(tmp_path: Path) -> None:
    """1,048,576 tokens and 1,048,577, beside a teacher without any."""
    _write_frame(tmp_path / "runs.csv", pd.DataFrame([
        {"model": name, "role": role, "grid.tokens": _cell(tokens), "grid.rate": _cell(rate), "flops_per_token": 1 / 3}
        for name, role, tokens, rate in (
            ("teacher", "teacher", None, None), ("a", "distilled", 1048576, 1e-5), ("b", "distilled", 1048577, 0.30000001))
    ]))  # fmt: skip
    found = load_runs_table(tmp_path / "runs.csv")
    assert found["grid.tokens"].tolist()[1:] == ["1048576", "1048577"]
    assert found["grid.rate"].tolist()[1:] == ["1e-05", "0.30000001"]
    assert found["flops_per_token"][0] == 0.333333
    texts = [comparable_text(value) for value in (1, 1.0, "1.0", "1e0", 1048576, 1048577)]
    assert len(set(texts)) == 3 and len(set(texts[:4])) == 1
