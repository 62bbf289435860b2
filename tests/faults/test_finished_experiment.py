"""What is asked of one experiment that has been run offline, with secrets around it: in one file, so it is run once."""

import os
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
import torch
from helpers import training_processes
from helpers.caches import new_cache
from helpers.read_only import as_anyone, close, needs_rights, reopen
from helpers.training_processes import SECRETS, cli, command, outcome, wait_until

from distill_lit.config import load_experiment
from distill_lit.experiment.plan import plan_runs
from distill_lit.experiment.planning.precision import resolve_auto
from distill_lit.experiment.state.completion import is_run_evaluated
from distill_lit.utils.files import read_json

pytestmark = pytest.mark.slow


class Finished(NamedTuple):
    """An experiment that has been run: where, from which file, with which cache, and how it ended."""

    root: Path
    file: Path
    cache: Path
    code: int
    said: str


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, dropping_teacher: Path, tiny_corpus: Path, tasks_folder: Path
) -> Finished:
    """An experiment that has been run offline, with every connection forbidden, and with secrets in its environment."""
    root = tmp_path_factory.mktemp("finished")
    file = training_processes.write_experiment(root, dropping_teacher, tiny_corpus, tasks_folder, source="offline")
    file.write_text(file.read_text().replace("baselines: []", "baselines: [teacher]"))
    cache = new_cache(root / "cache")
    environment = {
        **SECRETS,
        "DISTILL_LIT_CACHE": str(cache),
        "HF_HUB_OFFLINE": "1",
        "NO_SOCKETS": str(root / "connections"),
        "PYTHONPATH": training_processes.SABOTAGE,
    }
    code, said = training_processes.cli("run", file, "--root", root, **environment)
    return Finished(root, file, cache, code, said)


def written(root: Path) -> dict[Path, int]:
    """When each file of an experiment's runs was written; locks and the report's own curves aside."""
    files = [path for path in (root / "runs").rglob("*") if path.is_file()]
    return {p: p.stat().st_mtime_ns for p in files if p.name != "lock" and p.parent.name != "report"}


def test_06_a_finished_experiment_is_run_again_and_nothing_happens(finished: Finished) -> None:
    assert finished.code == 0, finished.said
    before = written(finished.root)
    code, said = cli("run", finished.file, "--root", finished.root, DISTILL_LIT_CACHE=str(finished.cache))
    assert code == 0, said
    after = written(finished.root)
    changed = {path.name for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
    assert changed <= {"experiment.yaml", "README.md"}  # written again with the same content
    assert "to run" not in said


def test_20_files_that_were_not_written_or_are_damaged_are_noticed(finished: Finished, tmp_path: Path) -> None:
    """lm-eval says 'could not save results' as a warning; here a run without whole records is not done."""
    root = tmp_path / "copy"
    shutil.copytree(finished.root / "runs", root / "runs")
    config = load_experiment(finished.file)
    planned = [run for run in plan_runs(resolve_auto(config)) if run.is_model]
    folders = [(run, root / "runs" / config.name / run.name) for run in planned]
    assert all(is_run_evaluated(run, folder) for run, folder in folders)
    for name, damage in (
        ("records.parquet", lambda path: path.unlink()),
        ("documents.parquet", lambda path: path.write_bytes(path.read_bytes()[:-1])),
        ("meta.json", lambda path: path.write_text(path.read_text().replace('"n": 24', '"n": 25'))),
    ):
        run, folder = folders[0]
        path = folder / "records" / name
        whole = path.read_bytes()
        damage(path)
        assert not is_run_evaluated(run, folder)
        path.write_bytes(whole)
        assert is_run_evaluated(run, folder)


def test_27_secrets_of_the_environment_are_written_nowhere(finished: Finished) -> None:
    assert finished.code == 0, finished.said
    assert not any(value in finished.said for value in SECRETS.values())
    searched = 0
    for path in [p for p in finished.root.rglob("*") if p.is_file()]:
        content = path.read_bytes()
        searched += 1
        for value in SECRETS.values():
            assert value.encode() not in content, path
    assert searched > 30


def test_29_tensorboard_binds_to_loopback(finished: Finished) -> None:
    port = 16000 + os.getpid() % 1000
    server = command("tensorboard", finished.root / "runs", "--port", str(port))
    try:
        process = psutil.Process(server.pid)

        def listening() -> list[Any]:
            return [c.laddr for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN]

        addresses = wait_until(listening)
        assert {address.ip for address in addresses} == {"127.0.0.1"}
        assert port in {address.port for address in addresses}
    finally:
        server.terminate()
        outcome(server)


def test_30_offline_runs_from_caches_with_no_connection_attempt(finished: Finished) -> None:
    assert finished.code == 0, finished.said
    assert not (finished.root / "connections").exists(), (finished.root / "connections").read_text()


def test_31_the_manifest_says_where_a_result_comes_from(finished: Finished) -> None:
    manifest = read_json(next(finished.root.glob("runs/tiny/one-*/manifest.json")))
    made = manifest["provenance"]
    assert re.fullmatch(r"[0-9a-f]{40}|unknown", made["commit"])
    assert re.fullmatch(r"[0-9a-f]{16}||unknown", made["changes"])
    assert re.fullmatch(r"[0-9a-f]{16}", made["config"])
    assert made["seeds"] == {"seed": 0, "data.seed": 0, "evaluation.seed": 1234}
    assert made["versions"]["torch"] == torch.__version__
    (reference,) = [name for name in made["revisions"] if "dropping" in name]
    assert re.fullmatch(r"[0-9a-f]{16}", made["revisions"][reference])
    assert {"processor", "cores", "threads", "gpu"} <= set(made["hardware"])
    assert {"teacher", "data", "objective", "training", "seed"} <= set(manifest["origin"])
    assert (finished.root / "runs/tiny" / f"one-{manifest['identity'][:8]}" / "config.yaml").is_file()


@needs_rights
def test_a_whole_cache_needs_no_right_to_write(finished: Finished, tmp_path: Path) -> None:
    assert finished.code == 0, finished.said
    cache = tmp_path / "cache"
    shutil.copytree(finished.cache, cache)
    for lock in cache.rglob("*.lock"):
        lock.unlink()
    close(cache)
    try:
        places = {"DISTILL_LIT_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
        code, said = as_anyone(
            "run", finished.file, "data.corpora.text.max_documents=0", "--root", tmp_path / "root", **places
        )
    finally:
        reopen(cache)
    assert code == 0, said


@needs_rights
def test_a_cache_that_cannot_be_written_is_named(finished: Finished, tmp_path: Path, closed: Path) -> None:
    index = closed / "cache/lm_eval"
    reopen(closed)
    shutil.copytree(finished.cache / "lm_eval", index)
    close(closed)
    try:
        code, said = as_anyone(
            "run", finished.file, "--root", tmp_path / "root", DISTILL_LIT_CACHE=str(closed / "cache"), HF_HUB_OFFLINE="1"
        )
    finally:
        reopen(closed)
    line = f"{closed / 'cache/'}"
    assert code == 2, said
    (told,) = [one for one in said.splitlines() if one.startswith("distill-lit:")]
    assert line in told and "set DISTILL_LIT_CACHE to a folder that can be" in told


@needs_rights
def test_status_only_reads_and_report_names_the_folder(finished: Finished, tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(finished.root / "runs", root / "runs")
    shutil.copytree(finished.root / "results", root / "results")
    close(root)
    places = {"DISTILL_LIT_CACHE": str(finished.cache), "HF_HUB_OFFLINE": "1"}
    try:
        assert as_anyone("status", finished.file, "--root", root, **places)[0] == 0
        code, said = as_anyone("report", root / "results/tiny", **places)
    finally:
        reopen(root)
    assert code == 2
    assert said.startswith(f"distill-lit: {root / 'results/tiny'} cannot be written to; copy it to a folder that can be")


def test_report_needs_no_model(finished: Finished, tmp_path: Path, dropping_teacher: Path) -> None:
    shutil.copytree(finished.root / "runs", tmp_path / "runs")
    away = dropping_teacher.with_name("away")
    dropping_teacher.rename(away)
    try:
        code, said = cli("report", finished.file, "--root", tmp_path, DISTILL_LIT_CACHE=str(finished.cache))
    finally:
        away.rename(dropping_teacher)
    assert code == 0, said
    assert "2 of 2 models are done" in said
    assert (tmp_path / "results/tiny/report.html").is_file()


def test_links_are_followed_and_one_to_nothing_is_refused(finished: Finished, tmp_path: Path) -> None:
    for kind in ("runs", "results"):
        shutil.copytree(finished.root / kind, tmp_path / "scratch" / kind)
        (tmp_path / kind).symlink_to(tmp_path / "scratch" / kind)
    environment = {"DISTILL_LIT_CACHE": str(finished.cache), "HF_HUB_OFFLINE": "1"}
    code, said = cli("run", finished.file, "--root", tmp_path, **environment)
    assert code == 0, said
    assert (tmp_path / "results").is_symlink()
    (tmp_path / "results").unlink()
    (tmp_path / "results").symlink_to(tmp_path / "nowhere")
    code, said = cli("run", finished.file, "--root", tmp_path, **environment)
    assert code == 2
    assert f"{tmp_path / 'results'} is a link to {tmp_path / 'nowhere'}, which is not there" in said
