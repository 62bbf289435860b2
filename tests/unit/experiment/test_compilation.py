"""`training.compile: auto`: by arithmetic on what was measured, once for all runs of a graph, and never for short ones."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import ROOT

from distill_lit.config import load_experiment
from distill_lit.experiment.estimates import compilation
from distill_lit.experiment.estimates.compilation import BackboneWork, balance, choose_compilation, why_not_compiled
from distill_lit.experiment.estimates.run_estimate import Estimate
from distill_lit.experiment.plan import plan_runs
from distill_lit.experiment.planning.planned_run import Run
from distill_lit.profiling.compilation import CompilationCost
from distill_lit.utils.exceptions import UserError

QUICKSTART = ROOT / "experiments/quickstart.yaml"
COST = CompilationCost(60.0, 10.0, 5.0, 1.0, 1.25, 1.1)


def planned(*changes: str) -> list[Run]:
    return plan_runs(load_experiment(QUICKSTART, list(changes)))


def compile_choices(
    runs: list[Run],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    minutes: float,
    cost: CompilationCost | str = COST,
    has_compiler: bool = True,
) -> tuple[dict[str, str], list[str]]:
    """({run: choice}, what was noted) where every training takes so many minutes, all of it in a backbone of ten layers."""
    notes: list[str] = []

    def measured(*_: object) -> CompilationCost:
        if isinstance(cost, str):
            raise UserError(cost)
        return cost

    monkeypatch.setattr(compilation, "compilation_cost", measured)
    monkeypatch.setattr(compilation, "can_compile", lambda _: has_compiler)
    monkeypatch.setattr(compilation.hardware, "device_for", lambda _: torch.device("cpu"))
    monkeypatch.setattr(compilation, "Architectures", lambda _: None)
    monkeypatch.setattr(compilation.Pace, "of", lambda _: None)
    monkeypatch.setattr(compilation, "_backbone_work", lambda *_: BackboneWork(60 * minutes, 0.0, 10, 0))
    estimates = {run.name: Estimate(0, 0.0, 0, 0, minutes, parts={"training": minutes}) for run in runs}
    resolved = choose_compilation(runs, estimates, folder, notes.append)
    assert [run.fingerprint for run in resolved] == [run.fingerprint for run in runs]
    return {run.name: run.config.training.compile for run in resolved}, notes


def test_the_balance_by_hand() -> None:
    """1000 s at 1.25 save 200 s, 110 s at 1.1 save 10 s; a graph of ten layers takes 60 + 100 s first and 5 + 10 s again,
    that of a teacher of three 90 s."""
    works = [BackboneWork(600.0, 110.0, 10, 3), BackboneWork(400.0, 0.0, 10, 0)]
    assert balance(works, COST) == pytest.approx((210.0, 160 + 15 + 90))


def test_long_runs_are_compiled_and_short_ones_are_not_even_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Distilled and without the teacher, two of each graph: compiling takes 175 s and is to save 1.5 times as much of a
    fifth of the time; at 1.05 two quarters of an hour save 86 s."""
    runs = planned("teacher.source=online", "objective.terms.kl.kind=forward_kl")
    short, quiet = compile_choices(runs, tmp_path / "a", monkeypatch, 5.0, "never to be asked")
    assert set(short.values()) == {"auto"}
    assert not quiet
    near, quiet = compile_choices(runs, tmp_path / "b", monkeypatch, 15.0, replace(COST, training_speedup=1.05))
    assert set(near.values()) == {"auto"}
    assert not quiet
    long, notes = compile_choices(runs, tmp_path / "c", monkeypatch, 60.0)
    trained = {run.name for run in runs if run.is_trained}
    assert {name for name, choice in long.items() if choice == "always"} == trained
    assert len(notes) == 2
    assert "shallow: compiling 2 runs saves 1440 s and takes 175 s" in notes[1]


def test_what_was_decided_stays_for_further_seeds_and_other_measurements(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = compile_choices(planned("seed=1"), tmp_path, monkeypatch, 60.0)
    again, notes = compile_choices(planned("seed=2"), tmp_path, monkeypatch, 1.0, "it is not asked again")
    assert sorted(first.values()) == sorted(again.values())
    assert "always" in again.values()
    assert not notes


def test_of_two_drivers_that_decide_at_once_the_first_one_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seeds that one compiles and the other does not would not compute alike."""
    monkeypatch.setattr(compilation, "read_mapping", lambda _: {})  # neither has seen what the other has written
    slow, _ = compile_choices(planned(), tmp_path, monkeypatch, 1.0)
    fast, _ = compile_choices(planned(), tmp_path, monkeypatch, 60.0)
    assert set(slow.values()) == set(fast.values()) == {"auto"}


def test_where_compiling_fails_students_run_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    choices, notes = compile_choices(planned(), tmp_path, monkeypatch, 600.0, "g++ says no")
    assert set(choices.values()) == {"auto"}
    assert notes[0] == "training.compile: auto: deep is not compiled: g++ says no"


def test_without_a_compiler_nothing_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    choices, notes = compile_choices(planned(), tmp_path, monkeypatch, 600.0, has_compiler=False)
    assert set(choices.values()) == {"auto"}
    assert notes[0] == "training.compile: auto: deep is not compiled: no C++ compiler is here"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ([], ""),
        (["training.devices=2"], "several ranks"),
        (["launcher.engine=slurm"], "slurm"),
        (["teacher.source=online", "on_policy.fraction=0.5"], "on_policy"),
        (["objective.terms.states={kind: hidden_states}", "teacher.source=online"], "hidden states"),
        (["training.gradient_checkpointing=true"], "gradient_checkpointing"),
        (["evaluation.interval=0.5"], "evaluation.interval"),
        (["teacher.prompt.system='Be brief.'"], "teacher.prompt"),
        (["students.deep.quantization_aware=int4"], "quantization_aware"),
    ],
)
def test_what_is_never_compiled_unasked(changes: list[str], words: str) -> None:
    reason = why_not_compiled(replace(load_experiment(QUICKSTART, changes), student="deep"))
    assert words in reason
    assert bool(reason) == bool(words)


def test_how_a_student_is_computed_does_not_identify_it() -> None:
    names = [[run.name for run in planned(f"training.compile={choice}")] for choice in ("auto", "always", "never")]
    assert names[0] == names[1] == names[2]
