"""The benchmark of plans: what it takes for one stage, and its sums, from made-up records."""

import importlib.util
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from helpers import ROOT

from distill_lit.config.roles import Role
from distill_lit.experiment.estimates.memory_estimate import Memory
from distill_lit.experiment.estimates.run_estimate import Estimate
from distill_lit.utils.files import write_json

spec = importlib.util.spec_from_file_location("plan_error", ROOT / "benchmarks/plan_error.py")
assert spec is not None and spec.loader is not None
plan_error = importlib.util.module_from_spec(spec)
spec.loader.exec_module(plan_error)


def run(name: str, role: Role, student: str = "") -> Any:
    return SimpleNamespace(name=name, label=name, role=role, student=student, is_trained=bool(student))


@pytest.mark.parametrize(
    ("role", "name", "stage"),
    [
        (Role.DISTILLED, "train", "training"),
        (Role.DISTILLED, "validate", "validation"),
        (Role.DISTILLED, "tokenize", "start"),
        (Role.TEACHER, "evaluate arc_easy", "evaluation"),
        (Role.TEACHER, "surprisal piqa", "evaluation"),
        (Role.TEACHER, "prepare evaluation", "evaluation"),
        (Role.TEACHER_CACHE, "cache", "teacher"),
        (Role.TEACHER_CACHE, "start", "start"),
        (Role.GENERATED, "write", "generation"),
    ],
)
def test_a_recorded_stage_is_part_of_a_planned_one(role: Role, name: str, stage: str) -> None:
    assert plan_error.stage_of(run("a", role), name) == stage


def test_minutes_are_summed_over_the_runs_of_a_kind(tmp_path: Any) -> None:
    """Two students of 120 s of training on two threads, planned as 3 minutes each; one run has recorded nothing."""
    runs = [run(name, Role.DISTILLED, "d6") for name in "abc"]
    estimate = Estimate(1, 1.0, 1, 1, 3.5, Memory(weights=2 * 10**9), {"training": 3.0, "start": 0.5})
    for name in "ab":
        times = {"seconds": {"train": 120.0, "start": 60.0}, "cpu_seconds": {"train": 60.0, "start": 60.0}}
        write_json(tmp_path / name / "times.json", {**times, "peak_memory_bytes": 10**9, "threads": 2})
    experiment: Any = SimpleNamespace(
        name="tiny",
        estimated_runs=lambda: [(one, estimate) for one in runs],
        folder_of=lambda one: tmp_path / one.name,
        statuses=lambda: dict.fromkeys("abc", ("done", "")),
    )
    table = plan_error.table_of(experiment, list(plan_error.recorded_rows(experiment)), "recorded times")
    found = table.set_index("stage")[["runs", "planned", "wall", "undisturbed"]].T.to_dict("list")
    assert found == {
        "training": ["d6 distilled (2)", 6.0, 4.0, 1.0],
        "start": ["d6 distilled (2)", 1.0, 2.0, 1.0],
        "all": ["d6 distilled (2)", 7.0, 6.0, 2.0],
    }
    assert table.loc[table["stage"] == "all", ["planned_gb", "peak_gb"]].to_numpy().tolist() == [[2.0, 1.0]]
    text = plan_error.markdown(pd.concat([table, table.assign(experiment="other")]))
    assert "`tiny`, recorded times: planned 7.0 minutes, took 2.0 undisturbed (planned / taken 3.50)" in text
    assert "| other | d6 distilled (2) | training | 6.00 | 4.00 | 1.00 | 6.00 |" in text
