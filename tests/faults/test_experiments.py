"""faults.md, experiments: lines 16 to 18; and drivers that die, with what their workers then do."""

import contextlib
import os
import re
import signal
from pathlib import Path

import pandas as pd
import psutil
import pytest
from helpers import training_processes, warm_processes
from helpers.training_processes import SABOTAGE, cli, command, finish, outcome, start, wait_until

from distill_lit.config import load_experiment
from distill_lit.experiment.state.claims import holder_of
from distill_lit.utils.exceptions import UserError

STUDENTS = """
students: {fine: {layers: [0]}, raises: {layers: [1]}, exhausts: {layers: [0]}, dies: {layers: [1]}, leaves: {layers: [0]}}
grid: {student: [raises, exhausts, dies, leaves, fine]}
launcher: {workers: 2, threads_per_worker: 1}
baselines: [teacher]
"""
FAULTS = """
raise raises train 4
exhaust exhausts train 4
kill dies train 20
leave leaves train 4
"""


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory, experiment: Path) -> tuple[Path, Path, int, str]:
    """(root, file, exit code, what was said) of an experiment in which four runs of six fail, each in its own way."""
    root = tmp_path_factory.mktemp("broken")
    file = root / "broken.yaml"
    text = experiment.read_text()
    text = text.replace("students: {one: {layers: [0]}}", "").replace("baselines: []", "")
    # equal students would be one run
    students = STUDENTS.replace("exhausts: {layers: [0]}", "exhausts: {layers: [0, 1]}")
    students = students.replace("dies: {layers: [1]}", "dies: {config: {num_hidden_layers: 1}}")
    students = students.replace("leaves: {layers: [0]}", "leaves: {config: {num_hidden_layers: 2}}")
    file.write_text(text + students)
    code, said = cli("run", file, "--root", root, FAULTS=FAULTS, PYTHONPATH=SABOTAGE)
    return root, file, code, said


def reasons(root: Path) -> dict[str, str]:
    runs = pd.read_csv(root / "results/tiny/runs.csv").set_index("model")
    return {name: f"{row.status}: {'' if pd.isna(row.reason) else row.reason}" for name, row in runs.iterrows()}


@pytest.mark.slow
def test_17_the_rest_finish_and_the_reasons_stand_in_the_table(broken: tuple[Path, Path, int, str]) -> None:
    root, _, code, said = broken
    assert code == 3, said
    found = reasons(root)
    assert found["teacher"] == found["fine"] == "done: "
    assert found["raises"] == "failed: RuntimeError: a bug, with <b>markup</b> | and _more_"
    assert found["exhausts"].startswith("failed: MemoryError: Unable to allocate")
    assert found["dies"] == "failed: killed by SIGKILL, perhaps out of memory"
    assert found["leaves"] == "failed: the worker ended with exit code 0"
    for name in ("raises", "exhausts", "dies", "leaves"):
        assert found[name].split(": ")[-1][:20] in (root / "results/tiny/table.csv").read_text(), name


@pytest.mark.slow
def test_18_tables_show_the_gap(broken: tuple[Path, Path, int, str]) -> None:
    table = (broken[0] / "results/tiny/table.md").read_text()
    for name in ("raises", "exhausts", "dies", "leaves"):
        assert f"Missing: {name} distilled, 1 of 1 (failed: " in table
        assert f"| {name} distilled | — | — |  | 0 of 1 |" in table


@pytest.mark.slow
def test_17_status_says_what_happened(broken: tuple[Path, Path, int, str]) -> None:
    root, file, *_ = broken
    code, said = cli("status", file, "--root", root)
    assert code == 0
    assert "2 done" in said and "4 failed" in said
    assert re.search(r"dies .* failed .*SIGKILL", said)


@pytest.mark.slow
def test_17_run_again_does_what_is_missing_and_an_edited_run_is_a_new_one(broken: tuple[Path, Path, int, str]) -> None:
    root, file, *_ = broken
    folders = {path.name for path in (root / "runs/tiny").iterdir() if path.is_dir()}
    before = {p: p.stat().st_mtime_ns for p in root.glob("runs/tiny/*/manifest.json")}
    assert len(before) == 2
    code, said = cli("run", file, "--root", root, "students.leaves.config.num_hidden_layers=3")
    assert code == 0, said
    assert set(reasons(root).values()) == {"done: "}
    assert before == {p: p.stat().st_mtime_ns for p in before}
    new = {path.name for path in (root / "runs/tiny").iterdir() if path.is_dir()} - folders
    assert len(new) == 1
    assert next(iter(new)).startswith("leaves-")


def test_16_unknown_missing_and_cyclic(tmp_path: Path, experiment: Path) -> None:
    for override, words in (
        ("training.tokns=5", "unknown key 'training.tokns'; did you mean 'max_tokens'?"),
        ("students.one.num_layer=1", "unknown key 'students.one.num_layer'; did you mean 'num_layers'?"),
    ):
        with pytest.raises(UserError, match=re.escape(words)):
            load_experiment(experiment, [override])
    (tmp_path / "bare.yaml").write_text("name: x\nstudents: {one: {layers: [0]}}\n")
    with pytest.raises(UserError, match="teacher.model: it is required and has no value"):
        load_experiment(tmp_path / "bare.yaml")
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/a.yaml").write_text("defaults: [b]\n")
    (tmp_path / "configs/b.yaml").write_text("defaults: [a]\n")
    (tmp_path / "x.yaml").write_text("name: x\ndefaults: [a]\n")
    with pytest.raises(UserError, match="defaults form a cycle: x → a → b → a"):
        load_experiment(tmp_path / "x.yaml")


# ---------------------------------------------------------------- drivers that stop


def workers_of(driver: int) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return [
            p
            for p in psutil.Process(driver).children()
            if "distill_lit.experiment.execution.worker" in " ".join(p.cmdline())
        ]
    return []


def worker_at(root: Path) -> psutil.Process:
    """Who is at the run."""
    holder = holder_of(training_processes.run_folder(root))
    assert holder is not None
    return psutil.Process(holder.pid)


@pytest.mark.slow
def test_17_a_stopped_or_killed_driver_leaves_no_orphans_and_status_tells_the_truth(
    experiment: Path, tmp_path: Path
) -> None:
    """SIGTERM, then Ctrl-C, then kill -9 to the driver in the middle of training; what comes out is the undisturbed."""
    undisturbed = tmp_path / "undisturbed"
    assert finish(start(experiment, undisturbed)) == 0
    root = tmp_path / "root"
    metrics = 0
    for number, code, state in (
        (signal.SIGTERM, 143, "preempted"),
        (signal.SIGINT, 130, "preempted|stopped"),
        (signal.SIGKILL, -9, "preempted"),
    ):
        is_killed = number == signal.SIGKILL  # then its worker is looked for among its children
        with warm_processes.cold() if is_killed else contextlib.nullcontext():
            driver = command("run", experiment, "--root", root, FAULTS="slow one train *", PYTHONPATH=SABOTAGE)
        wait_until(lambda done=metrics: steps_done(root) > done)
        (worker,) = workers_of(driver.pid) if is_killed else [worker_at(root)]
        if number == signal.SIGTERM:
            assert re.search(r"one .* running", cli("status", experiment, "--root", root)[1])
        os.kill(driver.pid, number)
        found, said = outcome(driver)
        assert found == code, said
        wait_until(lambda one=worker: not one.is_running() or one.status() == psutil.STATUS_ZOMBIE, 60)
        metrics = steps_done(root)
        assert re.search(rf"one .* ({state})", cli("status", experiment, "--root", root)[1])
    code, said = cli("run", experiment, "--root", root)
    assert code == 0, said
    assert training_processes.lines(root) == training_processes.lines(undisturbed)
    assert training_processes.weights(root) == training_processes.weights(undisturbed)


def steps_done(root: Path) -> int:
    with contextlib.suppress(OSError, StopIteration, ValueError):
        return sum("train/loss" in line for line in training_processes.lines(root))
    return 0
