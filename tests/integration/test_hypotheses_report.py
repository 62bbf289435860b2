"""Declared hypotheses on the page, in Markdown and in a table of several experiments."""

from pathlib import Path

import pytest
from helpers.grid_results import build_grid

from distill_lit.cli.main import main

RIGHT = {("deep", "1", "0.5"): [10, 12, 11], ("deep", "2", "0.5"): [30, 31, 32], ("deep", "4", "0.5"): [12, 10, 11]}
PLAN = """
name: {name}
teacher: {{model: "file:t"}}
students: {{deep: {{num_layers: 2}}}}
evaluation: {{tasks: [sciq]}}
grid: {{student: [deep], objective.terms.kl.temperature: [1, 2, 4]}}
hypotheses:
  hotter: {{claim: Hotter <b>is</b> better, paper: "arXiv:1", models: {{temperature: 2}}, against: {{temperature: 1}}}}
  no_matter: {{claim: 4 is as good, models: {{temperature: 4}}, against: {{temperature: 1}}, expect: equal, margin: 0.1}}
  worse: {{claim: 2 is worse than 4, models: {{temperature: 2}}, against: {{temperature: 4}}, expect: worse}}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    build_grid(tmp_path / "hot", RIGHT)
    (tmp_path / "hot/plan.yaml").write_text(PLAN.format(name="hot"))
    return tmp_path / "hot"


def run(*arguments: str) -> object:
    with pytest.raises(SystemExit) as end:
        main(list(arguments))
    return end.value.code


def test_the_report_tells_them(folder: Path) -> None:
    assert run("report", str(folder), "analysis.n_resamples=200") == 0
    page, table = (folder / "report.html").read_text(), (folder / "table.md").read_text()
    assert "Hotter &lt;b&gt;is&lt;/b&gt; better" in page and "Hotter <b>" not in page
    sentence = "Hypotheses: 1 agrees (hotter), 1 contradicts (worse), 1 undecided (no_matter)."
    assert sentence in table.replace("\\_", "_")
    assert (
        "None declared before the run." in table and "+66.7 [" in table
    )  # 31 less 11 of 40 right answers, above a chance of a quarter


def test_claims_of_several_experiments_stand_in_one_table(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build_grid(folder.parent / "cold", RIGHT)
    (folder.parent / "cold/plan.yaml").write_text(PLAN.format(name="cold"))
    for kind, words in (("md", "| cold | hotter |"), ("csv", "cold,hotter,"), ("tex", "cold & hotter &")):
        assert run("hypotheses", str(folder), str(folder.parent / "cold"), "--format", kind) == 0
        shown = capsys.readouterr().out
        assert words in shown and "contradicts" in shown


def test_folders_of_one_experiment_are_told_apart(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build_grid(folder.parent / "again", RIGHT)
    (folder.parent / "again/plan.yaml").write_text(PLAN.format(name="hot"))
    assert run("hypotheses", str(folder), str(folder.parent / "again"), "--format", "csv") == 0
    shown = capsys.readouterr().out
    assert f"hot in {folder},hotter," in shown and f"hot in {folder.parent / 'again'},hotter," in shown


def test_what_has_none_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "plan.yaml").write_text(PLAN.format(name="hot").split("hypotheses:")[0])
    assert run("hypotheses", str(folder)) == 2
    assert "it declares no hypotheses" in capsys.readouterr().err
