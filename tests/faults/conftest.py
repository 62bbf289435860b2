"""What the tests of faults share: a tiny teacher with dropout, text, a task, and one experiment that has been run."""

from pathlib import Path

import pytest
import tiny
import tiny_tasks


@pytest.fixture(scope="session")
def dropping_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer teacher with dropout in its attention, which its students inherit."""
    return tiny.make_model(tmp_path_factory.mktemp("dropping"), attention_dropout=0.2)


@pytest.fixture(scope="session")
def tasks_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one small task, `colours`."""
    return tiny_tasks.make_tasks(tmp_path_factory.mktemp("tasks") / "tasks", "colours")
