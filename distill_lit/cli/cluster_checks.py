"""What `doctor --cluster` looks at: SLURM's commands, the partition, its limits, and what a compute node says."""

from collections.abc import Iterator
from pathlib import Path

from distill_lit.cli.finding import BAD, GOOD, WARNING, Finding
from distill_lit.config import ExperimentConfig
from distill_lit.experiment.launcher.slurm.arrays import GPU_FREE
from distill_lit.experiment.launcher.slurm.checks import check_partition, check_submitit
from distill_lit.experiment.launcher.slurm.node import ask_node
from distill_lit.experiment.launcher.slurm.squeue import (
    Partition,
    SlurmError,
    cluster_settings,
    has_slurm,
    partitions,
    run_command,
)
from distill_lit.utils.exceptions import UserError

MAX_CLOCK_DIFFERENCE = 30.0  # seconds between two machines, from which leases would be taken for older than they are


def check_slurm(config: ExperimentConfig, folder: Path) -> Iterator[Finding]:
    """Everything about the cluster, in the order in which it would be missed. folder: of the runs."""
    try:
        check_submitit()
        yield Finding("submitit", GOOD, "installed")
    except UserError as error:
        yield Finding("submitit", BAD, "not installed", str(error).partition("; ")[2])
    if not has_slurm():
        yield Finding("SLURM", BAD, "sbatch, squeue, scontrol or sinfo is not here", "go where jobs are submitted")
        return
    try:
        settings, known = cluster_settings(), partitions()
    except SlurmError as error:
        yield Finding("SLURM", BAD, str(error), "ask who runs the cluster whether its controller is up")
        return
    version, name = settings.get("SLURM_VERSION", "of unknown version"), settings.get("ClusterName", "")
    limit = settings.get("MaxArraySize", "?")
    yield Finding("SLURM", GOOD, f"{version}, cluster {name}, arrays of less than {limit}")
    yield _partition(config, known)
    yield _accounting()
    yield from check_node(config, folder)


def _partition(config: ExperimentConfig, known: dict[str, Partition]) -> Finding:
    slurm = config.launcher.slurm
    name = slurm.partition or next((one.name for one in known.values() if one.is_default), "none")
    try:
        check_partition(slurm, known, [])
    except UserError as error:
        found, _, remedy = str(error).partition("; ")
        return Finding("partition", BAD, found, remedy)
    one = known[name.split(",")[0]]
    longest = f"jobs of at most {one.minutes} minutes" if one.minutes else "no limit of time"
    return Finding("partition", GOOD, f"{name}: {one.nodes} nodes, {one.cpus} cores, {one.gpus} GPUs each; {longest}")


def _accounting() -> Finding:
    try:
        run_command(["sacct", "--noheader", "--format=JobID"])
    except SlurmError as error:
        return Finding("accounting", WARNING, str(error), "none is needed: what is done is read from disk")
    return Finding("accounting", GOOD, "sacct answers; nothing here depends on it")


def check_node(config: ExperimentConfig, folder: Path) -> Iterator[Finding]:
    """What a compute node says: whether it has this Python, sees the folder, its locks, the time and its GPUs."""
    import time

    try:
        asked, found = time.time(), ask_node(config, folder, is_urgent=True)
    except SlurmError as error:
        yield Finding("compute node", WARNING, str(error), "try again when a node is free; srun must work from here")
        return
    host = found["host"]
    yield Finding("compute node", GOOD, f"{host} runs this Python, after {time.time() - asked:.0f} s")
    yield (
        Finding("shared folder", GOOD, f"{host} sees {folder}")
        if found["token_seen"]
        else Finding("shared folder", BAD, f"{host} does not see {folder}", "choose a --root that all nodes share")
    )
    lock = "keeps another node out" if found["flock_is_shared"] else "is local to each node"
    yield Finding("flock", GOOD if found["flock_is_shared"] else WARNING, f"it {lock}; runs are held by leases in any case")
    ahead = max(asked - found["time"], found["time"] - time.time(), 0.0)
    good = ahead < MAX_CLOCK_DIFFERENCE
    yield Finding("clocks", GOOD if good else BAD, f"{ahead:.0f} s apart", "" if good else "have the nodes' clocks set")
    if config.launcher.slurm.gpus_per_node and config.training.accelerator != GPU_FREE:
        gpus = "; ".join(found["gpus"]) or "none is seen by a job that asks for none"
        yield Finding("GPUs of the node", WARNING if not found["gpus"] else GOOD, gpus)
