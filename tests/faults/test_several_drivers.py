"""Several drivers over one folder, as on several machines that share it: nothing is done twice, nothing is left out."""

import argparse
import io
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import sleeping_driver
from rich.console import Console

from distill_lit.cli.commands import stop as stop_command
from distill_lit.experiment.launcher.drivers import driver_lease, find_drivers
from distill_lit.experiment.state import claims
from distill_lit.experiment.state.claims import InUse, claim_folder, holder_of, is_claimed

HELPERS = Path(sleeping_driver.__file__).parent
COUNT = 60


def start_driver(folder: Path, shard: str, host: str) -> "subprocess.Popen[str]":
    """A driver, on a machine of its own name where the system allows it."""
    path = [str(HELPERS / "slurm/sleeping"), str(HELPERS.parents[1]), os.environ.get("PYTHONPATH", "")]
    words = [sys.executable, str(HELPERS / "sleeping_driver.py"), str(folder), str(COUNT), shard]
    if os.geteuid() == 0 and shutil.which("unshare"):
        words = ["unshare", "--uts", "sh", "-c", f'hostname {host}; exec "$@"', "sh", *words]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("shards", [("1/1", "1/1"), ("1/2", "2/2")], ids=["whole", "halves"])
def test_sixty_runs_from_two_drivers_are_each_done_once(tmp_path: Path, shards: tuple[str, str]) -> None:
    drivers = [start_driver(tmp_path, shard, f"machine{number}") for number, shard in enumerate(shards)]
    for driver in drivers:
        said, _ = driver.communicate(timeout=300)
        assert driver.returncode == 0, said
    runs = sleeping_driver.sleeping_runs(COUNT)
    taken = {run.name: (tmp_path / run.name / "steps.txt").read_text().split() for run in runs}
    assert taken == {run.name: ["1", "2"] for run in runs}


def test_a_lease_keeps_others_out_and_dies_with_its_holder(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    code = (
        "import sys, time; from pathlib import Path; from distill_lit.experiment.state.claims import claim_folder\n"
        "with claim_folder(Path(sys.argv[1]), 0, '12_3'):\n    Path(sys.argv[2]).touch(); time.sleep(100)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "run"), str(ready)])
    while not ready.exists():
        assert holder.poll() is None
        time.sleep(0.05)
    found = holder_of(tmp_path / "run")
    assert found is not None and (found.pid, found.job, found.is_alive_here) == (holder.pid, "12_3", True)
    with pytest.raises(InUse, match="in use by job 12_3 on"), claim_folder(tmp_path / "run", 0):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert not is_claimed(tmp_path / "run")
    with claim_folder(tmp_path / "run", 0):
        assert is_claimed(tmp_path / "run")
    assert not list((tmp_path / "run").iterdir())


def holder_process(code: str, ready: Path) -> "subprocess.Popen[bytes]":
    """A process that holds what `code` begins a `with` for, once `ready` is there."""
    lines = ["import sys, time", "from pathlib import Path", "from distill_lit.experiment.state.claims import claim_folder",
             "from distill_lit.experiment.launcher.drivers import driver_lease",
             f"with {code}:\n    Path({str(ready)!r}).touch(); time.sleep(100)"]  # fmt: skip
    process = subprocess.Popen([sys.executable, "-c", "\n".join(lines)])
    while not ready.exists():
        assert process.poll() is None
        time.sleep(0.05)
    return process


def test_stop_finds_drivers_that_share_runs_and_workers_without_a_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, said = tmp_path / "runs/quickstart", io.StringIO()
    options = argparse.Namespace(experiment=Path("quickstart"), overrides=[], root=tmp_path)
    run_folder = folder / "one-01234567"

    def stop() -> str:
        said.truncate(said.seek(0))
        assert stop_command.run(options, Console(file=said, width=200)) == 0
        return said.getvalue()

    assert stop() == "nothing of quickstart is queued or running\n"
    driver = holder_process(f"driver_lease(Path({str(folder)!r}), is_shared=True)", tmp_path / "driver")
    worker = holder_process(f"claim_folder(Path({str(run_folder)!r}), 0)", tmp_path / "worker")
    host = socket.gethostname()
    assert stop() == f"process {driver.pid} on {host} was asked to stop; what trains is saved first\n"
    assert (driver.wait(10), worker.poll()) == (-signal.SIGTERM, None)
    assert stop() == f"one-01234567: process {worker.pid} on {host} was asked to stop; what trains is saved first\n"
    assert worker.wait(10) == -signal.SIGTERM
    assert stop() == "nothing of quickstart is queued or running\n"
    with driver_lease(folder, is_shared=True), driver_lease(folder, is_shared=True):
        assert len(find_drivers(folder)) == 2
        monkeypatch.setattr(claims.socket, "gethostname", lambda: "elsewhere")
        assert stop().splitlines().count(f"process {os.getpid()} on {host} runs it; stop it there") == 2


def test_a_lease_of_another_machine_counts_until_it_is_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with claim_folder(tmp_path, 0):
        monkeypatch.setattr(claims.socket, "gethostname", lambda: "elsewhere")
        assert is_claimed(tmp_path)
        old = time.time() - 2 * claims.LEASE_SECONDS - 1
        os.utime(tmp_path / claims.LEASE_NAME, (old, old))
        assert not is_claimed(tmp_path)
        monkeypatch.undo()
        assert is_claimed(tmp_path)  # its process is seen to run here
