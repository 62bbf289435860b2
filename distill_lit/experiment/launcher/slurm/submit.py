"""Hands arrays to SLURM through submitit."""

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distill_lit.config import ExperimentConfig
from distill_lit.experiment.launcher.slurm.arrays import Array, workers_of
from distill_lit.experiment.launcher.slurm.records import records_folder, write_record
from distill_lit.experiment.launcher.slurm.squeue import SlurmError, job_name
from distill_lit.experiment.launcher.slurm.task import run_task
from distill_lit.utils.exceptions import one_line_message

SUBMITIT_TIMEOUTS = 10**6  # this suite counts them itself


def submit_array(config: ExperimentConfig, folder: Path, array: Array, after: Sequence[str]) -> str:
    """Submits an array whose tasks may begin once the jobs `after` have ended, well or not; its id. Raises SlurmError."""
    import submitit
    from submitit.core.utils import FailedSubmissionError, UncompletedJobError

    tag = write_record(folder, array.tasks)
    executor = submitit.SlurmExecutor(folder=records_folder(folder) / tag, max_num_timeout=SUBMITIT_TIMEOUTS)
    executor.update_parameters(**sbatch_options(config, array, after, tag))
    count = len(array.tasks)
    try:
        jobs = executor.map_array(run_task, [str(folder)] * count, [tag] * count, range(count))
    except (UncompletedJobError, FailedSubmissionError, subprocess.SubprocessError, OSError) as error:
        for path in records_folder(folder).glob(f"{tag}.json*"):
            path.unlink()
        raise SlurmError(f"sbatch: {_said(error)}") from error
    return str(jobs[0].job_id).partition("_")[0]


def _said(error: Exception) -> str:
    """What sbatch has said, out of what submitit says around it."""
    lines = [line for line in str(error).splitlines() if line.startswith("sbatch:")]
    return one_line_message(Exception(" ".join(lines).replace("sbatch:", ""))) if lines else one_line_message(error)


def sbatch_options(config: ExperimentConfig, array: Array, after: Sequence[str], tag: str) -> dict[str, Any]:
    """What an array asks for, under submitit's names."""
    slurm, shape = config.launcher.slurm, array.shape
    options = {
        "job_name": job_name(config.name, tag),
        "time": slurm.time,
        "signal_delay_s": slurm.warn,
        "nodes": shape.nodes,
        "ntasks_per_node": 1,
        "cpus_per_task": shape.cpus,
        "gpus_per_node": shape.gpus or None,
        "mem": f"{slurm.memory}G" if slurm.memory else None,
        "partition": slurm.partition or None,
        "account": slurm.account or None,
        "qos": slurm.qos or None,
        "constraint": slurm.constraint or None,
        "setup": slurm.setup or None,
        "dependency": f"afterany:{':'.join(after)}" if after else None,
        "array_parallelism": workers_of(config, array),
        "stderr_to_stdout": True,
        # srun takes --cpus-per-task no more from sbatch; a rank that has died ends the others
        "srun_args": [f"--cpus-per-task={shape.cpus}", "--kill-on-bad-exit=1"],
        "wckey": "",
        "additional_parameters": {"requeue": True, **slurm.extra},
    }
    return {name: value for name, value in options.items() if value is not None}
