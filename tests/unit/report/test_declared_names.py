"""Names in `report:` that are misspelt: one line, before anything is loaded."""

from pathlib import Path

import pytest
from helpers import ROOT
from helpers.synthetic_results import build

from distill_lit.analysis.model_groups import groups_of
from distill_lit.analysis.results import load_results
from distill_lit.analysis.score_table import score_frame
from distill_lit.analysis.scores import compute_scores
from distill_lit.cli.main import main
from distill_lit.config import AnalysisConfig, ExperimentConfig, load_experiment
from distill_lit.report.declared_names import COLUMNS, check_report_section
from distill_lit.report.paper.known_names import check_report_sections
from distill_lit.report.paper.values import other_quantities
from distill_lit.report.tables.scores import with_training_flops
from distill_lit.utils.exceptions import UserError

QUICKSTART = ROOT / "experiments/quickstart.yaml"
TASKS = ["piqa", "sciq"]
GRID = ("grid={student: [deep, shallow], objective.terms.kl.weight: [0.5, 1e-5], seed: [0, 1], "
        "teacher: [{model: run:big, dtype: float32}, {model: run:small, dtype: float32}]}")  # fmt: skip


def experiment(*changes: str) -> ExperimentConfig:
    return load_experiment(QUICKSTART, [GRID, "evaluation.tasks=[piqa,sciq]", *changes])


@pytest.mark.parametrize(
    "name",
    [
        *("deep", "teacher", "ce_only", "before training", "distilled", "int8", "piqa", "quickstart", "role", "student"),
        *("objective.terms.kl.weight", "weight", "0.5", "1e-05", "weight=0.5", "kl.weight=1e-05", "seed=1", "run:big"),
        *("deep distilled (weight=0.5, teacher=run:big)", "deep without teacher", "deep distilled (λ=0.5)", "0.5 or 1e-05"),
        *("deep without teacher (weight=0.5 or 1e-05, other data)", "deep_after_warmup", "Deep distilled", "retained"),
        *("above chance", "KL, probes", "decode_s_per_token", "val_draft_acceptance", "probe_draft_acceptance"),
    ],
)
def test_names_of_an_experiment_are_taken(name: str) -> None:
    config = experiment("report.labels={deep: Deep, weight: λ}")
    config.report.labels[name] = "x"
    config.report.order.append(name)
    check_report_section(config, TASKS)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("report.labels={dep: Deep}", "report.labels: nothing in this experiment is called 'dep'; did you mean 'deep'"),
        ("report.order=[shalow]", "report.order: nothing in this experiment is called 'shalow'; did you mean 'shallow'"),
        ("report.labels={weight=0.6: x}", "'weight=0.6'; did you mean 'weight=0.5'"),
        ("report.labels={wejght: x}", "'wejght'; did you mean 'weight'"),
        ("report.decimals={retaind: 1}", "report.decimals: no table has a column 'retaind'; did you mean 'retained'"),
        ("report.decimals={deep: 1}", "report.decimals: .*'deep'"),
    ],
)
def test_other_names_are_one_line(change: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        check_report_section(experiment(change), TASKS)


def test_names_like_nothing_here_may_be_of_others() -> None:
    """As labels that several experiments share by `defaults`, or of values that an override leaves out."""
    for change in (
        "report.labels={arc_easy: ARC-e}",
        "report.order=[reverse_kl, d30]",
        "report.labels={temperature=2: hot}",
    ):
        check_report_section(experiment(change), TASKS)


def test_a_misspelt_name_ends_a_command_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["run", str(QUICKSTART), "report.labels.dep=Deep", "--root", str(tmp_path)])
    assert stop.value.code == 2
    assert "report.labels: nothing in this experiment is called 'dep'; did you mean 'deep'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_results_may_have_names_that_the_experiment_has_no_more(tmp_path: Path) -> None:
    build(tmp_path, documents=5, students={"old": 0.8, "shallow": 1.4})
    scores = compute_scores(load_results(tmp_path), AnalysisConfig(n_resamples=100))
    frame = with_training_flops(score_frame(scores))
    for label in (group.label for group in groups_of(scores.results)):
        config = experiment("report.order=[old]")
        config.report.labels[label] = "x"
        check_report_sections(scores, frame, [config])
    with pytest.raises(UserError, match="'olld'; did you mean 'old'"):
        check_report_sections(scores, frame, [experiment("report.order=[olld]")])
    assert {*other_quantities(scores, frame)} <= COLUMNS
