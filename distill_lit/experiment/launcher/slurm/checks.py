"""What the cluster will not take, found before anything is submitted."""

import re
from collections.abc import Sequence
from importlib.util import find_spec

from distill_lit.config import ExperimentConfig, SlurmConfig
from distill_lit.experiment.launcher.slurm.arrays import job_shape
from distill_lit.experiment.launcher.slurm.squeue import (
    Partition,
    SlurmError,
    cluster_settings,
    has_slurm,
    partitions,
)
from distill_lit.experiment.planning.planned_run import EVALUATE, Run
from distill_lit.utils.exceptions import UserError, suggest

MAX_TASKS = 1000  # of one array, where the cluster takes more
MIN_WORK_SECONDS = 60.0  # of a job, beside the warning: libraries are imported, models are loaded
NAMED = ("partition", "account", "qos", "constraint")


def check_slurm_config(slurm: SlurmConfig) -> None:
    """Raises UserError for values that no cluster takes."""
    for key in NAMED:
        if not re.fullmatch(r"[\w.,:|&*()\[\]=-]*", getattr(slurm, key)):
            raise UserError(f"launcher.slurm.{key}: {getattr(slurm, key)[:80]!r} is no name")
    for key, value in slurm.extra.items():
        if not re.fullmatch(r"[a-z][a-z-]+", key) or not isinstance(value, (str, int, float, bool)):
            raise UserError(f"launcher.slurm.extra: {key!r}: {value!r} is no option of sbatch with its value")
        if "\n" in str(value):
            raise UserError(f"launcher.slurm.extra.{key}: one line is needed")
    if slurm.time * 60 < slurm.warn + MIN_WORK_SECONDS:
        raise UserError(
            f"launcher.slurm.time: {slurm.time} minutes, of which {slurm.warn} s are left to save (launcher.slurm.warn); "
            f"give at least {-(-(slurm.warn + int(MIN_WORK_SECONDS)) // 60)} minutes, or a shorter warning"
        )


def check_submitit() -> None:
    """Raises UserError where submitit is not installed."""
    if find_spec("submitit") is None:
        raise UserError("launcher.engine: slurm needs submitit; pip install submitit")


def check_cluster(config: ExperimentConfig, runs: Sequence[Run]) -> None:
    """Raises UserError for what this cluster will not take."""
    slurm = config.launcher.slurm
    check_slurm_config(slurm)
    check_submitit()
    if not has_slurm():
        raise UserError("launcher.engine: slurm: sbatch is not here; run this where jobs are submitted, as on a login node")
    try:
        known = partitions()
    except SlurmError as error:
        raise UserError(f"launcher.engine: slurm: {error}") from error
    check_partition(slurm, known, runs)


def check_partition(slurm: SlurmConfig, known: dict[str, Partition], runs: Sequence[Run]) -> None:
    """Raises UserError for a partition that there is not, a time that it does not give, nodes smaller than a job."""
    if slurm.partition and (lost := [name for name in slurm.partition.split(",") if name not in known]):
        raise UserError(f"launcher.slurm.partition: this cluster has no {lost[0]!r}{suggest(lost[0], known)}")
    names = slurm.partition.split(",") if slurm.partition else [one.name for one in known.values() if one.is_default]
    chosen = [known[name] for name in names]
    if not chosen:
        raise UserError(f"launcher.slurm.partition: this cluster has no default; choose from {', '.join(sorted(known))}")
    longest = 0 if any(one.minutes == 0 for one in chosen) else max(one.minutes for one in chosen)
    if longest and slurm.time > longest:
        raise UserError(f"launcher.slurm.time: {slurm.time} minutes, and {', '.join(names)} gives at most {longest}")
    for shape in {job_shape(run, part) for run in runs for part in ("", EVALUATE)}:
        cpus, gpus = max(one.cpus for one in chosen), max(one.gpus for one in chosen)
        if shape.gpus > gpus:
            remedy = "set launcher.slurm.gpus_per_node=0 and training.accelerator=cpu" if not gpus else "ask for fewer"
            raise UserError(
                f"launcher.slurm: a job needs {shape.gpus} GPUs of a node, and {', '.join(names)} has {gpus}; {remedy}"
            )
        if shape.nodes > max(one.nodes for one in chosen):
            most = max(one.nodes for one in chosen)
            raise UserError(f"training.nodes: {shape.nodes}, and {', '.join(names)} has {most}")
        if shape.cpus > cpus:
            raise UserError(
                f"launcher.slurm.cpus_per_task: a job needs {shape.cpus} cores of a node, and {', '.join(names)} has {cpus}"
            )


def array_limit() -> int:
    """Tasks of the largest array. Raises SlurmError."""
    found = re.match(r"\d+", cluster_settings().get("MaxArraySize", ""))
    return max(1, min(MAX_TASKS, int(found[0]) if found else MAX_TASKS))
