"""Engine slurm on a real cluster of two nodes with real trainings, which are stopped there and go on."""

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from helpers import slurm_cluster, tiny_tasks, training_processes
from helpers.rank_trainings import logged
from helpers.slurm_cluster import kick, say, wait_until, warn_of_end
from safetensors.torch import load_file

from distill_lit.experiment.launcher.slurm.progress_file import read_progress
from distill_lit.experiment.launcher.slurm.queued_runs import queued_runs
from distill_lit.utils.files import read_json

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(bool(slurm_cluster.missing()), reason=slurm_cluster.missing()),
]
SECONDS = 600  # for whatever begins by importing libraries, on a busy machine
EXPERIMENT = """
name: sweep
teacher: {{model: "file:{teacher}", source: online, dtype: float32}}
students: {{one: {{layers: [0]}}}}
data: {{sequence_length: 32, validation_sequences: 4, corpora: {{text: {{path: "file:{corpus}"}}}}}}
objective: {{compile: never, terms: {{kl: {{kind: forward_kl}}}}}}
training: {{max_tokens: 65536, micro_batch_size: 2, precision: float32, accelerator: cpu, checkpoint_interval: 50}}
evaluation: {{tasks: [colours], include_path: "{tasks}"}}
launcher: {{workers: 2, threads_per_worker: 1, slurm: {{time: 10, warn: 30, gpus_per_node: 0, cpus_per_task: 1}}}}
grid: {{student: [one], seed: [{seeds}]}}
baselines: []
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Path]:
    """Two nodes of four cores."""
    with slurm_cluster.cluster() as folder:
        yield folder


def write_experiment(folder: Path, teacher: Path, corpus: Path, seeds: str) -> Path:
    path = folder / "sweep.yaml"
    tiny_tasks.make_tasks(folder / "tasks", "colours")
    path.write_text(EXPERIMENT.format(teacher=teacher, corpus=corpus, tasks=folder / "tasks", seeds=seeds))
    return path


def undisturbed(experiment: Path, *changes: str) -> Path:
    """The runs of this machine."""
    root = experiment.parent / "here"
    code, said = training_processes.cli("run", experiment, *changes, "--root", root)
    assert code == 0, said
    return root / "runs/sweep"


@contextlib.contextmanager
def on_cluster(experiment: Path, *changes: str) -> Iterator[Path]:
    """The folder of the runs, which a driver has submitted and watches; it must come to a good end."""
    root = experiment.parent / "there"
    command = [sys.executable, "-m", "distill_lit", "run", str(experiment), "launcher.engine=slurm", *changes]
    command += ["--root", str(root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as driver:
        try:
            yield root / "runs/sweep"
            wait_until(lambda: driver.poll() is not None, SECONDS, each=kick)
            assert driver.returncode == 0, driver.communicate()[0]
        finally:
            driver.kill()


def stop_in_training(runs: Path, name: str, stop: Callable[[str], object]) -> None:
    """What is done to the job of a run once it trains."""
    wait_until(lambda: read_progress(runs / name).get("stage") == "train", SECONDS)
    stop(queued_runs(runs)[name].job)


def preempt(job: str) -> None:
    say("scontrol", "requeue", job)


def student_of(folder: Path) -> bytes:
    return (folder / "student/model.safetensors").read_bytes()


def has_gone_on(folder: Path) -> bool:
    """Whether a training began where another job had stopped."""
    return "Restored all states from the checkpoint" in (folder / "log.txt").read_text()


def test_trainings_that_were_stopped_on_nodes_end_bit_for_bit_as_here(
    cluster: Path, tmp_path: Path, tiny_teacher: Path, tiny_corpus: Path
) -> None:
    """One is warned of the end of its time, the other driven off by a job that goes first."""
    experiment = write_experiment(tmp_path, tiny_teacher, tiny_corpus, "0, 1")
    here = undisturbed(experiment)
    names = sorted(path.parent.name for path in here.glob("*/manifest.json"))
    with on_cluster(experiment) as there:
        stop_in_training(there, names[0], warn_of_end)
        stop_in_training(there, names[1], preempt)
    assert read_json(there / names[0] / "restarts.json") == {"restarts": 1}
    for name in names:
        assert has_gone_on(there / name)
        assert student_of(there / name) == student_of(here / name)


def test_two_nodes_that_were_driven_off_end_bit_for_bit_as_two_ranks_here(
    cluster: Path, tmp_path: Path, tiny_teacher: Path, tiny_corpus: Path
) -> None:
    """One student on both nodes, its evaluation in a job of one node."""
    experiment = write_experiment(tmp_path, tiny_teacher, tiny_corpus, "0")
    here = undisturbed(experiment, "training.devices=2", "training.strategy=ddp")
    (name,) = (path.parent.name for path in here.glob("*/manifest.json"))
    with on_cluster(experiment, "training.nodes=2", "training.strategy=ddp") as there:
        stop_in_training(there, name, preempt)
    assert has_gone_on(there / name)
    assert student_of(there / name) == student_of(here / name)
    assert (there / name / "evaluation.json").is_file()


@pytest.mark.parametrize(
    "changes", [("strategy=ddp", "devices=2"), ("strategy=fsdp", "checkpoint=sharded")], ids=["ddp", "fsdp"]
)
def test_two_nodes_train_the_student_of_one_process(
    cluster: Path, tmp_path: Path, tiny_teacher: Path, tiny_corpus: Path, changes: tuple[str, str]
) -> None:
    """Four whole ranks, or two that share student and teacher; both nodes are driven off, and go on."""
    experiment = write_experiment(tmp_path, tiny_teacher, tiny_corpus, "0")
    short = ("training.max_tokens=16384", "training.log_every_n_steps=1")
    here = undisturbed(experiment, *short, "training.micro_batch_size=4")
    (name,) = (path.parent.name for path in here.glob("*/manifest.json"))
    rows = 1 if "devices=2" in changes else 2
    nodes = ("training.nodes=2", f"training.micro_batch_size={rows}", *(f"training.{change}" for change in changes))
    with on_cluster(experiment, *short, *nodes) as there:
        stop_in_training(there, name, preempt)
    assert has_gone_on(there / name)
    losses, expected = logged(there / name), logged(here / name)
    assert losses.keys() == expected.keys()
    for step, line in expected.items():
        assert losses[step] == pytest.approx(line, abs=1e-6), step
    trained, whole = (load_file(runs / name / "student/model.safetensors") for runs in (there, here))
    assert trained.keys() == whole.keys()
    for parameter, value in whole.items():
        torch.testing.assert_close(trained[parameter], value, rtol=0, atol=1e-5, msg=parameter)
