"""What a checkpoint belongs to."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers import ROOT

from distill_lit.config import load_experiment
from distill_lit.experiment.execution import student_facts
from distill_lit.experiment.plan import plan_runs


def test_a_checkpoint_belongs_to_what_the_student_begins_as_wherever_that_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Folders of runs are renamed where the grid gets another axis, and are moved."""
    for place, weights in (("d24-01234567", "a"), ("d24-seed=0-01234567", "a"), ("d24-89abcdef", "b")):
        (tmp_path / place).mkdir()
        (tmp_path / place / "weights").write_text(weights)
    monkeypatch.setattr(student_facts, "model_fingerprint", lambda folder: (folder / "weights").read_text())
    monkeypatch.setattr(student_facts, "model_folder", lambda reference: Path(reference.removeprefix("file:")))
    run = next(run for run in plan_runs(load_experiment(ROOT / "experiments/quickstart.yaml")) if run.is_trained)

    def facts(place: str) -> dict[str, str]:
        shape = run.config.students[run.student].with_origin(f"file:{tmp_path / place}")
        config = replace(run.config, students={run.student: shape})
        teacher, made = tmp_path / "d24-01234567", SimpleNamespace(named_parameters=list)
        read: Any = SimpleNamespace(fingerprint="rows", teacher_documents=None)
        objective: Any = SimpleNamespace(facts=dict)
        return student_facts.training_fingerprints(replace(run, config=config), teacher, made, read, objective)

    first, renamed, other = map(facts, ("d24-01234567", "d24-seed=0-01234567", "d24-89abcdef"))
    assert first == renamed
    assert [name for name in first if first[name] != other[name]] == ["student.from"]
