"""Several ranks: from the command line, in other people's environments, and failing like one."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import training_processes
from helpers.training_processes import SABOTAGE, STEPS, finish, lines, log_of, run_folder, start, weights
from safetensors.torch import load_file

from distill_lit import data
from distill_lit.config.data import CorpusConfig, DataConfig
from distill_lit.data.loader import shuffled_row_indices
from distill_lit.utils.distributed.cluster_environment import remove_cluster_variables
from distill_lit.utils.distributed.ranks import get_rank, get_world_size
from distill_lit.utils.distributed.spawn import spawn_ranks
from distill_lit.utils.exceptions import UserError
from distill_lit.utils.files import read_json

TWO = ("training.devices=2", "training.micro_batch_size=1")
# what srun, torchrun and mpirun set, all for the second of two ranks elsewhere, and a default of Lightning's Trainer
SURROUNDINGS = {
    "SLURM_JOB_ID": "77", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_PROCID": "1",
    "SLURM_LOCALID": "1", "SLURM_NODEID": "0", "SLURM_NODELIST": "node[1-2]", "SLURM_JOB_NODELIST": "node[1-2]",
    "RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0", "NODE_RANK": "0",
    "MASTER_ADDR": "node1", "MASTER_PORT": "1", "TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_USE_AGENT_STORE": "True",
    "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "PMI_RANK": "1", "PMI_SIZE": "2", "PL_TRAINER_MAX_STEPS": "3",
    "JSM_NAMESPACE_RANK": "1", "JSM_NAMESPACE_SIZE": "2", "LSB_JOBID": "1", "KUBERNETES_PORT": "tcp://1.2.3.4:443",
}  # fmt: skip


@pytest.fixture(scope="module")
def steady(tmp_path_factory: pytest.TempPathFactory, tiny_teacher: Path, tiny_corpus: Path, tasks_folder: Path) -> Path:
    """The experiment without dropout, which every rank would draw for other rows."""
    return training_processes.write_experiment(tmp_path_factory.mktemp("steady"), tiny_teacher, tiny_corpus, tasks_folder)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_ranks_from_the_command_line_inside_slurm_and_torchrun_train_the_student_of_one(
    steady: Path, tmp_path: Path
) -> None:
    assert finish(start(steady, tmp_path / "one")) == 0
    surroundings = {**SURROUNDINGS, "OMP_NUM_THREADS": "2"}
    code, said = training_processes.cli(
        "run",
        steady,
        *TWO,
        "launcher.threads_per_worker=2",
        "evaluation.interval=0.5",
        "--root",
        tmp_path / "two",
        **surroundings,
    )
    assert code == 0, said + log_of(tmp_path / "two")
    one, two = ({line["step"]: line for line in lines(tmp_path / n) if "train/loss" in line} for n in ("one", "two"))
    assert two.keys() == one.keys() == set(range(STEPS))
    for step, line in one.items():
        for name in ("train/loss", "train/kl", "train/gradient_norm", "train/tokens"):
            assert two[step][name] == pytest.approx(line[name], rel=2e-3), (step, name)
    validated = _validations(tmp_path / "two")
    assert validated == [(s, pytest.approx(v, rel=2e-3)) for s, v in _validations(tmp_path / "one")]
    assert [line["step"] for line in lines(tmp_path / "two") if "evaluation/colours" in line] == [0, 12, 24]
    for name, value in load_file(run_folder(tmp_path / "one") / "student/model.safetensors").items():
        other = load_file(run_folder(tmp_path / "two") / "student/model.safetensors")[name]
        torch.testing.assert_close(other, value, rtol=1e-2, atol=1e-3)
    assert not list((tmp_path / "two").rglob("hpc_ckpt*"))


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_sharded_run_goes_on_from_its_shards_and_exports_the_student_of_one_process(steady: Path, tmp_path: Path) -> None:
    # models that the first rank reads alone before they are sharded
    read = ("students.one={num_layers: 1}", "objective.terms.states={kind: hidden_states, options: {layers: cka}}")
    sharded = (*read, *TWO, "training.strategy=fsdp", "training.checkpoint=sharded")
    assert finish(start(steady, tmp_path / "one", "", read)) == 0
    assert finish(start(steady, tmp_path / "two", "SIGTERM train 20", sharded)) == 143, log_of(tmp_path / "two")
    found = [*run_folder(tmp_path / "two").glob("checkpoints/step=*")]
    assert found and all(path.is_dir() and path.suffix == ".ckpt" for path in found)
    assert finish(start(steady, tmp_path / "two", "", sharded)) == 0, log_of(tmp_path / "two")
    one, two = (load_file(run_folder(tmp_path / name) / "student/model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-2, atol=1e-3)


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_two_nodes_by_hand(steady: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    changes = ("training.nodes=2", "training.micro_batch_size=1")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DISTILL_LIT_MAIN_ADDRESS": address, "DISTILL_LIT_NODE_RANK": "1"}
    join = [sys.executable, "-m", "distill_lit.experiment.join", str(steady), str(tmp_path), *changes]
    other = subprocess.Popen(join, env=environment, stderr=subprocess.PIPE, text=True)
    first = {"DISTILL_LIT_MAIN_ADDRESS": address, "DISTILL_LIT_NODE_RANK": "0"}
    code, told = training_processes.cli("run", steady, *changes, "--root", tmp_path, **first)
    assert code == 0, told + log_of(tmp_path)
    assert (other.wait(60), [*tmp_path.rglob("student/model.safetensors")] != []) == (0, True)
    steps = [line for line in lines(tmp_path) if "train/tokens" in line]
    assert len(steps) == STEPS
    assert steps[-1]["train/tokens"] == STEPS * 2 * 3 * 32


def _validations(root: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["validation/loss"]) for line in lines(root) if "validation/loss" in line]


@pytest.mark.slow
def test_one_device_inside_slurm_stops_at_its_warning_and_requeues_nothing(steady: Path, tmp_path: Path) -> None:
    requeued = tmp_path / "requeued"
    (tmp_path / "scontrol").write_text(f"#!/bin/sh\ntouch {requeued}\n")
    (tmp_path / "scontrol").chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    inside = (*((k, v) for k, v in SURROUNDINGS.items() if not k.startswith("PL_")), ("PATH", path))
    assert finish(start(steady, tmp_path / "whole")) == 0
    root = tmp_path / "root"
    for number, point, step in (("SIGUSR1", "train 2", 1), ("SIGUSR2", "validate 5", 8)):
        assert finish(start(steady, root, f"{number} {point}", environment=inside)) == 143
        assert read_json(run_folder(root) / "state.json") == {"state": "preempted", "reason": f"{number} at step {step}"}
    assert not requeued.exists()
    assert not list(root.rglob("hpc_ckpt*"))
    (run_folder(root) / "hpc_ckpt_1.ckpt").write_bytes(b"left by another version")
    assert finish(start(steady, root, environment=inside)) == 0
    assert (lines(root), weights(root)) == (lines(tmp_path / "whole"), weights(tmp_path / "whole"))


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_one_rank_goes_on_where_two_have_stopped(steady: Path, tmp_path: Path) -> None:
    """The same run: every step once, with the losses of one rank from the beginning."""
    assert finish(start(steady, tmp_path / "one")) == 0
    root = tmp_path / "root"
    assert finish(start(steady, root, "SIGTERM train 7", TWO)) == 143
    assert read_json(run_folder(root) / "state.json")["state"] == "preempted"
    assert finish(start(steady, root)) == 0, log_of(root)
    ours, theirs = ([line for line in lines(path) if "train/loss" in line] for path in (root, tmp_path / "one"))
    assert [line["step"] for line in ours] == [line["step"] for line in theirs] == list(range(STEPS))
    for mine, other in zip(ours, theirs, strict=True):
        assert mine["train/loss"] == pytest.approx(other["train/loss"], rel=2e-3)
        assert mine["train/tokens"] == other["train/tokens"]


def test_what_a_cluster_says_is_taken_out_and_nothing_else() -> None:
    kept = {"PATH": "/bin", "SLURM_CONF": "/etc/slurm.conf", "HF_TOKEN": "x", "CUDA_VISIBLE_DEVICES": "0"}
    environment = {**SURROUNDINGS, **kept}
    remove_cluster_variables(environment)
    assert environment == kept


def said(root: Path) -> dict[str, Any]:
    return read_json(run_folder(root) / "state.json")


def living(root: Path) -> list[int]:
    """The ranks of a run that still run."""
    pids = [int(path.read_text()) for path in run_folder(root).glob("pid.*")]
    return [
        pid for pid in pids if Path(f"/proc/{pid}").exists() and "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    ]


@pytest.fixture(scope="module")
def whole(experiment: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ranks with dropout that nobody disturbed."""
    root = tmp_path_factory.mktemp("whole")
    assert finish(start(experiment, root, overrides=TWO)) == 0, log_of(root)
    return root


def go(experiment: Path, root: Path, deed: str = "kill 9 train 0", stop: str = "") -> int:
    """Runs two ranks until they end; none may be left. `deed` is done by a rank, `stop` by who started them."""
    code = finish(start(experiment, root, stop, TWO, environment=(("RANK_FAULTS", deed),)))
    training_processes.wait_until(lambda: not living(root), 20)
    return code


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_two_ranks_fail_like_one_and_go_on_bitwise(
    experiment: Path, whole: Path, tmp_path: Path, dropping_teacher: Path, tiny_corpus: Path
) -> None:
    assert go(experiment, tmp_path, "poison 1 train 18") == 1
    assert said(tmp_path)["reason"] == "FloatingPointError: loss is nan on rank 1 at step 6; the step was not taken"
    dump = read_json(run_folder(tmp_path) / "nonfinite.json")
    assert (dump["step"], dump["rank"], dump["loss"]) == (6, 1, "nan")
    assert dump["rows"] == _rows_of_second_rank(dropping_teacher, tiny_corpus, step=6)
    assert go(experiment, tmp_path, "kill 1 train 7") == 1
    assert said(tmp_path)["reason"] == "rank 1 was killed by SIGKILL, perhaps out of memory"
    assert go(experiment, tmp_path, "term 1 train 10") == 143
    assert said(tmp_path)["state"] == "preempted"
    assert go(experiment, tmp_path, "kill_last 0 validate *") == 1
    assert go(experiment, tmp_path) == 0, log_of(tmp_path)
    assert (lines(tmp_path), weights(tmp_path)) == (lines(whole), weights(whole))


def _rows_of_second_rank(teacher: Path, corpus: Path, step: int) -> list[list[int]]:
    """Of a step of two ranks with three rows each, by the seed alone."""
    config = DataConfig(
        corpora={"text": CorpusConfig(path=f"file:{corpus}")}, sequence_length=32, validation_sequences=6, max_tokens=4096
    )
    order = shuffled_row_indices(len(data.prepare_datasets(config, teacher, "pypi").train), 0, 6, start=6 * step)
    return [[int(row)] for row in order[1::2]]


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_a_full_disk_bad_input_and_signals_to_who_started_two_ranks(experiment: Path, whole: Path, tmp_path: Path) -> None:
    assert go(experiment, tmp_path, "fill 0 train 4") == 1
    assert "File too large" in said(tmp_path)["reason"]
    assert json.loads((run_folder(tmp_path) / "ended.json").read_text())["fatal"] is True
    assert go(experiment, tmp_path, "refuse 1 train 2") == 1
    assert said(tmp_path)["reason"] == "training.micro_batch_size: no"
    assert go(experiment, tmp_path, stop="SIGTERM train 20") == 143
    assert said(tmp_path)["state"] == "preempted"
    assert go(experiment, tmp_path, stop="SIGKILL train 10") == -signal.SIGKILL
    assert go(experiment, tmp_path) == 0, log_of(tmp_path)
    assert (lines(tmp_path), weights(tmp_path)) == (lines(whole), weights(whole))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_kill_9_of_the_command_leaves_no_rank(experiment: Path, tmp_path: Path) -> None:
    slow = "slow 0 train *"
    driver = training_processes.command("run", experiment, *TWO, "--root", tmp_path, RANK_FAULTS=slow, PYTHONPATH=SABOTAGE)
    training_processes.wait_until(lambda: list((tmp_path / "runs").glob("tiny/one-*/checkpoints/step=4.ckpt")), 200)
    assert len(living(tmp_path)) == 2
    driver.kill()
    driver.communicate()
    training_processes.wait_until(lambda: not living(tmp_path), 60)
    training_processes.wait_until(lambda: (run_folder(tmp_path) / "state.json").exists(), 20)
    assert said(tmp_path)["state"] == "preempted"


def _place(report: Any) -> tuple[int, int, int]:
    report("here")
    if get_rank() == 1:
        os.environ["SEEN"] = "in this process alone"
    return get_rank(), get_world_size(), os.getpid()


class Odd(Exception):
    """Cannot be unpickled."""

    def __init__(self, one: str, other: str) -> None:
        super().__init__(f"{one}, {other}")


def _fail(how: str, report: Any) -> None:
    if get_rank() == 1:
        if how == "leave":
            os._exit(3)
        raise {"odd": lambda: Odd("a", "b"), "user": lambda: UserError("key: no"), "exit": lambda: SystemExit(4)}[how]()
    torch.distributed.barrier()


@pytest.mark.timeout(200)
def test_together_from_python() -> None:
    told: list[Any] = []
    rank, count, process = spawn_ranks(2, _place, progress_callback=lambda *facts: told.append(facts))
    assert (rank, count, told) == (0, 2, [("here",)])
    assert process != os.getpid()
    assert "SEEN" not in os.environ
    for how, words in (
        ("odd", "RankFailure: Odd: a, b"),
        ("user", "UserError: key: no"),
        ("exit", "RankFailure: rank 1 ended with exit code 4"),
        ("leave", "RankFailure: rank 1 ended with exit code 3"),
    ):
        with pytest.raises((UserError, Exception)) as caught:
            spawn_ranks(2, _fail, how)
        assert f"{type(caught.value).__name__}: {caught.value}" == words
