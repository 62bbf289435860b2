"""A SLURM cluster on this machine, for tests: `tests/helpers/slurm/start`."""

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

SCRIPTS = Path(__file__).parent / "slurm"
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue")


def missing() -> str:
    """Why there can be no cluster here; empty where there can."""
    if os.geteuid() != 0:
        return "only root can start SLURM"
    lost = [name for name in PROGRAMS if shutil.which(name) is None]
    return f"there is no {lost[0]}: apt-get install munge slurmctld slurmd slurm-client" if lost else ""


@contextlib.contextmanager
def cluster(nodes: int = 2, cpus: int = 4) -> Iterator[Path]:
    """Inside, SLURM_CONF leads to a cluster; yields its folder, which is not deep: a socket is in it."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
    before = os.environ.get("SLURM_CONF")
    environment = {**os.environ, "SLURM_TEST_CPUS": str(cpus)}
    try:
        words = [SCRIPTS / "start", folder, str(nodes)]
        done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
        yield folder
    finally:
        subprocess.run([SCRIPTS / "stop", folder], env=environment, timeout=120, check=False)
        os.environ.pop("SLURM_CONF", None)
        if before is not None:
            os.environ["SLURM_CONF"] = before
        shutil.rmtree(folder, ignore_errors=True)


def say(*words: str) -> str:
    """What a command of SLURM prints."""
    return subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout.strip()


def warn_of_end(job: str) -> None:
    """The signal that SLURM sends before the end of a job's time. 22.05 sends it to a task of an array whose others wait,
    says that it could not, and tries again for a minute."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        subprocess.run(["scancel", "--signal=USR2", job], capture_output=True, check=False, timeout=4)


def queue(*columns: str) -> list[str]:
    """A line for each job: id, name, state, node, reason."""
    return say("squeue", "--noheader", "--array", f"--format={'|'.join(columns) or '%i|%j|%T|%N|%r'}").splitlines()


SETTLE_SECONDS = 2.5  # a node refuses a job that comes back within the second in which it was ended there
_requeued_since: dict[str, float] = {}


def kick() -> None:
    """Lets requeued jobs start once they have settled: SLURM has them wait two minutes."""
    waiting = [line.partition("|")[0] for line in queue("%i", "%r") if line.endswith("|BeginTime")]
    for job in set(_requeued_since) - set(waiting):
        del _requeued_since[job]
    for job in waiting:
        if time.monotonic() - _requeued_since.setdefault(job, time.monotonic()) > SETTLE_SECONDS:
            subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now"], timeout=60, capture_output=True)


def wait_until(condition: Callable[[], object], seconds: float = 120.0, each: Callable[[], object] = lambda: None) -> None:
    """Waits; `each` is called between looks."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, queue()
        each()
        time.sleep(0.2)


def restart_controller(folder: Path) -> None:
    """kill -9 to slurmctld, and another one with its state."""
    pid = int((folder / "pids/slurmctld").read_text())
    os.kill(pid, 9)
    time.sleep(0.5)
    subprocess.run(["slurmctld", "-f", folder / "slurm.conf"], check=True, capture_output=True, timeout=60)
    wait_until(lambda: subprocess.run(["scontrol", "ping"], capture_output=True, check=False).returncode == 0, 30)
