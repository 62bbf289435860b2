"""Where runs happen: on this machine, or as jobs of SLURM."""

from typing import Any, Literal

from pydantic import Field

from distill_lit.config.fields import Bool, Count, Int, Text, config_section


@config_section
class SlurmConfig:
    """What the jobs of an experiment ask SLURM for, as `sbatch` calls it."""

    partition: Text = Field(default="", description="partition of its jobs; empty: the default one")
    account: Text = Field(default="", description="account that pays; empty: the user's default")
    qos: Text = Field(default="", description="quality of service; empty: the default one")
    constraint: Text = Field(default="", description="features that nodes must have; empty: any")
    time: Int = Field(default=240, ge=1, le=525_600, description="minutes of one job; a run goes on in the next one")
    gpus_per_node: Int = Field(
        default=1, ge=0, le=64, description="GPUs of a job; one that trains has training.devices. 0: processors alone"
    )
    cpus_per_task: Int = Field(default=8, ge=1, le=4096, description="processor cores of each process")
    memory: Count = Field(default=0, ge=0, description="GB of memory on each node of a job; 0: what the cluster gives")
    warn: Int = Field(
        default=120, ge=5, le=65_535, description="seconds before the end of a job at which runs save and leave"
    )
    restarts: Count = Field(
        default=20, ge=0, description="times that a run goes on after the end of a job's time; preemptions do not count"
    )
    setup: list[Text] = Field(default_factory=list, description="shell lines before Python, as `module load cuda`")
    extra: dict[Text, Any] = Field(default_factory=dict, description="any other option of sbatch, {option: value}")


@config_section
class LauncherConfig:
    """Where runs happen. Nothing here changes a result beyond the rounding of another device."""

    engine: Literal["local", "slurm"] = Field(
        default="local", description="local: processes on this machine; slurm: jobs of a SLURM cluster"
    )
    workers: Int = Field(default=1, ge=1, le=4096, description="runs at a time")
    threads_per_worker: Int = Field(
        default=0, ge=0, le=4096, description="CPU threads per worker, for all its ranks together; 0: all cores, shared out"
    )
    gpus_per_run: Int = Field(
        default=0, ge=0, le=64, description="GPUs of this machine for each of several workers; 0: training.devices of them"
    )
    workers_per_gpu: Int = Field(
        default=1, ge=1, le=64, description="workers that may share one GPU of this machine and its memory"
    )
    teacher_device: Text = Field(
        default="",
        description="device of an online teacher, as cuda:1 or cpu; auto: of a teacher whose cache is written, all devices "
        "here, then memory and disk for what does not fit; empty: the student's",
    )
    on_mismatch: Literal["refuse", "resume", "restart"] = Field(
        default="refuse",
        description="a checkpoint of another model, data or objective: refuse it, resume all the same, or restart the run",
    )
    reuse_runs: Bool = Field(
        default=True,
        description="take a model that another experiment under the same root has made, with the same fingerprint, and its "
        "records, instead of making it again",
    )
    slurm: SlurmConfig = Field(default_factory=SlurmConfig, description="what jobs ask SLURM for")
