"""What the tests of faults share: a tiny teacher with dropout, text, a task, and one experiment that has been run."""

from pathlib import Path
from typing import NamedTuple

import pytest
from helpers import tiny_models, tiny_tasks, training_processes
from helpers.caches import new_cache
from helpers.training_processes import SECRETS


class Finished(NamedTuple):
    """An experiment that has been run: where, from which file, with which cache, and how it ended."""

    root: Path
    file: Path
    cache: Path
    code: int
    said: str


@pytest.fixture(scope="session")
def dropping_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer teacher with dropout in its attention, which its students inherit."""
    return tiny_models.make_model(tmp_path_factory.mktemp("dropping"), attention_dropout=0.2)


@pytest.fixture(scope="session")
def tasks_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one small task, `colours`."""
    return tiny_tasks.make_tasks(tmp_path_factory.mktemp("tasks") / "tasks", "colours")


@pytest.fixture(scope="module")
def experiment(
    tmp_path_factory: pytest.TempPathFactory, dropping_teacher: Path, tiny_corpus: Path, tasks_folder: Path
) -> Path:
    """The file of a tiny experiment."""
    return training_processes.write_experiment(tmp_path_factory.mktemp("file"), dropping_teacher, tiny_corpus, tasks_folder)


@pytest.fixture(scope="session")
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
