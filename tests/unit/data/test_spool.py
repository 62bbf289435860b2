"""Corpora that outgrow memory: the same rows as in memory, in several processes, from streams that may break."""

import json
import operator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from helpers.tiny_data import save_tokenizer, write_lines

from distill_lit.config.data import CorpusConfig, DataConfig
from distill_lit.config.schema import ExperimentConfig
from distill_lit.data import PreparedData, check_data_config, prepare_datasets, sources, spool
from distill_lit.data.encoding_processes import map_in_processes
from distill_lit.data.spool import ArraySpool, ItemSpool, scratch_zeros
from distill_lit.experiment.planning.fingerprint import data_fingerprint_fields
from distill_lit.utils.exceptions import UserError

ARRAYS = ("input_ids", "document_ids", "loss_mask", "corpus_ids")


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    return save_tokenizer(tmp_path / "tokenizer")


def texts(count: int, seed: int = 0) -> list[str]:
    draw = np.random.default_rng(seed)
    return ["".join(map(chr, draw.integers(97, 123, draw.integers(1, 60)))) for _ in range(count)]


def corpora(folder: Path, weights: tuple[float | None, ...]) -> dict[str, CorpusConfig]:
    """Text in jsonl, chats, and two parquet shards."""
    folder.mkdir(exist_ok=True)
    lines = write_lines(folder / "a.jsonl", [{"text": text} for text in [*texts(150), *texts(10)]])  # ten twice
    chats = [
        {"m": [{"role": "user", "content": text[:5]}, {"role": "assistant", "content": text[5:]}]} for text in texts(90, 1)
    ]
    (folder / "c").mkdir(exist_ok=True)
    for shard in range(2):
        parquet.write_table(pa.table({"text": texts(70, 2 + shard)}), folder / f"c/{shard}.parquet")
    return {
        "a": CorpusConfig(path=str(lines), weight=weights[0]),
        "b": CorpusConfig(path=str(write_lines(folder / "b.jsonl", chats)), messages="m", weight=weights[1]),
        "c": CorpusConfig(path=str(folder / "c"), weight=weights[2]),
    }


def prepare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: str, **options: Any) -> PreparedData:
    monkeypatch.setenv("DISTILL_LIT_CACHE", str(tmp_path / cache))
    weights = options.pop("weights", (None, None, None))
    config = DataConfig(corpora=corpora(tmp_path / "text", weights), sequence_length=128, validation_sequences=3, **options)
    return prepare_datasets(config, tmp_path / "tokenizer", "pypi", with_corpus_ids=True)


def assert_same(ours: PreparedData, theirs: PreparedData) -> None:
    assert ours.fingerprint == theirs.fingerprint and ours.statistics == theirs.statistics
    for part in ("train", "validation"):
        for name in ARRAYS:
            mine, other = getattr(getattr(ours, part), name), getattr(getattr(theirs, part), name)
            assert mine.dtype == other.dtype and np.array_equal(mine, other)


@pytest.mark.parametrize(
    "options", [{}, {"max_tokens": 4000}, {"weights": (1.0, 4.0, 0.0)}, {"weights": (3.0, 1.0, 1.0), "max_tokens": 9000}]
)
def test_what_outgrows_memory_is_the_same_rows(
    tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    expected = prepare(tmp_path, monkeypatch, "memory", **options)
    files = []
    plain = spool.scratch_file
    monkeypatch.setattr(spool, "scratch_file", lambda: files.append(plain()) or files[-1])
    monkeypatch.setattr(spool, "MAX_MEMORY_BYTES", 100)
    assert_same(prepare(tmp_path, monkeypatch, "disk", **options), expected)
    assert len(files) >= 6  # documents, tokens, what is supervised, and the rows
    left = {path.name for path in (tmp_path / "disk").iterdir()}
    assert left == {path.name for path in (tmp_path / "memory").iterdir()}  # nothing is left behind


@pytest.mark.slow
def test_several_processes_make_the_same_rows(tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [prepare(tmp_path, monkeypatch, f"one-{limit}", max_tokens=limit) for limit in (0, 4000)]
    monkeypatch.setattr("distill_lit.data.tokenization.BATCH_DOCUMENTS", 40)
    for limit, one in zip((0, 4000), expected, strict=True):
        assert_same(prepare(tmp_path, monkeypatch, f"two-{limit}", workers=2, max_tokens=limit), one)
    assert list(map_in_processes(operator.truediv, [6, 9, 12], 3, 2)) == [2, 3, 4]
    with pytest.raises(ZeroDivisionError):
        list(map_in_processes(operator.truediv, [6, 9], 0, 2))
    with pytest.raises(UserError, match=r"data.workers: one of 2 processes that tokenize has died"):
        list(map_in_processes(exec, ["import os; os._exit(1)"], None, 2))


def test_workers_identify_nothing() -> None:
    one, four = (ExperimentConfig(data=DataConfig(workers=workers)) for workers in (1, 4))
    assert data_fingerprint_fields(one) == data_fingerprint_fields(four)


def test_spools_are_lists_and_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTILL_LIT_CACHE", str(tmp_path))
    for limit in (0, 25, 1 << 20):
        monkeypatch.setattr(spool, "MAX_MEMORY_BYTES", limit)
        items, numbers = ItemSpool[str](), ArraySpool(np.uint16)
        for n in range(30):
            items.append("x" * n, 2)
            numbers.append(range(n))
        found = items.finished()
        assert [found[i] for i in (29, 0, -1, 7)] == ["x" * 29, "", "x" * 29, "x" * 7]
        assert len(found) == 30 and list(found[2:5]) == ["xx", "xxx", "xxxx"] and list(found)[-1] == "x" * 29
        assert numbers.finished().tolist() == [i for n in range(30) for i in range(n)]
        zeros = scratch_zeros((3, 20), np.int32)
        assert isinstance(zeros, np.memmap) == (limit < 240) and not zeros.any() and zeros.shape == (3, 20)


# ---------------------------------------------------------------- streams


class Builder:
    """What `datasets.load_dataset_builder` gives for a repository of three shards."""

    hash = "abc"

    def __init__(self, folder: Path, declared: int, breaks_off: bool = False) -> None:
        self.folder, self.breaks_off = folder, breaks_off
        self.info = datasets.DatasetInfo(
            splits=datasets.SplitDict({"train": datasets.SplitInfo("train", num_examples=declared)})
        )

    def as_streaming_dataset(self, split: str) -> Any:
        files = sorted(map(str, self.folder.glob("*.parquet")))
        stream = datasets.load_dataset("parquet", data_files={split: files}, split=split, streaming=True)
        return self._broken(stream) if self.breaks_off else stream

    def _broken(self, stream: Any) -> Any:
        yield from stream.take(25)
        raise ConnectionError("the server\nhas gone away")


def stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, declared: int = 60, **options: Any) -> CorpusConfig:
    breaks_off = options.pop("breaks_off", False)
    (tmp_path / "shards").mkdir(exist_ok=True)
    for shard in range(3):
        parquet.write_table(pa.table({"text": texts(20, shard)}), tmp_path / f"shards/{shard}.parquet")
    monkeypatch.setattr(
        datasets, "load_dataset_builder", lambda *_, **__: Builder(tmp_path / "shards", declared, breaks_off)
    )
    return CorpusConfig(dataset="some/where", streaming=True, **options)


def prepared(corpus: CorpusConfig, tmp_path: Path, source: str) -> PreparedData:
    config = DataConfig(corpora={"s": corpus}, sequence_length=32, validation_sequences=1)
    return prepare_datasets(config, tmp_path / "tokenizer", source)


def test_a_stream_is_read_as_its_shards(tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTILL_LIT_CACHE", str(tmp_path / "cache"))
    ours = prepared(stream(tmp_path, monkeypatch), tmp_path, "hub")
    theirs = prepared(CorpusConfig(path=str(tmp_path / "shards")), tmp_path, "hub")
    assert np.array_equal(ours.train.input_ids, theirs.train.input_ids)
    first = prepared(stream(tmp_path, monkeypatch, max_documents=22), tmp_path, "hub")
    assert first.statistics["rows"] == 22


def test_streams_that_break(tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTILL_LIT_CACHE", str(tmp_path / "cache"))
    for options, said in (
        ({"declared": 61}, "'some/where': the stream ended early, after 60 of 61 rows"),
        ({"breaks_off": True}, "'some/where': the stream broke off after 25 rows: the server has gone away"),
    ):
        with pytest.raises(UserError, match=said):
            prepared(stream(tmp_path, monkeypatch, **options), tmp_path, "hub")
    for config, source in ((stream(tmp_path, monkeypatch), "pypi"), (CorpusConfig(path="x.jsonl", streaming=True), "hub")):
        (tmp_path / "x.jsonl").write_text(json.dumps({"text": "x"}))
        monkeypatch.chdir(tmp_path)
        with pytest.raises(
            UserError, match=r"not in the benchmark packages|streaming: only a `dataset` of dataset_source=hub"
        ):
            check_data_config(DataConfig(corpora={"s": config}), source)


def test_a_shard_that_vanishes_while_it_is_read(tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTILL_LIT_CACHE", str(tmp_path / "cache"))
    made = corpora(tmp_path / "text", (None, None, None))
    shard, plain = tmp_path / "text/c/1.parquet", sources.read_rows

    def read(path: Path, keep: Any) -> Any:
        if path.name == "0.parquet":
            shard.unlink()
        yield from plain(path, keep)

    monkeypatch.setattr(sources, "read_rows", read)
    config = DataConfig(corpora=made, sequence_length=128)
    with pytest.raises(UserError, match=r"1.parquet was there and is gone; put it back, or start anew"):
        prepare_datasets(config, tokenizer, "pypi")
    parquet.write_table(pa.table({"text": texts(70, 3)}), shard)

    def change(path: Path, keep: Any) -> Any:
        yield from plain(path, keep)
        if path.name == "0.parquet":
            parquet.write_table(pa.table({"text": texts(71, 3)}), shard)

    monkeypatch.setattr(sources, "read_rows", change)
    del made["b"], made["a"]
    with pytest.raises(UserError, match=r"data.corpora: files have changed, come or gone while they were read; run again"):
        prepare_datasets(config, tokenizer, "pypi")
