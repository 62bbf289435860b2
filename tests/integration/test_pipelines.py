"""Models made from models, and stages of one student: planned, followed from seed to seed, built, paid for."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.pipelines import MODELS, STAGES, plan, write

from distill_lit.config import ProbeConfig, load_experiment, to_yaml
from distill_lit.config.derivation import map_model_references
from distill_lit.config.roles import Role
from distill_lit.experiment.checks.model_checks import check_against_teacher
from distill_lit.experiment.collect import _costs, _curves
from distill_lit.experiment.estimates import compilation
from distill_lit.experiment.estimates.compilation import choose_compilation
from distill_lit.experiment.estimates.run_estimate import Estimate
from distill_lit.experiment.execution.run import (
    build_run,
    check_sources_unchanged,
    check_text_unchanged,
    evaluate_run,
    with_source_folders,
)
from distill_lit.experiment.execution.stopping import StopSignals
from distill_lit.experiment.experiment import Experiment
from distill_lit.experiment.launcher.display import SilentDisplay
from distill_lit.experiment.launcher.local import LocalLauncher
from distill_lit.experiment.launcher.outcome import Outcome
from distill_lit.experiment.planning.architectures import Architectures
from distill_lit.experiment.planning.planned_run import Run
from distill_lit.experiment.state.completion import is_run_built, is_run_evaluated
from distill_lit.models import load_model
from distill_lit.profiling.compilation import CompilationCost
from distill_lit.utils.exceptions import UserError
from distill_lit.utils.files import read_jsonl, read_mapping, write_json


def build(runs: dict[str, Run], folder: Path) -> None:
    for run in runs.values():
        (folder / run.name).mkdir(parents=True, exist_ok=True)
        build_run(with_source_folders(run, folder), folder / run.name, lambda *_: None)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, teacher: Path, tiny_corpus: Path) -> tuple[Experiment, dict[str, Run]]:
    """An experiment with models, stages and a student that is quantized, whose runs are built and not evaluated."""
    root = tmp_path_factory.mktemp("pipeline")
    more = "baselines: [teacher, untrained, ce_only]"
    own = Path(shutil.copy(tiny_corpus, root / "own.jsonl"))
    file = write(root, teacher, own, MODELS + STAGES, "{teacher: [corrected], seed: [0]}", more)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DISTILL_LIT_CACHE", str(root / "cache"))
        experiment = Experiment.from_yaml(file, ["students.two.quantize=int8"], root)
        runs = {run.label: run for run in experiment.runs}
        check_against_teacher(experiment.runs)
        build(runs, experiment.runs_folder)
    return experiment, runs


# ---------------------------------------------------------------- plans


def test_the_seed_is_followed_from_model_to_model(tmp_path: Path, teacher: Path, tiny_corpus: Path) -> None:
    runs = plan(write(tmp_path, teacher, tiny_corpus, MODELS, "{teacher: [teacher, corrected, assistant], seed: [0, 1]}"))
    for seed in (0, 1):
        assert runs[f"assistant-seed={seed}"].depends_on == (runs[f"corrected-seed={seed}"].name,)
        student = runs[f"two-teacher=assistant-seed={seed}"]
        assert student.sources == {"assistant": runs[f"assistant-seed={seed}"].name}
    assert runs["corrected-seed=0"].fingerprint != runs["corrected-seed=1"].fingerprint
    assert runs["two-teacher=teacher-seed=1"].sources == {}
    order = [run.name for run in runs.values()]
    assert all(order.index(name) < order.index(run.name) for run in runs.values() for name in run.depends_on)


def test_a_model_with_a_seed_of_its_own_is_made_once(tmp_path: Path, teacher: Path, tiny_corpus: Path) -> None:
    text = MODELS.replace("{from: teacher,", "{from: teacher, seed: 5,")
    runs = plan(write(tmp_path, teacher, tiny_corpus, text, "{teacher: [corrected], seed: [0, 1]}"))
    assert runs["corrected"].config.seed == 5
    assert {runs[f"two-teacher=corrected-seed={seed}"].sources["corrected"] for seed in (0, 1)} == {runs["corrected"].name}


def test_long_trainings_are_compiled_whose_teachers_are_made_here(
    tmp_path: Path, teacher: Path, tiny_corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each graph is decided for alone, by the size of a teacher that is none of its runs."""
    online = "teacher.source=online"
    runs = list(plan(write(tmp_path, teacher, tiny_corpus, MODELS, "{teacher: [corrected], seed: [0]}"), online).values())
    estimates = {run.name: Estimate(0, 0.0, 0, 0, 60.0, parts={"training": 60.0}) for run in runs}
    monkeypatch.setattr(compilation, "can_compile", lambda _: True)
    monkeypatch.setattr(compilation, "compilation_cost", lambda *_: CompilationCost(0.0, 0.0, 0.0, 0.0, 2.0, 2.0))
    compiled = choose_compilation(runs, estimates, tmp_path, lambda _: None)
    trained = {run.name for run in runs if run.is_trained}
    assert {run.name for run in compiled if run.config.training.compile == "always"} == trained
    assert len(trained) == 4


@pytest.mark.parametrize("change", ["models.corrected.training.max_tokens=2000", "data.seed=1", "models.corrected.seed=3"])
def test_what_is_made_from_a_model_has_another_identity_when_the_model_has(
    change: str, tmp_path: Path, teacher: Path, tiny_corpus: Path
) -> None:
    file = write(tmp_path, teacher, tiny_corpus, MODELS, "{teacher: [corrected], seed: [0]}")
    one, other = (plan(file, *overrides)["two-teacher=corrected-seed=0"] for overrides in ([], [change]))
    assert one.fingerprint != other.fingerprint


def test_another_name_is_no_other_model(tmp_path: Path, teacher: Path, tiny_corpus: Path) -> None:
    file = write(tmp_path, teacher, tiny_corpus, MODELS, "{teacher: [corrected], seed: [0]}")
    known = plan(file)["two-teacher=corrected-seed=0"]
    file.write_text(file.read_text().replace("corrected", "tuned"))
    assert plan(file)["two-teacher=tuned-seed=0"].fingerprint == known.fingerprint


def test_another_name_for_a_model_is_the_model(tmp_path: Path, teacher: Path, tiny_corpus: Path) -> None:
    text = MODELS + f"  best: {{from: corrected}}\n  outside: {{from: 'file:{teacher}'}}"
    runs = plan(write(tmp_path, teacher, tiny_corpus, text, "{teacher: [best, outside], seed: [0, 1]}"))
    for seed in (0, 1):
        assert runs[f"two-teacher=best-seed={seed}"].sources["best"] == runs[f"corrected-seed={seed}"].name
        assert runs[f"two-teacher=outside-seed={seed}"].sources["outside"] == runs["outside"].name
    assert runs["outside"].role == Role.EXTERNAL


def test_axes_of_the_grid_do_not_change_models(tmp_path: Path, teacher: Path, tiny_corpus: Path) -> None:
    grid = "{training.learning_rate: [0.001, 0.002], seed: [0]}"
    runs = plan(write(tmp_path, teacher, tiny_corpus, MODELS, grid))
    assert [label for label, run in runs.items() if run.role == Role.DERIVED] == ["corrected-seed=0", "assistant-seed=0"]
    axes = "{models.corrected.training.learning_rate: [0.001, 0.002], teacher: [corrected], seed: [0]}"
    runs = plan(write(tmp_path, teacher, tiny_corpus, MODELS, axes))
    assert {"corrected-learning_rate=0.001-seed=0", "corrected-learning_rate=0.002-seed=0"} <= set(runs)


def test_a_student_that_does_not_begin_as_its_teacher_has_one_baseline_for_all_teachers(
    tmp_path: Path, teacher: Path, tiny_corpus: Path
) -> None:
    grid, baselines = "{teacher: [teacher, corrected], seed: [0]}", "baselines: [untrained, ce_only]"
    file = write(tmp_path, teacher, tiny_corpus, MODELS, grid, baselines)
    assert len([run for run in plan(file).values() if run.role == Role.CE_ONLY]) == 2
    (without,) = [run for run in plan(file, "students.two.from=teacher").values() if run.role == Role.CE_ONLY]
    assert without.label == "two-ce_only-seed=0" and without.grid_values == {}


def test_an_earlier_stage_is_shared_by_students_that_differ_later(tmp_path: Path, teacher: Path, tiny_corpus: Path) -> None:
    grid = "{stages.on_policy.training.learning_rate: [0.001, 0.002], seed: [0]}"
    runs = plan(write(tmp_path, teacher, tiny_corpus, STAGES.replace(", training.learning_rate: 0.002", ""), grid))
    students = [run for run in runs.values() if run.role == Role.DISTILLED]
    assert len(students) == 2 and len({run.previous_stage for run in students}) == 1
    assert [run.label for run in runs.values() if run.role == Role.DERIVED] == ["two_after_off_policy-seed=0"]


def test_a_config_of_a_run_is_read_back(tmp_path: Path, teacher: Path, tiny_corpus: Path) -> None:
    for run in plan(write(tmp_path, teacher, tiny_corpus, MODELS + STAGES, "{teacher: [assistant], seed: [0]}")).values():
        (tmp_path / "run.yaml").write_text(to_yaml(run.config))
        assert load_experiment(tmp_path / "run.yaml") == run.config


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("models: {a: {from: a, lora: {rank: 2}}}", "models: a → a: a model cannot be made from itself"),
        ("models: {a: {from: b}, b: {from: teacher, teacher: a, lora: {rank: 2}}}", "a → b → a"),
        (
            "models: {a: {from: correctd, lora: {rank: 2}}, corrected: {from: teacher}}",
            "'correctd'; did you mean 'corrected'",
        ),
        ("models: {a: {training: {max_tokens: 5}}}", "models.a: say what it begins as"),
        ("models: {a: {student: four}}", "models.a.student: unknown value 'four'"),
        ("models: {a: {student: [two]}}", "models.a.student: unknown value ['two']"),
        ("models: {a: {student: two, from: teacher}}", "models.a: it begins as `from` or as `student`"),
        ("models: {a: {from: teacher, trainings: {}}}", "models.a: unknown key 'trainings'; did you mean 'training'"),
        ("models: {a: {from: teacher, training: {max_token: 5}}}", "models.a: unknown key 'training.max_token'"),
        ("models: {two: {from: teacher}}", "models.two: the name is taken"),
        ("models: {teacher: {from: 'hf:a/b'}}", "models.teacher: a name"),
        ("models: {a: {from: 'file:nowhere'}}", "no such file or folder"),
        ("models: {a: {from: teacher, seed: x}}", "models.a: seed: 'x' is text"),
        ("stages: {a: {teacher: b}, b: {}}", "stages.a.teacher: 'b' is a later stage"),
        ("stages: {a: {}, b: {teacher: b}}", "stages.b.teacher: 'b' is this stage itself"),
        ("stages: {a: {from: teacher}}", "stages.a: unknown key 'from'"),
        ("stages: {a: {quantize: int8}}", "`quantize` is a stage of its own"),
        ("stages: {a: {}, b: {quantize: int8, training: {max_tokens: 5}}}", "`quantize` is a stage of its own"),
    ],
)
def test_what_cannot_be_made_is_refused_in_one_line(
    text: str, words: str, tmp_path: Path, teacher: Path, tiny_corpus: Path
) -> None:
    with pytest.raises(UserError) as refused:
        plan(write(tmp_path, teacher, tiny_corpus, text))
    assert words in str(refused.value) and "\n" not in str(refused.value)


def test_more_layers_than_a_model_will_have_are_refused_before_it_is_made(
    tmp_path: Path, teacher: Path, tiny_corpus: Path
) -> None:
    file = write(tmp_path, teacher, tiny_corpus, MODELS, "{teacher: [assistant], seed: [0]}")
    with pytest.raises(UserError, match=r"students.two.num_layers: 4 exceeds the teacher's 3 layers"):
        check_against_teacher(list(plan(file, "students.two.num_layers=4").values()))


# ---------------------------------------------------------------- runs


def test_a_student_is_cut_out_of_the_model_that_was_made(built: tuple[Experiment, dict[str, Run]]) -> None:
    experiment, runs = built
    corrected = load_model(experiment.folder_of(runs["corrected-seed=0"]) / "student")
    untrained = load_model(experiment.folder_of(runs["two-untrained-seed=0"]) / "student")
    kept = read_mapping(experiment.folder_of(runs["two-untrained-seed=0"]) / "manifest.json")["kept_layers"]
    for layer, number in zip(untrained.model.layers, kept, strict=True):
        assert torch.equal(layer.mlp.up_proj.weight, corrected.model.layers[number].mlp.up_proj.weight)


def test_architectures_foretell_what_is_made(built: tuple[Experiment, dict[str, Run]]) -> None:
    experiment, runs = built
    architectures = Architectures(experiment.runs)
    for run in runs.values():
        manifest = read_mapping(experiment.folder_of(run) / "manifest.json")
        assert architectures.student(run).config.num_hidden_layers == manifest["num_layers"], run.label


def test_each_stage_begins_as_the_one_before_it_ended(built: tuple[Experiment, dict[str, Run]]) -> None:
    experiment, runs = built
    stages = ["two_after_warm_up", "two_after_off_policy", "two_after_on_policy", "two"]
    chain = [
        run
        for name in stages
        for run in runs.values()
        if run.student == name and run.role in (Role.DERIVED, Role.DISTILLED)
    ]
    ends = [experiment.folder_of(run) for run in (runs["two_after_warm_up-ce_only-seed=0"], *chain)]
    losses = []
    for folder in ends:
        points = [point for point in read_jsonl(folder / "metrics.jsonl") if "validation/student_nll" in point]
        losses.append((points[0]["validation/student_nll"], points[-1]["validation/student_nll"]))
    for (_, before), (after, _) in zip(losses[:-2], losses[1:-1], strict=True):
        assert after == pytest.approx(before, abs=1e-4)
    assert losses[-1][0] == pytest.approx(losses[-2][1], abs=0.05)  # of int8


def test_curves_and_costs_run_over_all_stages(built: tuple[Experiment, dict[str, Run]]) -> None:
    experiment, runs = built
    student = runs["two-teacher=corrected-seed=0"]
    curves = _curves([student], experiment)
    manifests = {run.student: read_mapping(experiment.folder_of(run) / "manifest.json") for run in runs.values()
                 if run.role != Role.CE_ONLY or run.student == "two_after_warm_up"}  # fmt: skip
    stages = ("two_after_warm_up", "two_after_off_policy", "two_after_on_policy")
    assert [manifests[name]["first_step"] for name in stages] == [0, 4, 12]  # 512, then 1,024 tokens of 128 a step
    assert curves["step"].is_monotonic_increasing and curves["step"].max() == 20
    costs = _costs(student, experiment)
    assert costs["training_tokens"] == 512 + 1024 + 1024
    own = sum(manifests[name][column] for name in stages for column in ("student_training_flops", "teacher_training_flops"))
    assert costs["student_training_flops"] + costs["teacher_training_flops"] == own
    assert costs["pipeline_training_flops"] == own + manifests["corrected"]["student_training_flops"]


def test_a_stage_reads_on_where_the_one_before_it_stopped(built: tuple[Experiment, dict[str, Run]]) -> None:
    experiment, runs = built
    sequence_length = experiment.config.data.sequence_length
    trained = [run for run in runs.values() if run.is_trained]
    assert sum(bool(run.previous_stage) for run in trained) > 1
    for stage in trained:
        manifest = read_mapping(experiment.folder_of(stage) / "manifest.json")
        tokens = manifest.get("first_tokens", 0) + manifest["training_tokens"]
        assert manifest["rows_read"] == {manifest["origin"]["data"]: tokens // sequence_length}, stage.label


def test_files_that_changed_after_a_student_was_trained_are_noticed(
    built: tuple[Experiment, dict[str, Run]], tmp_path: Path
) -> None:
    experiment, runs = built
    copied = tmp_path / "runs"
    shutil.copytree(experiment.runs_folder, copied)
    check_sources_unchanged(runs.values(), copied)
    folder = copied / runs["corrected-seed=0"].name / "student"
    shutil.copy(copied / runs["assistant-seed=0"].name / "student" / "model.safetensors", folder / "model.safetensors")
    assert not is_run_built(runs["corrected-seed=0"], folder.parent)
    with pytest.raises(UserError, match="is not the 'corrected' any more that assistant-seed=0 was made from"):
        check_sources_unchanged(runs.values(), copied)
    assistant = runs["assistant-seed=0"]
    with pytest.raises(UserError, match="is not the 'tuned' any more that assistant-seed=0 was made from"):  # a new name
        check_sources_unchanged([replace(assistant, sources={"tuned": assistant.sources["corrected"]})], copied)


def test_models_of_ones_own_that_changed_after_a_student_was_trained_are_noticed(
    built: tuple[Experiment, dict[str, Run]], tmp_path: Path
) -> None:
    experiment, runs = built
    run = runs["corrected-seed=0"]
    (reference,) = read_mapping(experiment.folder_of(run) / "manifest.json")["sources"]
    changed = tmp_path / "changed"
    shutil.copytree(reference.removeprefix("file:"), changed)
    copied = tmp_path / "runs" / run.name
    shutil.copytree(experiment.folder_of(run), copied)
    manifest = read_mapping(copied / "manifest.json")
    write_json(copied / "manifest.json", manifest | {"sources": {f"file:{changed}": manifest["sources"][reference]}})
    moved = replace(run, config=map_model_references(run.config, lambda _key, _name: f"file:{changed}"))
    check_sources_unchanged([moved], copied.parent)
    (changed / "config.json").write_text((changed / "config.json").read_text() + " ")
    with pytest.raises(UserError, match="its files are others than when corrected-seed=0 was made from it"):
        check_sources_unchanged([moved], copied.parent)


@contextmanager
def edited(file: Path, old: str, new: str) -> Iterator[None]:
    """Inside, a file has another text; afterwards it is as it was."""
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    try:
        yield
    finally:
        file.write_text(text)


def test_nothing_is_trained_on_a_text_that_changed_after_others_were(built: tuple[Experiment, dict[str, Run]]) -> None:
    experiment, runs = built
    own, last = experiment.root / "own.jsonl", runs["two-teacher=corrected-seed=0"]
    others = [run for run in runs.values() if run.role != Role.TEACHER and run.name != last.name]
    with edited(own, "stone", "metal"):
        experiment.prepare()  # nothing is left to train, though models are still to be evaluated
    manifest = experiment.folder_of(last) / "manifest.json"
    with edited(manifest, last.fingerprint, "of another"):
        assert not is_run_built(last, manifest.parent)
        words = "^data.corpora.text: its text has changed since corrected-seed=0 was made; "
        with edited(own, "stone", "metal"), pytest.raises(UserError, match=words) as told:
            experiment.prepare()
        experiment.prepare()
        with edited(own, "stone", "metal"):
            experiment.prepare([Role.TEACHER])  # none that is launched reads it
    folder = experiment.folder_of(runs["corrected-seed=0"])
    assert f"remove {folder} and those of {len(others)} others to make them of the new text" in str(told.value)


def test_a_text_that_only_finished_runs_read_may_change(built: tuple[Experiment, dict[str, Run]], tmp_path: Path) -> None:
    experiment, runs = built
    finished, left = runs["corrected-seed=0"], runs["two-teacher=corrected-seed=0"]
    files = [tmp_path / name / "own.jsonl" for name in ("one", "other")]
    for file in files:
        file.parent.mkdir()
        shutil.copy(experiment.root / "own.jsonl", file)

    def reads(run: Run, file: Path, **changes: Any) -> Run:
        corpora = {"text": replace(run.config.data.corpora["text"], path=str(file))}
        return replace(run, config=replace(run.config, data=replace(run.config.data, corpora=corpora, **changes)))

    def check(file: Path, **changes: Any) -> None:
        check_text_unchanged([reads(finished, files[0])], [reads(left, file, **changes)], experiment.runs_folder)

    check(files[0])
    with edited(files[0], "e", "a"):
        check(files[1])
        with pytest.raises(UserError, match="its text has changed since corrected-seed=0 was made"):
            check(files[0], max_tokens=77)  # as at another point of the grid
    files[0].unlink()
    check(files[1])


def test_questions_that_were_edited_are_asked_again(built: tuple[Experiment, dict[str, Run]], tmp_path: Path) -> None:
    experiment, runs = built
    run, tasks = runs["two-untrained-seed=0"], experiment.root / "tasks"
    folder = tmp_path / run.name
    shutil.copytree(experiment.folder_of(run), folder)
    probe = tmp_path / "probe.txt"
    probe.write_text("one passage\n\nand another\n")
    probes = {"own": ProbeConfig(path=str(probe))}
    run = replace(run, config=replace(run.config, evaluation=replace(run.config.evaluation, probes=probes)))

    def is_evaluated() -> bool:
        return is_run_evaluated(run, folder)

    def evaluate() -> None:
        evaluate_run(with_source_folders(run, experiment.runs_folder), folder, lambda *_: None)

    assert not is_evaluated()
    evaluate()
    assert is_evaluated()
    changes = ((tasks / "colours.yaml", "Question", "Q"), (tasks / "colours.jsonl", "0", "1"), (probe, "one", "1"))
    for change in changes:
        with edited(*change):
            assert not is_evaluated(), change
        assert is_evaluated()
    with edited(tasks / "colours.jsonl", "0", "1"):
        evaluate()
        assert is_evaluated()
    assert not is_evaluated()
    evaluate()
    probe.unlink()  # what is gone is no other text
    assert is_evaluated()


def test_what_is_left_is_prepared_beside_models_that_are_made(
    built: tuple[Experiment, dict[str, Run]], tmp_path: Path
) -> None:
    """As after a stop: the first models are there, what is made from them is not."""
    experiment, runs = built
    root, count = tmp_path / "runs" / experiment.name, 0
    for run in runs.values():
        if not run.sources:
            shutil.copytree(experiment.folder_of(run), root / run.name)
            count += 1
    assert 0 < count < len(runs)
    Experiment(experiment.config, tmp_path).prepare()


def test_provenance_names_made_models_and_not_where_they_are(built: tuple[Experiment, dict[str, Run]]) -> None:
    experiment, runs = built
    source = runs["corrected-seed=0"]
    provenance = read_mapping(experiment.folder_of(runs["assistant-seed=0"]) / "manifest.json")["provenance"]
    assert f"run:{experiment.runs_folder.name}/{source.name}" in provenance["revisions"]
    assert str(experiment.runs_folder) not in json.dumps(provenance)


def test_runs_of_a_plan_know_what_they_need(built: tuple[Experiment, dict[str, Run]]) -> None:
    experiment, _ = built
    values = json.loads(json.dumps([run.to_json() for run in experiment.runs]))
    assert [Run.from_json(one, run.config) for one, run in zip(values, experiment.runs, strict=True)] == experiment.runs


# ---------------------------------------------------------------- models of other experiments


def test_a_model_of_another_experiment_is_followed_by_seed(
    built: tuple[Experiment, dict[str, Run]], teacher: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    experiment, runs = built
    file = write(tmp_path, teacher, tiny_corpus, grid="{teacher: ['run:tiny/corrected', teacher], seed: [0]}")
    other = Experiment.from_yaml(file, ["name=other"], experiment.root)
    place = experiment.folder_of(runs["corrected-seed=0"]) / "student"
    taught = [run for run in other.runs if run.role == Role.DISTILLED]
    assert [run.config.teacher.model for run in taught] == [f"file:{place}", f"file:{teacher}"]
    assert "teacher=run:tiny_corrected" in taught[0].label
    check_against_teacher(other.runs)


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("run:tinny/corrected", "no experiment 'tinny' has been run below .*; did you mean 'tiny'"),
        ("run:tiny/correctd", "no finished model is called so; did you mean 'corrected'"),
        ("run:tiny/assistant", "it has no seed 7, but 0"),
    ],
)
def test_a_model_of_another_experiment_that_is_not_there_is_refused(
    reference: str, words: str, built: tuple[Experiment, dict[str, Run]], teacher: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    file = write(tmp_path, teacher, tiny_corpus, f"external_models: {{x: '{reference}'}}", "{seed: [7]}")
    with pytest.raises(UserError, match=words):
        Experiment.from_yaml(file, ["name=other"], built[0].root)


def test_a_model_that_fails_takes_with_it_what_is_made_from_it_and_nothing_else(
    tmp_path: Path, teacher: Path, tiny_corpus: Path
) -> None:
    file = write(tmp_path, teacher, tiny_corpus, MODELS, "{teacher: [teacher, corrected, assistant], seed: [0]}")
    runs = plan(file)
    outcome = Outcome({runs["corrected-seed=0"].name: "its loss is not a number"})
    waiting = [run for run in runs.values() if run.label != "corrected-seed=0"]
    launcher = LocalLauncher(load_experiment(file), tmp_path / "runs", waiting, SilentDisplay(), outcome, StopSignals())
    launcher._fail_dependents()
    left = [run.label for run in launcher.waiting]
    assert left == [
        "teacher",
        "two-untrained-teacher=teacher",
        "two-ce_only-teacher=teacher-seed=0",
        "two-teacher=teacher-seed=0",
    ]
    assert outcome.failed[runs["assistant-seed=0"].name].startswith("needs corrected-seed=0-")
    assert outcome.failed[runs["two-teacher=assistant-seed=0"].name].startswith("needs assistant-seed=0-")
