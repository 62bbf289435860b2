"""Fixtures that many tests share."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run side by side

import tiny


@pytest.fixture(scope="session")
def tiny_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a two-layer random teacher."""
    return tiny.make_model(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of 400 sentences."""
    return tiny.make_corpus(tmp_path_factory.mktemp("corpus") / "text.jsonl")
