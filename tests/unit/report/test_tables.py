"""Tables: escaped for each format, the same numbers everywhere, bold where it is earned."""

import csv
import io
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers.synthetic_results import TASKS, build, copy_model, edit_model, edit_settings, edited_records
from scipy.stats import false_discovery_control

from distill_lit.analysis.endpoints import ACCURACY_ENDPOINT, BITS_PER_BYTE, Endpoint
from distill_lit.analysis.hypotheses import AGREES, CONTRADICTS, UNDECIDED, HypothesisTest
from distill_lit.analysis.long_tail import analyze_long_tail
from distill_lit.analysis.model_groups import baseline_of, groups_of
from distill_lit.analysis.results import load_results
from distill_lit.analysis.retention import retention
from distill_lit.analysis.score_table import MACRO_AVERAGE, score_frame
from distill_lit.analysis.scores import compute_scores
from distill_lit.analysis.significance import Interval
from distill_lit.config.evaluation import AnalysisConfig
from distill_lit.config.hypotheses import HypothesisConfig
from distill_lit.report.bundle import build_report_bundle
from distill_lit.report.formats.latex_table import escape_latex, to_latex
from distill_lit.report.formats.markdown_table import escape_markdown, escape_markdown_cell, to_markdown
from distill_lit.report.formats.table import Table, TableCell, to_csv
from distill_lit.report.number_format import (
    format_count,
    format_interval,
    format_number,
    format_p_value,
    format_points,
    format_retention,
    join_words,
)
from distill_lit.report.paper.build import best_groups
from distill_lit.report.render import write_score_tables
from distill_lit.report.tables.footnotes import evaluation_footnotes
from distill_lit.report.tables.hypotheses import DeclaredTest, describe_outcome, hypothesis_sentence
from distill_lit.report.tables.inference_cost import cost_table
from distill_lit.report.tables.score_notes import earned_bold, main_notes
from distill_lit.report.tables.scores import score_table, with_training_flops

FAST = AnalysisConfig(n_resamples=500)
NASTY = r"a|b`c` *d* _e_ <script>alert(1)</script> [x](javascript:1) $\input{/etc/passwd}$ 50% & #1 {z} ~ ^ \ 学生 ±é"


def test_numbers_in_words() -> None:
    assert (format_points(-0.123), format_points(0.1, signed=True), format_points(float("nan"))) == ("−12.3", "+10.0", "—")
    assert format_number(-0.01) == "0.0"
    assert format_interval(-0.5, 0.25, 0) == "[−50, 25]"
    assert [format_count(v) for v in (134515008, 1.2e9, 200_000, 42, 999_600)] == ["135M", "1.2B", "200k", "42", "1000k"]
    assert (format_p_value(0.0001), format_p_value(0.042), format_p_value(1.0)) == ("<.001", ".042", "1.000")
    assert join_words(["a", "b", "c"]) == "a, b and c"


def test_markdown_shows_data_literally() -> None:
    text = escape_markdown(NASTY)
    assert "<script" not in text
    assert r"\|" in text
    assert r"\`c\`" in text
    assert r"\[x\](" in text
    assert "[x](" not in escape_markdown_cell(NASTY).replace(r"\[x\](", "")
    assert escape_markdown_cell("1.0 [−2.0, 3.0]") == "1.0 [−2.0, 3.0]"
    assert escape_markdown("# title\n- item") == r"\# title - item"
    assert escape_markdown("arc_easy") == "arc_easy"


def test_a_nasty_run_stays_one_cell() -> None:
    table = Table(NASTY, ["model", "x"], [[TableCell(NASTY), TableCell("1")]])
    row = to_markdown(table).splitlines()[4]
    assert row.replace(r"\|", "").count("|") == 3


def test_csv_runs_cannot_become_formulas() -> None:
    frame = pd.DataFrame({"model": ["=cmd()", "+1", "@x", "plain"], "delta": [-1.5, 2.0, np.nan, 0.1]})
    rows = list(csv.reader(io.StringIO(to_csv(frame))))
    assert [row[0] for row in rows[1:]] == ["'=cmd()", "'+1", "'@x", "plain"]
    assert rows[1][1] == "-1.5"


def test_latex_escapes_every_special_character() -> None:
    text = escape_latex(r"\ { } $ & # % _ ~ ^ 学 é −1")
    assert text == (r"\textbackslash{} \{ \} \$ \& \# \% \_ \textasciitilde{} \textasciicircum{} {[}U+5B66{]} e $-$1")


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex here")
def test_latex_compiles(tmp_path: Path) -> None:
    result = build_report_bundle(
        build(tmp_path, documents=40, seeds=(0, 1), students={"deep_é&%": 0.8}), FAST, NASTY, NASTY
    )
    write_score_tables(tmp_path, result, all_formats=True)
    main = "\\documentclass{article}\\usepackage{booktabs,graphicx}\\begin{document}\\input{table}\\end{document}"
    (tmp_path / "main.tex").write_text(main)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "main.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-1500:]
    assert "Overfull" not in done.stdout


def test_latex_has_as_many_runs_as_columns(tmp_path: Path) -> None:
    result = build_report_bundle(build(tmp_path, documents=30), FAST, "name")
    table = score_table(result.scores, result.score_frame, "title")
    body = to_latex(table, "x").split(r"\midrule", 1)[1].split(r"\bottomrule")[0]
    rows = [line for line in body.splitlines() if line.endswith(r"\\")]
    assert len(rows) == len(table.rows)
    assert all(line.count(" & ") == len(table.columns) - 1 for line in rows)


def test_frame_equals_arithmetic_on_the_records(tmp_path: Path) -> None:
    folder = build(tmp_path, documents=120, seeds=(0, 1, 2))
    scores = compute_scores(load_results(folder), FAST)
    frame = score_frame(scores).set_index(["model", "task"])
    records = load_results(folder).records
    accuracy = [records[f"deep-distilled-{seed}"].loc["piqa", "correct_norm"].mean() for seed in (0, 1, 2)]
    row = frame.loc[("deep distilled", "piqa")]
    assert row["score"] == pytest.approx(np.mean(accuracy))
    assert row["seed_std"] == pytest.approx(np.std(accuracy, ddof=1))
    base = records["teacher"].loc["piqa", "correct_norm"].mean()
    assert row["teacher_delta"] == pytest.approx(np.mean(accuracy) - base)
    assert row["retention"] == pytest.approx((np.mean(accuracy) - 0.5) / (base - 0.5))
    macro = np.mean([frame.loc[("deep distilled", t), "score"] - c for t, c in _chances().items()] / _rooms())
    assert frame.loc[("deep distilled", MACRO_AVERAGE), "score"] == pytest.approx(macro)


def _chances() -> dict[str, float]:
    return {"arc_easy": 0.25, "hellaswag": 0.25, "piqa": 0.5, "sciq": 0.25}


def _rooms() -> np.ndarray:
    return 1 - np.array(list(_chances().values()))


def test_metric_chooses_the_column(tmp_path: Path) -> None:
    folder = build(tmp_path, documents=50, students={})
    edit_model(folder, "teacher", lambda frame: frame.assign(correct=0))
    scores = compute_scores(load_results(folder), FAST)
    found = dict(zip(scores.tasks, scores.raw[:, 0], strict=True))
    assert found["sciq"] == 0  # acc
    assert found["piqa"] > 0.5  # acc_norm


def test_bold_is_the_best_and_what_is_not_significantly_worse(tmp_path: Path) -> None:
    scores = compute_scores(
        load_results(build(tmp_path, documents=300, students={"deep": 0.3, "shallow": 1.6}, tail_logit_loss=0.0)), FAST
    )
    frame = score_frame(scores).set_index(["model", "task"])
    best = frame.xs(MACRO_AVERAGE, level="task")["best"]
    assert best["deep distilled"]
    assert not best["shallow distilled"]
    assert not best["shallow before training"]
    assert not best["teacher"]  # the reference, not a contestant


def test_where_less_is_better_the_lowest_is_bold_and_no_average_has_it(tmp_path: Path) -> None:
    """Shares of 0 and 1 are no right answers where the task says that less is better, as of stereotypes preferred."""
    folder = build(tmp_path, documents=300, students={"deep": 0.3, "shallow": 1.6}, tail_logit_loss=0.0)
    results = load_results(folder)
    for tasks in results.settings_by_model.values():
        tasks["sciq"]["higher_is_better"] = False
    scores = compute_scores(results, FAST)
    frame = score_frame(scores)
    best = frame[frame["best"] & (frame["task"] == "sciq")].set_index("model")
    assert scores.excluded_tasks == {"sciq": "less is better by its metric"}
    assert "deep distilled" not in best.index
    assert best["score"].min() == frame.loc[(frame["task"] == "sciq") & (frame["role"] != "teacher"), "score"].min()
    assert frame.loc[frame["task"] == "sciq", "retention"].isna().all()
    students = [g for g, group in enumerate(scores.groups) if group.role != "teacher"]
    assert {scores.groups[g].label for g in best_groups(scores, students, "sciq")} == set(best.index)


def test_nothing_is_bold_where_nobody_is_excluded() -> None:
    """The best of equals is no winner: column `a` excludes one student, in `b` all are as good, in `c` one has no score."""
    rows = [("a", "x", 0.5, True), ("a", "y", 0.1, False), ("b", "x", 0.5, True), ("b", "y", 0.4, True),
            ("c", "x", 0.5, True), ("c", "y", np.nan, False)]  # fmt: skip
    frame = pd.DataFrame(rows, columns=["task", "model", "score", "best"]).assign(role="distilled")
    teachers = pd.DataFrame({"task": ["a", "b", "c"], "model": "teacher", "score": 0.9, "best": False, "role": "teacher"})
    bold = earned_bold(pd.concat([frame, teachers], ignore_index=True))
    assert bold.tolist() == [True, False, False, False, False, False, False, False, False]


def test_retention_has_one_rule_in_all_tables() -> None:
    """A share with its interval, a share alone, and where the teacher leaves no room for one, why there is none."""
    nan = float("nan")
    row = {"role": "distilled", "retention": 0.856, "retention_low": 0.79, "retention_high": 0.93, "teacher_delta": -0.1}
    assert format_retention(row) == "86% [79, 93]"
    assert format_retention({**row, "retention_low": nan, "retention_high": nan}) == "86%"
    assert format_retention({**row, "retention": nan}) == "teacher near chance"
    assert format_retention({**row, "retention": nan, "teacher_delta": nan}) == "—"
    assert format_retention({**row, "role": "teacher"}) == ""


def test_declared_comparisons_are_corrected_by_holm_among_themselves(tmp_path: Path) -> None:
    scores = compute_scores(load_results(build(tmp_path, documents=60)), FAST)
    frame = score_frame(scores)
    rows = frame[(frame["task"] == MACRO_AVERAGE) & (frame["role"] == "distilled")]
    p = rows[["ce_only_p", "teacher_p", "untrained_p"]].to_numpy()
    adjusted = rows[["ce_only_p_adjusted", "teacher_p_adjusted", "untrained_p_adjusted"]].to_numpy()
    assert (adjusted >= p).all()
    assert (np.diff(adjusted, axis=1) >= 0).all()  # nobody is significant whose question is open
    assert adjusted[:, 0].min() == pytest.approx(min(1, 2 * p[:, 0].min()))  # the question first, the others gated by it


def test_other_comparisons_are_corrected_for_each_opponent_by_itself(tmp_path: Path) -> None:
    frame = score_frame(compute_scores(load_results(build(tmp_path, documents=60)), FAST))
    rows = frame[frame["task"] != MACRO_AVERAGE]
    for who in ("teacher", "ce_only", "untrained"):
        known = rows[rows[f"{who}_p"].notna()]
        assert known[f"{who}_p_adjusted"].to_numpy() == pytest.approx(false_discovery_control(known[f"{who}_p"]))


def test_groups_keep_grid_points_apart_and_find_their_baselines(tmp_path: Path) -> None:
    folder = build(tmp_path, documents=10, students={"deep": 0.8, "shallow": 1.4})
    runs = pd.read_csv(folder / "runs.csv")
    names = {"objective.terms.kl.temperature": "1", "training.max_tokens": "100"}
    for axis, value in names.items():
        hidden = runs["role"].isin(["teacher", "untrained"]) | (axis.startswith("objective") & (runs["role"] == "ce_only"))
        runs[f"grid.{axis}"] = np.where(hidden, None, value)
    runs.loc[runs["model"] == "shallow-distilled-0", "grid.objective.terms.kl.temperature"] = "4"
    runs.to_csv(folder / "runs.csv", index=False)
    groups = groups_of(load_results(folder))
    labels = [g.label for g in groups]
    assert "shallow distilled (temperature=4)" in labels  # 100 tokens are the same for all
    mine = groups[labels.index("shallow distilled (temperature=4)")]
    baseline = baseline_of(mine, "ce_only", groups)
    assert baseline is not None
    assert baseline.label == "shallow without teacher"
    before = baseline_of(mine, "untrained", groups)
    assert before is not None
    assert before.label == "shallow before training"
    scores = compute_scores(load_results(folder), FAST)
    assert "The same in all of the grid: max_tokens=100." in main_notes(scores, score_frame(scores))


def test_axes_that_end_alike_are_told_apart_as_in_labels_of_runs(tmp_path: Path) -> None:
    """`learning_rate` is short as ever beside them; `seed` has a column of its own, and still `data.seed` is not `seed`."""
    folder = build(tmp_path, documents=10, students={"deep": 0.8})
    runs = pd.read_csv(folder / "runs.csv")
    axes = ("objective.terms.kl.weight", "objective.terms.ce.weight", "training.learning_rate", "data.seed", "seed")
    for value, axis in enumerate(axes):
        runs[f"grid.{axis}"] = np.where(runs["role"] == "distilled", str(value), None)
        runs.loc[runs["role"] == "ce_only", f"grid.{axis}"] = "9"
    runs.to_csv(folder / "runs.csv", index=False)
    (mine,) = [group for group in groups_of(load_results(folder)) if group.role == "distilled"]
    assert mine.label == "deep distilled (kl.weight=0, ce.weight=1, learning_rate=2, data.seed=3)"


def test_students_of_different_data_are_said_to_be_validated_on_it(tmp_path: Path) -> None:
    folder = build(tmp_path, documents=10, students={"deep": 0.8})
    runs = pd.read_csv(folder / "runs.csv")
    said = {}
    for plain, distilled in (("0e1", "0e1"), ("0e1", "00")):  # fingerprints may read like numbers
        runs["validation_data_fingerprint"] = runs["role"].map(
            {"untrained": plain, "ce_only": plain, "distilled": distilled}
        )
        runs.to_csv(folder / "runs.csv", index=False)
        result = build_report_bundle(folder, FAST, "name")
        notes = " ".join(score_table(result.scores, result.score_frame, "title").footnotes)
        said[distilled] = "other data are another measure" in notes
    assert said == {"0e1": False, "00": True}


def test_a_student_without_teacher_that_read_other_data_is_called_so(tmp_path: Path) -> None:
    folder = build(tmp_path, documents=30, students={"deep": 0.8})
    runs = pd.read_csv(folder / "runs.csv")
    for text in ("a", "b"):
        runs["validation_data_fingerprint"] = runs["role"].map({"untrained": "a", "ce_only": text, "distilled": "a"})
        runs.to_csv(folder / "runs.csv", index=False)
        result = build_report_bundle(folder, FAST, "name")
        labels = [group.label for group in result.scores.groups]
        is_other = text == "b"
        assert ("deep without teacher (other data)" in labels) == is_other
        assert ("the same student trained without it on other data, distillation changed" in result.headline) == is_other
        assert "the same student trained without it" in result.headline


def test_earlier_stages_do_not_compete_and_say_their_depth(tmp_path: Path) -> None:
    """A student of 15 layers, cut to 22 first, with and without teacher: the larger model on the way is no winner."""
    folder = build(tmp_path, documents=200, students={"d15": 1.2, "early": 0.1}, tail_logit_loss=0.0)
    runs = pd.read_csv(folder / "runs.csv")
    is_early = (runs["student"] == "early") & (runs["role"] != "untrained")
    runs = runs[is_early | (runs["student"] != "early")]
    runs.loc[runs["student"] == "d15", "num_layers"] = 15
    runs.loc[is_early, ["student", "num_layers"]] = ["d15_after_d22", 22]
    runs.loc[runs["model"] == "early-distilled-0", "role"] = "derived"
    runs.to_csv(folder / "runs.csv", index=False)
    result = build_report_bundle(folder, FAST, "name")
    roles = {group.label: group.role for group in result.scores.groups}
    assert roles["d15_after_d22 without teacher (22 layers)"] == roles["d15_after_d22 (22 layers)"] == "derived"
    assert (roles["d15 without teacher"], roles["d15 distilled"]) == ("ce_only", "distilled")
    macro = result.score_frame[result.score_frame["task"] == MACRO_AVERAGE].set_index("model")
    assert macro["score"].drop("teacher").idxmax() in (
        "d15_after_d22 without teacher (22 layers)",
        "d15_after_d22 (22 layers)",
    )
    assert not macro.loc[macro["role"] == "derived", "best"].any()
    assert [row[0].text for row in cost_table(result.scores).rows] == ["teacher", "d15_after_d22", "d15"]
    runs.loc[runs["student"] == "d15_after_d22", "num_layers"] = 15  # as after a warm-up
    runs.to_csv(folder / "runs.csv", index=False)
    assert "d15_after_d22" in [group.label for group in groups_of(load_results(folder))]


def test_without_a_distilled_student_nothing_is_judged(tmp_path: Path) -> None:
    folder = build(tmp_path, documents=30, students={"deep": 0.8})
    runs = pd.read_csv(folder / "runs.csv")
    runs[runs["role"] != "distilled"].to_csv(folder / "runs.csv", index=False)
    result = build_report_bundle(folder, FAST, "name")
    assert result.headline == "No distilled student is in this experiment."


def test_a_baseline_of_several_grid_points_is_found_by_each(tmp_path: Path) -> None:
    folder = build(tmp_path, documents=10, students={"deep": 0.8})
    runs = pd.read_csv(folder / "runs.csv")
    for value, joint in (("online", "online or top_50"), ("top_50", "online or top_50"), ("long", "long")):
        runs["grid.variant"] = np.where(runs["role"] == "distilled", value, None)
        runs.loc[runs["role"] == "ce_only", "grid.variant"] = joint
        runs.to_csv(folder / "runs.csv", index=False)
        groups = groups_of(load_results(folder))
        mine = next(group for group in groups if group.role == "distilled")
        baseline = baseline_of(mine, "ce_only", groups)
        assert baseline is not None
        assert baseline.grid_point == (("grid.variant", joint),)
    runs.loc[runs["role"] == "distilled", "grid.variant"] = "online"
    runs.to_csv(folder / "runs.csv", index=False)
    groups = groups_of(load_results(folder))
    assert baseline_of(next(group for group in groups if group.role == "distilled"), "ce_only", groups) is None


def test_an_external_model_may_have_another_number_format(tmp_path: Path) -> None:
    folder = build(tmp_path, documents=30, students={"deep": 0.8})
    copy_model(folder, "teacher", "teacher-int8")
    for task in TASKS:
        edit_settings(folder, "teacher-int8", task, dtype="int8")
    runs = pd.read_csv(folder / "runs.csv")
    row = {
        "model": "teacher-int8",
        "role": "quantized",
        "student": "",
        "parameters": 134_515_008,
        "status": "done",
    }
    pd.concat([runs, pd.DataFrame([row])]).to_csv(folder / "runs.csv", index=False)
    scores = compute_scores(load_results(folder), FAST)
    place = [g.label for g in scores.groups].index("teacher int8")
    assert retention(scores, place).value == pytest.approx(1.0)


def test_csv_holds_every_model_on_every_task(tmp_path: Path) -> None:
    folder = build(tmp_path, documents=30)
    result = build_report_bundle(folder, FAST, "name")
    write_score_tables(folder, result)
    table = pd.read_csv(folder / "table.csv")
    assert len(table) == 7 * 5
    assert {"score", "low", "high", "document_se", "seed_std", "teacher_delta", "ce_only_p_adjusted"} <= set(table)
    assert with_training_flops(score_frame(result.scores))["training_flops"].notna().sum() == 6 * 5


def test_the_tasks_of_a_benchmark_are_one_task(tmp_path: Path) -> None:
    """Every document counts the same, the benchmark as much as any other task, and its parts are strata."""
    tasks = {"mmlu_a": (4, "acc"), "mmlu_b": (4, "acc"), "sciq": (4, "acc_norm")}
    folder = build(tmp_path, documents=60, tasks=tasks, students={"deep": 0.8})
    apart = compute_scores(load_results(folder), FAST)
    with edited_records(folder) as content:
        for settings in content.settings.values():
            for task in ("mmlu_a", "mmlu_b"):
                settings[task]["group"] = "mmlu"
    merged = compute_scores(load_results(folder), FAST)
    assert merged.tasks == ["mmlu", "sciq"]
    assert merged.raw[0] == pytest.approx(apart.raw[:2].mean(axis=0))
    assert merged.macro(0) == pytest.approx((apart.centered[:2, 0].mean() + apart.centered[2, 0]) / 2)
    assert "mmlu v1.0 (acc, 0-shot, 2 tasks, 120 documents" in "\n".join(evaluation_footnotes(merged))
    tail = analyze_long_tail(merged)
    assert {"mmlu_a", "mmlu_b"} <= set(tail.stratum_scores.loc[tail.stratum_scores["axis"] == "metadata:task", "label"])
    with edited_records(folder) as content:
        del content.settings["deep-distilled-0"]["mmlu_b"]
    lacking = compute_scores(load_results(folder), FAST)
    student = next(g for g, group in enumerate(lacking.groups) if group.role == "distilled")
    assert np.isnan(lacking.raw[0, student])
    assert np.isfinite(lacking.raw[1, student])


def test_answers_asked_again_in_float32_are_counted_below_the_table(tmp_path: Path) -> None:
    results = load_results(build(tmp_path))
    scores = compute_scores(results, FAST)
    assert "asked again" not in "\n".join(evaluation_footnotes(scores))
    for number, tasks in enumerate(results.settings_by_model.values()):
        next(iter(tasks.values())).update(float32_documents=8, float32_other_answers=number % 2)
    models = len(results.settings_by_model)
    expected = f"Of {8 * models} answers that were asked again in float32, {models // 2} differ."
    assert expected in evaluation_footnotes(scores)


def undecided(value: float, expect: str, endpoint: Endpoint = ACCURACY_ENDPOINT, **facts: object) -> HypothesisTest:
    """A test that found `value`, where differences of 0.02 matter."""
    hypothesis = HypothesisConfig(claim="c", expect=expect)  # type: ignore[arg-type]
    found = Interval(value, value - 0.1, value + 0.1)
    common = {"margin": 0.02, "pairs": (), "num_seeds": 2, "difference": found, "p": 0.2, "p_adjusted": 0.2}
    rest = {"detectable": 0.1, "factor": 3.2, "outcome": UNDECIDED, "reason": ""}
    return HypothesisTest("h", hypothesis, endpoint, False, **(common | rest | facts))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "expect", "is_against"),
    [(0.03, "better", False), (0.01, "better", True), (-0.03, "worse", False), (0.0, "worse", True),
     (-0.01, "equal", False), (-0.03, "equal", True), (0.01, "not_better", False), (0.03, "not_better", True),
     (-0.01, "not_worse", False), (-0.03, "not_worse", True)],
)  # fmt: skip
def test_what_is_undecided_says_whether_it_points_against_the_claim(value: float, expect: str, is_against: bool) -> None:
    start = "undecided, points against the claim: " if is_against else "undecided: "
    for endpoint, sign in ((ACCURACY_ENDPOINT, 1), (BITS_PER_BYTE, -1)):  # of bits per byte less is better
        found = undecided(sign * value, expect, endpoint)
        assert describe_outcome(found) == f"{start}about 4 times the documents and seeds would decide it"
    few = "significant, but a claim needs 3 seeds"
    assert describe_outcome(undecided(value, expect, reason=few)) == start + few
    assert describe_outcome(undecided(value, expect, outcome=AGREES)) == "agrees"


def test_hypotheses_are_counted_in_a_sentence() -> None:
    def named(name: str, outcome: str) -> DeclaredTest:
        return DeclaredTest(replace(undecided(0.0, "better", outcome=outcome), name=name), "before the run")

    one = [named("a", AGREES), named("b", CONTRADICTS), named("c", UNDECIDED)]
    assert hypothesis_sentence(one).startswith("Hypotheses: 1 agrees (a), 1 contradicts (b), 1 undecided (c). All ")
    two = [*one, named("d", AGREES), named("e", CONTRADICTS), named("f", UNDECIDED)]
    assert hypothesis_sentence(two).startswith(
        "Hypotheses: 2 agree (a and d), 2 contradict (b and e), 2 undecided (c and f)."
    )
