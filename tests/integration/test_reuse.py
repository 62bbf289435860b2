"""Runs that another experiment has done are taken from it: the same files, unless what they are made of is another."""

import shutil
from pathlib import Path

import pytest
from helpers.pipelines import MODELS, write

from distill_lit.config.roles import Role
from distill_lit.experiment.execution.run import build_run, evaluate_run, with_source_folders
from distill_lit.experiment.experiment import Experiment
from distill_lit.experiment.launcher.outcome import Outcome
from distill_lit.experiment.launcher.reuse import take_runs_of_others
from distill_lit.experiment.planning.planned_run import Run
from distill_lit.experiment.state.completion import is_run_built, is_run_complete
from distill_lit.utils.files import read_json


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, teacher: Path, tiny_corpus: Path) -> Experiment:
    """An experiment with a corrected teacher, an assistant and a student; the first of these is evaluated."""
    root = tmp_path_factory.mktemp("one")
    own = Path(shutil.copy(tiny_corpus, root / "own.jsonl"))
    experiment = Experiment.from_yaml(write(root, teacher, own, MODELS, "{teacher: [corrected], seed: [0]}"), [], root)
    for run in experiment.runs:
        folder = experiment.folder_of(run)
        folder.mkdir(parents=True)
        build_run(with_source_folders(run, folder.parent), folder, lambda *_: None)
    corrected = next(run for run in experiment.runs if run.label == "corrected-seed=0")
    evaluate_run(corrected, experiment.folder_of(corrected), lambda *_: None)
    return experiment


def take(done: Experiment, folder: Path) -> list[str]:
    notes: list[str] = []
    take_runs_of_others(done.runs, folder, notes.append)
    return notes


def beside(done: Experiment, name: str) -> Path:
    return done.runs_folder.resolve().parent / name


def is_made_of_corrected(done: Experiment, run: Run) -> bool:
    corrected = next(one.name for one in done.runs if one.label == "corrected-seed=0")
    return corrected in run.depends_on


def test_models_are_taken_with_weights_and_records(done: Experiment) -> None:
    folder = beside(done, "all")
    (done.folder_of(done.models[0]) / "state.json").write_text("{}")
    notes = take(done, folder)
    assert notes == [f"{run.label}: taken from tiny, which has the same run" for run in done.models]
    assert {path.name for path in folder.iterdir()} == {"final", *(run.name for run in done.models)}
    assert not (folder / done.models[0].name / "state.json").exists()
    for run in done.models:
        assert is_run_built(run, folder / run.name)
        assert is_run_complete(run, folder / run.name) == (run.label == "corrected-seed=0")
        assert read_json(folder / run.name / "manifest.json")["notes"][-1] == "taken from tiny, which has the same run"
        if run.role != Role.TEACHER:
            weights = Path(run.name) / "student/model.safetensors"
            assert (folder / weights).samefile(done.runs_folder / weights)
    assert not take(done, folder)  # they are there


def test_a_model_that_was_made_of_another_one_is_made_again(done: Experiment) -> None:
    """The corrected teacher that is here already is not the one that the other experiment's students learned from."""
    folder = beside(done, "other_source")
    corrected = next(run for run in done.models if run.label == "corrected-seed=0")
    shutil.copytree(done.folder_of(corrected), folder / corrected.name)
    config = folder / corrected.name / "student/config.json"
    config.write_text(config.read_text() + " ")
    take(done, folder)
    taken = {path.name for path in folder.iterdir()}
    assert taken == {run.name for run in done.models if not is_made_of_corrected(done, run)}
    assert len(taken) < len(done.models)


def test_models_of_a_text_that_has_changed_are_made_again(done: Experiment) -> None:
    own, folder = done.root / "own.jsonl", beside(done, "other_text")
    text = own.read_text()
    own.write_text(text.replace("e", "a"))
    try:
        take(done, folder)
    finally:
        own.write_text(text)
    assert {path.name for path in folder.iterdir()} == {run.name for run in done.models if run.model_reference}


def test_damaged_and_busy_runs_are_left_alone(done: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = beside(done, "busy")
    monkeypatch.setattr("distill_lit.experiment.launcher.reuse.is_claimed", lambda path: True)
    assert not take(done, folder)
    assert not folder.exists()


@pytest.mark.parametrize("is_on", [True, False])
def test_what_is_taken_counts_as_done_when_hypotheses_are_declared(
    done: Experiment, monkeypatch: pytest.MonkeyPatch, is_on: bool
) -> None:
    claim = "hypotheses.helps={claim: It helps, models: {student: two}}"
    overrides = [f"name=again_{is_on}".lower(), f"launcher.reuse_runs={is_on}".lower(), claim]
    experiment = Experiment.from_yaml(done.root / "tiny.yaml", overrides, done.root)
    monkeypatch.setattr("distill_lit.experiment.launcher.launch.launch_runs", lambda *_: Outcome())
    experiment.launch()
    assert {run.name for run in experiment.models if experiment.folder_of(run).exists()} == (
        {run.name for run in done.models} if is_on else set()
    )
    (declared,) = experiment.declare_hypotheses().values()
    assert declared.runs_done == (len(done.models) if is_on else 0)
