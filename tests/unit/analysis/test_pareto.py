"""The frontier and the claim: by hand, and on students whose standing is known."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers.synthetic_results import build, copy_model, edit_model

from distill_lit.analysis.pareto import (
    CLAIM_FAILS,
    CLAIM_HOLDS,
    CLAIM_UNDECIDED,
    cost_axes,
    efficiency_claims,
    hypervolume,
    hypervolume_gains,
    pareto_frontier,
)
from distill_lit.analysis.pareto import pareto_optimal_mask as standing
from distill_lit.analysis.results import load_results
from distill_lit.analysis.scores import EXCLUDED_AT_CHANCE, compute_scores
from distill_lit.config.evaluation import AnalysisConfig

FAST = AnalysisConfig(n_resamples=500)


def test_on_frontier_by_hand() -> None:
    costs = np.array([1.0, 2.0, 2.0, 4.0])
    scores = np.array([[0.1, 0.3, 0.2, 0.3], [0.5, 0.3, 0.3, 0.6]])
    # draw 0: the cheapest; the better of equals; not the worse; not the dearer as good. draw 1: equals dominated by 0
    assert standing(costs, scores).tolist() == [[True, True, False, False], [True, False, False, True]]


def test_equal_models_at_equal_cost_are_both_on_it() -> None:
    assert standing(np.array([1.0, 1.0]), np.array([[0.4, 0.4]])).all()


def test_hypervolume_by_hand() -> None:
    # .2 from 10 to 100 and .5 from 100 to 1000: one decade each
    costs, scores = np.array([100.0, 10.0]), np.array([[0.5, 0.2]])
    assert hypervolume(costs, scores, 1000.0) == pytest.approx([0.7])
    assert hypervolume(costs, scores, 1000.0, 0.2) == pytest.approx([0.3])
    assert hypervolume(costs, -scores, 1000.0) == pytest.approx([0.0])
    # what costs more than the reference adds nothing
    assert hypervolume(np.array([10.0, 5000.0]), np.array([[0.2, 0.9]]), 1000.0) == pytest.approx([0.4])


def test_teacher_is_on_the_frontier_and_untouched_students_are_not(tmp_path: Path) -> None:
    scores = compute_scores(load_results(build(tmp_path, documents=150, students={"deep": 0.3})), FAST)
    frame = pareto_frontier(scores, "parameters").set_index("role")
    assert frame.loc["teacher", "on_frontier"] == pytest.approx(1.0)
    assert frame.loc["untrained", "on_frontier"] < 0.05
    assert (frame["low"] <= frame["score"]).all()
    assert (frame["score"] <= frame["high"]).all()


def test_hypervolume_gain_is_the_difference(tmp_path: Path) -> None:
    scores = compute_scores(load_results(build(tmp_path, documents=60)), FAST)
    found = hypervolume_gains(scores, "parameters").set_index("series")
    assert found.loc["gain", "value"] == pytest.approx(found.loc["distilled", "value"] - found.loc["ce_only", "value"])


def test_the_gain_of_a_variant_is_its_own(tmp_path: Path) -> None:
    """Two variants beside one baseline: neither is credited with the better of both."""
    folder = build(tmp_path, documents=60, students={"deep": 0.5}, seeds=(0, 1))
    runs = pd.read_csv(folder / "runs.csv")
    mine = runs["role"] == "distilled"
    runs["grid.variant"] = np.where(mine, np.where(runs["seed"] == 0, "a", "b"), None)
    runs.to_csv(folder / "runs.csv", index=False)
    scores = compute_scores(load_results(folder), FAST)
    found = hypervolume_gains(scores, "parameters").set_index(["variant", "series"])["value"]
    width = np.log10(runs["parameters"].max() / runs.loc[mine, "parameters"].max())
    for g, group in enumerate(scores.groups):
        if group.role == "distilled":
            assert found[group.variant, "distilled"] == pytest.approx(max(0, scores.macro(g)) * width)
    gains = found.xs("gain", level="series")
    assert gains.to_dict() == pytest.approx(
        (found.xs("distilled", level="series") - found.xs("ce_only", level="series")).to_dict()
    )
    assert len(gains) == 2


def claim_at(folder: Path, cost: float, answers: float, documents: int = 400) -> str:
    """The verdict on a student of that cost whose answers are the teacher's but for a share `answers` of wrong ones."""
    build(folder, documents=documents, students={"deep": 0.5})
    edit_model(folder, "teacher", lambda frame: frame.assign(correct=1, correct_norm=1))
    copy_model(folder, "teacher", "deep-distilled-0")
    right = (np.random.default_rng(0).random(len(load_results(folder).documents)) >= answers).astype(int)
    edit_model(folder, "deep-distilled-0", lambda frame: frame.assign(correct=right, correct_norm=right))
    runs = pd.read_csv(folder / "runs.csv")
    runs["parameters"] = np.where(runs["role"] == "teacher", 1e9, cost)
    runs.to_csv(folder / "runs.csv", index=False)
    frame = efficiency_claims(compute_scores(load_results(folder), FAST))
    return str(frame[(frame["role"] == "distilled") & (frame["axis"] == "parameters")]["verdict"].iloc[0])


@pytest.mark.parametrize(
    ("cost", "wrong", "verdict"),
    [(1e8, 0.01, CLAIM_HOLDS), (1.1e8, 0.01, CLAIM_FAILS), (1e8, 0.3, CLAIM_FAILS), (0.5e8, 0.068, CLAIM_UNDECIDED)],
)
def test_claim_needs_both_quality_and_cost(tmp_path: Path, cost: float, wrong: float, verdict: str) -> None:
    assert claim_at(tmp_path, cost, wrong) == verdict


def test_measured_cost_brings_its_bounds(tmp_path: Path) -> None:
    folder = build(tmp_path, documents=40)
    runs = pd.read_csv(folder / "runs.csv")
    teacher = runs["role"] == "teacher"
    runs["bytes"], runs["bytes_low"], runs["bytes_high"] = np.where(teacher, 120, 10), np.where(teacher, 90, 9), 130
    runs.to_csv(folder / "runs.csv", index=False)
    frame = efficiency_claims(compute_scores(load_results(folder), FAST))
    row = frame[frame["axis"] == "bytes"].iloc[0]
    assert (row["ratio"], row["ratio_low"], row["ratio_high"]) == pytest.approx((12, 90 / 130, 130 / 9))


def test_an_axis_without_numbers_is_left_out(tmp_path: Path) -> None:
    folder = build(tmp_path, documents=20)
    runs = pd.read_csv(folder / "runs.csv").drop(columns=["bytes"]).assign(flops_per_token=np.nan)
    runs.to_csv(folder / "runs.csv", index=False)
    assert cost_axes(compute_scores(load_results(folder), FAST)) == ["parameters", "non_embedding_parameters"]


@pytest.mark.filterwarnings("error")
def test_without_an_averaged_task_there_is_no_claim_and_no_warning(tmp_path: Path) -> None:
    scores = compute_scores(load_results(build(tmp_path, documents=20, students={"deep": 0.8})), FAST)
    assert efficiency_claims(replace(scores, excluded_tasks=dict.fromkeys(scores.tasks, EXCLUDED_AT_CHANCE))).empty
