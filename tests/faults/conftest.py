"""What the tests of faults share: a tiny teacher with dropout, text, a task, and the file of an experiment."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import tiny_models, tiny_tasks, training_processes


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


@pytest.fixture
def closed(tmp_path: Path) -> Iterator[Path]:
    """An empty folder that may only be read."""
    (tmp_path / "closed").mkdir()
    (tmp_path / "closed").chmod(0o555)
    yield tmp_path / "closed"
    (tmp_path / "closed").chmod(0o755)
