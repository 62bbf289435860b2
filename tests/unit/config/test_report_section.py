"""The `report:` section: names, order and decimals, which no run and no number depends on."""

import math
from pathlib import Path

import pandas as pd
import pytest
from helpers import ROOT
from helpers.synthetic_results import build

from distill_lit.analysis.model_groups import groups_of
from distill_lit.analysis.results import load_results
from distill_lit.analysis.score_table import score_frame
from distill_lit.analysis.scores import compute_scores
from distill_lit.config import AnalysisConfig, ReportConfig, load_experiment, to_yaml
from distill_lit.experiment.plan import plan_runs
from distill_lit.report.tables.scores import score_table, task_table, with_training_flops
from distill_lit.utils.exceptions import UserError

CHANGES = ["report.labels.deep=24 layers", "report.labels.objective.terms.kl.weight=λ", "report.order=[shallow, deep]",
           "report.decimals.score=2"]  # fmt: skip


def test_it_changes_no_run_and_is_kept_with_the_results(tmp_path: Path) -> None:
    path = ROOT / "experiments/quickstart.yaml"
    plain, named = load_experiment(path), load_experiment(path, CHANGES)
    assert [run.name for run in plan_runs(plain)] == [run.name for run in plan_runs(named)]
    (tmp_path / "plan.yaml").write_text(to_yaml(named))  # as `collect` writes it into a results folder
    known = load_experiment(tmp_path / "plan.yaml").report
    assert known == ReportConfig(
        labels={"deep": "24 layers", "objective.terms.kl.weight": "λ"}, order=["shallow", "deep"], decimals={"score": 2}
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("report.decimals.score=7", "report.decimals.score"),
        ("report.labels=[a]", "report.labels"),
        ("report.lables.a=b", "did you mean 'labels'"),
        ("grid.report.decimals.score=[1, 2]", "holds for the whole experiment"),
    ],
)
def test_wrong_values_are_refused(change: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        load_experiment(ROOT / "experiments/quickstart.yaml", [change])


def test_order_and_labels() -> None:
    display = ReportConfig(labels={"a": "A"}, order=["c", "b"])
    assert display.ordered(["a", "b", "c", "d"]) == ["c", "b", "a", "d"]
    assert (display.rank("b"), display.rank("x", "c"), display.rank("x")) == (1, 0, math.inf)
    assert (display.label("a"), display.label("z")) == ("A", "z")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    build(tmp_path, documents=5, students={"deep": 0.8, "shallow": 1.4})
    runs = pd.read_csv(tmp_path / "runs.csv")
    kinds = runs["student"].map({"deep": "forward_kl", "shallow": "reverse_kl"})
    runs["grid.objective.terms.kl.kind"] = kinds.where(runs["role"] == "distilled")
    runs.to_csv(tmp_path / "runs.csv", index=False)
    return tmp_path


def test_models_are_called_and_ordered_as_it_says(folder: Path) -> None:
    labels = {"deep": "24 layers", "forward_kl": "KL", "reverse_kl": "RKL", "kind": "", "ce_only": "plain",
              "shallow distilled (RKL)": "small"}  # fmt: skip
    display = ReportConfig(labels=labels, order=["shallow", "distilled"])
    found = [group.label for group in groups_of(load_results(folder, display))]
    assert found == ["teacher", "small", "shallow before training", "shallow plain", "24 layers distilled (KL)",
                     "24 layers before training", "24 layers plain"]  # fmt: skip
    assert [group.label for group in groups_of(load_results(folder, ReportConfig(order=["deep", "teacher"])))][:5] == [
        "deep before training", "deep without teacher", "deep distilled (kind=forward_kl)", "teacher",
        "shallow before training"]  # fmt: skip


def test_tables_of_a_report_show_labels_and_decimals(folder: Path) -> None:
    labels = {"teacher": "SmolLM2", "deep": "24 layers", "piqa": "PIQA", "retained": "kept", "above_chance": "mean"}
    display = ReportConfig(labels=labels, order=["piqa"], decimals={"score": 3, "above_chance": 2, "val_kl": 0})
    scores = compute_scores(load_results(folder, display), AnalysisConfig(n_resamples=100))
    frame = with_training_flops(score_frame(scores))
    main, tasks = score_table(scores, frame, ""), task_table(scores, frame)
    assert main.columns[1:3] == ["mean [95%]", "kept [95%]"]
    assert (main.rows[0][0].text, tasks.rows[0][0].text) == ("SmolLM2", "SmolLM2")
    assert tasks.columns[1].startswith("PIQA")
    teacher = frame[(frame["role"] == "teacher")].set_index("task")["score"] * 100
    assert tasks.rows[0][1].text == f"{teacher['piqa']:.3f}"
    kl = next(i for i, name in enumerate(main.columns) if name.startswith("KL"))
    assert main.rows[1][kl].text in ("1", "2")


def test_two_models_cannot_have_one_label(folder: Path) -> None:
    with pytest.raises(UserError, match="'x before training' would be the name of two models"):
        groups_of(load_results(folder, ReportConfig(labels={"deep": "x", "shallow": "x"})))
