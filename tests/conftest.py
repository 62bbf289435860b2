"""Fixtures that many tests share.

They import models when they are used: the process that hands tests to workers reads this file and needs none.
"""

import gc
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run side by side

from helpers import warm_processes

if TYPE_CHECKING:
    from distill_lit import data

warm_processes.install_with_servers()


def pytest_collection_finish() -> None:
    """What has been imported by now stays, so that no collection looks at it again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def tiny_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a two-layer random teacher."""
    from helpers import tiny_models

    return tiny_models.make_model(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of 400 sentences."""
    from helpers import tiny_models

    return tiny_models.make_corpus(tmp_path_factory.mktemp("corpus") / "text.jsonl")


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four layers of six heads that share keys and values in two groups."""
    from helpers import tiny_models

    sizes = {"hidden_size": 36, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 8}
    return tiny_models.make_model(tmp_path_factory.mktemp("grouped"), num_layers=4, **sizes)


@pytest.fixture(scope="session")
def prepared(tiny_teacher: Path, tiny_corpus: Path) -> "data.PreparedData":
    """The tiny corpus in rows of 32 tokens."""
    from distill_lit import data
    from distill_lit.config import CorpusConfig, DataConfig

    config = DataConfig(
        corpora={"text": CorpusConfig(path=f"file:{tiny_corpus}")}, sequence_length=32, validation_sequences=4
    )
    return data.prepare_datasets(config, tiny_teacher, "pypi")
