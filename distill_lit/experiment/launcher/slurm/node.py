"""Asks a compute node: whether it sees a folder, and which number format is its fastest."""

import contextlib
import fcntl
import functools
import json
import secrets
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from distill_lit.config import ExperimentConfig, LauncherConfig
from distill_lit.experiment.launcher.slurm.arrays import GPU_FREE
from distill_lit.experiment.launcher.slurm.checks import check_cluster
from distill_lit.experiment.launcher.slurm.probe import FLOCK_NAME, TOKEN_NAME
from distill_lit.experiment.launcher.slurm.records import records_folder
from distill_lit.experiment.launcher.slurm.squeue import SlurmError, cluster_settings, has_slurm, run_command
from distill_lit.experiment.planning.precision import keep_dtypes, read_kept_dtypes
from distill_lit.utils.exceptions import UserError
from distill_lit.utils.files import cache_root, fingerprint, read_mapping, write_json

FREE_NODE_SECONDS = 30  # in which a node must be free for a question that is only asked to be sure
SETTLE_SECONDS = 900.0  # for a node to say which number format is its fastest


def ask_node(config: ExperimentConfig, folder: Path, accelerator: str = "", is_urgent: bool = False) -> dict[str, Any]:
    """What `probe` says on a node of the partition; `token_seen` and `flock_is_shared` are added. Raises SlurmError where
    none answers, and with `is_urgent` where none is free at once."""
    with _marked(folder) as token:
        words = ["srun", *_options(config.launcher, config.training.accelerator, bool(accelerator)), "--quiet"]
        words += [f"--immediate={FREE_NODE_SECONDS}"] if is_urgent else []
        words += [sys.executable, "-m", "distill_lit.experiment.launcher.slurm.probe", str(folder), accelerator]
        text = run_command(words, 4 * FREE_NODE_SECONDS if is_urgent else SETTLE_SECONDS)
    lines = [line for line in text.splitlines() if line.startswith("PROBE ")]
    if not lines:
        raise SlurmError("a compute node has not answered")
    found: dict[str, Any] = json.loads(lines[-1].removeprefix("PROBE "))
    return {**found, "token_seen": found["token"] == token, "flock_is_shared": not found["flock"]}


@contextlib.contextmanager
def _marked(folder: Path) -> Iterator[str]:
    """Inside, the folder holds a file with the text that is yielded, and a locked one."""
    existed = next(path for path in (folder, *folder.parents) if path.exists())
    folder.mkdir(parents=True, exist_ok=True)
    token = secrets.token_hex(8)
    (folder / TOKEN_NAME).write_text(token)
    try:
        with (folder / FLOCK_NAME).open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield token
    finally:
        for name in (TOKEN_NAME, FLOCK_NAME):
            (folder / name).unlink(missing_ok=True)
        while folder != existed and not any(folder.iterdir()):
            folder.rmdir()
            folder = folder.parent


def _options(launcher: LauncherConfig, accelerator: str, with_gpu: bool) -> list[str]:
    """A job of one process on the partition of the experiment."""
    slurm = launcher.slurm
    named = {key: getattr(slurm, key) for key in ("partition", "account", "qos", "constraint")}
    found = [f"--{key}={value}" for key, value in named.items() if value]
    if with_gpu and slurm.gpus_per_node and accelerator != GPU_FREE:
        found.append("--gpus-per-node=1")
    return [*found, "--nodes=1", "--ntasks=1", f"--cpus-per-task={slurm.cpus_per_task}", "--time=10", "--job-name=probe"]


def check_shared_folder(config: ExperimentConfig, folder: Path, note: Callable[[str], None]) -> None:
    """Before the first jobs of an experiment. Raises UserError for a folder that compute nodes do not see; where none is
    free to say so, that is noted."""
    if records_folder(folder).is_dir():
        return
    try:
        found = ask_node(config, folder, is_urgent=True)
    except SlurmError as error:
        note(f"no compute node was free to say whether it sees {folder} ({error})")
        return
    if not found["token_seen"]:
        raise UserError(f"{folder}: {found['host']} does not see it; choose a --root that all nodes share, as below $HOME")


class ClusterDtypes:
    """The fastest number format of the compute nodes that runs ask for, once measured: beside the runs in a folder,
    where it stays the same whatever SLURM says later, or, before the first of them, for all experiments of this cluster."""

    def __init__(self, folder: Path) -> None:
        """folder: of the runs of an experiment."""
        self.folder = folder
        self._kept = read_kept_dtypes(folder)

    def of(self, config: ExperimentConfig) -> str:
        """The number format of a config; empty where no node has been asked, or SLURM is not on this machine. Raises
        UserError where SLURM does not answer: which cluster this is decides what identifies a run."""
        if (kept := self._kept.get(_node_kind(config))) is not None:
            return str(kept["dtype"])
        if not has_slurm():
            return ""
        return str(read_mapping(self._cached_path(config)).get("dtype", ""))

    def measure(self, config: ExperimentConfig) -> None:
        """Has a compute node measure, unless it is known. Raises UserError where none answers."""
        if _node_kind(config) in self._kept:
            return
        check_cluster(config, [])
        path = self._cached_path(config)
        if "dtype" not in read_mapping(path):
            write_json(path, _measured_dtype(config, self.folder))
        self._kept = keep_dtypes(self.folder, {_node_kind(config): read_mapping(path)})

    def _cached_path(self, config: ExperimentConfig) -> Path:
        return cache_root() / "hardware" / f"slurm-{fingerprint([self._cluster, *_node_facts(config)])}.json"

    @functools.cached_property
    def _cluster(self) -> str:
        try:
            return cluster_settings().get("ClusterName", "")
        except SlurmError as error:
            raise UserError(
                f"launcher.engine: slurm: {error}; training.precision: auto is what was measured on this cluster, so ask "
                "again later, or set it, teacher.dtype and evaluation.dtype"
            ) from error


def _node_facts(config: ExperimentConfig) -> list[Any]:
    """By what a job is given one kind of node or another: partition, constraint, whether it has GPUs."""
    slurm = config.launcher.slurm
    return [slurm.partition, slurm.constraint, slurm.gpus_per_node > 0 and config.training.accelerator != GPU_FREE]


def _node_kind(config: ExperimentConfig) -> str:
    partition, constraint, has_gpus = _node_facts(config)
    return f"partition={partition} constraint={constraint} {'gpu' if has_gpus else 'cpu'}"


def _measured_dtype(config: ExperimentConfig, folder: Path) -> dict[str, str]:
    """{dtype, host} of a node that was asked. Raises UserError."""
    try:
        found = ask_node(config, folder, config.training.accelerator)
    except SlurmError as error:
        raise UserError(
            f"training.precision: auto is measured on a compute node, and none answers ({error}); set it, teacher.dtype "
            "and evaluation.dtype to float32 or bfloat16"
        ) from error
    if not found["token_seen"]:
        raise UserError(f"{folder}: {found['host']} does not see it; choose a --root that all nodes share, as below $HOME")
    return {"dtype": found["dtype"], "host": found["host"]}
