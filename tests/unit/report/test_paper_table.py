"""Tables of a paper: values by hand, rows and columns as asked for, bold where somebody is excluded, TeX without hashes."""

import csv
import io
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers import ROOT
from helpers.grid_results import above_chance, build_grid, with_right_answers
from helpers.synthetic_results import build, edited_records

from distill_lit.analysis.results import load_results
from distill_lit.analysis.score_table import score_frame
from distill_lit.analysis.scores import Scores, compute_scores
from distill_lit.cli.main import main
from distill_lit.config import AnalysisConfig, ReportConfig
from distill_lit.report import build_report_bundle, render_report
from distill_lit.report.formats.latex_table import escape_latex, latex_cell, to_latex
from distill_lit.report.formats.table import Table, TableCell
from distill_lit.report.paper.build import PaperTable, build_paper_table, to_frame, to_table
from distill_lit.report.paper.endpoint_columns import with_endpoints
from distill_lit.report.paper.notes import reading_notes
from distill_lit.report.paper.pivot import pivot_of, write_pivot_files
from distill_lit.report.paper.request import Condition, TableRequest, split_list
from distill_lit.report.tables.score_notes import main_notes
from distill_lit.report.tables.scores import with_training_flops
from distill_lit.utils.exceptions import UserError

FAST = AnalysisConfig(n_resamples=300)
GRID = {
    ("d6", "1", "0.5"): [20, 22],
    ("d6", "2", "0.5"): [21, 21],
    ("d6", "10", "0.5"): [20, 20],
    ("d6", "1", "0.9"): [19, 21],
    ("d6", "2", "0.9"): [20, 22],
}


def make(folder: Path, display: ReportConfig | None = None, **request: Any) -> PaperTable:
    where = [Condition.parse(text) for text in request.pop("where", [])]
    scores, frame = analyzed(folder, display)
    return build_paper_table(scores, frame, TableRequest(where=where, **request))


def analyzed(folder: Path, display: ReportConfig | None = None) -> tuple[Scores, pd.DataFrame]:
    scores = compute_scores(load_results(folder, display), FAST)
    return scores, with_training_flops(score_frame(scores))


def texts(paper: PaperTable) -> dict[str, list[str]]:
    """{labels of a row: its texts}."""
    return {
        ", ".join(labels): [paper.text(r, c) for c in range(len(paper.layout.columns))]
        for r, labels in enumerate(paper.rows)
    }


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_grid(tmp_path_factory.mktemp("grid"), GRID)


def test_a_pivot_table_holds_the_mean_over_seeds_of_each_point(grid: Path) -> None:
    paper = make(grid, pivot=["temperature", "weight"], uncertainty="none")
    assert paper.heads == ["temperature"]
    assert [paper.column_group(column) for column in paper.layout.columns] == ["weight=0.5", "weight=0.9"]
    assert texts(paper) == {  # 10 after 2, and nobody ran (10, 0.9)
        "1": [f"{above_chance(21):.1f}", f"{above_chance(20):.1f}"],
        "2": [f"{above_chance(21):.1f}", f"{above_chance(21):.1f}"],
        "10": [f"{above_chance(20):.1f}", "—"],
    }


def test_a_pivot_table_may_show_a_task_and_a_deviation(grid: Path) -> None:
    paper = make(grid, pivot=["temperature", "weight"], values=["sciq"])
    assert texts(paper)["1"] == ["52.5 ± 3.5", "50.0 ± 3.5"]  # (20, 22) and (19, 21) of 40: 5 points apart, over √2


def test_what_varies_beside_two_axes_comes_first(tmp_path: Path) -> None:
    right = {("d6", t, w): [10] for t in "12" for w in "34"} | {("d9", t, w): [30] for t in "12" for w in "34"}
    paper = make(build_grid(tmp_path, right), pivot=["temperature", "weight"], uncertainty="none")
    assert paper.layout.down == ["student", "temperature"]
    assert texts(paper)["d9, 2"] == [f"{above_chance(30):.1f}"] * 2
    assert not any(value and value.bold for row in paper.values for value in row)  # within a panel all are alike


@pytest.mark.parametrize(
    ("counts", "bold"), [((38, 38, 8, 8), [True, True, False, False]), ((20, 21, 20, 19), [False] * 4)]
)
def test_bold_only_where_somebody_is_excluded(tmp_path: Path, counts: tuple[int, ...], bold: list[bool]) -> None:
    points = [("d6", t, w) for t in "12" for w in "34"]
    folder = build_grid(tmp_path, {point: [count] for point, count in zip(points, counts, strict=True)})
    for request in ({"rows": ["temperature", "weight"], "where": ["role=distilled"]}, {"pivot": ["temperature", "weight"]}):
        paper = make(folder, columns=["above_chance"] if "rows" in request else [], **request)
        assert [bool(value and value.bold) for row in paper.values for value in row] == bold
        notes = " ".join(reading_notes(paper, analyzed(folder)[1]))
        assert ("so none is bold" in notes) == (not any(bold))


def test_notes_say_which_steps_weights_students_have_where_these_are_not_the_last(tmp_path: Path) -> None:
    folder = build_grid(tmp_path, {("d6", temperature, "0.5"): [20] for temperature in "1234567"})
    runs = pd.read_csv(folder / "runs.csv", dtype=str)
    assert not [note for note in main_notes(*analyzed(folder)) if "training.export" in note]
    is_distilled = runs["role"] == "distilled"
    runs.loc[is_distilled, "exported_step"] = range(30, 30 + 10 * is_distilled.sum(), 10)
    runs.loc[is_distilled, "training_steps"] = 100
    runs.to_csv(folder / "runs.csv", index=False)
    (note,) = [note for note in main_notes(*analyzed(folder)) if "training.export" in note]
    said = "Weights of the step with the lowest validation loss (training.export: best), not of the last: "
    assert note == f"{said}at 30% to 90% of the steps."
    paper = make(folder, rows=["temperature"], where=["temperature=1,3", "role=distilled"])
    first, _, third, *_ = runs.loc[is_distilled, "model"]
    assert f"{said}{first} 30 of 100; {third} 50 of 100." in reading_notes(paper, analyzed(folder)[1])


def test_a_pivot_table_names_whom_it_is_to_be_compared_with(grid: Path) -> None:
    frame = analyzed(grid)[1]
    paper = make(grid, pivot=["temperature", "weight"])
    macro = frame[frame["task"] == "macro average"].set_index("role")["score"] * 100
    (note,) = [note for note in reading_notes(paper, frame) if note.startswith("For comparison")]
    assert f"teacher {macro['teacher']:.1f}" in note
    assert f"d6 without teacher {macro['ce_only']:.1f}" in note


def test_rows_columns_and_decimals(tmp_path: Path) -> None:
    folder = build(tmp_path, documents=80, seeds=(0, 1), students={"deep": 0.8, "shallow": 1.4})
    display = ReportConfig(
        labels={"deep": "Deep", "piqa": "PIQA", "distilled": "KD", "parameters": "size", "role": "way"},
        order=["shallow", "deep", "sciq"],
        decimals={"score": 2, "parameters": 1, "val_kl": 3},
    )
    paper = make(
        folder, display, rows=["student", "role"], columns=["tasks", "parameters", "val_kl"], where=["role!=teacher"]
    )
    assert paper.heads == ["student", "way"]
    columns = [paper.column_label(column) for column in paper.layout.columns]
    assert columns == ["sciq", "arc_easy", "hellaswag", "PIQA", "size", "val. KL"]
    rows = ["before training", "without teacher", "KD"]
    assert list(texts(paper)) == [*(f"shallow, {row}" for row in rows), *(f"Deep, {row}" for row in rows)]
    shown = texts(paper)["Deep, KD"]
    assert re.fullmatch(r"\d\d\.\d\d ± \d\.\d\d", shown[0])
    assert shown[4:] == ["60.4M", "0.800"]  # 134,515,008 · e^−0.8
    assert [row[0].text for row in to_table(paper, "", [], [], []).rows] == ["shallow", "", "", "Deep", "", ""]


def test_rows_are_sorted_by_a_column_below_the_teacher(tmp_path: Path) -> None:
    folder = build(tmp_path, documents=80, students={"deep": 0.8, "shallow": 1.4})
    for is_ascending in (False, True):
        paper = make(folder, columns=["piqa"], sort="piqa", is_ascending=is_ascending)
        found = [row[0].value for row in paper.values if row[0] is not None]
        assert paper.rows[0] == ["teacher"]
        assert found[1:] == sorted(found[1:], reverse=not is_ascending)


def test_rules_part_students_only_where_they_have_several_rows(tmp_path: Path) -> None:
    folder = build(tmp_path, documents=20, students={"deep": 0.8, "shallow": 1.4})
    rules = {where: to_table(make(folder, where=[where]), "", [], [], []).rules_before
             for where in ("role=teacher,distilled", "role=teacher,distilled,ce_only")}  # fmt: skip
    assert list(rules.values()) == [{1}, {1, 3}]


def test_differences_have_the_marks_and_bounds_of_the_score_frame(tmp_path: Path) -> None:
    folder = build(tmp_path, documents=80, students={"deep": 0.8})
    row = analyzed(folder)[1].set_index(["model", "task"]).loc[("deep distilled", "macro average")]
    paper = make(folder, where=["role=distilled"], columns=["delta_teacher", "retained"], rows=["student"])
    low, high = (f"{row[f'teacher_delta_{side}'] * 100:+.1f}".replace("-", "−") for side in ("low", "high"))
    value = f"{row['teacher_delta'] * 100:+.1f}".replace("-", "−")
    mark = "‡" if row["teacher_p_adjusted"] <= FAST.alpha else ""
    assert texts(paper)["deep"][0] == f"{value} [{low}, {high}]{mark}"
    assert texts(paper)["deep"][1].startswith(f"{row['retention'] * 100:.0f}% [")


def test_endpoints_are_means_over_documents(tmp_path: Path) -> None:
    folder = build(tmp_path, documents=30, students={"deep": 0.8})
    scores, frame = analyzed(folder)
    frame = with_endpoints(scores, frame, {"margin", "probe_kl"})
    request = TableRequest(rows=["role"], columns=["piqa", "margin"], values=["margin"])
    paper = build_paper_table(scores, frame, request)
    margins = load_results(folder).records["teacher"]["margin_norm"]
    value, mean = paper.values[0]
    assert value is not None
    assert mean is not None
    assert value.value == pytest.approx(margins.loc["piqa"].mean())
    assert mean.value == pytest.approx(np.mean([margins.loc[task].mean() for task in scores.tasks]))
    assert [paper.column_label(column) for column in paper.layout.columns] == ["piqa margin", "margin [95%]"]
    with pytest.raises(UserError, match="no model of the table has a value of probe_kl"):
        build_paper_table(scores, frame, TableRequest(columns=["probe_kl"]))


def test_csv_has_numbers_with_their_bounds(grid: Path) -> None:
    frame = to_frame(make(grid, pivot=["temperature", "weight"]))
    assert frame["temperature"].tolist() == ["1", "2", "10"]
    assert frame["weight=0.5 above chance"].tolist() == pytest.approx(
        [above_chance(21), above_chance(21), above_chance(20)]
    )
    assert frame["weight=0.5 above chance std"].iloc[0] == pytest.approx(
        np.std([above_chance(20), above_chance(22)], ddof=1)
    )
    assert (frame["weight=0.5 above chance low"] < frame["weight=0.5 above chance high"]).all()


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"rows": ["temprature"]}, "did you mean 'temperature'"),
        ({"rows": ["student"]}, "two models in one cell"),
        ({"columns": ["sciqq"]}, "'sciqq': no key"),
        ({"columns": ["weight", "retained"], "rows": ["temperature"]}, "retained goes into --values"),
        ({"values": ["retaned"]}, "did you mean 'retained'"),
        ({"pivot": ["temperature"]}, "two keys of the grid"),
        ({"pivot": ["weight", "weight"]}, "'weight' twice"),
        ({"where": ["role=distiled"]}, "did you mean 'distilled'"),
        ({"where": ["role=teacher", "student=d6"]}, "no model meets all of it"),
        ({"sort": "val_kl"}, "it can be sorted by sciq, above_chance, retained"),
        ({"columns": ["decode_s_per_token"]}, "no key"),
    ],
    ids=str,
)
def test_what_cannot_be_shown_is_said_in_one_line(grid: Path, request_: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as error:
        make(grid, **request_)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_conditions() -> None:
    assert split_list("a, [1, 2] ,b") == ["a", "[1, 2]", "b"]
    assert Condition.parse("student=d1*,d6").accepts("d12")
    assert not Condition.parse("student!=d1*,d6").accepts("d6")
    assert Condition.parse("widths=[64, 128]").accepts("[64, 128]")  # brackets are no pattern where the value has them
    for text in ("student", "=d6", "student="):
        with pytest.raises(UserError):
            Condition.parse(text)


def test_latex_sets_uncertainty_small_and_only_the_number_bold() -> None:
    assert latex_cell("21.3 [16.9, 25.6]‡", bold=True) == r"\textbf{21.3} {\scriptsize {[}16.9, 25.6{]}$\ddagger$}"
    assert latex_cell("59.8 ± 1.1") == r"59.8 {\scriptsize $\pm$ 1.1}"
    assert latex_cell("not ± one of them") == r"not $\pm$ one of them"
    assert escape_latex("αβΔΣλω") == r"$\alpha$$\beta$$\Delta$$\Sigma$$\lambda$$\omega$"


def test_groups_of_columns_stand_above_them() -> None:
    table = Table("t", ["k", "a", "b", "a", "b"], [[TableCell("x")] * 5], column_groups=["", "one", "one", "two", "two"])
    lines = to_latex(table, "x").splitlines()
    assert r" & \multicolumn{2}{c}{one} & \multicolumn{2}{c}{two} \\" in lines
    assert r"\cmidrule(lr){2-3}\cmidrule(lr){4-5}" in lines
    assert table.column_names == ["k", "one: a", "one: b", "two: a", "two: b"]


def write_plan(folder: Path, text: str = "") -> Path:
    (folder / "plan.yaml").write_text(
        "name: mine\nquestion: Which?\nteacher: file:x\nstudents: {d6: {num_layers: 6}}\nanalysis: {n_resamples: 300}\n"
        + text
    )
    return folder


def run_table(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(["table", *arguments])
    return int(stop.value.code or 0)


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex here")
def test_tex_compiles_without_a_hash_and_its_appendix_has_them(grid: Path, tmp_path: Path) -> None:
    folder = write_plan(Path(shutil.copytree(grid, tmp_path / "grid")))
    out = [str(tmp_path / name) for name in ("models.tex", "pivot.tex")]
    assert (
        run_table(str(folder), "--columns", "tasks,above_chance,delta_teacher", "--out", out[0], "--label", "models") == 0
    )
    assert run_table(str(folder), "--pivot", "temperature,weight", "--values", "above_chance,val_kl", "--out", out[1]) == 0
    for name in ("models", "pivot"):
        assert "h-sciq" not in (tmp_path / f"{name}.tex").read_text()
        assert "h-sciq" in (tmp_path / f"{name}_provenance.tex").read_text()
    inputs = "".join(rf"\input{{{name}}}" for name in ("models", "pivot", "models_provenance", "pivot_provenance"))
    head = r"\documentclass{article}\usepackage{booktabs,graphicx}\begin{document}"
    (tmp_path / "main.tex").write_text(head + inputs + r"\end{document}")
    for _ in range(2):  # references are known to the second
        done = subprocess.run(["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "main.tex"], cwd=tmp_path,
                              capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stdout[-1500:]
    assert "Overfull" not in done.stdout
    assert "undefined" not in done.stdout


def test_the_command_takes_labels_of_the_plan_and_of_its_flags(
    grid: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "report: {labels: {weight: λ, temperature: T, d6: six}, order: ['2'], decimals: {above_chance: 2}}\n"
    folder = write_plan(Path(shutil.copytree(grid, tmp_path / "grid")), text)
    arguments = ["--pivot", "temperature,weight", "--uncertainty", "none"]
    assert run_table(str(folder), *arguments, "--rename", "temperature=tau", "0.9=ν", "--format", "csv") == 0
    rows = list(csv.reader(io.StringIO(capsys.readouterr().out)))
    assert (rows[0][:2], rows[0][-4]) == (["tau", "λ=0.5 above chance"], "λ=ν above chance")
    assert [row[0] for row in rows[1:]] == ["2", "1", "10"]
    assert run_table(str(folder), *arguments, "--format", "md", "report.decimals.above_chance=0") == 0
    assert f"| 2 | {above_chance(21):.0f} |" in capsys.readouterr().out
    monkeypatch.setenv("COLUMNS", "80")
    assert run_table(str(folder), "--columns", "tasks,above_chance,val_kl,parameters,training_flops,retained") == 0
    assert capsys.readouterr().out.startswith("**mine: Which?**")  # wider than the terminal


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--out", "x.docx"], "unknown format 'docx'"),
        (["--out", "x.png"], "needs --pivot"),
        (["--format", "png"], "needs --out"),
        (["--rename", "a"], "not NAME=VALUE"),
        (["--rename", "temprature=T"], "nothing here is called so; did you mean 'temperature'"),
        (["--order", "d6,d7"], "--order 'd7': nothing here is called so"),
        (["--decimals", "scor=1"], "did you mean 'score'"),
        (["--decimals", "score=9"], "a whole number from 0 to 6"),
        (["report.label.x=y"], "labels"),
        (["nowhere"], "neither a results folder nor an experiment file"),
        (["--pivot", "temperature,weight", "--values", "retained,val_kl", "--out", "x.png"], "one of --values"),
    ],
    ids=str,
)
def test_bad_input_is_one_line_and_writes_nothing(
    grid: Path,
    tmp_path: Path,
    arguments: list[str],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = write_plan(Path(shutil.copytree(grid, tmp_path / "grid")))
    monkeypatch.chdir(tmp_path)
    assert run_table(str(folder), *arguments) == 2
    line = capsys.readouterr().err
    assert words in line
    assert line.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["grid"]


def test_a_report_draws_the_heat_map_of_two_numeric_axes_unasked(tmp_path: Path) -> None:
    folder = build_grid(tmp_path / "grid", {("d6", t, w): [20] for t in ("1", "10") for w in ("0.5", "0.9")})
    render_report(folder, build_report_bundle(folder, FAST, "name"))
    assert "| 10 | " in (folder / "pivot.md").read_text()
    assert (folder / "pivot.png").stat().st_size < 100_000
    assert "Score above chance by temperature and weight" in (folder / "report.html").read_text()
    assert "pivot.png" in (folder / "table.md").read_text()
    runs = (folder / "runs.csv").read_text()
    (folder / "runs.csv").write_text(runs.replace(",0.9", ",big"))  # an axis of words
    result = build_report_bundle(folder, FAST, "name")
    assert pivot_of(result) is None
    assert write_pivot_files(folder, result) == []
    assert not (folder / "pivot.png").exists()


@pytest.mark.slow
def test_the_tables_of_the_docs_are_what_their_commands_print(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (ROOT / "docs/how_to/make_a_table.md").read_text()
    shown = re.findall(r"^```bash\ndistill-lit table (.+)\n```\n\n((?:\|.+\n)+)", text, re.M)
    assert len(shown) == 3
    monkeypatch.chdir(ROOT)
    for command, table in shown:
        words = shlex.split(command.partition(" --out ")[0])
        assert run_table(*words, "--format", "md") == 0
        assert table in capsys.readouterr().out


def test_without_a_grid_or_without_scores_there_is_no_pivot(grid: Path, tmp_path: Path) -> None:
    assert pivot_of(build_report_bundle(build(tmp_path / "one", documents=10), FAST, "name")) is None
    folder = Path(shutil.copytree(grid, tmp_path / "grid"))
    with edited_records(folder) as content:  # a teacher at chance, so that there is no average
        content.records["teacher"] = with_right_answers(content.records["teacher"], 10)
    assert pivot_of(build_report_bundle(folder, FAST, "name")) is None
