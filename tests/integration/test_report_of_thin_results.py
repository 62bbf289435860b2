"""Bad and thin input: visible in the tables, never averaged away, never a crash."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers.synthetic_results import (
    build,
    copy_model,
    edit_documents,
    edit_model,
    edit_settings,
    edited_records,
    remove_model,
)

from distill_lit import report
from distill_lit.analysis.results import load_results
from distill_lit.analysis.scores import compute_scores, macro_score, task_score
from distill_lit.analysis.significance import wilson
from distill_lit.config.evaluation import AnalysisConfig
from distill_lit.report.bundle import ReportBundle, build_report_bundle
from distill_lit.report.formats.table import to_csv
from distill_lit.report.formats.terminal import TerminalTable
from distill_lit.report.loss_report import loss_report_frame, loss_report_markdown
from distill_lit.report.render import write_score_tables
from distill_lit.report.tables.scores import detail_table
from distill_lit.report.web.report_page import write_report_page
from distill_lit.utils.exceptions import UserError

FAST = AnalysisConfig(n_resamples=300)
ONE = {"deep": 0.8}  # where a second student adds nothing


def edit(path: Path, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    change(pd.read_csv(path)).to_csv(path, index=False)


def page(folder: Path) -> str:
    return drawn(folder)[0]


def drawn(folder: Path) -> tuple[str, ReportBundle]:
    """(table.md, what it was drawn from)."""
    result = build_report_bundle(folder, FAST, "edge", "does it stand?")
    write_score_tables(folder, result, all_formats=True)
    text = loss_report_markdown(result.scores, result.long_tail, result.title, result.loss_statements, True)
    (folder / "longtail.md").write_text(text)
    (folder / "longtail.csv").write_text(to_csv(loss_report_frame(result.long_tail)))
    return (folder / "table.md").read_text(), result


def test_one_seed_prints_not_available_and_never_a_zero_deviation(tmp_path: Path) -> None:
    text, result = drawn(build(tmp_path, students=ONE, documents=40))
    assert "± 0" not in text
    assert "One seed each" in text
    place = (table := detail_table(result.scores, result.score_frame, "")).columns.index("std. over seeds")
    assert {row[place].text for row in table.rows} == {"", "n/a"}


def test_missing_teacher_is_said_and_nothing_is_compared_with_it(tmp_path: Path) -> None:
    folder = build(tmp_path, students=ONE, documents=40)
    remove_model(folder, "teacher")
    text = page(folder)
    assert "The teacher has no result" in text
    assert "Missing: teacher, 1 of 1" in text
    assert "the teacher has no result" in (folder / "longtail.md").read_text()


def test_failed_runs_stay_in_the_table_with_their_reason(tmp_path: Path) -> None:
    folder = build(tmp_path, documents=40, seeds=(0, 1))

    def fail(runs: pd.DataFrame) -> pd.DataFrame:
        rows = runs["model"].isin(["deep-distilled-1", "shallow-distilled-0", "shallow-distilled-1"])
        runs.loc[rows, "status"] = "failed"
        runs["reason"] = runs["reason"].astype(object)
        runs.loc[rows, "reason"] = "out of memory"
        return runs

    edit(folder / "runs.csv", fail)
    text = page(folder)
    assert "Missing: deep distilled, 1 of 2 (failed: out of memory)." in text
    assert "| shallow distilled | — | — |  | 0 of 2 |" in text
    assert "| shallow distilled | — | — | — | — |" in text
    assert "Missing: shallow distilled, 2 of 2 (failed: out of memory)." in text


def test_a_task_at_chance_is_flagged_and_left_out_of_the_average(tmp_path: Path) -> None:
    folder = build(tmp_path, students=ONE, documents=60)

    def guess(frame: pd.DataFrame) -> pd.DataFrame:
        rows = frame["task"] == "piqa"
        frame.loc[rows, "correct_norm"] = [i % 2 for i in range(int(rows.sum()))]
        return frame

    edit_model(folder, "teacher", guess)
    text, result = drawn(folder)
    assert "piqa †" in text
    assert "Not in the average: piqa, because the teacher is at chance." in text
    assert "mean over arc_easy, hellaswag and sciq of" in text
    scores = result.scores
    assert scores.macro(0) == pytest.approx(scores.centered[[0, 1, 3], 0].mean())
    flips = result.long_tail.flips["deep distilled"]
    counted = flips[flips.index.get_level_values("task") != "piqa"]
    assert f"Of the {counted['teacher_correct'].sum()} documents its teacher answers correctly" in " ".join(
        result.loss_statements["deep distilled"]
    )
    assert result.loss_statements["deep distilled"][-1].startswith("Measured on arc_easy, hellaswag and sciq only; ")
    tasks = result.long_tail.task_flips.set_index(["model", "task"])
    assert tasks.loc[("deep distilled", "piqa"), "verdict"] == "teacher at chance"
    assert np.isnan(tasks.loc[("deep distilled", "piqa"), "p_adjusted"])


def test_every_task_at_chance_leaves_no_average(tmp_path: Path) -> None:
    folder = build(tmp_path, students=ONE, documents=24, tasks={"arc_easy": (4, "acc_norm")})
    edit_model(folder, "teacher", lambda f: f.assign(correct_norm=0))
    text, result = drawn(folder)
    assert "unknown: no task has the teacher above chance" in text
    text = write_report_page(folder, result).read_text()
    assert "No model selected" not in text  # nothing to select
    assert 'id="cost"' not in text
    assert '"frontier":{}' in text
    assert "What it costs" in text


def test_identical_models_have_no_discordant_pair_and_no_certainty(tmp_path: Path) -> None:
    folder = build(tmp_path, students=ONE, documents=50)
    copy_model(folder, "teacher", "deep-distilled-0")
    page(folder)
    table = pd.read_csv(folder / "table.csv")
    row = table[(table["model"] == "deep distilled") & (table["task"] == "sciq")].iloc[0]
    assert row["teacher_delta"] == 0
    assert row["teacher_delta_low"] < 0 < row["teacher_delta_high"]
    assert row["teacher_p"] == 1


@pytest.mark.parametrize("broken", [False, True])
def test_draw_leaves_every_file_also_without_a_teacher(tmp_path: Path, broken: bool) -> None:
    folder = build(tmp_path, students=ONE, documents=30)
    if broken:
        remove_model(folder, "teacher")
    written = report.render_report(
        folder, report.build_report_bundle(folder, FAST, "edge", "does it stand?"), all_formats=True
    )
    assert all(path.stat().st_size > 10 for path in written)
    names = {"table.md", "table.tex", "table.csv", "frontier.png", "frontier.pdf", "frontier.csv", "longtail.md"}
    assert names <= {path.name for path in written}


def test_a_limit_above_all_documents_is_none(tmp_path: Path) -> None:
    folder = build(tmp_path, students=ONE, documents=24, limit=100)
    with edited_records(folder) as content:
        for facts in (facts for tasks in content.settings.values() for facts in tasks.values()):
            facts["n_total"] = facts["n"]
    assert "not the full evaluation" not in page(folder)


def test_limit_marks_table_and_long_tail(tmp_path: Path) -> None:
    folder = build(tmp_path, students=ONE, documents=40, limit=40)
    assert "Limited to 40 documents per task" in page(folder)
    assert "Limited to 40 documents per task" in (folder / "longtail.md").read_text()
    assert "Limited to 40" in (folder / "table.tex").read_text()


def test_constant_axes_and_missing_values_do_not_break_strata(tmp_path: Path) -> None:
    folder = build(tmp_path, students=ONE, documents=40)
    blank = {"prompt": "…", "metadata": None}
    edit_documents(folder, lambda f: f.assign(**blank))
    page(folder)
    assert "rarity_question" not in pd.read_csv(folder / "longtail.csv")["axis"].dropna().unique()


def test_a_model_without_one_task_shows_a_gap(tmp_path: Path) -> None:
    folder = build(tmp_path, documents=40)
    with edited_records(folder) as content:
        del content.settings["deep-distilled-0"]["sciq"]
        content.records["deep-distilled-0"] = content.records["deep-distilled-0"].drop("sciq")
    text, result = drawn(folder)
    row = next(line for line in text.splitlines() if line.startswith("| deep distilled"))
    assert "| — |" in row
    mine = result.long_tail.stratum_scores[result.long_tail.stratum_scores["model"] == "deep distilled"]
    assert mine["student"].isna().all()  # over fewer tasks than the teacher's
    assert "Missing: deep distilled has no result on sciq, hence no average." in text
    assert "because deep distilled has no result on sciq" in result.loss_statements["deep distilled"][0]
    assert "against the same student trained without it, distillation changed the score by" in result.headline
    assert all(path.stat().st_size > 10 for path in report.render_report(folder, result))


def test_one_passage_for_all_documents_is_no_certainty(tmp_path: Path) -> None:
    folder = build(tmp_path, students=ONE, documents=40, clusters_per_task=1)
    text, result = drawn(folder)
    scores = result.scores
    assert np.isnan(macro_score(scores, 1).low)
    assert f"{', '.join(scores.tasks[:-1])} and {scores.tasks[-1]}: too few for intervals" in text


def test_all_right_with_every_seed_is_no_certainty(tmp_path: Path) -> None:
    folder = build(tmp_path, students=ONE, documents=40, seeds=(0, 1, 2))
    for seed in (0, 1, 2):
        edit_model(folder, f"deep-distilled-{seed}", lambda f: f.assign(correct=1, correct_norm=1))
    scores = compute_scores(load_results(folder), FAST)
    g = [group.label for group in scores.groups].index("deep distilled")
    assert task_score(scores, 0, g) == wilson(40, 40)


def test_two_documents_give_no_score_beyond_all_right_and_all_wrong(tmp_path: Path) -> None:
    result = build_report_bundle(build(tmp_path, documents=2, seeds=(0, 1)), FAST, "edge")
    rows = result.score_frame.query("task == 'macro average' and score.notna()")
    assert [result.scores.tasks[t] for t in result.scores.averaged] == ["hellaswag"]  # four choices
    assert rows["low"].min() == pytest.approx(-0.25 / 0.75)
    assert rows["high"].max() == 1
    assert "there are too few documents to exclude any gain" in result.headline


def test_a_single_document_is_drawn(tmp_path: Path) -> None:
    folder = build(tmp_path, documents=1, tasks={"arc_easy": (4, "acc_norm")})
    result = build_report_bundle(folder, FAST, "edge", "does it stand?")
    assert all(path.stat().st_size > 10 for path in report.render_report(folder, result))


def test_graded_answers_are_no_shares_of_right_ones(tmp_path: Path) -> None:
    """A task scored by BLEU: shown with bounds of redrawn documents, in no average, no flip, no exact test."""
    folder = build(tmp_path, students=ONE, documents=60)
    with edited_records(folder) as content:
        for number, frame in enumerate(content.records.values()):
            grades = np.random.default_rng(number).uniform(0, 0.4, 60)
            frame.loc["arc_easy", ["correct", "correct_norm"]] = np.stack([grades, grades], axis=1)
    text = page(folder)
    assert "Not in the average: arc_easy, because its answers are graded, not right or wrong" in text
    table = pd.read_csv(folder / "table.csv")
    mine = table[table["task"] == "arc_easy"].set_index("model")
    assert mine.loc["teacher", "low"] < mine.loc["teacher", "score"] < mine.loc["teacher", "high"]
    assert mine["teacher_p"].drop("teacher").notna().all()
    assert "arc_easy" not in (folder / "longtail.csv").read_text()


def test_the_footer_says_who_was_evaluated_otherwise(tmp_path: Path) -> None:
    folder = build(tmp_path, students=ONE, documents=40, limit=40)
    edit_settings(folder, "deep-distilled-0", "sciq", harness="hflm", fallback="sliding windows", truncated=3)
    text = page(folder)
    assert "But deep-distilled-0 with harness hflm (sliding windows), on sciq." in text
    assert "But deep-distilled-0 with 3 prompts cut to its context, on sciq." in text
    assert set(pd.read_csv(folder / "table.csv").query("task == 'sciq'")["limit"]) == {40}


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("limit", 7),
        ("num_fewshot", 5),
        ("apply_chat_template", True),
        ("version", 2.0),
        ("task_hash", "x"),
        ("data", "other labels"),
        ("lm_eval_version", "0.4.14"),
        ("dtype", "bfloat16"),
    ],
)
def test_models_evaluated_differently_are_refused_with_the_difference(tmp_path: Path, setting: str, value: object) -> None:
    folder = build(tmp_path, documents=10)
    edit_settings(folder, "deep-ce_only-0", "piqa", **{setting: value})
    with pytest.raises(UserError, match=f"piqa: {setting} is .* for 'teacher' and .* for 'deep-ce_only-0'"):
        load_results(folder)


def test_different_documents_are_refused(tmp_path: Path) -> None:
    folder = build(tmp_path, documents=10)
    rename = {"piqa-00003.0": "piqa-other.0"}
    edit_documents(folder, lambda f: pd.concat([f, f[f["key"] == "piqa-00003.0"].replace({"key": rename})]))
    edit_model(folder, "deep-ce_only-0", lambda f: f.replace({"key": rename}))
    with pytest.raises(UserError, match=r"piqa: .* answered different prompts \(1 only the first, 1 only the second\)"):
        load_results(folder)


def test_absent_and_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"runs\.csv: not found"):
        load_results(tmp_path)
    folder = build(tmp_path, documents=10)
    (folder / "records.parquet").write_bytes(b"PAR1 broken")
    with pytest.raises(UserError, match=r"records\.parquet: cannot be read"):
        load_results(folder)


def test_a_model_name_that_leaves_the_folder_is_refused(tmp_path: Path) -> None:
    folder = build(tmp_path, documents=10)
    edit(folder / "runs.csv", lambda c: c.replace({"model": {"teacher": "../teacher"}}))
    with pytest.raises(UserError, match=r"'\.\./teacher' cannot be the name of a model"):
        load_results(folder)


def test_terminal_table_fits_its_width(tmp_path: Path) -> None:
    from rich.console import Console

    result = build_report_bundle(build(tmp_path, documents=30), FAST, "edge", "[bold]literal[/bold]")
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(TerminalTable(result))
    text = console.export_text()
    assert "[bold]literal[/bold]" in text
    assert max(map(len, text.splitlines())) <= 100
    for width in range(76, 100, 4):  # what does not fit goes, and no name is broken
        console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
        console.print(TerminalTable(result))
        assert any(line.split()[:1] == ["teacher"] for line in console.export_text().splitlines())


def test_a_folder_may_be_given_as_text(tmp_path: Path) -> None:
    folder = build(tmp_path, documents=10)
    assert list(load_results(str(folder)).records) == list(load_results(folder).records)
    with pytest.raises(UserError, match="nowhere: no such folder; run the experiment first"):
        load_results("nowhere")
