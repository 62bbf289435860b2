"""Curves over seeds, and over stages of one student."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers.synthetic_results import build

from distill_lit.analysis.results import load_results
from distill_lit.analysis.scores import compute_scores
from distill_lit.config.evaluation import AnalysisConfig
from distill_lit.report.figures.training_curves import curves_figure, curves_finding, seed_band, spread

FAST = AnalysisConfig(n_resamples=100)


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


def test_kls_to_several_teachers_are_not_one_distance(tmp_path: Path) -> None:
    """Each student is nearer to its own teacher than the one without is to the first; that is no comparison."""
    folder = build(tmp_path, documents=10, students={"deep": 0.8, "shallow": 1.4})
    runs = pd.read_csv(folder / "runs.csv")
    runs["val_ce"] = runs["role"].map({"ce_only": 4.6}).fillna(4.5)
    said = {}
    for second in (3.0, 3.5):  # the loss of the second student's teacher on the text
        runs["val_teacher_nll"] = 3.0
        runs.loc[runs["student"] == "shallow", "val_teacher_nll"] = second
        runs.to_csv(folder / "runs.csv", index=False)
        said[second] = curves_finding(compute_scores(load_results(folder), FAST))
    loss = "at a lower loss on the text (4.50 nats; without it 4.60)"
    near = "nearer to the teacher (0.80 to 1.40 nats; without it 1.50 to 2.10)"
    assert said == {3.0: f"With the teacher students end {near} and {loss}", 3.5: f"With the teacher students end {loss}"}


def test_labels_that_would_touch_are_moved_apart_as_little_as_possible() -> None:
    assert spread([1.0, 5.0], 1.0) == [1.0, 5.0]
    assert spread([2.0, 2.0], 1.0) == [1.5, 2.5]
    assert spread([1.0, 1.2, 9.0], 1.0) == pytest.approx([0.6, 1.6, 9.0])


def test_curves_name_their_ends_the_teacher_and_the_border_of_stages(tmp_path: Path) -> None:
    """A student of two stages beside the same without teacher: one color for both, dashes and thin on top without it."""
    folder = build(tmp_path, documents=10, students={"d15": 0.8})
    runs = pd.read_csv(folder / "runs.csv").assign(num_layers=15, val_teacher_nll=3.8)
    early = runs[runs["role"] == "ce_only"].assign(model="early", student="d15_after_d22", num_layers=22, status="missing")
    pd.concat([early, runs]).to_csv(folder / "runs.csv", index=False)
    steps = [(0, 5.0), (5, 4.0), (5, 4.5), (10, 4.1)]
    rows = [(model, step, loss) for model in ("d15-distilled-0", "d15-ce_only-0") for step, loss in steps]
    curves = pd.DataFrame(rows, columns=["model", "step", "validation/student_nll"])
    (axes,) = curves_figure(compute_scores(load_results(folder), FAST), curves).axes
    lines = {line.get_label(): line for line in axes.get_lines()}
    distilled, without = lines["d15 distilled"], lines["d15 without teacher"]
    assert distilled.get_color() == without.get_color()
    assert (distilled.get_linestyle(), without.get_linestyle()) == ("-", "--")
    assert without.get_linewidth() < distilled.get_linewidth() and without.get_zorder() > distilled.get_zorder()
    assert 3.8 in [line.get_ydata()[0] for line in axes.get_lines()]
    places = {text.get_text(): text.xy for text in axes.texts}
    assert set(places) == {"d15", "teacher", "after d22: 22 → 15 layers"}
    assert places["after d22: 22 → 15 layers"][0] == 100_000  # tokens, half of them
    assert np.diff([places["teacher"][1], places["d15"][1]]) > 0
    runs.loc[runs["role"] == "distilled", "grid.teacher"] = "corrected"
    corrected = runs.iloc[:1].assign(model="corrected", role="derived", student="corrected", val_teacher_nll=4.4)
    pd.concat([corrected, runs]).to_csv(folder / "runs.csv", index=False)
    (axes,) = curves_figure(compute_scores(load_results(folder), FAST), curves).axes
    assert {text.get_text() for text in axes.texts} == {"d15", "teacher: corrected", "next stage"}


def test_titles_speak_of_own_data_where_models_that_are_drawn_have_it(tmp_path: Path) -> None:
    """A model that others are made from reads another text, and has no line; then so does the student without teacher."""
    folder = build(tmp_path, documents=10, students={"d15": 0.8})
    runs = pd.read_csv(folder / "runs.csv").assign(validation_data_fingerprint="one")
    expert = runs.iloc[:1].assign(model="expert", role="derived", student="expert", validation_data_fingerprint="two")
    curves = pd.DataFrame(
        [(model, step, 4.0) for model in ("d15-distilled-0", "d15-ce_only-0") for step in (0, 10)],
        columns=["model", "step", "validation/student_nll"],
    )
    pd.concat([expert, runs]).to_csv(folder / "runs.csv", index=False)
    (axes,) = curves_figure(compute_scores(load_results(folder), FAST), curves).axes
    assert axes.get_title("left") == "validation cross-entropy, nats per token"
    runs.loc[runs["role"] == "ce_only", "validation_data_fingerprint"] = "two"
    runs.to_csv(folder / "runs.csv", index=False)
    (axes,) = curves_figure(compute_scores(load_results(folder), FAST), curves).axes
    assert axes.get_title("left").split("\n") == ["validation cross-entropy, nats per token, each", "on its own data"]
