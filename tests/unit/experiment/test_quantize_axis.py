"""`quantize` as an axis of the grid: at `none` a student is what its training left."""

from pathlib import Path

import pytest

from distill_lit.config import load_experiment
from distill_lit.config.roles import Role
from distill_lit.experiment.plan import plan_runs
from distill_lit.experiment.planning.planned_run import Run
from distill_lit.utils.exceptions import UserError

BASE = """
name: x
teacher: {model: 'hf:a/b'}
students: {two: {num_layers: 2, layers: uniform}}
objective: {terms: {kl: {kind: forward_kl}}}
data: {corpora: {text: {path: 'hf:a/c'}}}
student: two
baselines: [ce_only]
"""
STAGES = "stages: {train: {}, rounded: {quantize: int8}}\n"


def plan(folder: Path, text: str) -> dict[str, Run]:
    (folder / "x.yaml").write_text(BASE + text)
    return {run.label: run for run in plan_runs(load_experiment(folder / "x.yaml"))}


@pytest.mark.parametrize("first", ["none, int8, int4", "int8, none, int4"])
@pytest.mark.parametrize(("text", "key"), [(STAGES, "stages.rounded"), ("", "students.two")])
def test_every_value_has_its_student_and_its_baseline(tmp_path: Path, text: str, key: str, first: str) -> None:
    runs = plan(tmp_path, f"{text}grid: {{{key}.quantize: [{first}]}}\n")
    kinds = ("none", "int8", "int4")
    assert set(runs) == {f"two-{role}quantize={kind}" for role in ("", "ce_only-") for kind in kinds}
    for role, name in ((Role.DISTILLED, "two-"), (Role.CE_ONLY, "two-ce_only-")):
        of_kind = {kind: runs[f"{name}quantize={kind}"] for kind in kinds}
        for kind, run in of_kind.items():
            assert (run.role, run.student, run.grid_values) == (role, "two", {f"{key}.quantize": kind})
        assert {of_kind[kind].previous_stage for kind in ("int8", "int4")} == {of_kind["none"].name}


def test_a_stage_that_rounds_to_none_is_no_stage(tmp_path: Path) -> None:
    staged = plan(tmp_path, STAGES.replace("int8", "none"))
    assert {label: run.name for label, run in staged.items()} == {
        label: run.name for label, run in plan(tmp_path, "").items()
    }


@pytest.mark.parametrize(
    "stages", ["rounded: {quantize: none}", "a: {}, rounded: {quantize: none, training.max_tokens: 5}"]
)
def test_at_none_too_it_is_a_stage_of_its_own_after_another(tmp_path: Path, stages: str) -> None:
    with pytest.raises(UserError, match=r"^stages.rounded: `quantize` is a stage of its own, after the one that trains$"):
        plan(tmp_path, f"stages: {{{stages}}}\n")
