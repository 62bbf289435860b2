"""What stands in the user's own files of training text."""

from pathlib import Path

import numpy as np
import pytest

from distill_lit.config import CorpusConfig, DataConfig
from distill_lit.config.generation import GeneratedConfig, PromptsConfig
from distill_lit.data.own_text import own_text_fingerprints
from distill_lit.utils.exceptions import UserError


@pytest.fixture
def data(tmp_path: Path) -> DataConfig:
    for name in ("plain.txt", "folder/a.jsonl", "prompts.jsonl", "held_out.txt", "chat.jinja"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}\n")
    np.save(tmp_path / "tokens.npy", np.arange(100, dtype=np.uint16))
    (tmp_path / "tokens.json").write_text('{"tokenizer": "x", "dtype": "uint16"}')
    prompts = PromptsConfig(path=f"file:{tmp_path}/prompts.jsonl")
    corpora = {
        "plain": CorpusConfig(path=f"{tmp_path}/plain.txt"),
        "folder": CorpusConfig(path=f"file:{tmp_path}/folder"),
        "tokens": CorpusConfig(path=f"{tmp_path}/tokens.npy"),
        "answers": CorpusConfig(generated=GeneratedConfig(prompts=prompts)),
        "shipped": CorpusConfig(path="shipped:prompts/topics.jsonl"),
        "package": CorpusConfig(dataset="a/b"),
    }
    validation = {"own": CorpusConfig(path=f"{tmp_path}/held_out.txt")}
    return DataConfig(corpora=corpora, validation=validation, chat_template=f"{tmp_path}/chat.jinja")


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("plain.txt", "data.corpora.plain"),
        ("folder/a.jsonl", "data.corpora.folder"),
        ("folder/b.txt", "data.corpora.folder"),
        ("tokens.npy", "data.corpora.tokens"),
        ("prompts.jsonl", "data.corpora.answers.generated.prompts"),
        ("held_out.txt", "data.validation.own"),
        ("chat.jinja", "data.chat_template"),
        ("other.txt", ""),
    ],
)
def test_each_changes_with_its_own_files(data: DataConfig, tmp_path: Path, name: str, key: str) -> None:
    known = own_text_fingerprints(data)
    assert own_text_fingerprints(data) == known
    assert set(known) == {
        "data.corpora.plain",
        "data.corpora.folder",
        "data.corpora.tokens",
        "data.corpora.answers.generated.prompts",
        "data.corpora.shipped",
        "data.validation.own",
        "data.chat_template",
    }
    if name.endswith(".npy"):
        np.save(tmp_path / name, np.arange(1, 101, dtype=np.uint16))
    else:
        (tmp_path / name).write_text("{}\n{}\n")
    now = own_text_fingerprints(data)
    assert {changed for changed in known if now[changed] != known[changed]} == ({key} if key else set())


def test_a_file_that_is_gone_is_named(data: DataConfig, tmp_path: Path) -> None:
    (tmp_path / "plain.txt").unlink()
    with pytest.raises(UserError, match=r"^data.corpora.plain.path: .*plain.txt: no such file"):
        own_text_fingerprints(data)
