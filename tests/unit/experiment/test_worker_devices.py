"""Which GPUs each of several workers gets, with a count of devices that is made up."""

import argparse
from pathlib import Path

import pytest
import torch
from rich.console import Console

from distill_lit.cli.commands import run as run_command
from distill_lit.cli.run_table import gpu_lines
from distill_lit.config import ExperimentConfig, LauncherConfig, StudentConfig, TeacherConfig, TrainingConfig
from distill_lit.config.roles import Role
from distill_lit.experiment.checks import validation
from distill_lit.experiment.estimates.pace import threads_per_worker
from distill_lit.experiment.execution.devices import limit_gpu_memory, share_gpus, visible_gpus, worker_environment
from distill_lit.experiment.experiment import Experiment
from distill_lit.experiment.launcher.shards import choose_named
from distill_lit.experiment.planning.planned_run import Run
from distill_lit.experiment.state import completion
from distill_lit.utils.exceptions import UserError

DTYPES = [f"{key}=float32" for key in ("training.precision", "teacher.dtype", "evaluation.dtype")]


def run_of(accelerator: str = "auto", devices: int = 1, role: Role = Role.DISTILLED) -> Run:
    training = TrainingConfig(accelerator=accelerator, devices=devices)  # type: ignore[arg-type]
    students = {"s": StudentConfig()}
    config = ExperimentConfig("x", teacher=TeacherConfig(model="x"), students=students, training=training)
    return Run(role, f"{role}-{devices}", "0" * 16, config, "s")


def share(runs: list[Run], gpus: list[str], workers: int = 8, **launcher: int) -> list[list[str]] | None:
    return share_gpus(LauncherConfig(workers=workers, **launcher), runs, gpus)


@pytest.fixture
def eight_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_each_of_eight_workers_has_its_own(eight_gpus: None) -> None:
    assert share([run_of()] * 9, visible_gpus()) == [[str(number)] for number in range(8)]
    pairs = [["0", "1"], ["2", "3"], ["4", "5"], ["6", "7"]]
    assert share([run_of(devices=2)] * 4, visible_gpus()) == pairs
    assert share([run_of()] * 2, visible_gpus(), gpus_per_run=3) == [["0", "1", "2"], ["3", "4", "5"]]
    alone = [run_of(devices=4, role=Role.UNTRAINED), run_of(devices=4, role=Role.TEACHER)]  # one of the ranks builds them
    assert share([*alone, run_of(devices=2), run_of()], visible_gpus()) == pairs  # any of them may get any run
    with pytest.raises(UserError, match="launcher.gpus_per_run: 1, and a run takes 2 .training.devices."):
        share([run_of(), run_of(devices=2)], visible_gpus(), gpus_per_run=1)


def test_the_ids_that_are_visible_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5, GPU-8a")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    gpus = share([run_of()] * 2, visible_gpus())
    assert gpus == [["5"], ["GPU-8a"]]
    assert worker_environment(gpus[1], 3)["CUDA_VISIBLE_DEVICES"] == "GPU-8a"
    assert worker_environment(None, 3)["CUDA_VISIBLE_DEVICES"] == "5, GPU-8a"


def test_two_share_one_only_if_asked() -> None:
    with pytest.raises(UserError) as error:
        share([run_of()] * 8, ["0", "1", "2", "3"])
    assert str(error.value) == (
        "launcher.workers: 8 workers with 1 GPUs each need 8, and there are 4; set launcher.workers=4, or "
        "launcher.workers_per_gpu=2 to let workers share one"
    )
    assert share([run_of()] * 8, ["0", "1", "2", "3"], workers_per_gpu=2) == [[n] for n in "01230123"]
    with pytest.raises(UserError, match="need 4, and there are 1; set launcher.workers=1$"):
        share([run_of(devices=2)] * 2, ["0"])


def test_one_worker_and_processors_see_everything() -> None:
    assert share([run_of()], ["0", "1"]) is None
    assert share([run_of()] * 2, ["0"], workers=1) is None
    assert share([run_of("cpu")] * 2, ["0"]) is None
    assert share([run_of()] * 8, []) is None
    assert share([], ["0"]) is None


def test_memory_and_threads_are_shared_out_alike(monkeypatch: pytest.MonkeyPatch, eight_gpus: None) -> None:
    limits: list[tuple[float, int]] = []
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda share, number: limits.append((share, number)))
    limit_gpu_memory(1)
    assert limits == []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    limit_gpu_memory(4)
    assert limits == [(0.25, 0)]
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {2, 3, 5, 7})  # an allocation of four cores
    assert [threads_per_worker(0, workers) for workers in (1, 2, 8)] == [4, 2, 1]


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "visible_gpus", lambda: ["0", "1"])


def test_the_check_counts_runs_as_the_launch_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, two_gpus: None) -> None:
    """Two points of a grid are seven runs, for four of which there are workers at a time; of one that is chosen, with
    its cache, and of two that are left, for two."""
    too_many = Experiment.from_yaml("quickstart", [*DTYPES, "launcher.workers=4"], tmp_path)  # may be planned and fetched
    words = "launcher.workers: 4 workers with 1 GPUs each need 4, and there are 2"
    with pytest.raises(UserError, match=words):
        too_many.prepare()
    assert [line.startswith(words) for line in gpu_lines(too_many, too_many.runs)] == [True]
    with monkeypatch.context() as patch:
        left = [run.name for run in too_many.runs[:2]]
        patch.setattr(completion, "is_run_complete", lambda run, folder: folder == too_many.folder_of(run) and
                      run.name not in left)  # fmt: skip
        too_many.check_gpus(too_many.runs)
    too_many.chosen = frozenset(choose_named(too_many.runs, ["deep-untrained"]))
    too_many.check_gpus(too_many.runs_with_dependencies(()))
    for fine in (["launcher.workers=2"], ["launcher.workers=4", "training.accelerator=cpu"]):
        experiment = Experiment.from_yaml("quickstart", [*DTYPES, *fine], tmp_path)
        assert gpu_lines(experiment, experiment.runs) == []


def test_devices_are_those_of_the_runs(tmp_path: Path, two_gpus: None) -> None:
    """An axis of devices: with one worker a run may take both GPUs, and none three."""
    grid = "grid={training.devices: [1, 2], student: [deep]}"
    experiment = Experiment.from_yaml("quickstart", [*DTYPES, grid], tmp_path)
    experiment.check_gpus(experiment.runs)
    experiment = Experiment.from_yaml("quickstart", [*DTYPES, grid.replace("2]", "3]")], tmp_path)
    with pytest.raises(UserError, match="training.devices: deep-.*devices=3 takes 3 GPUs, and 2 are here"):
        experiment.check_gpus(experiment.runs)
    experiment = Experiment.from_yaml("quickstart", [*DTYPES, grid, "launcher.workers=2"], tmp_path)
    with pytest.raises(UserError, match="launcher.workers: 2 workers with 2 GPUs each need 4, and there are 2"):
        experiment.check_gpus(experiment.runs)


@pytest.mark.parametrize(
    ("flags", "words"),
    [({"shard": "1/2"}, "are for other schedulers"), ({"shard": "1/2", "run_names": ["x"]}, "--shard and --run: give one")],
)
def test_flags_are_checked_before_a_node_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: dict[str, object], words: str
) -> None:
    asked: list[Experiment] = []
    monkeypatch.setattr(Experiment, "measure_cluster", asked.append)
    given = {"shard": "", "run_names": [], "detach": False, "dry_run": False, **flags}
    options = argparse.Namespace(experiment=Path("quickstart"), overrides=["launcher.engine=slurm"], root=tmp_path, **given)
    with pytest.raises(UserError, match=words):
        run_command.run(options, Console())
    assert asked == []
