"""The `hypotheses:` section: what no result could decide is refused before anything runs."""

import dataclasses
from pathlib import Path

import pytest
from helpers import ROOT

from distill_lit.cli.main import main
from distill_lit.config import load_experiment, to_yaml
from distill_lit.config.hypothesis_validation import untestable_hypotheses
from distill_lit.experiment.checks.validation import untestable_at_points
from distill_lit.experiment.experiment import Experiment
from distill_lit.experiment.plan import plan_runs
from distill_lit.experiment.planning.grid import expand_points
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
        ("{claim: ' '}", r"h.claim: it is required"),
        ("{claim: c, models: {kind: []}}", r"h.models.kind: \[\] is no value"),
        ("{claim: c, models: {seed: 0}}", r"h.models: every hypothesis is about the average over seeds"),
        ("{claim: c, models: {kind: adaptive_kl}, against: {kind: adaptive_kl}}", r"h.against: .* compared with itself"),
        ("{claim: c, models: {role: ce_only}}", r"h.against: without_teacher is what its models are"),
        ("{claim: c, tasks: [sciq, sciq]}", r"h.tasks: sciq stands there twice"),
        ("{claim: c, expect: equal, margin: 0.0}", r"h.margin: 0 expects what no result can show"),
        ("{claim: c, measure: gain, against: teacher}", r"h.measure: the teacher has no gain"),
        ("{claim: c, endpoint: val_ce, against: teacher}", r"h.endpoint: val_ce is measured on students"),
    ],
)
def test_what_cannot_be_decided_is_refused(fields: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        load_experiment(DIVERGENCES, [f"hypotheses.h={fields}"])


def test_overrides_may_take_away_what_a_hypothesis_is_about() -> None:
    fewer = load_experiment(DIVERGENCES, ["grid={seed: [0]}", "baselines=[teacher]"])
    found = untestable_hypotheses(fewer)
    assert set(found) == {"reverse_beats_forward", "skew_beats_forward"}
    without = Experiment.from_yaml(DIVERGENCES, ["baselines=[teacher]"])
    assert set(untestable_at_points(without.config, without.points)) == {"any_beats_labels"}
    assert "is no key of the grid" in found["skew_beats_forward"]


def test_no_run_depends_on_them_and_results_keep_them(tmp_path: Path) -> None:
    declared = load_experiment(DIVERGENCES)
    plain = dataclasses.replace(declared, hypotheses={})
    assert [run.name for run in plan_runs(plain)] == [run.name for run in plan_runs(declared)]
    (tmp_path / "plan.yaml").write_text(to_yaml(declared))
    assert load_experiment(tmp_path / "plan.yaml").hypotheses == declared.hypotheses != {}


PLAN = """
name: x
teacher: {model: "file:t"}
student: deep
students: {deep: {num_layers: 2}, wide: {num_layers: 3}, left: {num_layers: 4}}
evaluation: {tasks: [sciq]}
"""
OF_STUDENTS = "variants: {a: {}, b: {student: wide}}\n"


@pytest.mark.parametrize(
    ("grid", "hypothesis", "words"),
    [
        ("student: [deep, wide]", "models: {student: left}", "no model has 'left'; choose from deep, wide"),
        ("student: [deep, wide], training.seconds: [1, 2], exclude: [{student: wide, training.seconds: 2}]",
         "models: {student: wide, seconds: 2}", "h.models: no point of the grid has all of these values"),
        ("'student, training.learning_rate': [[deep, 0.1], [wide, 0.2]]",
         "models: {student: deep}, against: {student: wide}", "h.against: no point of the grid differs by this alone"),
        ("seed: [0]", "models: {student: wide}", "h.models.student: no model has 'wide'; choose from deep"),
        ("seed: [0]", "models: {student: deep}, against: {student: wide}", "h.against.student: no model has 'wide'"),
        ("variant: [a, b]", "models: {student: left}", "h.models.student: no model has 'left'; choose from deep, wide"),
        ("seed: [0, 1], include: [{seed: 1, student: left}]", "models: {student: wide}", "choose from deep, left"),
        ("student: [deep, wide], include: [{student: wide, training.seconds: 2}]",
         "models: {student: deep, seconds: 2}", "h.models: no point of the grid has all of these values"),
        ("student: [deep, wide], include: [{student: wide, training.seconds: 2}]",
         "models: {student: deep}, against: {student: wide}", "h.against: no point of the grid differs by this alone"),
    ],
)  # fmt: skip
def test_models_that_the_grid_does_not_plan_are_refused(tmp_path: Path, grid: str, hypothesis: str, words: str) -> None:
    (tmp_path / "x.yaml").write_text(
        f"{PLAN}{OF_STUDENTS}grid: {{{grid}}}\nhypotheses: {{h: {{claim: c, {hypothesis}}}}}\n"
    )
    with pytest.raises(UserError, match=words):
        load_experiment(tmp_path / "x.yaml")


@pytest.mark.parametrize(
    ("axis", "one", "other"),
    [
        ("objective.terms.kl.temperature: [1.0, 2.0]", "temperature: 2", "temperature: 1"),
        ("students.deep.layers: [[0, 1], [1, 2]]", "layers: [0, 1]", "layers: [1, 2]"),
        ("training.gradient_checkpointing: [true, false]", "gradient_checkpointing: true", "gradient_checkpointing: false"),
    ],
)
def test_values_of_the_grid_may_be_of_any_kind(tmp_path: Path, axis: str, one: str, other: str) -> None:
    hypothesis = f"{{claim: c, models: {{{one}}}, against: {{{other}}}}}"
    (tmp_path / "x.yaml").write_text(f"{PLAN}grid: {{student: [deep], {axis}}}\nhypotheses: {{h: {hypothesis}}}\n")
    assert set(load_experiment(tmp_path / "x.yaml").hypotheses) == {"h"}


@pytest.mark.parametrize(
    ("grid", "hypothesis"),
    [
        ("variant: [a, b]", "models: {student: wide}"),  # a student that a variant names
        ("seed: [0, 1], include: [{seed: 1, student: left}]", "models: {student: [deep, left]}"),  # and that of all others
        ("student: [deep, wide], include: [{student: wide, training.seconds: 2}]", "models: {student: wide, seconds: 2}"),
        ("student: [deep], include: [{student: wide, training.seconds: 2}]", "models: {student: deep}"),
    ],
)
def test_models_that_some_points_alone_have_may_be_compared(tmp_path: Path, grid: str, hypothesis: str) -> None:
    (tmp_path / "x.yaml").write_text(
        f"{PLAN}{OF_STUDENTS}grid: {{{grid}}}\nhypotheses: {{h: {{claim: c, {hypothesis}}}}}\n"
    )
    assert set(load_experiment(tmp_path / "x.yaml").hypotheses) == {"h"}


LEARNS_NOTHING = "nothing at answers learns from a teacher, so its student is the one without teacher; "


@pytest.mark.parametrize(
    ("hypothesis", "words"),
    [
        (
            "models: {variant: soft}, against: {variant: answers}",
            f"h.against.variant: {LEARNS_NOTHING}write against: without_teacher",
        ),
        (
            "models: {variant: [soft, answers]}, against: before_training",
            f"h.models.variant: {LEARNS_NOTHING}leave it out, or write role: ce_only",
        ),
        ("models: {variant: answers, role: ce_only}, against: before_training", ""),
        ("models: {variant: soft, role: ce_only}, against: {variant: answers}", ""),  # which are ce_only as well
        (
            "models: {variant: answers, role: [distilled]}, against: before_training",
            f"h.models.variant: {LEARNS_NOTHING}leave it out, or write role: ce_only",
        ),
        (
            "models: {variant: answers, role: ce_only}, against: {variant: answers, role: distilled}",
            f"h.against.variant: {LEARNS_NOTHING}write against: without_teacher",
        ),
        ("models: {variant: soft, student: deep}, against: without_teacher", ""),
    ],
)
def test_a_point_without_teacher_has_no_distilled_student(tmp_path: Path, hypothesis: str, words: str) -> None:
    variants = "variants: {soft: {objective.terms.ce: null}, answers: {objective.terms.kl: null, training.max_tokens: 9}}\n"
    variants += "objective: {terms: {ce: {}, kl: {kind: forward_kl}}}\n"
    grid = "grid: {student: [deep, wide], variant: [soft, answers]}\nbaselines: [teacher, untrained]\n"
    (tmp_path / "x.yaml").write_text(f"{PLAN}{variants}{grid}hypotheses: {{h: {{claim: c, {hypothesis}}}}}\n")
    config = load_experiment(tmp_path / "x.yaml")
    found = untestable_at_points(config, expand_points(config))
    assert found == ({"h": f"hypotheses.{words}"} if words else {})


@pytest.mark.parametrize(
    ("written", "change"),
    [
        ('teacher: {model: "file:t"}', "teacher.model=file:u"),
        ("grid: {student: [deep, wide]}", "grid={student: [deep, wide]}"),
    ],
)
@pytest.mark.parametrize(
    ("hypothesis", "words"),
    [("models: {student: lefd}", "h.models.student: no model has 'lefd'"), ("measure: gain", "h: it needs ce_only in")],
)
def test_a_file_that_overrides_complete_says_what_is_wrong_with_a_hypothesis(
    written: str, change: str, hypothesis: str, words: str, tmp_path: Path
) -> None:
    """Alone it has no teacher, or a row of the grid has one value too many."""
    text = f"{PLAN}objective: {{terms: {{kl: {{kind: forward_kl}}}}}}\nbaselines: [teacher]\n"
    text += f"grid: {{student: [deep, wide]}}\nhypotheses: {{h: {{claim: c, {hypothesis}}}}}\n"
    wrong = "grid: {'student, seed': [[deep, 1, 2]]}" if "grid" in written else ""
    file = tmp_path / "x.yaml"
    file.write_text(text.replace(written, wrong))
    with pytest.raises(UserError, match=f"hypotheses.{words}"):
        Experiment(load_experiment(file, [change])).check_hypotheses(file, [change])


def test_of_two_hypotheses_the_one_is_named_that_overrides_do_not_mend(tmp_path: Path) -> None:
    text = (
        f"{PLAN}objective: {{terms: {{kl: {{kind: forward_kl}}}}}}\nbaselines: [teacher]\ngrid: {{student: [deep, wide]}}\n"
    )
    text += (
        "hypotheses: {mended: {claim: c, against: before_training}, h: {claim: c, measure: gain, against: {student: deep}}}"
    )
    (tmp_path / "x.yaml").write_text(text)
    changes = ["baselines=[teacher, untrained]"]
    config = load_experiment(tmp_path / "x.yaml", changes)
    with pytest.raises(UserError, match="^hypotheses.h: it needs ce_only in baselines$"):
        Experiment(config).check_hypotheses(tmp_path / "x.yaml", changes)


@pytest.mark.parametrize("command", ["plan", "run"])
def test_the_commands_refuse_it_and_write_nothing(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (ROOT / "experiments/prompt_distillation.yaml").read_text()
    (tmp_path / "x.yaml").write_text(text.replace("against: without_teacher", "against: {variant: answers}"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main([command, "x.yaml", "launcher.workers=2"])
    assert ended.value.code == 2
    assert LEARNS_NOTHING in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["x.yaml"]


def test_without_a_student_without_teacher_a_gain_over_it_is_refused(tmp_path: Path) -> None:
    hypothesis = "{claim: c, models: {student: deep}, against: without_teacher}"
    grid = "objective: {terms: {kl: {kind: forward_kl}}}\ngrid: {student: [deep, wide]}\nbaselines: [teacher]"
    (tmp_path / "x.yaml").write_text(f"{PLAN}{grid}\nhypotheses: {{h: {hypothesis}}}\n")
    config = load_experiment(tmp_path / "x.yaml")
    found = untestable_at_points(config, expand_points(config))
    assert found == {"h": "hypotheses.h: it needs ce_only in baselines"}


def test_the_plan_of_results_may_hold_what_an_override_took_away(tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text(to_yaml(load_experiment(DIVERGENCES, ["grid={seed: [0]}"])))
    with pytest.raises(UserError, match="is no key of the grid"):
        load_experiment(tmp_path / "plan.yaml")
    assert "skew_beats_forward" in load_experiment(tmp_path / "plan.yaml", must_test=False).hypotheses


def test_null_takes_one_away() -> None:
    left = load_experiment(DIVERGENCES, ["hypotheses.any_beats_labels=null"]).hypotheses
    assert list(left) == ["reverse_beats_forward", "skew_beats_forward"]
    with pytest.raises(UserError, match="hypotheses.any_beat_labels: null, and nothing here is called .*; did"):
        load_experiment(DIVERGENCES, ["hypotheses.any_beat_labels=null"])
    fewer = load_experiment(ROOT / "experiments/quantize.yaml", ["evaluation.probes.books=null"])
    assert list(fewer.evaluation.probes) == ["wikipedia"]
