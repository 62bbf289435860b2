"""Tasks that execute code which a model wrote: only where the config asks for it, and in a process of their own with an
empty environment, an empty working folder, limits, and no network where the system can take it away.

This keeps accidents and secrets in; it is no prison for code that wants to break out. For that, use a container.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from distill_lit.config.evaluation import EvaluationConfig
from distill_lit.models.loading import allow_remote_code, is_remote_code_allowed
from distill_lit.utils.exceptions import UserError
from distill_lit.utils.files import cache_root
from distill_lit.utils.path_variables import expand_path

MAX_FILE_BYTES = 256 << 20  # largest file that may be written
MAX_PROCESSES = 512
CORE_BYTES = 0
SANDBOX_TIMEOUT_SECONDS = 6 * 3600  # of wall clock for a whole task, the model included


def evaluate_in_sandbox(folder: Path, task: str, settings: EvaluationConfig, dataset_source: str, device: str) -> None:
    """Evaluates the model in `folder` on one task and leaves the result in the store. Raises UserError when it fails."""
    include_path = settings.include_path and str(expand_path(settings.include_path, "evaluation.include_path").resolve())
    job = {
        "folder": str(folder.resolve()),
        "code": is_remote_code_allowed(folder),
        "settings": {**asdict(settings), "tasks": [task], "include_path": include_path},
    }
    with tempfile.TemporaryDirectory(prefix="distill-lit-confined-") as workdir:
        command = [sys.executable, "-m", __name__, json.dumps({**job, "dataset_source": dataset_source, "device": device})]
        result = subprocess.run(
            [*_without_network(), *command],
            cwd=workdir,
            env=sandbox_environment(Path(workdir)),
            preexec_fn=_set_resource_limits,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=SANDBOX_TIMEOUT_SECONDS,
        )
    if result.returncode:
        message = (result.stderr.strip().splitlines() or [f"exit code {result.returncode}"])[-1]
        raise UserError(f"task {task!r}, which runs generated code, failed in its own process: {message}")


def sandbox_environment(home: Path) -> dict[str, str]:
    """What a confined process sees: where Python and the caches are, and nothing else."""
    import datasets
    from huggingface_hub import constants
    from transformers.utils.hub import HF_MODULES_CACHE

    return {
        "PATH": os.defpath,
        "HOME": str(home),
        "TMPDIR": str(home),
        "PYTHONPATH": os.pathsep.join(path for path in [*sys.path, os.getcwd()] if path),
        "DISTILL_LIT_CACHE": str(cache_root()),
        "HF_HUB_CACHE": constants.HF_HUB_CACHE,
        "HF_DATASETS_CACHE": str(datasets.config.HF_DATASETS_CACHE),  # where offline data of the hub are looked for
        "HF_MODULES_CACHE": HF_MODULES_CACHE,
        "HF_HUB_OFFLINE": "1",
        "HF_ALLOW_CODE_EVAL": "1",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(os.cpu_count() or 1)),
        "TOKENIZERS_PARALLELISM": "false",
    }


def _without_network() -> list[str]:
    """A prefix that takes the network away, where the system lets us."""
    prefix = ["unshare", "--user", "--map-current-user", "--net"]
    if shutil.which("unshare") is None:
        return []
    works = subprocess.run([*prefix, "true"], capture_output=True, timeout=10).returncode == 0
    return prefix if works else []


def _set_resource_limits() -> None:
    for kind, value in (
        (resource.RLIMIT_FSIZE, MAX_FILE_BYTES),
        (resource.RLIMIT_CORE, CORE_BYTES),
        (resource.RLIMIT_NPROC, MAX_PROCESSES),
        (resource.RLIMIT_CPU, SANDBOX_TIMEOUT_SECONDS * (os.cpu_count() or 1)),  # of all threads together
    ):
        _, most = resource.getrlimit(kind)
        resource.setrlimit(kind, (value if most == resource.RLIM_INFINITY else min(value, most),) * 2)


def sandbox_main(text: str) -> None:
    """The confined process: one task, its result into the store."""
    from distill_lit.evaluation.evaluator import evaluate_in_process

    job = json.loads(text)
    if job["code"]:
        allow_remote_code(Path(job["folder"]))
    settings = EvaluationConfig(**job["settings"])
    evaluate_in_process(Path(job["folder"]), settings, job["dataset_source"], device=job["device"], in_sandbox=True)


if __name__ == "__main__":
    sandbox_main(sys.argv[1])
