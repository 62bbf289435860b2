"""Engine slurm on a real cluster of two nodes: runs sleep here instead of training, so that each test takes seconds."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers import slurm_cluster
from helpers.slurm_cluster import kick, queue, say, wait_until, warn_of_end

from distill_lit.config import ExperimentConfig, LauncherConfig, SlurmConfig, StudentConfig, TeacherConfig, TrainingConfig
from distill_lit.config.roles import Role
from distill_lit.experiment.launcher.display import SilentDisplay
from distill_lit.experiment.launcher.outcome import Outcome
from distill_lit.experiment.launcher.slurm import engine, watch
from distill_lit.experiment.launcher.slurm.checks import check_cluster
from distill_lit.experiment.launcher.slurm.node import ask_node
from distill_lit.experiment.launcher.slurm.queued_runs import queued_runs, stop_jobs
from distill_lit.experiment.launcher.slurm.status import join_queue
from distill_lit.experiment.planning.planned_run import Run
from distill_lit.experiment.state.run_state import MISSING, STOPPED, last_status
from distill_lit.utils.exceptions import UserError
from distill_lit.utils.files import fingerprint, read_json

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(slurm_cluster.missing()), reason=slurm_cluster.missing())]
SLEEPING = slurm_cluster.SCRIPTS / "sleeping"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Path]:
    """Two nodes of four cores."""
    with slurm_cluster.cluster() as folder:
        yield folder


@pytest.fixture
def folder(cluster: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Of the runs of an experiment. What is done is what has a manifest."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(SLEEPING), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setattr(engine, "is_run_built", lambda _, place: (place / "manifest.json").is_file())
    monkeypatch.setattr(watch, "is_run_complete", lambda _, place: (place / "manifest.json").is_file())
    monkeypatch.setattr(watch, "read_run_results", lambda *_: watch.RunResults())
    monkeypatch.setattr(watch, "QUEUE_SECONDS", 0.5)
    monkeypatch.setattr(watch, "SETTLE_SECONDS", 1.0)
    yield tmp_path
    say("scancel", "--user=root")
    wait_until(lambda: not queue())


def sleeping_run(name: str, tenths: int, *needs: Run, question: str = "", **slurm: object) -> Run:
    options = {"time": 5, "warn": 30, "gpus_per_node": 0, "cpus_per_task": 1, **slurm}
    launcher = LauncherConfig(engine="slurm", workers=4, threads_per_worker=1, slurm=SlurmConfig(**options))
    config = ExperimentConfig(
        name="sleep", question=question, teacher=TeacherConfig(model="file:/nowhere"), students={"s": StudentConfig()},
        training=TrainingConfig(max_tokens=tenths, accelerator="cpu"), launcher=launcher,
    )  # fmt: skip
    return Run(Role.DISTILLED, name, name.ljust(16, "0"), config, "s", 0, depends_on=tuple(need.name for need in needs))


def submit(folder: Path, *runs: Run, note: Callable[[str], None] = lambda _: None) -> None:
    assert engine.submit(runs[0].config, list(runs), folder, note)


def is_done(folder: Path, *runs: Run) -> bool:
    return all((folder / run.name / "manifest.json").is_file() for run in runs)


def steps(folder: Path, run: Run) -> list[int]:
    """The steps that a run has taken, in all its jobs."""
    path = folder / run.name / "steps.txt"
    return [int(line) for line in path.read_text().split()] if path.is_file() else []


def running(folder: Path, run: Run, count: int = 3) -> bool:
    return len(steps(folder, run)) >= count


def release_held(folder: Path) -> None:
    """SLURM holds a job that it could not launch on a node that has just failed, until somebody releases it."""
    for task in queued_runs(folder).values():
        if task.is_held:
            say("scontrol", "release", task.job)


def test_levels_wait_for_each_other_and_a_failure_stops_only_what_needs_it(folder: Path) -> None:
    """afterany and the run's own look at disk; a watch that says what became of each."""
    cache, bad = sleeping_run("cache", 3), sleeping_run("bad", 3, question="fails")
    good, poor = sleeping_run("good", 3, cache), sleeping_run("poor", 3, bad)
    runs = [cache, bad, good, poor]
    lines: list[str] = []
    submit(folder, *runs, note=lines.append)
    assert "submitted 4 jobs in 2 arrays" in lines[0]
    submit(folder, *runs, note=lines.append)  # all are in the queue
    assert lines[1:] == ["4 runs are in the queue already"]
    outcome = Outcome()
    watch.Watch(list(runs), folder, SilentDisplay(), outcome).run()
    assert outcome.failed == {bad.name: "RuntimeError: a bug", poor.name: f"needs {bad.name}, which failed"}
    assert outcome.left == {} and is_done(folder, cache, good)
    assert steps(folder, good) == [1, 2, 3]
    assert not queued_runs(folder)


def test_a_preempted_run_and_one_whose_time_is_over_go_on_where_they_were(folder: Path) -> None:
    """SLURM requeues the first, the second itself: no step is taken twice, and none is left out."""
    low, late = sleeping_run("low", 60), sleeping_run("late", 60)
    submit(folder, low, late)
    wait_until(lambda: running(folder, low) and running(folder, late))
    say("scontrol", "requeue", queued_runs(folder)[low.name].job)  # what a preemption is: SIGTERM, then the queue
    warn_of_end(queued_runs(folder)[late.name].job)
    wait_until(lambda: last_status(folder / low.name)[0] and last_status(folder / late.name)[0])
    assert last_status(folder / low.name)[1].startswith("SIGTERM at step")
    assert last_status(folder / late.name)[1].startswith("SIGUSR2 at step")
    wait_until(lambda: all(task.is_pending for task in queued_runs(folder).values()) and len(queued_runs(folder)) == 2)
    statuses = join_queue({run.name: ("preempted", "note") for run in (low, late)}, folder)
    assert {status for status, _ in statuses.values()} == {"queued"}
    wait_until(lambda: is_done(folder, low, late), each=kick)
    assert steps(folder, low) == steps(folder, late) == list(range(1, 61))
    assert read_json(folder / late.name / "restarts.json") == {"restarts": 1}
    assert not (folder / low.name / "restarts.json").exists()


def test_a_run_whose_time_is_over_too_often_fails(folder: Path) -> None:
    run = sleeping_run("late", 300, restarts=0)
    submit(folder, run)
    wait_until(lambda: running(folder, run))
    warn_of_end(queued_runs(folder)[run.name].job)
    wait_until(lambda: not queue())
    status, reason = last_status(folder / run.name)
    assert status == "failed" and reason.startswith("launcher.slurm.restarts: its time was over 1 times")


def test_nobody_requeues_what_was_cancelled_and_the_same_command_submits_it_again(folder: Path) -> None:
    one, two = sleeping_run("one", 40), sleeping_run("two", 40)
    submit(folder, one, two)
    wait_until(lambda: running(folder, one) and running(folder, two))
    say("scancel", queued_runs(folder)[one.name].job)
    wait_until(lambda: one.name not in queued_runs(folder))
    assert last_status(folder / one.name)[0] == "preempted"
    lines: list[str] = []
    submit(folder, one, two, note=lines.append)
    assert "1 runs are in the queue already" in lines[0] and "submitted 1 jobs in 1 arrays" in lines[1]
    wait_until(lambda: is_done(folder, one, two))
    assert steps(folder, one) == steps(folder, two) == list(range(1, 41))
    wait_until(lambda: not queue())
    assert stop_jobs(folder) == 0


def test_stop_cancels_what_runs_and_what_waits(folder: Path) -> None:
    first = sleeping_run("first", 300)
    later = sleeping_run("later", 3, first)
    submit(folder, first, later)
    wait_until(lambda: running(folder, first))
    assert stop_jobs(folder) == 2
    wait_until(lambda: not queue())
    assert not is_done(folder, first) and not (folder / later.name).exists()


def test_a_node_that_fails_gives_its_run_to_another(folder: Path) -> None:
    run = sleeping_run("moved", 60)
    submit(folder, run)
    wait_until(lambda: running(folder, run))
    node = queued_runs(folder)[run.name].node
    say("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
    try:
        wait_until(lambda: queued_runs(folder)[run.name].is_pending)
        wait_until(lambda: is_done(folder, run), each=lambda: (kick(), release_held(folder)))
    finally:
        subprocess.run(["scontrol", "update", f"nodename={node}", "state=resume"], check=False)  # it may be back already
    assert set(steps(folder, run)) == set(range(1, 61))


def test_a_killed_controller_loses_nothing_that_is_not_submitted_again(folder: Path, cluster: Path) -> None:
    """A job that the controller forgets, and whose id it gives to another, is lost and said to be; nothing else takes its
    place."""
    run, other = sleeping_run("run", 120), sleeping_run("other", 3)
    submit(folder, run)
    wait_until(lambda: running(folder, run))
    time.sleep(6)  # what is younger may be lost
    submit(folder, other)
    assert not is_done(folder, run)
    slurm_cluster.restart_controller(cluster)
    wait_until(lambda: is_done(folder, run), each=kick)
    if other.name not in queued_runs(folder) and not is_done(folder, other):
        assert join_queue({other.name: (MISSING, "")}, folder)[other.name][0] == "lost"
        submit(folder, other)
    wait_until(lambda: is_done(folder, other), each=kick)
    assert steps(folder, run) == list(range(1, 121)) and steps(folder, other) == [1, 2, 3]


def test_status_says_what_is_held_and_what_is_lost(folder: Path) -> None:
    run = sleeping_run("held", 3)
    say("scontrol", "update", "partitionname=main", "state=down")
    try:
        submit(folder, run)
        job = queued_runs(folder)[run.name].job
        say("scontrol", "hold", job)
        status, note = join_queue({run.name: (MISSING, "")}, folder)[run.name]
        assert status == "held" and note.startswith(f"job {job} (JobHeld") and note.endswith(f"scontrol release {job}")
        say("scancel", job)
    finally:
        say("scontrol", "update", "partitionname=main", "state=up")
    wait_until(lambda: not queue())
    assert join_queue({run.name: (STOPPED, "")}, folder)[run.name][0] == "lost"


def test_what_the_cluster_will_not_take_is_said_before_anything_is_written(folder: Path) -> None:
    for options, words in (
        ({"partition": "maine"}, "launcher.slurm.partition: this cluster has no 'maine'; did you mean 'main'"),
        ({"time": 61}, "launcher.slurm.time: 61 minutes, and main gives at most 60"),
        ({"time": 1, "warn": 30}, "launcher.slurm.time: 1 minutes, of which 30 s are left to save"),
        ({"cpus_per_task": 5}, "launcher.slurm.cpus_per_task: a job needs 5 cores of a node, and main has 4"),
        ({"extra": {"nice\n": 1}}, "is no option of sbatch"),
    ):
        run = sleeping_run("bad", 3, **options)
        with pytest.raises(UserError, match=words.replace("(", r"\(").replace(")", r"\)")):
            check_cluster(run.config, [run])
    gpus = sleeping_run("gpus", 3, gpus_per_node=2)
    gpus.config.training.accelerator = "auto"
    with pytest.raises(UserError, match="a job needs 2 GPUs of a node, and main has 0"):
        check_cluster(gpus.config, [gpus])
    assert not list(folder.iterdir()) and not queue()


def test_a_node_says_whether_it_sees_a_folder_and_its_locks(folder: Path) -> None:
    found = ask_node(sleeping_run("asked", 3).config, folder / "runs/new", is_urgent=True)
    assert found["token_seen"] and found["flock_is_shared"] and not (folder / "runs").exists()


def test_ctrl_c_ends_the_watching_alone(folder: Path) -> None:
    run, lines = sleeping_run("long", 30), list[str]()
    submit(folder, run)
    with pytest.raises(engine.Terminated), engine._detaching(lines.append):
        signal.raise_signal(signal.SIGINT)
    assert "its jobs go on" in lines[0] and run.name in queued_runs(folder)
    wait_until(lambda: is_done(folder, run))


def test_ten_thousand_runs_are_submitted_in_arrays_within_the_limits(folder: Path) -> None:
    first = sleeping_run("first", 1)
    runs = [Run(Role.DISTILLED, f"r{n}", fingerprint(n), first.config, "s", 0) for n in range(10_000)]
    lines: list[str] = []
    say("scontrol", "update", "partitionname=main", "state=down")
    try:
        began = time.monotonic()
        submit(folder, *runs, note=lines.append)
        seconds = time.monotonic() - began
        records = list((folder / "slurm").glob("*.json"))
        assert len(records) == 10 and "submitted 10000 jobs in 10 arrays" in lines[0]
        arrays = {line.partition("_")[0] for line in queue("%i")}
        assert len(arrays) == 10
        assert len(queued_runs(folder)) == 10_000
        assert seconds < 120
        assert stop_jobs(folder) == 10_000
        wait_until(lambda: not queued_runs(folder))
    finally:
        say("scontrol", "update", "partitionname=main", "state=up")
