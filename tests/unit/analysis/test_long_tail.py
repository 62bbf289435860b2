"""Axes, strata, flips, contrasts, slices and confidence: by hand, and on planted and permuted data."""

from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
from helpers.synthetic_results import build, edited_records

from distill_lit.analysis import document_axes as ax
from distill_lit.analysis.flips import flip_counts, modal_answers
from distill_lit.analysis.long_tail import LongTail, _contrast, _stratum_delta, _stratum_rows, analyze_long_tail
from distill_lit.analysis.response_matrix import TaskResponses
from distill_lit.analysis.results import load_results
from distill_lit.analysis.score_table import score_frame
from distill_lit.analysis.scores import Scores, compute_scores
from distill_lit.analysis.significance import rule_of_three
from distill_lit.analysis.strata import axis_strata, tail_less_head, trend_weights
from distill_lit.config.evaluation import AnalysisConfig
from distill_lit.report.bundle import build_report_bundle
from distill_lit.report.loss_report import loss_report_markdown
from distill_lit.report.loss_statement import loss_statement

ANALYSIS = AnalysisConfig(n_resamples=1000)


@pytest.fixture(scope="module")
def scores(tmp_path_factory: pytest.TempPathFactory) -> Scores:
    """Three seeds, a tail that only the distilled students lose."""
    folder = build(
        tmp_path_factory.mktemp("tail"), seeds=(0, 1, 2), students={"deep": 0.8}, documents=200, tail_logit_loss=1.5
    )
    return compute_scores(load_results(folder), ANALYSIS)


@pytest.fixture(scope="module")
def report(scores: Scores) -> LongTail:
    return analyze_long_tail(scores)


def series(values: list[float], tasks: list[str] | None = None) -> pd.Series:
    tasks = tasks or ["t"] * len(values)
    return pd.Series(values, index=pd.MultiIndex.from_arrays([tasks, range(len(values))], names=["task", "key"]))


# strata


def test_quintiles_are_equal_within_each_task() -> None:
    values = series([*range(10), *range(100, 120)], ["a"] * 10 + ["b"] * 20)
    codes = ax.quantile_strata(values, 5)
    assert codes.tolist() == [i // 2 + 1 for i in range(10)] + [i // 4 + 1 for i in range(20)]


def test_equal_values_stay_together_and_a_constant_is_neither_head_nor_tail() -> None:
    assert ax.quantile_strata(series([7.0] * 9), 5).tolist() == [3] * 9
    codes = ax.quantile_strata(series([1, 1, 1, 1, 2, 3, 4, 5, 6, 7]), 5)
    assert codes.iloc[:4].nunique() == 1


def test_missing_values_are_a_stratum_of_their_own() -> None:
    codes = ax.quantile_strata(series([np.nan, 1, 2, 3, 4, 5]), 5)
    assert codes.tolist() == [ax.MISSING_STRATUM, 1, 2, 3, 4, 5]


def test_content_words_and_their_frequencies(scores: Scores) -> None:
    assert ax.content_words("What is the Mitosis of 3 cells? It's an old one.") == ["mitosis", "cells", "old"]
    zipf, total = ax.zipf_frequency_function(scores.results), scores.results.corpus_words
    counts = scores.results.word_counts
    assert zipf("water") == pytest.approx(np.log10((counts["water"] + 0.5) / total * 1e9))
    assert zipf("unheard") == pytest.approx(np.log10(0.5 / total * 1e9))


def test_wordfreq_is_the_fallback(tmp_path: Path) -> None:
    folder = build(tmp_path, documents=5)
    with edited_records(folder) as content:
        content.corpus_words = 0
    zipf = ax.zipf_frequency_function(load_results(folder))
    assert zipf("water") > zipf("photosynthesis") > zipf("xqzzyw") == 0


def test_a_small_corpus_does_not_say_which_words_are_rare(tmp_path: Path) -> None:
    folder = build(tmp_path, documents=40)
    with edited_records(folder) as content:
        content.word_counts, content.corpus_words = {"water": 3}, 18547
    zipf = ax.zipf_frequency_function(load_results(folder))
    assert zipf("mitosis") > zipf("xqzzyw") == 0  # neither stands in the corpus
    result = build_report_bundle(folder, AnalysisConfig(n_resamples=100), "name")
    text = loss_report_markdown(result.scores, result.long_tail, "name", result.loss_statements, False)
    assert "wordfreq's general English, because the 18,547 words of the distillation corpus are too few" in text


def test_words_never_read_in_training_are_an_axis(tmp_path: Path) -> None:
    folder = build(tmp_path, documents=20)
    assert ax.axis_values(load_results(folder))["unread_words"].isna().all()  # nobody counted
    with edited_records(folder) as content:
        content.read_words, content.read_word_counts = 9000, {"water": 3, "heat": 1}
        content.documents["prompt"] = "Question: does water heat a basalt nebula?\nAnswer:"
        content.documents["choices"] = [["heat"] * n for n in content.documents["n_choices"]]
    found = load_results(folder)
    assert ax.axis_values(found)["unread_words"].tolist() == pytest.approx([2 / 5] * len(found.documents))


def test_the_teachers_margin_looks_at_no_gold_answer() -> None:
    assert ax._margin([-6.0, -2.0, -9.0], [3, 2, 3]) == pytest.approx(-1 - -2)
    assert np.isnan(ax._margin([-3.0], [2]))


def test_negation_words() -> None:
    assert ax.NEGATION.search("Which is NOT a metal?")
    assert ax.NEGATION.search("It doesn't burn")
    assert not ax.NEGATION.search("Note the knot")


# flips


def panel(chosen: list[list[int]], gold: list[int]) -> TaskResponses:
    picks = np.array(chosen)
    index = pd.MultiIndex.from_arrays([["t"] * len(gold), range(len(gold))], names=["task", "key"])
    right = (picks == np.array(gold)[:, None]).astype(float)
    return TaskResponses("t", "acc", index, np.arange(len(gold)), np.full(len(gold), 0.25), right, picks)


def test_modal_answer_over_three_seeds_and_first_seed_below() -> None:
    task = panel([[0, 1, 1, 2], [2, 1, 0, 3], [1, 1, 1, 0]], [1, 2, 1])
    modal = modal_answers(task, [0, 1, 2])
    assert modal.choice.tolist() == [1, 2, 1]  # a tie goes to the earliest seed
    assert modal.correct.tolist() == [1, 1, 1]
    assert modal_answers(task, [1, 2]).choice.tolist() == [1, 1, 1]


def test_flip_counts_by_hand() -> None:
    flips = pd.DataFrame({
        "teacher_correct": [True, True, False, False, False], "student_correct": [True, False, True, False, False],
        "teacher_choice": [0, 1, 2, 2, 0], "student_choice": [0, 2, 3, 2, 1],
        "flip": ["both right", "lost", "gained", "both wrong", "both wrong"], "cluster": ["a", "b", "c", "d", "e"],
    })  # fmt: skip
    row = flip_counts(flips).iloc[0]
    assert (row["n"], row["lost"], row["gained"]) == (5, 1, 1)
    assert row["agreement"] == pytest.approx(2 / 5)
    assert row["same_wrong_rate"] == pytest.approx(1 / 2)
    assert row["p"] == 1


def test_lost_documents_of_one_passage_are_no_evidence_each() -> None:
    frame = {
        "teacher_correct": [True] * 9,
        "student_correct": [False] * 9,
        "teacher_choice": [0] * 9,
        "student_choice": [1] * 9,
        "flip": ["lost"] * 9,
    }
    alone = flip_counts(pd.DataFrame(frame | {"cluster": list("abcdefghi")})).iloc[0]
    assert alone["p"] == pytest.approx(2 * 0.5**9)
    shared = flip_counts(pd.DataFrame(frame | {"cluster": list("aaaabbbbc")})).iloc[0]
    # sums by passage −4, −4, −1: of the eight changes of sign two are as far from 0
    assert shared["p"] == pytest.approx(2 / 8)


# pooled strata and the contrast


def test_pooled_scores_equal_plain_means(scores: Scores, report: LongTail) -> None:
    codes = report.stratum_codes["rarity_question"]
    row = report.stratum_scores[
        (report.stratum_scores["axis"] == "rarity_question") & (report.stratum_scores["stratum"] == 5)
    ].iloc[0]
    student = scores.model_columns(next(i for i, g in enumerate(scores.groups) if g.role == "distilled"))
    per_task = []
    for task in scores.responses.tasks:
        inside = (codes.loc[task.index] == 5).to_numpy()
        per_task.append(task.centered[inside][:, student].mean())
    assert row["student"] == pytest.approx(np.mean(per_task), abs=1e-5)


def test_contrast_uses_only_tasks_with_head_and_tail(scores: Scores) -> None:
    """A task that lies wholly in the tail would otherwise compare tasks, not documents."""
    axis = ax.DocumentAxis("made_up", "complexity", "binary", "made up", "made up", "none", "some")
    code = pd.Series(1, index=scores.results.documents.index)
    task, sciq = code.index.get_level_values("task"), scores.tasks.index("sciq")
    code[task == "sciq"] = 2
    half = np.arange(len(code)) % 2 == 0
    code[(task == "piqa") & half] = 2
    found = axis_strata(scores, axis, code)
    piqa = scores.responses.tasks[scores.tasks.index("piqa")]
    tail = (code.loc[piqa.index] == 2).to_numpy()
    teacher = scores.model_columns(0)[0]
    head_mean, tail_mean = piqa.centered[~tail, teacher].mean(), piqa.centered[tail, teacher].mean()
    ends = tail_less_head(2)
    assert found.estimate(ends, 0).value == pytest.approx(tail_mean - head_mean)
    assert found.n_documents(ends) == tail.sum()
    assert found.estimate({2: 1.0}, 0).value == pytest.approx((tail_mean + scores.centered[sciq, 0]) / 2)


def test_strata_partition_the_documents(report: LongTail) -> None:
    sizes = report.stratum_scores.groupby("axis")["n"].sum()
    assert (sizes == len(report.stratum_codes)).all()


def test_the_planted_tail_loss_is_found_and_laid_to_distillation(scores: Scores, report: LongTail) -> None:
    row = report.tail_contrasts.set_index("axis").loc["rarity_question"]
    assert row["tail_loss_high"] < 0
    assert row["excess_high"] < 0
    assert row["ce_only_tail_loss_low"] < 0 < row["ce_only_tail_loss_high"]
    assert row["excess"] == pytest.approx(row["tail_loss"] - row["ce_only_tail_loss"], abs=1e-5)
    text = " ".join(loss_statement(scores, score_frame(scores), report, "deep distilled"))
    assert "The loss on the rarest fifth of questions is" in text
    assert f"the additional loss is {-100 * row['excess']:.1f} points larger [" in text
    assert "] than that of the same student trained without the teacher (significant)" in text


def test_without_a_planted_loss_nothing_is_claimed(tmp_path: Path) -> None:
    folder = build(tmp_path, students={"deep": 0.6}, documents=200, tail_logit_loss=0.0, seed=3)
    found = compute_scores(load_results(folder), ANALYSIS)
    tail = analyze_long_tail(found)
    row = tail.tail_contrasts.set_index("axis").loc["rarity_question"]
    assert row["excess_low"] < 0 < row["excess_high"]
    assert "(significant)" not in " ".join(loss_statement(found, score_frame(found), tail, "deep distilled"))


@pytest.mark.parametrize(
    ("tail", "excess", "said"),
    [
        ((-0.05, -0.08, -0.02, 0.01), (-0.03, -0.05, -0.01, 0.01),
         "is 5.0 points larger [8.0 larger, 2.0 larger] than on the most common fifth; the additional loss is 3.0 points "
         "larger [5.0 larger, 1.0 larger] than that of the same student trained without the teacher (significant)."),
        ((-0.05, -0.08, -0.02, 0.01), (0.01, -0.01, 0.03, 0.4),
         "is 1.0 points smaller [1.0 larger, 3.0 smaller] than that of the same student trained without the teacher (not "
         "significant)."),
        ((-0.055, -0.122, 0.017, 0.1), (-0.03, -0.05, -0.01, 0.01),
         "on the rarest fifth of questions is 5.5 points larger [12.2 larger, 1.7 smaller] than on the most common fifth: "
         "undecided."),
        ((-0.055, -0.122, -0.001, 0.06), (-0.03, -0.05, -0.01, 0.01),
         "[12.2 larger, 0.1 larger] than on the most common fifth: not significant after correction."),
        ((0.05, 0.02, 0.08, 0.01), (0.04, 0.01, 0.07, 0.01), "is 5.0 points smaller [2.0 smaller, 8.0 smaller] than"),
    ],
)  # fmt: skip
def test_the_statement_says_how_much_larger_the_loss_is_and_what_is_the_distillations(
    scores: Scores, report: LongTail, tail: tuple[float, ...], excess: tuple[float, ...], said: str
) -> None:
    row: dict[str, object] = {"model": "deep distilled", "axis": "rarity_question"}
    for name, values in (("tail_loss", tail), ("excess", excess)):
        row |= dict(zip((name, f"{name}_low", f"{name}_high", f"{name}_p"), values, strict=True))
    changed = replace(report, tail_contrasts=pd.DataFrame([row]))
    assert said in " ".join(loss_statement(scores, score_frame(scores), changed, "deep distilled"))


def test_a_task_with_few_documents_in_a_stratum_does_not_count_there(scores: Scores, report: LongTail) -> None:
    """Three documents of one task in the tail: head and tail are then compared over the other tasks alone."""
    digits = next(axis for axis in ax.DOCUMENT_AXES if axis.name == "digits")
    first, *others = (scores.responses.tasks[t] for t in scores.averaged)
    codes = pd.DataFrame({"digits": 1}, index=report.stratum_codes.index)
    for task, size in ((first, 3), *((other, 60) for other in others)):
        codes.loc[task.index[:size], "digits"] = 2
    found = axis_strata(scores, digits, codes["digits"])
    ends = tail_less_head(2)
    assert found.n_documents(ends) == 60 * len(others)
    heads = [task.centered[60:, scores.model_columns(0)].mean() for task in others]
    tails = [task.centered[:60, scores.model_columns(0)].mean() for task in others]
    assert found.estimate(ends, 0).value == pytest.approx(np.mean(tails) - np.mean(heads))
    assert found.estimate({2: 1.0}, 0).value == pytest.approx(np.mean(tails))


def test_a_stratum_without_documents_is_not_one_where_the_teacher_is_at_chance(scores: Scores, report: LongTail) -> None:
    """Three documents hold a number: too few for a mean, whatever the teacher makes of them."""
    digits = next(axis for axis in ax.DOCUMENT_AXES if axis.name == "digits")
    codes = pd.Series(1, index=report.stratum_codes.index)
    codes.iloc[:3] = 2
    g = scores.group_index("deep distilled")
    strata = axis_strata(scores, digits, codes)
    counts = flip_counts(flips := report.flips["deep distilled"], codes[flips.index])
    rows = _stratum_rows(scores, digits, strata, g, counts).set_index("stratum")
    assert rows["note"].tolist() == ["", "too few documents"]
    assert np.isnan(rows.loc[2, "retention"])


# tail and head in shares, each model's own change, the line through all strata


def test_trend_is_the_least_squares_line_from_its_first_to_its_last_point() -> None:
    means = np.array([0.3, 0.1, 0.25, -0.05, 0.0])
    line = np.polynomial.Polynomial.fit(range(1, 6), means, 1)
    assert sum(w * m for w, m in zip(trend_weights(5).values(), means, strict=True)) == pytest.approx(line(5) - line(1))
    assert list(trend_weights(2).values()) == pytest.approx([-1.0, 1.0])


def test_a_student_at_chance_loses_in_points_what_its_teacher_gains(scores: Scores, report: LongTail) -> None:
    """It has nothing in head and tail: minus the teacher's change in points, and no change of its own or of its share."""
    task, group = scores.responses.tasks[0], scores.group_index("deep distilled")
    inside = np.arange(task.n) % 2 == 0
    teacher = scores.model_columns(0)[0]
    blank = task.correct.copy()
    blank[:, scores.model_columns(group)] = task.chance[:, None]  # a score of 0 on every document
    better = np.maximum(task.correct[:, teacher], np.arange(task.n) % 3 == 0)
    blank[:, teacher] = np.where(inside, task.correct[:, teacher], better)
    responses = replace(scores.responses, tasks=[replace(task, correct=blank)])
    changed = replace(scores, responses=responses, centered=scores.centered[:1])
    binary = ax.DocumentAxis("made_up", "complexity", "binary", "made up", "made up", "none", "some")
    codes = pd.Series(np.where(inside, 1, 2), index=task.index)
    row = _contrast(changed, binary, axis_strata(changed, binary, codes), group)
    assert row["teacher_change"] > 0.1
    assert row["tail_loss"] == pytest.approx(-row["teacher_change"])
    assert row["student_change"] == pytest.approx(0)
    assert row["retention_change"] == pytest.approx(0)


def test_where_no_answer_differs_the_bounds_are_in_points_above_chance(scores: Scores, report: LongTail) -> None:
    """The student answers as its teacher: up to 3/n may differ, and each is worth 1 / (1 − chance) points."""
    task, group = scores.responses.tasks[0], scores.group_index("deep distilled")
    same = task.correct.copy()
    same[:, scores.model_columns(group)] = task.correct[:, scores.model_columns(0)[:1]]
    responses = replace(scores.responses, tasks=[replace(task, correct=same)])
    changed = replace(scores, responses=responses, centered=scores.centered[:1])
    codes = pd.Series(np.arange(task.n) % 2 + 1, index=task.index)
    binary = ax.DocumentAxis("made_up", "complexity", "binary", "made up", "made up", "none", "some")
    found = _stratum_delta("delta", axis_strata(changed, binary, codes), 1, group)
    n = int((codes == 1).sum())
    reach = rule_of_three(n) / (1 - task.chance.mean())
    assert (found["delta"], found["delta_low"], found["delta_high"]) == (0.0, pytest.approx(-reach), pytest.approx(reach))


def test_shares_by_hand_and_by_another_estimate_of_their_error(scores: Scores, report: LongTail) -> None:
    """R_tail − R_head of single models on one task: its value by hand, its error against redrawn documents."""
    task, group = scores.responses.tasks[0], scores.group_index("deep distilled")
    one = replace(scores.groups[group], models=scores.groups[group].models[:1], seeds=(0,))
    groups = [one if g == group else other for g, other in enumerate(scores.groups)]
    single = replace(scores, groups=groups, responses=replace(scores.responses, tasks=[task]), centered=scores.centered[:1])
    codes = report.stratum_codes.loc[task.index, "rarity_question"]
    found = axis_strata(single, ax.RARITY, codes).retention_estimate(tail_less_head(5), group)
    student, teacher = (task.centered[:, single.model_columns(g)[0]] for g in (group, 0))
    ends = [(codes == s).to_numpy() for s in (1, 5)]

    def change(rows: np.ndarray) -> float:
        shares = [student[rows][inside[rows]].mean() / teacher[rows][inside[rows]].mean() for inside in ends]
        return shares[1] - shares[0]

    assert found.value == pytest.approx(change(np.arange(task.n)))
    rng = np.random.default_rng(0)
    redrawn = [change(rng.integers(0, task.n, task.n)) for _ in range(2000)]
    assert found.standard_error == pytest.approx(np.std(redrawn), rel=0.15)


def test_rare_answers_the_student_cannot_give_show_on_all_scales(report: LongTail) -> None:
    row = report.tail_contrasts.set_index("axis").loc["rarity_question"]
    assert row["retention_change_high"] < 0
    assert row["retention_excess_high"] < 0
    assert row["trend_high"] < 0
    assert row["student_change_high"] < 0 < row["student_change"] - row["tail_loss"] + 1  # its own, not its teacher's
    assert row["tail_loss"] == pytest.approx(row["student_change"] - row["teacher_change"])


def test_where_the_teacher_found_the_answer_is_no_slice_and_no_worst_group() -> None:
    assert {"gold_gain", "difficulty"} == set(ax.SECONDARY_AXES)


def test_contractions_are_no_rare_words() -> None:
    assert ax.content_words("Don't the cell's walls break?") == ["cell", "walls", "break"]


def test_small_strata_are_insufficient(tmp_path: Path) -> None:
    found = analyze_long_tail(
        compute_scores(load_results(build(tmp_path, documents=30, students={"deep": 0.8})), AnalysisConfig(n_resamples=200))
    )
    assert set(found.stratum_scores.loc[found.stratum_scores["n"] < 100, "verdict"]) == {"insufficient"}
    assert found.stratum_scores.loc[found.stratum_scores["n"] < 100, "p_adjusted"].isna().all()
    few = found.stratum_scores["n"] < 30
    assert few.any()
    assert found.stratum_scores.loc[few, "low"].isna().all()
    assert set(found.tail_contrasts.loc[found.tail_contrasts["n"] < 30, "note"]) == {"insufficient"}


def test_the_worst_group_stands_out_where_a_loss_was_planted(scores: Scores, report: LongTail, tmp_path: Path) -> None:
    row = report.worst_strata.iloc[0]
    assert (row["axis"], row["stands_out"]) == ("rarity_question", True)
    assert row["excess_low"] < row["excess"] < row["excess_high"] < 0
    assert row["excess"] < row["expected"] < 0
    assert '"words of the question: rarest" stands out' in " ".join(
        loss_statement(scores, score_frame(scores), report, "deep distilled")
    )
    folder = build(tmp_path, students={"deep": 0.6}, documents=100, tail_logit_loss=0.0)
    equal = compute_scores(load_results(folder), ANALYSIS)
    tail = analyze_long_tail(equal)
    assert not tail.worst_strata.iloc[0]["stands_out"]
    assert "stands out" not in " ".join(loss_statement(equal, score_frame(equal), tail, "deep distilled"))


def test_passages_are_redrawn_whole(tmp_path: Path) -> None:
    """The same documents in passages of five that agree give wider intervals than single documents."""
    wide, narrow = (build(tmp_path / name, documents=100, students={"deep": 0.8}) for name in ("wide", "narrow"))
    with edited_records(wide) as content:
        order = content.records["teacher"].groupby("task")["correct"].rank(method="first").astype(int) // 5
        tasks = content.documents.index.get_level_values("task")
        content.documents["cluster"] = [f"{task}{number}" for task, number in zip(tasks, order, strict=True)]
    one, two = (compute_scores(load_results(folder), ANALYSIS) for folder in (wide, narrow))
    assert one.task_estimate(0, 0).standard_error > 1.5 * two.task_estimate(0, 0).standard_error


# slices


def test_planted_slice_is_found(simulation: ModuleType) -> None:
    assert simulation.planted_slice_recall(np.random.default_rng(1), 20, 6000) >= 0.9


def test_permuted_labels_confirm_none(simulation: ModuleType) -> None:
    assert simulation.false_slice_rate(np.random.default_rng(1), 40, 6000) <= 0.05
