"""The `hypotheses:` section: what no result could decide is refused before anything runs."""

import dataclasses
from pathlib import Path

import pytest
from helpers import ROOT

from distill_lit.config import load_experiment, to_yaml
from distill_lit.config.hypothesis_validation import untestable_hypotheses
from distill_lit.experiment.plan import plan_runs
from distill_lit.utils.exceptions import UserError

DIVERGENCES = ROOT / "experiments/divergences.yaml"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ("{}", r"hypotheses.h.claim: it is required"),
        ("{claim: c, models: {kinds: reverse_kl}}", r"h.models: 'kinds' is no key of the grid.*did you mean 'kind'"),
        ("{claim: c, models: {kind: revers_kl}}", r"h.models.kind: no model has 'revers_kl'.*did you mean 'reverse_kl'"),
        ("{claim: c, models: {student: d19}}", r"h.models.student: no model has 'd19'"),
        ("{claim: c, against: {kind: [forward_kl, reverse_kl]}}", r"h.against: one value for each key"),
        ("{claim: c, against: {}}", r"h.against: \{\} changes nothing"),
        ("{claim: c, against: without}", r"h.against"),
        ("{claim: c, endpoint: probe_kl}", r"probe_kl needs evaluation.probes"),
        ("{claim: c, tasks: [sciqq]}", r"h.tasks: .*'sciqq'.*did you mean 'sciq'"),
        ("{claim: c, endpoint: val_ce, tasks: [sciq]}", r"val_ce is of the corpus"),
        ("{claim: c, endpoint: margin, expect: equal}", r"h.margin: needed to expect equal by margin"),
        ("{claim: c, margin: -1.0}", r"h.margin"),
        ("{claim: c, models: {role: teacher}}", r"h.models.role: no model has 'teacher'"),
    ],
)
def test_what_cannot_be_decided_is_refused(fields: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        load_experiment(DIVERGENCES, [f"hypotheses.h={fields}"])


def test_overrides_may_take_away_what_a_hypothesis_is_about() -> None:
    fewer = load_experiment(DIVERGENCES, ["grid={seed: [0]}", "baselines=[teacher]"])
    found = untestable_hypotheses(fewer)
    assert set(found) == {"reverse_beats_forward", "skew_beats_forward", "any_beats_labels"}
    assert found["any_beats_labels"] == "hypotheses.any_beats_labels: it needs ce_only in baselines"
    assert "is no key of the grid" in found["skew_beats_forward"]


def test_no_run_depends_on_them_and_results_keep_them(tmp_path: Path) -> None:
    declared = load_experiment(DIVERGENCES)
    plain = dataclasses.replace(declared, hypotheses={})
    assert [run.name for run in plan_runs(plain)] == [run.name for run in plan_runs(declared)]
    (tmp_path / "plan.yaml").write_text(to_yaml(declared))
    assert load_experiment(tmp_path / "plan.yaml").hypotheses == declared.hypotheses != {}
