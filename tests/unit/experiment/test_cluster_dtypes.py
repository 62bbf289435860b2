"""What `auto` stands for: measured here or asked of a cluster, kept beside the runs, the same whatever is said later."""

import os
from pathlib import Path
from socket import gethostname
from threading import Event, Thread
from typing import Any

import pytest
import torch

from distill_lit.experiment.estimates import run_estimate as estimate
from distill_lit.experiment.experiment import Experiment
from distill_lit.experiment.launcher import launch
from distill_lit.experiment.launcher.outcome import Outcome
from distill_lit.experiment.launcher.slurm import node
from distill_lit.experiment.planning.precision import LocalDtypes, read_kept_dtypes
from distill_lit.utils import hardware
from distill_lit.utils.exceptions import UserError
from distill_lit.utils.files import merge_json, read_json, read_mapping

SCRIPT = """#!/bin/sh
echo x >> "$CALLS"
[ -e "$CALLS.broken" ] && { echo "Unable to contact slurm controller" >&2; exit 1; }
echo "$SAYS"
"""
GRID = ["launcher.engine=slurm", "launcher.slurm.gpus_per_node=0", "training.accelerator=cpu", "baselines=[]",
        "objective.terms.kl={kind: forward_kl, weight: 1}", "grid={student: [deep], seed: [0, 1, 2]}"]  # fmt: skip


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A line for each call of scontrol; `calls.broken` takes the controller away. A node says bfloat16, this machine
    float32."""
    commands, calls = tmp_path / "bin", tmp_path / "calls"
    commands.mkdir()
    said = {"scontrol": "ClusterName = blue", "sinfo": "main*|infinite|2|64|(null)", "sbatch": "", "squeue": ""}
    for name, line in said.items():
        (commands / name).write_text(SCRIPT.replace('"$SAYS"', f"'{line}'").replace("$CALLS", f"{calls}.{name}"))
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(node, "cache_root", lambda: tmp_path / "cache")
    monkeypatch.setattr(hardware, "fastest_dtype", lambda _: "float32")
    answer = {"dtype": "bfloat16", "host": "node1", "token_seen": True}
    monkeypatch.setattr(node, "ask_node", lambda *_, **__: answer)
    return calls


def experiment(root: Path, *changes: str) -> Experiment:
    return Experiment.from_yaml("quickstart", [*GRID, *changes], root)


def break_slurm(calls: Path) -> None:
    for name in ("scontrol", "sinfo"):
        calls.with_name(f"{calls.name}.{name}.broken").touch()


def num_calls(calls: Path) -> int:
    path = calls.with_name(f"{calls.name}.scontrol")
    return len(path.read_text().split()) if path.is_file() else 0


def test_a_controller_that_is_gone_changes_no_fingerprint(tmp_path: Path, calls: Path) -> None:
    first = experiment(tmp_path)
    first.measure_cluster()
    assert first.runs[0].config.training.precision == "bfloat16"
    assert num_calls(calls) == 1  # whatever the number of points
    break_slurm(calls)
    again = experiment(tmp_path)
    again.measure_cluster()
    assert [run.name for run in again.runs] == [run.name for run in first.runs]
    assert again.resolved_config.evaluation.dtype == "bfloat16"
    assert num_calls(calls) == 1
    (kept,) = read_json(tmp_path / "runs/quickstart/dtypes.json").values()
    assert kept == {"dtype": "bfloat16", "host": "node1"}


def test_where_nothing_is_kept_a_controller_that_is_gone_is_one_line(tmp_path: Path, calls: Path) -> None:
    experiment(tmp_path).measure_cluster()  # the cluster's own answer is in the cache now
    there = experiment(tmp_path / "elsewhere")
    assert there.runs[0].config.training.precision == "bfloat16" and num_calls(calls) == 2
    break_slurm(calls)
    with pytest.raises(UserError, match=r"launcher\.engine: slurm: scontrol: Unable to contact.*ask again later"):
        assert experiment(tmp_path / "third").runs
    named = ("training.precision=float32", "teacher.dtype=float32", "evaluation.dtype=float32")
    assert experiment(tmp_path / "third", *named).runs


def test_other_nodes_are_asked_for_themselves(tmp_path: Path, calls: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = experiment(tmp_path)
    first.measure_cluster()
    asked: list[str] = []

    def ask_node(config, *_):  # type: ignore[no-untyped-def]
        asked.append(config.launcher.slurm.partition)
        return {"dtype": "float32", "host": "node2", "token_seen": True}

    monkeypatch.setattr(node, "ask_node", ask_node)
    other = experiment(tmp_path, "launcher.slurm.partition=main")
    other.measure_cluster()
    other.measure_cluster()
    assert asked == ["main"] and other.runs[0].config.training.precision == "float32"
    assert sorted(read_json(tmp_path / "runs/quickstart/dtypes.json")) == [
        "partition= constraint= cpu",
        "partition=main constraint= cpu",
    ]


def test_a_node_that_is_asked_meanwhile_leaves_what_machines_have_kept(tmp_path: Path, calls: Path) -> None:
    cluster = experiment(tmp_path)
    local_dtypes, cluster_dtypes = LocalDtypes(cluster.runs_folder), node.ClusterDtypes(cluster.runs_folder)
    local_dtypes.of(cluster.config)
    local_dtypes.keep()
    cluster_dtypes.measure(cluster.config)
    assert {kind: facts["dtype"] for kind, facts in read_kept_dtypes(cluster.runs_folder).items()} == {
        "local cpu": "float32",
        "partition= constraint= cpu": "bfloat16",
    }


def test_a_second_writer_waits_for_the_first_and_loses_nothing_of_it(tmp_path: Path) -> None:
    path, has_read, is_second_done = tmp_path / "known.json", Event(), Event()

    def read_slowly(path: Path) -> dict[str, Any]:
        known = read_mapping(path)
        has_read.set()
        is_second_done.wait(0.3)  # never comes in time where writers wait
        return known

    def write_second() -> None:
        has_read.wait(30)
        merge_json(path, {"b": 2, "a": 3})
        is_second_done.set()

    second = Thread(target=write_second)
    second.start()
    assert merge_json(path, {"a": 1}, read_slowly) == {"a": 1}
    second.join()
    assert read_json(path) == {"a": 1, "b": 2}


def test_runs_that_were_planned_before_are_planned_again(tmp_path: Path, calls: Path) -> None:
    """`generate` and `cache` look for their runs first, by this machine's number format."""
    early = experiment(tmp_path)
    before = [run.name for run in early.runs]
    early.measure_cluster()
    assert [run.name for run in early.runs] != before


def test_this_machine_measures_once_and_all_shards_take_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another machine, or as many threads as another day, would say bfloat16: the runs stay those that have begun."""
    said, measured = ["float32"], list[str]()

    def fastest_dtype(device: torch.device) -> str:
        measured.append(device.type)
        return said[0]

    def local(*changes: str) -> Experiment:
        cpu = ("training.accelerator=cpu", "grid={student: [deep], seed: [0, 1, 2]}", *changes)
        return Experiment.from_yaml("quickstart", cpu, tmp_path)

    monkeypatch.setattr(hardware, "fastest_dtype", fastest_dtype)
    monkeypatch.setattr(launch, "launch_runs", lambda *_: Outcome())
    monkeypatch.setattr(estimate, "estimate_runs", lambda _: {})
    monkeypatch.setattr(estimate, "require_disk_space", lambda *_: None)
    first, late = local(), local()
    names = [run.name for run in first.runs]
    assert measured == ["cpu"]  # whatever the number of points
    assert not first.runs_folder.exists()  # nothing has begun
    said[0] = "bfloat16"
    assert [run.name for run in late.runs] != names  # planned while nothing is kept
    first.launch()
    assert read_json(first.runs_folder / "dtypes.json") == {"local cpu": {"dtype": "float32", "host": gethostname()}}
    again = local()
    assert [run.name for run in again.runs] == names and again.resolved_config.evaluation.dtype == "float32"
    again.launch()
    assert measured == ["cpu", "cpu"]
    with pytest.raises(UserError, match="dtypes.json: .* has just chosen float32 for auto; the same command again"):
        late.launch()
    (first.runs_folder / "dtypes.json").write_text("[")  # damaged: measured again
    assert local().resolved_config.training.precision == "bfloat16"
