"""Folders that may only be read, links, terminals, ports: what needs nothing written works, the rest is one line."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT, synthetic_results, training_processes
from helpers.caches import new_cache
from helpers.read_only import as_anyone, needs_rights
from helpers.training_processes import cli

from distill_lit.cli.main import main
from distill_lit.utils.exceptions import UserError
from distill_lit.utils.files import atomic_write_folder, cache_root, permission_error_message, umask, write_text


@needs_rights
def test_a_corpus_that_may_not_be_read_is_named(experiment: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "mine.jsonl"
    corpus.write_text('{"text": "a"}\n')
    corpus.chmod(0)
    where = (f"data.corpora.text.path=file:{corpus}", "--root", tmp_path / "root")
    code, said = as_anyone(
        "run", experiment, *where, DISTILL_LIT_CACHE=str(new_cache(tmp_path / "cache")), HF_HUB_OFFLINE="1"
    )
    (told,) = [one for one in said.splitlines() if one.startswith("distill-lit:")]
    assert (code, told) == (
        2,
        f"distill-lit: {corpus} cannot be read (Permission denied); change its rights or name another",
    )


def test_no_home_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("DISTILL_LIT_CACHE", raising=False)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda _: (_ for _ in ()).throw(KeyError("no such user")))
    with pytest.raises(UserError, match="no home folder; set DISTILL_LIT_CACHE to a folder"):
        cache_root()


@pytest.mark.parametrize("variable", ["DISTILL_LIT_CACHE", "HF_HOME", "MPLCONFIGDIR", "TMPDIR", "XDG_CACHE_HOME"])
def test_the_variable_of_an_unwritable_folder_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str
) -> None:
    monkeypatch.setenv(variable, str(tmp_path))
    wrapped = RuntimeError("a library's own words")
    wrapped.__cause__ = PermissionError(13, "Permission denied", str(tmp_path / "a/b"))
    said = permission_error_message(wrapped)
    assert said == f"{tmp_path / 'a/b'} cannot be written to (Permission denied); set {variable} to a folder that can be"


@needs_rights
def test_a_folder_of_others_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "private/results").mkdir(parents=True)
    (tmp_path / "private").chmod(0)
    try:
        code, said = as_anyone("report", tmp_path / "private/results")
    finally:
        (tmp_path / "private").chmod(0o755)
    told = f"distill-lit: {tmp_path}/private cannot be looked into (Permission denied); change its rights or name another"
    assert (code, said.strip()) == (2, told)


@pytest.mark.parametrize("mask", [0o077, 0o027, 0o022])
def test_files_and_folders_have_the_rights_that_the_umask_leaves(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        assert umask() == mask
        write_text(tmp_path / "sub/text", "x")
        with atomic_write_folder(tmp_path / "folder") as place:
            (place / "inner").mkdir()
            (place / "inner/x").write_text("x")
    finally:
        os.umask(before)
    for file in ("sub/text", "folder/inner/x"):
        assert (tmp_path / file).stat().st_mode & 0o777 == 0o666 & ~mask
    for folder in ("sub", "folder", "folder/inner"):
        assert (tmp_path / folder).stat().st_mode & 0o777 == 0o777 & ~mask


# ---------------------------------------------------------------- reading what is done


# ---------------------------------------------------------------- terminals


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_what_a_terminal_cannot_show_is_replaced(tmp_path: Path, encoding: str) -> None:
    folder = synthetic_results.build(tmp_path, documents=8, students={"deep": 0.8})
    plan = "name: x\nteacher: {model: 'file:x'}\nstudents: {deep: {num_layers: 1}}\nquestion: 漢字 ≤ 💥\n"
    (folder / "plan.yaml").write_text(plan, encoding="utf-8")
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "OMP_NUM_THREADS": "1"}
    for arguments, code in ((["report", str(folder)], 0), (["status", str(tmp_path / "漢字.yaml")], 2)):
        result = subprocess.run([sys.executable, "-m", "distill_lit", *arguments], capture_output=True, env=environment)
        assert result.returncode == code, result.stderr


def test_a_reader_that_goes_away_ends_nothing() -> None:
    process = training_processes.command("list", "fields", PYTHONUNBUFFERED="1")
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.wait(120) == 0
    assert process.stderr.read() == ""
    process.stderr.close()


def test_output_that_is_closed_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """As that of a service may be: Python then has no stream at all."""
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    with pytest.raises(SystemExit) as end:
        main(["list", "nothing"])
    assert end.value.code == 2 and sys.stdout is not None
    sys.stdout.close()
    sys.stderr.close()


def test_a_port_in_use_and_a_folder_that_is_gone(tmp_path: Path) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        code, said = cli("tensorboard", tmp_path, "--port", str(port))
    assert (code, said) == (2, f"distill-lit: --port {port}: Address already in use; choose another with --port\n")
    (tmp_path / "gone").mkdir()
    script = f"cd {tmp_path / 'gone'} && rmdir {tmp_path / 'gone'} && exec {sys.executable} -m distill_lit list students"
    root = str(ROOT)
    result = subprocess.run(["sh", "-c", script], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": root})
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1] == "distill-lit: the current folder is not there any more; cd to one that is"
