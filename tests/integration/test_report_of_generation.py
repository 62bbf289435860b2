"""What models wrote, from records to tables and page."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers.synthetic_results import build, edit_settings, edited_records

from distill_lit.analysis.generation import groups_without_answers, pass_at_k_difference, shown_ks
from distill_lit.analysis.pass_at_k import answers_interval
from distill_lit.analysis.records_file import INDEX
from distill_lit.config.evaluation import AnalysisConfig
from distill_lit.report.bundle import ReportBundle, build_report_bundle
from distill_lit.report.render import write_generation_files
from distill_lit.report.tables.generation import generation_table, variance_table
from distill_lit.report.web.report_page import write_report_page

TASKS = {"gsm8k": (4, "acc"), "piqa": (2, "acc_norm")}
MODELS = ("teacher", "deep-untrained", "deep-ce_only-0", "deep-ce_only-1", "deep-distilled-0", "deep-distilled-1")
RIGHT = {"teacher": 3, "deep-distilled-0": 2, "deep-distilled-1": 1}  # of four answers, on every second document
HOSTILE = "river </script><script>alert(1)</script> | stone"


def add_answers(folder: Path, *models: str) -> None:
    """Gives the documents of gsm8k four answers of each model, on every second one RIGHT of them right."""

    def change(frame: pd.DataFrame, right: int) -> pd.DataFrame:
        written = (frame["task"] == "gsm8k").to_numpy()
        number = frame.groupby("task").cumcount()
        scores = [[float(r < right and n % 2 == 0) for r in range(4)] for n in number]
        columns = {
            "answers": [[HOSTILE, "a b a b a b a b", "light", "water"]] * len(frame),
            "answer_tokens": [[10, 20, 30, 40]] * len(frame),
            "answer_finished": [[True, True, True, False]] * len(frame),
            "answer_scores": scores,
        }
        for name, values in columns.items():
            frame[name] = pd.Series(values, index=frame.index, dtype=object).where(written, None)
        return frame

    drawn = {"repeats": 4, "do_sample": True, "temperature": 0.8, "top_p": 0.95, "max_gen_toks": 64}
    with edited_records(folder) as content:
        for model in models:
            frame = change(content.records[model].reset_index(), RIGHT.get(model, 0))
            content.records[model] = frame.set_index(INDEX)
            content.settings[model]["gsm8k"].update(generation=drawn, output_type="generate_until")
        content.documents["target"] = "72"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = build(tmp_path_factory.mktemp("written"), tasks=TASKS, documents=20, seeds=(0, 1), students={"deep": 0.8})
    add_answers(place, *MODELS)
    return place


@pytest.fixture(scope="module")
def result(folder: Path) -> ReportBundle:
    return build_report_bundle(folder, AnalysisConfig(n_resamples=200), "written", "Does it write?")


def row(result: ReportBundle, model: str) -> pd.Series:
    return result.generation_frame.set_index("model").loc[model]


def test_the_frame_by_hand(result: ReportBundle) -> None:
    """On half of the documents c of four answers are right: pass@k = ½ (1 − C(4−c, k) / C(4, k))."""
    assert shown_ks(4) == [1, 2, 4]
    assert shown_ks(6) == [1, 2, 4, 6]
    teacher, student = row(result, "teacher"), row(result, "deep distilled")
    assert teacher[["pass@1", "pass@2", "pass@4"]].tolist() == pytest.approx([3 / 8, 1 / 2, 1 / 2])
    assert student["pass@1"] == pytest.approx((2 / 4 + 1 / 4) / 4)
    assert student["pass@2"] == pytest.approx(((1 - 1 / 6) + (1 - 3 / 6)) / 4)
    assert student["pass@4_delta"] == pytest.approx(0)
    assert student["pass@1_delta"] == pytest.approx(3 / 16 - 3 / 8)
    assert teacher[["n", "repeats", "tokens", "finished"]].tolist() == [20, 4, 25, 0.75]
    assert teacher["repetition"] == pytest.approx(3 / 6)  # of 5 + 1 4-grams, `a b a b` and `b a b a` come again 3 times
    per_document = np.array([1.0, 0.0] * 10)[:, None] * np.array([[2 / 4, 1 / 4]])
    expected = answers_interval(per_document, np.arange(20))
    assert expected.low < 0  # two seeds that differ
    assert student[["pass@1_low", "pass@1_high"]].tolist() == pytest.approx([0, expected.high])
    nothing = row(result, "deep without teacher")
    assert nothing[["pass@4", "pass@4_low"]].tolist() == [0, 0]
    assert nothing["pass@4_high"] == pytest.approx(3 / 20, rel=0.01)  # not [0, 0]


def test_shares_of_the_variance_add_up(result: ReportBundle) -> None:
    student = row(result, "deep distilled")
    shares = [student[f"share_{name}"] for name in ("documents", "seeds", "interaction", "answers")]
    assert sum(shares) == pytest.approx(1)
    teacher = row(result, "teacher")  # one seed
    assert np.isnan(teacher["share_seeds"])
    within = 0.5 * np.var([1, 1, 1, 0], ddof=1)
    cells = np.array([0.75, 0.0] * 10)
    between = max(0.0, (4 * np.var(cells, ddof=1) - within) / 4)
    assert teacher["standard_error"] == pytest.approx((between / 20 + within / 80) ** 0.5)


def test_a_difference_is_paired(result: ReportBundle) -> None:
    """Half the documents differ by ¼, the others by nothing: as sure as these differences, not as both scores."""
    teacher, student = (
        next(each for each in result.written_answers if result.scores.groups[each.group].label == label)
        for label in ("teacher", "deep distilled")
    )
    found = pass_at_k_difference(student, teacher, 1, 0.95)
    expected = answers_interval(np.array([1.0, 0.0] * 10)[:, None] * np.array([[-1 / 4, -2 / 4]]), np.arange(20))
    assert found == pytest.approx(expected)


def test_tables_and_page_show_them(folder: Path, result: ReportBundle) -> None:
    table = generation_table(result.scores, result.generation_frame)
    assert table.columns[:5] == ["model", "task", "documents × answers", "pass@1 [95%]", "pass@2 [95%]"]
    assert [cell.text for cell in table.rows[0]][:3] == ["teacher", "gsm8k", "20 × 4"]
    assert any("gsm8k: drawn at temperature 0.8, top-p 0.95, at most 64 tokens." in note for note in table.footnotes)
    split = variance_table(result.generation_frame)
    assert split is not None and split.rows[0][2].text == "20 × 1 × 4"
    page = write_report_page(folder, result).read_text()
    section = re.search(r'<section aria-labelledby="h-generation">.*?</section>', page, re.DOTALL)
    assert section is not None
    assert "Teacher and students side by side (6 documents)" in section[0]
    assert section[0].count("<article>") == 6
    assert "<script>" not in section[0] and "&lt;script&gt;alert(1)" in section[0]
    assert section[0].count('<span class="chip') == 6 * len(result.written_answers)
    markdown, frame = write_generation_files(folder, result)
    assert "What the mean of a score varies by" in markdown.read_text()
    assert "\\|" in markdown.read_text() and "<script>" not in markdown.read_text()
    assert pd.read_csv(frame)["pass@1"].tolist() == pytest.approx(result.generation_frame["pass@1"].tolist())


def test_records_from_before_are_read_and_what_they_lack_is_said(tmp_path: Path) -> None:
    old = build(tmp_path, tasks=TASKS, documents=20, students={"deep": 0.8})
    add_answers(old, "teacher")
    for model in ("deep-untrained", "deep-ce_only-0", "deep-distilled-0"):
        edit_settings(old, model, "gsm8k", output_type="generate_until", generation={
            "repeats": 4, "do_sample": True, "temperature": 0.8, "top_p": 0.95, "max_gen_toks": 64
        })  # fmt: skip
    result = build_report_bundle(old, AnalysisConfig(n_resamples=200), "old")
    assert [result.scores.groups[each.group].label for each in result.written_answers] == ["teacher"]
    note = generation_table(result.scores, result.generation_frame).footnotes[-1]
    assert note.startswith(
        "gsm8k: records of deep before training, deep without teacher and deep distilled are from before"
    )
    bare = build(tmp_path / "bare", tasks=TASKS, documents=20, students={"deep": 0.8})
    edit_settings(bare, "teacher", "gsm8k", output_type="generate_until")
    result = build_report_bundle(bare, AnalysisConfig(n_resamples=200), "bare")
    assert groups_without_answers(result.scores)["gsm8k"][0] == "teacher"
    (bare / "generation.md").write_text("of an earlier drawing")
    assert write_generation_files(bare, result) == []
    assert not (bare / "generation.md").exists()
    page = write_report_page(bare, result).read_text()
    assert "h-generation" not in page and "are from before answers were kept" in page
