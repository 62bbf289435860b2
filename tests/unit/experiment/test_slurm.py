"""What engine slurm decides without a cluster: arrays, the queue as squeue prints it, statuses, limits."""

from pathlib import Path
from typing import Any

import pytest

from distill_lit.config import ExperimentConfig, LauncherConfig, SlurmConfig, StudentConfig, TeacherConfig, TrainingConfig
from distill_lit.config.roles import Role
from distill_lit.experiment.launcher.display import SilentDisplay
from distill_lit.experiment.launcher.outcome import Outcome
from distill_lit.experiment.launcher.shards import choose_named, choose_shard, parse_shard
from distill_lit.experiment.launcher.slurm import engine, task
from distill_lit.experiment.launcher.slurm.arrays import plan_arrays, total_tasks
from distill_lit.experiment.launcher.slurm.checks import check_partition, check_slurm_config
from distill_lit.experiment.launcher.slurm.progress_file import ProgressFile
from distill_lit.experiment.launcher.slurm.squeue import (
    Partition,
    SlurmError,
    by_run,
    parse_minutes,
    parse_partitions,
    parse_queue,
)
from distill_lit.experiment.launcher.slurm.status import join_task
from distill_lit.experiment.launcher.slurm.submit import sbatch_options
from distill_lit.experiment.launcher.slurm.watch import Watch
from distill_lit.experiment.planning.planned_run import EVALUATE, Run
from distill_lit.experiment.state.run_state import last_status, write_run_status
from distill_lit.utils.exceptions import UserError
from distill_lit.utils.files import TEMPORARY_PREFIX, write_json
from distill_lit.utils.progress import NOTE_STAGE

QUEUE = """\
7_0|7|0|sweep.aa11|RUNNING|node1|None
7_1|7|1|sweep.aa11|PENDING||BeginTime
7_2|7|2|sweep.aa11|PENDING||launch failed requeued held
8|8|N/A|sweep.bb22|PENDING||Dependency
9|9|N/A|somebody|RUNNING|node2|None
"""


def run_of(label: str, *needs: Run, role: Role = Role.DISTILLED, devices: int = 1, **slurm: Any) -> Run:
    config = ExperimentConfig(
        name="sweep", teacher=TeacherConfig(model="x"), students={"s": StudentConfig()},
        training=TrainingConfig(devices=devices),
        launcher=LauncherConfig(engine="slurm", workers=4, slurm=SlurmConfig(**slurm)),
    )  # fmt: skip
    return Run(role, label, label.ljust(16, "0"), config, "s", 0, depends_on=tuple(need.name for need in needs))


def labels(arrays: Any) -> list[list[str]]:
    return [[f"{task.run.label}{':' if task.part else ''}{task.part}" for task in array.tasks] for array in arrays]


def test_levels_are_arrays_and_wait_for_what_they_need() -> None:
    cache = run_of("cache", role=Role.TEACHER_CACHE)
    one, two, alone = run_of("one", cache), run_of("two", cache), run_of("alone")
    heir = run_of("heir", one)
    arrays = plan_arrays([cache, alone, one, two, heir], lambda _: False, 1000)
    assert labels(arrays) == [["cache", "alone"], ["one", "two"], ["heir"]]
    assert [array.after for array in arrays] == [set(), {0}, {1}]


def test_where_several_devices_train_one_evaluates_in_a_job_of_its_own() -> None:
    big, small = run_of("big", devices=4, cpus_per_task=2), run_of("small", cpus_per_task=2)
    heir = run_of("heir", big, cpus_per_task=2)
    arrays = plan_arrays([big, small, heir], lambda _: False, 1000)
    assert labels(arrays) == [["big:build"], ["small"], ["big:evaluate", "heir"]]
    assert [(array.shape.gpus, array.shape.cpus) for array in arrays] == [(4, 8), (1, 2), (1, 2)]
    assert arrays[2].after == {0}  # of `small` nothing is needed
    assert labels(plan_arrays([big], lambda _: True, 1000)) == [["big:evaluate"]]


def test_arrays_are_no_larger_than_the_cluster_takes_and_follow_each_other() -> None:
    runs = [run_of(f"r{number}") for number in range(2500)]
    arrays = plan_arrays(runs, lambda _: False, 1000)
    assert [len(array.tasks) for array in arrays] == [1000, 1000, 500]
    assert [array.after for array in arrays] == [set(), {0}, {1}]  # so that `workers` holds for all
    assert total_tasks(arrays) == 2500


def test_what_is_submitted_later_waits_for_what_is_in_the_queue() -> None:
    cache = run_of("cache", role=Role.TEACHER_CACHE)
    (array,) = plan_arrays([run_of("late", cache)], lambda _: False, 1000, {cache.name: "77"})
    assert array.after == set() and array.after_jobs == {"77"}
    options = sbatch_options(array.tasks[0].run.config, array, ["5", "77"], "tag")
    assert options["dependency"] == "afterany:5:77" and options["job_name"] == "sweep.tag"
    assert "partition" not in options and options["array_parallelism"] == 1


def test_what_the_queue_has_no_room_for_is_left_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first array is taken, the second not, and nothing after it is tried."""
    tried: list[list[str]] = []

    def submit_array(_: Any, __: Path, array: Any, after: list[str]) -> str:
        tried.append([task.run.name for task in array.tasks])
        if len(tried) > 1:
            raise SlurmError("sbatch: the queue is full")
        return "7"

    monkeypatch.setattr(engine, "submit_array", submit_array)
    monkeypatch.setattr(engine, "array_limit", lambda: 2)
    runs, lines = [run_of(f"run{number}") for number in range(5)], list[str]()
    assert not engine.submit(runs[0].config, runs, tmp_path, lines.append)
    assert tried == [[run.name for run in runs[:2]], [run.name for run in runs[2:4]]]
    assert lines == ["sbatch: the queue is full: 3 jobs are left; the same command submits them once there is room"]
    with pytest.raises(UserError, match=r"launcher\.slurm: sbatch: the queue is full"):  # where it has taken none
        engine.submit(runs[0].config, runs, tmp_path, lines.append)


def test_restarts_of_an_earlier_submission_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest of one submission goes on counting; what is in the queue is left alone."""
    monkeypatch.setattr(engine, "submit_array", lambda *_: "7")
    monkeypatch.setattr(engine, "array_limit", lambda: 9)
    run, queued = run_of("late"), run_of("queued")
    kept = [tmp_path / one.name / task.RESTARTS_FILE for one in (run, queued)]
    for path in kept:
        write_json(path, {"restarts": 20})
    write_run_status(tmp_path / run.name, "failed", "its time was over 21 times")
    monkeypatch.setattr(engine, "queued_runs", lambda _: {queued.name: parse_queue(QUEUE, {"aa11"})[0]})
    assert engine.submit(run.config, [run, queued], tmp_path, lambda _: None, is_rest=True)
    assert [path.is_file() for path in kept] == [True, True]
    assert engine.submit(run.config, [run, queued], tmp_path, lambda _: None)
    assert [path.is_file() for path in kept] == [False, True]
    assert last_status(tmp_path / run.name) == ("", "")


def test_progress_that_stands_still_is_shown_once_and_a_note_too(tmp_path: Path) -> None:
    class Shown(SilentDisplay):
        def __init__(self) -> None:
            self.events: list[Any] = []
            self.notes: list[str] = []

        def update_run(self, _: Run, event: Any) -> None:
            self.events.append((event["stage"], event["done"]))

        def note(self, line: str) -> None:
            self.notes.append(line)

    run, shown = run_of("one"), Shown()
    (tmp_path / run.name).mkdir()
    progress, looking = ProgressFile(tmp_path / run.name), Watch([run], tmp_path, shown, Outcome())
    progress.report(NOTE_STAGE, 0, 0, "slow disk")
    for done in (2, 2, 3):
        progress.last = 0.0
        progress.report("train", done, 9)
        looking._show_progress(run)
        looking._show_progress(run)
    assert shown.events == [("train", 2), ("train", 3)]
    assert shown.notes == ["one: slow disk"]


def test_a_checkpoint_that_is_half_written_is_none(tmp_path: Path) -> None:
    """What was saved before a job's time was over is compared with what was there: one step at least."""
    checkpoints = tmp_path / "checkpoints"
    checkpoints.mkdir()
    (checkpoints / "step=5.ckpt").touch()
    before = task._checkpoints(tmp_path)
    (checkpoints / f"{TEMPORARY_PREFIX}step=6.ckpt").mkdir()
    (checkpoints / "step=6.sha256.json").touch()
    write_run_status(tmp_path, "preempted", "SIGUSR2 at step 5")
    assert "too few for one step" in task._why_not_again(tmp_path, SlurmConfig(), before)
    (checkpoints / "step=6.ckpt").touch()
    assert task._why_not_again(tmp_path, SlurmConfig(), before) == ""


def test_an_evaluation_says_that_its_training_was_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of several nodes that is killed takes the others with it, and none of them can say a word."""
    monkeypatch.setattr(task, "NEEDS_SECONDS", 1.0)
    run = run_of("killed", devices=2)
    place = tmp_path / run.name
    place.mkdir()
    assert task._execute(run, place, EVALUATE, task.Job("7_0", node=0)) == 1
    status, reason = last_status(place)
    assert status == "failed" and reason.startswith("its training has ended without a word")


def test_gpus_are_asked_for_only_where_they_are_used() -> None:
    assert plan_arrays([run_of("a", gpus_per_node=0, devices=4)], lambda _: False, 9)[0].shape.gpus == 0
    cpu = run_of("cpu", devices=2)
    cpu.config.training.accelerator = "cpu"
    assert [array.shape.gpus for array in plan_arrays([cpu], lambda _: False, 9)] == [0, 0]


def test_the_queue_is_read_by_tags_never_by_ids() -> None:
    tasks = parse_queue(QUEUE, {"aa11", "bb22"})
    assert [(task.job, task.tag, task.number, task.is_pending, task.is_held) for task in tasks] == [
        ("7_0", "aa11", 0, False, False),
        ("7_1", "aa11", 1, True, False),
        ("7_2", "aa11", 2, True, True),
        ("8", "bb22", 0, True, False),
    ]
    records = {"aa11": [("x", "build"), ("y", ""), ("z", "")], "bb22": [("x", EVALUATE)]}
    found = by_run(tasks, records)
    assert {name: task.job for name, task in found.items()} == {"x": "7_0", "y": "7_1", "z": "7_2"}
    assert str(found["x"]) == "job 7_0 on node1"
    assert str(found["z"]) == "job 7_2 (launch failed requeued held); scontrol release 7_2"


def test_a_status_joins_disk_and_queue() -> None:
    at_work, waits, held, _ = parse_queue(QUEUE, {"aa11", "bb22"})
    assert join_task("done", "", at_work, True) == ("done", "")
    assert join_task("running", "checkpoint step=9", at_work, True) == ("running", "job 7_0 on node1; checkpoint step=9")
    assert join_task("missing", "", at_work, True) == ("running", "job 7_0 on node1")
    assert join_task("preempted", "SIGTERM at step 9", waits, True) == ("queued", "job 7_1 (BeginTime); SIGTERM at step 9")
    assert join_task("failed", "an old reason", waits, True)[0] == "queued"
    assert join_task("missing", "", held, True)[0] == "held"
    assert join_task("stopped", "", None, True)[0] == "lost"
    assert join_task("failed", "a bug", None, True) == ("failed", "a bug")
    assert join_task("missing", "", None, False) == ("missing", "")


def test_partitions_and_times_as_sinfo_prints_them() -> None:
    found = parse_partitions(
        "gpu*|1-00:00:00|3|64+|gpu:a100:4(S:0-1)\ngpu*|1-00:00:00|1|32|(null)\nlong|infinite|2|8|(null)\n"
    )
    assert found == {"gpu": Partition("gpu", True, 1440, 4, 64, 4), "long": Partition("long", False, 0, 2, 8, 0)}
    assert [parse_minutes(text) for text in ("30:00", "2:00:00", "1-12:30:00", "infinite", "n/a")] == [30, 120, 2190, 0, 0]


@pytest.mark.parametrize(
    ("gres", "gpus"),
    [
        ("gpu:4", 4),
        ("gpu:2080ti:8(S:0-1)", 8),
        ("gpu:tesla-v100:2", 2),
        ("gpu:nvidia_a100-sxm4-80gb:4(S:0,2),nvme:1", 4),
        ("gpu:1g.5gb:7,gpu:a100:2", 9),
        ("craynetwork:4,gpu:a100:no_consume:4", 4),
        ("vgpu:3", 0),
    ],
)
def test_gpus_are_counted_whatever_they_are_called(gres: str, gpus: int) -> None:
    assert parse_partitions(f"gpu*|infinite|1|32|{gres}\n")["gpu"].gpus == gpus


def test_bad_values_are_one_line() -> None:
    known = {"main": Partition("main", True, 60, 2, 4, 0)}
    for slurm, words in (
        (SlurmConfig(partition="a b"), "launcher.slurm.partition: 'a b' is no name"),
        (SlurmConfig(extra={"nice": "1\n#SBATCH --x"}), "launcher.slurm.extra.nice: one line is needed"),
        (SlurmConfig(time=2), "launcher.slurm.time: 2 minutes, of which 120 s are left to save"),
    ):
        with pytest.raises(UserError, match=words):
            check_slurm_config(slurm)
    with pytest.raises(UserError, match="this cluster has no default; choose from other"):
        check_partition(SlurmConfig(), {"other": replace_default(known["main"])}, [])


def replace_default(partition: Partition) -> Partition:
    return partition._replace(name="other", is_default=False)


def test_shards_have_every_run_once() -> None:
    runs = [run_of(f"r{number}") for number in range(10)]
    parts = [choose_shard(runs, *parse_shard(f"{number}/3")) for number in (1, 2, 3)]
    assert sorted(name for part in parts for name in part) == sorted(run.name for run in runs)
    assert choose_named(runs, ["r3", runs[4].name]) == [runs[3].name, runs[4].name]
    for bad in ("0/3", "4/3", "1", "a/b", "1/-2"):
        with pytest.raises(UserError, match="give i/n"):
            parse_shard(bad)
    with pytest.raises(UserError, match="there is no such run; did you mean 'r3'"):
        choose_named(runs, ["r33"])
