"""Other libraries' own losses, in a folder of their own: installed without dependencies beside our torch."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

from distill_lit.utils.files import cache_root

PINNED = ("trl==1.16.0", "torchtune==0.6.1", "liger-kernel==0.8.5")


def install() -> Path:
    """The folder with the pinned packages, downloaded once."""
    folder = cache_root() / "reference_libraries" / "-".join(PINNED).replace("==", "_")
    if not (folder / "installed").is_file():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade", "--target", str(folder)]
        subprocess.run([*command, *PINNED], check=True, timeout=300)
        (folder / "installed").touch()
    return folder


def run_script(script: Path, *arguments: str) -> None:
    """Runs a Python file in a process that sees these libraries and the helpers of the tests."""
    paths = [str(install()), str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}
    subprocess.run([sys.executable, str(script), *arguments], check=True, timeout=300, env=environment)


def torchtune_losses() -> ModuleType:
    """torchtune's module of distillation losses alone: the package around it needs torchao."""
    path = install() / "torchtune" / "modules" / "loss" / "kd_losses.py"
    spec = importlib.util.spec_from_file_location("kd_losses", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
