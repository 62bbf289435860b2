"""Scores of one's own as a frame: the same numbers as from the folder of an experiment, and by hand."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers.synthetic_results import TASKS, build

from distill_lit.analysis.choices import choice_logits
from distill_lit.analysis.flips import document_flips, flip_counts
from distill_lit.analysis.long_tail import analyze_long_tail
from distill_lit.analysis.results import Results, load_results
from distill_lit.analysis.retention import retention
from distill_lit.analysis.score_table import MACRO_AVERAGE, score_frame
from distill_lit.analysis.scores import Scores, compute_scores, task_difference
from distill_lit.config.evaluation import AnalysisConfig
from distill_lit.utils.exceptions import UserError

ANALYSIS = AnalysisConfig(n_resamples=100)
ANSWERS = {"teacher": [1, 1, 1, 1, 1, 1, 0, 0], "kd": [1, 1, 1, 0, 0, 1, 1, 0], "sft": [1, 0, 0, 0, 0, 1, 0, 0]}


def own_frame(**columns: Any) -> pd.DataFrame:
    rows = [
        {"model": model, "task": "exam", "document": f"q{i}", "correct": right}
        for model, answers in ANSWERS.items()
        for i, right in enumerate(answers)
    ]
    return pd.DataFrame(rows).assign(**columns)


def scores_of(frame: pd.DataFrame) -> Scores:
    return compute_scores(Results.from_frame(frame), ANALYSIS)


def test_four_columns_give_scores_paired_differences_and_flips_by_hand() -> None:
    scores = scores_of(own_frame())
    table = score_frame(scores).set_index(["task", "model"])
    assert table.loc["exam", "score"].to_dict() == {"teacher": 6 / 8, "kd": 5 / 8, "sft": 2 / 8}
    assert table.loc[("exam", "kd"), "teacher_delta"] == pytest.approx(-1 / 8)
    difference, p = task_difference(scores, 0, scores.group_index("kd"), scores.group_index("sft"))
    assert difference.value == pytest.approx(3 / 8) and difference.low < 3 / 8 < difference.high
    assert p == pytest.approx(2 * (1 / 2) ** 3)  # three documents differ, all one way
    flips = document_flips(scores, scores.group_index("kd"))
    counts = flip_counts(flips).loc["all"]
    assert counts[["lost", "gained", "n"]].tolist() == [2, 1, 8]
    assert np.isnan(counts["agreement"]) and np.isnan(counts["same_wrong_rate"])  # nobody said what was chosen
    assert flips["flip"].tolist()[3:7] == ["lost", "lost", "both right", "gained"]


def test_chosen_answers_give_agreement() -> None:
    picks = {"teacher": [0, 0, 0, 0, 0, 0, 1, 2], "kd": [0, 0, 0, 1, 2, 0, 0, 2], "sft": [0] * 8}
    scores = scores_of(own_frame(pred=[pick for model in ANSWERS for pick in picks[model]]))
    counts = flip_counts(document_flips(scores, scores.group_index("kd"))).loc["all"]
    assert counts["agreement"] == 5 / 8 and counts["same_wrong_rate"] == 1.0


def test_chance_and_baselines_count() -> None:
    frame = pd.concat([own_frame().assign(document=lambda rows, i=i: rows["document"] + f"-{i}") for i in range(20)])
    baseline = frame["model"].map({"kd": "sft"})
    scores = scores_of(frame.assign(chance=0.25, baseline=baseline))
    table = score_frame(scores).set_index(["task", "model"])
    assert table.loc[(MACRO_AVERAGE, "kd"), "score"] == pytest.approx((5 / 8 - 1 / 4) / (3 / 4))
    assert table.loc[("exam", "kd"), "ce_only_delta"] == pytest.approx(3 / 8)
    assert retention(scores, scores.group_index("kd")).value == pytest.approx((5 / 8 - 1 / 4) / (6 / 8 - 1 / 4))
    assert table["role"].loc["exam"].to_dict() == {"teacher": "teacher", "kd": "distilled", "sft": "ce_only"}


def test_a_frame_of_an_experiment_gives_the_numbers_of_its_folder(tmp_path: Path) -> None:
    results = load_results(build(tmp_path, documents=60, seeds=(0, 1, 2), clusters_per_task=20))
    expected = compute_scores(results, ANALYSIS)
    runs = results.runs.set_index("model")
    rows = results.to_frame()
    rows = rows[rows["model"].map(runs["role"]).isin(["teacher", "distilled", "ce_only"])].reset_index(drop=True)
    names = {"distilled": "distilled", "ce_only": "without teacher"}
    labels = {
        m: "teacher" if m == "teacher" else f"{runs.student[m]} {names[runs.role[m]]}" for m in rows["model"].unique()
    }
    normed, documents = (
        rows["task"].map({task: metric == "acc_norm" for task, (_, metric) in TASKS.items()}),
        results.documents,
    )
    places = documents.index.get_indexer(pd.MultiIndex.from_frame(rows[["task", "key"]]))
    own = pd.DataFrame({
        "model": rows["model"].map(labels), "task": rows["task"], "key": rows["key"],
        "correct": rows["correct_norm"].where(normed, rows["correct"]),
        "pred": rows["pred_norm"].where(normed, rows["pred"]),
        "seed": rows["model"].map(runs["seed"]), "chance": 1 / documents["n_choices"].to_numpy()[places],
        "cluster": documents["cluster"].to_numpy()[places],
    })  # fmt: skip
    own["baseline"] = own["model"].map({f"{name} distilled": f"{name} without teacher" for name in ("deep", "shallow")})
    found = scores_of(own.sample(frac=1, random_state=0))
    numbers = ["score", "low", "high", "document_se", "seed_std", "retention", "retention_low", "num_seeds", "n", "chance"]
    numbers += [f"{who}_{what}" for who in ("teacher", "ce_only") for what in ("delta", "delta_low", "delta_high", "p")]
    ours, theirs = (score_frame(one).set_index(["task", "model"])[numbers] for one in (found, expected))
    pd.testing.assert_frame_equal(ours.sort_index(), theirs.loc[ours.index].sort_index(), check_dtype=False)
    for label in ("deep distilled", "shallow without teacher"):
        one, two = (document_flips(scores, scores.group_index(label)).sort_index() for scores in (found, expected))
        pd.testing.assert_frame_equal(flip_counts(one), flip_counts(two))


def test_large_seeds_stay_apart() -> None:
    frame = pd.concat([own_frame(seed=None), own_frame(seed=1_234_568).query("model == 'kd'")])
    frame.loc[(frame["model"] == "kd") & frame["seed"].isna(), "seed"] = 1_234_567
    group = next(group for group in scores_of(frame).groups if group.label == "kd")
    assert group.seeds == (1_234_567, 1_234_568) and len(group.models) == 2


def test_models_that_share_a_baseline_stay_apart() -> None:
    more = own_frame().query("model == 'kd'").assign(model="other")
    frame = pd.concat([own_frame(), more])
    scores = scores_of(frame.assign(baseline=frame["model"].map({"kd": "sft", "other": "sft"})))
    assert sorted(group.label for group in scores.groups) == ["kd", "other", "sft", "teacher"]
    table = score_frame(scores).set_index(["task", "model"])
    assert table.loc["exam", "ce_only_delta"].dropna().to_dict() == pytest.approx({"kd": 3 / 8, "other": 3 / 8})


def test_graded_scores_are_compared_and_in_no_average() -> None:
    frame = own_frame()
    frame["correct"] = frame["correct"].where(frame["document"] != "q0", 0.5)
    scores = scores_of(frame)
    assert scores.excluded_tasks == {"exam": "its answers are graded, not right or wrong"}
    assert score_frame(scores).set_index(["task", "model"]).loc[("exam", "kd"), "teacher_delta"] == pytest.approx(-1 / 8)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: f.to_dict(), "a dict is no pandas DataFrame"),
        (lambda f: f.drop(columns="document"), "no column 'document'; it needs model, task, document, correct"),
        (lambda f: f.drop(columns="correct"), "no column 'correct'"),
        (lambda f: f.iloc[:0], "it has no rows"),
        (lambda f: f.assign(correct="yes"), "correct of model 'teacher' on document 'q0' of 'exam' is yes, no number"),
        (lambda f: f.assign(correct=np.nan), "is nan, no number"),
        (lambda f: f.assign(task=None), "task is empty in row 0"),
        (lambda f: f.assign(chance=1.0), "chance is the share"),
        (lambda f: f.assign(chance=f["correct"] / 2), "chance of document 'q1' of 'exam' differs between models"),
        (lambda f: pd.concat([f, f]), "model 'teacher' on document 'q0' of 'exam' has several rows; .* column `seed`"),
        (lambda f: f.assign(seed=0.5), "seed 0.5 is no whole number"),
        (lambda f: f.assign(role="teecher"), "role 'teecher' of model 'teacher'; did you mean 'teacher'"),
        (lambda f: f.assign(role="teacher"), "several teachers"),
        (lambda f: f.assign(role=f["document"].map({"q1": "external"})), "role of model 'teacher' is '' and 'external'"),
        (lambda f: f.assign(baseline=f["model"].map({"kd": "stf"})), "'stf' of model 'kd' has no rows; did you mean 'sft'"),
        (lambda f: f.assign(baseline=f["model"].map({"kd": "teacher"})), "'teacher' .teacher. is the baseline of 'kd'"),
        (lambda f: f.drop(index=23), "answered different prompts"),
    ],
)
def test_frames_that_cannot_be_meant_are_refused(change: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        Results.from_frame(change(own_frame()))


def test_what_needs_more_than_scores_says_so() -> None:
    scores = scores_of(own_frame())
    with pytest.raises(UserError, match="the long tail: needs prompt, choices, gold, n_choices of each document"):
        analyze_long_tail(scores)
    with pytest.raises(UserError, match="probabilities of choices: needs ll, len_chars"):
        choice_logits(scores, "kd")
    assert scores.results.plan == {} and scores.results.short_grid_values == {}
