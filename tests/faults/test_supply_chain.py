"""Pins, and what may never be on the default path: pickles, code from elsewhere, open ports."""

import ast
import contextlib
import functools
import json
import os
import re
import subprocess
import tomllib
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

import pytest
from helpers import ROOT
from packaging.specifiers import SpecifierSet

BYTES_THAT_ARE_CODE = {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
SOURCES = sorted((ROOT / "distill_lit").rglob("*.py"))


@functools.cache
def nodes() -> list[tuple[Path, ast.AST]]:
    """(file, node) of all that is imported or called in the package."""
    kinds = (ast.Import, ast.ImportFrom, ast.Call)
    return [(p, node) for p in SOURCES for node in ast.walk(ast.parse(p.read_text())) if isinstance(node, kinds)]


def calls(name: str) -> list[tuple[str, ast.Call]]:
    """(file, call) of everything whose last name it is."""
    return [
        (str(path.relative_to(ROOT)), node)
        for path, node in nodes()
        if isinstance(node, ast.Call) and name in (getattr(node.func, "attr", ""), getattr(node.func, "id", ""))
    ]


def test_no_pickle_is_read_anywhere() -> None:
    """But what a process tells the ranks that it has started itself, over a socket that nobody else has, and what it has
    written itself into a file without a name."""
    for path, node in nodes():
        if path.name in ("rank_process.py", "spawn.py", "spool.py") or isinstance(node, ast.Call):
            continue
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
        assert not {name.split(".")[0] for name in names} & BYTES_THAT_ARE_CODE, path
    loads = [(file, call) for file, call in calls("load") if ast.unparse(call.func) in ("torch.load", "np.load")]
    assert len(loads) >= 2
    for file, call in loads:
        words = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert words.get("weights_only") == "True" or words.get("allow_pickle") == "False", (file, words)


def test_weights_are_asked_for_as_safetensors_and_code_stays_out() -> None:
    for file, call in calls("from_pretrained"):
        words = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        if "**where" in ast.unparse(call):  # a GGUF, which is parsed as data
            continue
        assert words.get("local_files_only") == "True", file
        assert words.get("trust_remote_code") in ("False", "is_remote_code_allowed(folder)"), file
        if "AutoModel" in ast.unparse(call.func):
            assert words.get("use_safetensors") == "True", file


def test_every_pin_is_exact() -> None:
    for line in (ROOT / "constraints.txt").read_text().split():
        name, _, version = line.partition("==")
        assert name and version, line


def test_every_pin_runs_on_the_oldest_python_that_is_promised() -> None:
    promised = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    oldest = promised.removeprefix(">=")
    for line in (ROOT / "constraints.txt").read_text().split():
        with contextlib.suppress(PackageNotFoundError):  # of another system
            needs = metadata(line.partition("==")[0]).get("Requires-Python")
            assert SpecifierSet(needs or "").contains(f"{oldest}.0"), f"{line} needs {needs}"
    for name in ("README.md", "Makefile"):
        assert re.search(rf"Python (≥ )?{re.escape(oldest)}\b", (ROOT / name).read_text()), name


@pytest.mark.parametrize(
    ("vulnerabilities", "skipped", "code", "words"),
    [
        ([], False, 0, "no known hole"),
        ([{"id": "CVE-1", "fix_versions": ["9.9"]}], False, 1, "torch 2.0: CVE-1, fixed in 9.9"),
        ([], True, 2, "nothing is proven"),
    ],
)
def test_the_audit_proves_something_or_says_that_it_does_not(
    tmp_path: Path, vulnerabilities: list[dict[str, object]], skipped: bool, code: int, words: str
) -> None:
    """.ci/audit with a stand-in for pip-audit, whose own exit code is 0 for packages that its service does not know."""
    entry: dict[str, object] = {"name": "torch", "version": "2.0", "vulns": vulnerabilities}
    if skipped:
        entry = {"name": "torch", "skip_reason": "not found"}
    tool = tmp_path / "pip-audit"
    tool.write_text(f"#!/bin/sh\ncat <<'END'\n{json.dumps({'dependencies': [entry]})}\nEND\n")
    tool.chmod(0o755)
    environment = {**os.environ, "PIP_AUDIT": str(tool)}
    result = subprocess.run([ROOT / ".ci/audit"], env=environment, capture_output=True, text=True)
    assert result.returncode == code, result
    assert words in result.stdout + result.stderr
