"""`distill-lit doctor`: each thing that can be wrong, with its remedy; exit code 1."""

import io
import shutil
from argparse import Namespace
from http.client import BadStatusLine, InvalidURL
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError

import numpy as np
import pytest
import torch
from helpers import ROOT
from rich.console import Console

from distill_lit.cli import network_checks
from distill_lit.cli.commands import doctor
from distill_lit.experiment.estimates.memory_estimate import Memory
from distill_lit.profiling import compilation
from distill_lit.utils import hardware
from distill_lit.utils.array_store import save_arrays


def shown(root: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    monkeypatch.setattr(network_checks, "network_endpoints", list)
    monkeypatch.setattr(compilation, "compile_error", lambda _: "")
    text = io.StringIO()
    code = doctor.run(Namespace(root=root, quick=False, experiment=None, cluster=False), Console(file=text, width=400))
    return code, text.getvalue()


def test_a_fit_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTILL_LIT_CACHE", str(tmp_path))
    code, said = shown(tmp_path, monkeypatch)
    assert code == 0, said
    assert "nothing is wrong" in said
    for what in (
        "python",
        "torch",
        "lightning",
        "transformers",
        "threads",
        "processor",
        "gpu",
        "memory",
        "disk",
        "cache packed",
    ):
        assert what in said, what


def test_a_version_below_its_floor() -> None:
    found = {one.subject: one for one in doctor.check_versions({"torch": "99.1", "nosuchpackage": "1", "numpy": "1.26"})}
    assert found["torch"].state == found["nosuchpackage"].state == doctor.BAD
    assert "pip install -c constraints.txt 'torch>=99.1'" in found["torch"].remedy
    assert found["nosuchpackage"].found == "not installed"
    assert found["numpy"].state == doctor.GOOD
    assert doctor._numbers("2.10.0+cu130") > doctor._numbers("2.9.1")


def test_floors_are_those_of_the_project() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    for package in ("torch", "lightning", "transformers"):
        assert f'"{package}>={doctor.MIN_PACKAGE_VERSIONS[package]}"' in text
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
    for package, floor in doctor.MIN_PACKAGE_VERSIONS.items():
        assert doctor._numbers(pins[package]) >= doctor._numbers(floor)


@pytest.mark.parametrize("kind", ["tokens", "packed"])
def test_a_damaged_cache_is_wrong_and_its_remedy_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setenv("DISTILL_LIT_CACHE", str(tmp_path))
    for name in ("one", "two"):
        save_arrays(tmp_path / kind / name, {"rows": np.arange(9)}, {})
    path = tmp_path / kind / "two/rows.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    code, said = shown(tmp_path, monkeypatch)
    assert code == 1
    assert "1 of 2 entries" in said
    assert f"rm -r {tmp_path / kind / 'two'}" in said
    shutil.rmtree(tmp_path / kind / "two")
    assert shown(tmp_path, monkeypatch)[0] == 0


def memory_of(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr("distill_lit.utils.hardware.main_memory", lambda: (16 * 10**9, free))


def test_memory_that_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    memory_of(monkeypatch, 3 * 10**9)
    assert doctor.check_memory().state == doctor.GOOD
    assert "3.0 of 16.0 GB free" in doctor.check_memory().found
    memory_of(monkeypatch, 10**9)
    assert doctor.check_memory().state == doctor.BAD


def test_memory_in_a_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "meminfo").write_text("MemTotal:  1000 kB\nMemFree:  100 kB\nMemAvailable:  600 kB\nHugePages_Total: 0\n")
    monkeypatch.setattr(hardware, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(hardware, "CGROUP", tmp_path)
    assert hardware.main_memory() == (1000 * 1024, 600 * 1024)
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("1\n")
    assert hardware.main_memory() == (1000 * 1024, 600 * 1024)
    (tmp_path / "memory.max").write_text("500000\n")
    (tmp_path / "memory.current").write_text("100000\n")
    assert hardware.main_memory() == (500_000, 400_000)
    monkeypatch.setattr(hardware, "MEMINFO", tmp_path / "none")
    assert doctor.check_memory().state == doctor.WARNING


@pytest.mark.parametrize(("free", "state"), [(7 * 10**9, doctor.GOOD), (6 * 10**9, doctor.BAD)])
def test_memory_of_the_workers_of_an_experiment(free: int, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three runs of 2, 3 and 4 GB, two at a time."""
    memory_of(monkeypatch, free)
    training, launcher = Namespace(accelerator="cpu", devices=1), Namespace(workers=2, engine="local")
    config = Namespace(training=training, launcher=launcher)
    runs = [Namespace(name=name, label=name, is_trained=True, config=config) for name in "abc"]
    planned = [(run, Namespace(memory=Memory(weights=size * 10**9))) for run, size in zip(runs, (2, 4, 3), strict=True)]
    experiment: Any = Namespace(name="x", has_models=True, config=config, runs=runs, estimated_runs=lambda: planned)
    found = doctor.check_experiment_memory(experiment)
    assert found.state == state
    assert found.found.startswith("4.0 GB for the largest worker (b), 7.0 GB for 2, ")
    assert bool(found.remedy) == (state == doctor.BAD)
    experiment.has_models = False
    assert doctor.check_experiment_memory(experiment).remedy == "distill-lit fetch"


def test_a_full_or_closed_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10**9))
    full = doctor.check_free_disk(tmp_path / "not/there/yet")
    assert (full.state, full.remedy) == (doctor.BAD, "make room, or choose another --root or DISTILL_LIT_CACHE")
    monkeypatch.setattr(doctor.os, "access", lambda *_: False)
    assert doctor.check_free_disk(tmp_path).state == doctor.BAD


def test_too_many_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.os, "sched_getaffinity", lambda _: set())
    threads = next(iter(doctor.check_processor()))
    assert (threads.state, threads.remedy) == (doctor.BAD, "export OMP_NUM_THREADS=0")


def test_a_gpu_that_torch_does_not_see(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    monkeypatch.setattr(doctor.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    (gpu,) = doctor.check_gpu()
    assert gpu.state == doctor.BAD
    assert "training.accelerator=cpu" in gpu.remedy


def answering(error: Exception | None) -> Any:
    def opening(request: Any, timeout: float) -> Any:
        assert timeout <= 5
        if error is not None:
            raise error
        return io.BytesIO()

    return opening


def test_the_network_is_a_note_and_shows_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    address = "https://user:secret@index.example/simple/x"
    far = network_checks.check_reachable("package index", address, "do this", answering(URLError("no route")))
    assert (far.state, far.remedy) == (doctor.WARNING, "do this")
    assert "secret" not in far.found
    assert network_checks.check_reachable("hub", address, "", answering(None)).state == doctor.GOOD
    refused = HTTPError(address, 401, "no", {}, None)  # type: ignore[arg-type]
    assert network_checks.check_reachable("hub", address, "", answering(refused)).state == doctor.GOOD
    for broken in (BadStatusLine("SSH-2.0"), InvalidURL("URL can't contain control characters"), TimeoutError()):
        assert network_checks.check_reachable("hub", address, "do this", answering(broken)).state == doctor.WARNING
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    offline = network_checks.check_reachable("hub", address, "", answering(AssertionError("asked")))
    assert offline.state == doctor.WARNING


@pytest.mark.parametrize(
    ("has_compiler", "error", "deep", "state", "words"),
    [
        (False, "", True, "warning", "is missing; nothing is compiled"),
        (True, "cc1plus: not found", True, "warning", "it does not work: cc1plus: not found"),
        (True, "cc1plus: not found", False, "good", "not tried"),
        (True, "", True, "good", "works on cpu"),
    ],
)
def test_whether_compiling_works(
    monkeypatch: pytest.MonkeyPatch, has_compiler: bool, error: str, deep: bool, state: str, words: str
) -> None:
    monkeypatch.setattr("distill_lit.losses.can_compile", lambda _: has_compiler)
    monkeypatch.setattr(hardware, "device_for", lambda *_: torch.device("cpu"))
    monkeypatch.setattr(compilation, "compile_error", lambda _: error)
    found = doctor.check_compiler(deep)
    assert words in found.found
    assert found.state == {"good": doctor.GOOD, "warning": doctor.WARNING}[state]
    assert bool(found.remedy) == (state == "warning")


def test_a_compiler_that_fails_is_told_in_its_own_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho first >&2\necho 'g++: no headers' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(compilation.sys, "executable", str(broken))
    assert compilation.compile_error(torch.device("cpu")) == "g++: no headers"
    broken.write_text("#!/bin/sh\nexec sleep 9\n")
    monkeypatch.setattr(compilation, "TRIAL_SECONDS", 0.2)
    assert compilation.compile_error(torch.device("cpu")) == "it took more than 0 s"
