"""Which GPUs each of several workers gets, with a count of devices that is made up."""

import argparse
from pathlib import Path

import pytest
import torch
from rich.console import Console

from distill_lit.cli.commands import run as run_command
from distill_lit.config import ExperimentConfig, LauncherConfig, StudentConfig, TeacherConfig, TrainingConfig
from distill_lit.experiment import validation
from distill_lit.experiment.experiment import Experiment
from distill_lit.experiment.launcher.devices import limit_gpu_memory, share_gpus, visible_gpus, worker_environment
from distill_lit.experiment.pace import threads_per_worker
from distill_lit.utils.exceptions import UserError


def config(accelerator: str = "auto", devices: int = 1, **launcher: int) -> ExperimentConfig:
    training = TrainingConfig(accelerator=accelerator, devices=devices)  # type: ignore[arg-type]
    students = {"s": StudentConfig()}
    return ExperimentConfig("x", teacher=TeacherConfig(model="x"), students=students, training=training,
                            launcher=LauncherConfig(**launcher))  # fmt: skip


@pytest.fixture
def eight_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_each_of_eight_workers_has_its_own(eight_gpus: None) -> None:
    assert share_gpus(config(workers=8), 8, visible_gpus()) == [[str(number)] for number in range(8)]
    shared = share_gpus(config(devices=2), 4, visible_gpus())
    assert shared == [["0", "1"], ["2", "3"], ["4", "5"], ["6", "7"]]
    assert share_gpus(config(gpus_per_run=3), 2, visible_gpus()) == [["0", "1", "2"], ["3", "4", "5"]]


def test_the_ids_that_are_visible_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5, GPU-8a")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    gpus = share_gpus(config(), 2, visible_gpus())
    assert gpus == [["5"], ["GPU-8a"]]
    assert worker_environment(gpus[1], 3)["CUDA_VISIBLE_DEVICES"] == "GPU-8a"
    assert worker_environment(None, 3)["CUDA_VISIBLE_DEVICES"] == "5, GPU-8a"


def test_two_share_one_only_if_asked() -> None:
    with pytest.raises(UserError) as error:
        share_gpus(config(), 8, ["0", "1", "2", "3"])
    assert str(error.value) == (
        "launcher.workers: 8 workers with 1 GPUs each need 8, and there are 4; set launcher.workers=4, or "
        "launcher.workers_per_gpu=2 to let workers share one"
    )
    assert share_gpus(config(workers_per_gpu=2), 8, ["0", "1", "2", "3"]) == [[n] for n in "01230123"]
    with pytest.raises(UserError, match="need 4, and there are 1; set launcher.workers=1$"):
        share_gpus(config(devices=2), 2, ["0"])


def test_one_worker_and_processors_see_everything() -> None:
    assert share_gpus(config(), 1, ["0", "1"]) is None
    assert share_gpus(config("cpu"), 2, ["0"]) is None
    assert share_gpus(config(), 8, []) is None


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


def test_the_check_counts_runs_as_the_launch_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two points of a grid are seven runs, for four of which there are workers at a time."""
    monkeypatch.setattr(validation, "visible_gpus", lambda: ["0", "1"])
    dtypes = [f"{key}=float32" for key in ("training.precision", "teacher.dtype", "evaluation.dtype")]
    with pytest.raises(UserError, match="launcher.workers: 4 workers with 1 GPUs each need 4, and there are 2"):
        Experiment.from_yaml("quickstart", [*dtypes, "launcher.workers=4"], tmp_path)
    for fine in (["launcher.workers=2"], ["launcher.workers=4", "training.accelerator=cpu"]):
        Experiment.from_yaml("quickstart", [*dtypes, *fine], tmp_path)


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
