"""What a plan can decide: which records it goes by, documents, seeds and comparisons of the plan, and how it is said."""

import argparse
import dataclasses
import io
import json
from pathlib import Path

import pytest
from helpers.synthetic_results import build
from rich.console import Console

from distill_lit.analysis.power import TaskVariances, detectable_difference, variances_to_json
from distill_lit.cli.commands import plan
from distill_lit.cli.power_lines import print_power
from distill_lit.config import load_experiment
from distill_lit.experiment.experiment import Experiment
from distill_lit.experiment.power import planned_power
from distill_lit.utils.exceptions import UserError

VARIANCES = {
    "sciq": TaskVariances(0.3, 0.1, 0.0004, 1000),
    "piqa": TaskVariances(0.3, 0.1, 0.0004, 400),
    "winogrande": TaskVariances(0.3, 0.3, 0.0004, 400, is_averaged=False),
}


def planned(root: Path, **overrides: object) -> Experiment:
    values = {
        "evaluation.tasks": ["sciq", "piqa", "winogrande"],
        "grid": {"student": ["deep"], "seed": [0, 1, 2]},
    } | overrides
    texts = [f"{key.replace('__', '.')}={json.dumps(value)}" for key, value in values.items()]
    return Experiment(load_experiment(Path("experiments/quickstart.yaml"), texts), root)


def leave_records(root: Path, name: str, variances: dict[str, TaskVariances]) -> Path:
    folder = build(root / "results" / name, documents=10, seeds=(0, 1), students={"deep": 0.8})
    summary = {"tasks": list(variances), "task_variances": variances_to_json(variances)}
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def test_documents_seeds_and_comparisons_are_those_of_the_plan(tmp_path: Path) -> None:
    folder = leave_records(tmp_path, "other", VARIANCES)
    experiment = planned(tmp_path, evaluation__limit=500)
    found = planned_power(experiment)
    assert found is not None
    assert found.records == folder
    assert found.documents == {"sciq": 500, "piqa": 400}
    assert found.at_chance == ("winogrande",)
    assert (found.num_seeds, found.comparisons) == (3, 1)
    assert found.power == detectable_difference(VARIANCES, found.documents, 3, 1, 2, experiment.config.analysis.alpha)


def test_the_records_that_share_most_tasks_are_taken_and_a_named_folder_first(tmp_path: Path) -> None:
    few = leave_records(tmp_path, "a_few", {"sciq": VARIANCES["sciq"]})
    most = leave_records(tmp_path, "most", VARIANCES)
    experiment = planned(tmp_path)
    by_default, named = planned_power(experiment), planned_power(experiment, few)
    assert by_default is not None and by_default.records == most
    assert named is not None and named.records == few
    assert named.power.unknown == ("piqa", "winogrande")


def test_without_records_or_without_a_comparison_nothing_is_said(tmp_path: Path) -> None:
    assert planned_power(planned(tmp_path)) is None
    leave_records(tmp_path, "other", VARIANCES)
    assert planned_power(planned(tmp_path, baselines=["teacher"])) is None
    with pytest.raises(UserError, match="no such folder"):
        planned_power(planned(tmp_path), tmp_path / "nowhere")


def test_damaged_results_of_others_stop_no_plan(tmp_path: Path) -> None:
    folder = leave_records(tmp_path, "other", VARIANCES)
    (folder / "summary.json").write_text(json.dumps({"tasks": ["sciq"], "task_variances": {"sciq": {"nothing": 1}}}))
    (folder / "records.parquet").write_bytes(b"cut off")
    assert planned_power(planned(tmp_path)) is None
    with pytest.raises(UserError, match="cannot be read"):
        planned_power(planned(tmp_path), folder)
    (folder / "runs.csv").write_text("a\x00b")
    assert planned_power(planned(tmp_path)) is None


def test_named_records_that_say_nothing_are_said_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = leave_records(tmp_path, "other", {"winogrande": VARIANCES["winogrande"]})
    experiment = planned(tmp_path, evaluation__tasks=["winogrande"])
    monkeypatch.setattr(experiment, "plan", list)
    monkeypatch.setattr(plan, "load_checked_experiment", lambda options: experiment)
    monkeypatch.setattr("distill_lit.cli.run_table.print_plan", lambda *_: None)
    output = io.StringIO()
    assert plan.run(argparse.Namespace(records=folder), Console(file=output, width=300)) == 0
    assert f"--records {folder} says nothing of this plan: no student is compared" in output.getvalue()
    plan.run(argparse.Namespace(records=None), Console(file=output, width=300))
    assert output.getvalue().count("says nothing") == 1


def said(root: Path, **overrides: object) -> str:
    experiment = planned(root, **overrides)
    found, output = planned_power(experiment), io.StringIO()
    assert found is not None
    print_power(found, experiment.config.evaluation.limit, Console(file=output, width=300))
    return output.getvalue()


def test_the_lines_warn_where_nothing_can_be_decided(tmp_path: Path) -> None:
    leave_records(tmp_path, "other", VARIANCES)
    few = said(tmp_path, evaluation__limit=20, grid={"student": ["deep"], "seed": [0]})
    assert "warning: limit=20 decides nothing" in few
    assert "another seed may differ by more" in few
    many = said(tmp_path, evaluation__limit=0)
    assert "decides: differences of at least" in many
    assert "warning" not in many
    assert "teacher is at chance on winogrande, not averaged" in many


def test_records_without_a_difference_between_seeds_promise_nothing(tmp_path: Path) -> None:
    alike = {task: dataclasses.replace(variances, seeds=0.0) for task, variances in VARIANCES.items()}
    leave_records(tmp_path, "other", alike)
    found = said(tmp_path)
    assert "with many more seeds, the records show no difference between seeds" in found
    assert "0.0 with" not in found
