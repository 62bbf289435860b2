"""Whose loss stands in `val_teacher_nll`: of the model that is evaluated as the teacher, or of another one."""

import pytest
from helpers import ROOT

from distill_lit.config import load_experiment
from distill_lit.experiment.collect import _other_teacher

QUICKSTART = ROOT / "experiments" / "quickstart.yaml"
SERVED = "teacher.source=served"


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ([], ""),
        (["teacher.source=online"], ""),
        (["teacher.source=ema"], "ema"),
        ([SERVED, "teacher.server={base_url: 'http://x/v1', model: x}"], "served"),
        ([SERVED, "teacher.server={base_url: 'http://x/v1', model: x, local_validation: true}"], ""),
        (["teacher.mixture.teachers={b: {model: 'hf:a/b', weight: 0.5}}"], "mixture"),
    ],
)
def test_a_teacher_is_named_where_the_model_itself_was_not_asked(changes: list[str], name: str) -> None:
    config = load_experiment(QUICKSTART, changes)
    assert _other_teacher(config, config.teacher.model) == name


def test_another_model_is_named_where_one_is_evaluated_as_the_teacher() -> None:
    config = load_experiment(QUICKSTART, ["teacher.model=hf:a/corrected"])
    assert _other_teacher(config, "hf:a/released") == "hf:a/corrected"
    assert _other_teacher(config, "") == ""
