"""Corpora that are tokens already: rows by hand, the same batches as from memory, ten billion tokens, and faults."""

import json
import os
import time
import tracemalloc
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.tiny_data import byte_tokenizer, save_tokenizer, write_lines

from distill_lit.config import TeacherPromptConfig
from distill_lit.config.data import CorpusConfig, DataConfig
from distill_lit.data import PackedDataset, PreparedData, cached_statistics, check_data_config, prepare_datasets
from distill_lit.data.loader import PackedLoader
from distill_lit.data.token_files import vocabulary_fingerprint
from distill_lit.utils.exceptions import UserError

END = byte_tokenizer().eos_token_id
FINGERPRINT = vocabulary_fingerprint(byte_tokenizer())


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTILL_LIT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    return save_tokenizer(tmp_path / "tokenizer")


def write_tokens(path: Path, numbers: Any, **facts: Any) -> Path:
    """A .bin of uint16 with its sidecar, or a .npy."""
    path.parent.mkdir(exist_ok=True)
    array = np.asarray(numbers, dtype=np.uint16)
    np.save(path, array) if path.suffix == ".npy" else array.tofile(path)
    sidecar = {"tokenizer": FINGERPRINT, **({} if path.suffix == ".npy" else {"dtype": "uint16"}), **facts}
    path.with_name(f"{path.name}.json").write_text(json.dumps(sidecar))
    return path


def data(path: Path, **options: Any) -> DataConfig:
    return DataConfig(
        corpora={"t": CorpusConfig(path=str(path))}, **{"sequence_length": 8, "validation_sequences": 1, **options}
    )


def text_of(sizes: list[int]) -> list[int]:
    """Documents of so many tokens, each ending in END; their letters count up."""
    return [token for number, size in enumerate(sizes) for token in [*[number % 200] * (size - 1), END]]


def random_text(tokens: int, seed: int = 0) -> list[int]:
    draw = np.random.default_rng(seed)
    return text_of(draw.integers(1, 30, tokens).tolist())[:tokens]


# ---------------------------------------------------------------- rows


@pytest.mark.parametrize("name", ["t.bin", "t.npy"])
def test_rows_by_hand(tmp_path: Path, tokenizer: Path, name: str) -> None:
    """30 tokens are three rows of 8 and 6 left over. The last row is held out; what goes on into it is no target."""
    write_tokens(tmp_path / name, text_of([3, 7, 8, 12]))
    made = prepare_datasets(data(tmp_path / name), tokenizer, "pypi")
    train = made.train.take(np.array([0, 1]))
    assert train.input_ids.tolist() == [[0, 0, END, 1, 1, 1, 1, 1], [1, END, 2, 2, 2, 2, 2, 2]]
    assert train.document_ids.tolist() == [[1, 1, 1, 2, 2, 2, 2, 2], [1, 1, 2, 2, 2, 2, 2, 2]]
    assert train.loss_mask.astype(int).tolist() == [[0, 1, 1, 0, 1, 1, 1, 1], [0, 1, 0, 1, 1, 1, 1, 1]]
    assert made.validation.input_ids.tolist() == [[2, END, 3, 3, 3, 3, 3, 3]]
    assert made.validation.loss_mask.astype(int).tolist() == [[0, 0, 0, 1, 1, 1, 1, 1]]
    assert made.statistics["corpora"] == {"t": {"files": 1, "tokens": 30, "left_over": 6}}
    assert made.statistics == cached_statistics(data(tmp_path / name), tokenizer, "pypi")
    assert made.train.targets_per_row.tolist() == [6, 6] and made.train.num_tokens == 16


def test_a_header_is_skipped_and_a_folder_is_read_in_order(tmp_path: Path, tokenizer: Path) -> None:
    write_tokens(tmp_path / "pool/b.bin", [9, 9, *text_of([16])], header_bytes=4, tokens=16)
    write_tokens(tmp_path / "pool/a.bin", text_of([8]))
    made = prepare_datasets(data(tmp_path / "pool"), tokenizer, "pypi")
    assert [len(set(row)) for row in made.train.input_ids.tolist()] == [2, 1]
    assert made.validation.input_ids.tolist() == [[0] * 7 + [END]]


def test_batches_are_those_of_the_same_rows_in_memory(tmp_path: Path, tokenizer: Path) -> None:
    """By one rank and by four, begun by two and gone on with by one: every row once, in the order of the same seed."""
    for number in range(3):
        write_tokens(tmp_path / f"pool/{number}.bin", random_text(20 * 8 + 5, number))
    pool = prepare_datasets(data(tmp_path / "pool"), tokenizer, "pypi").train
    memory = PackedDataset(pool.input_ids, pool.document_ids, pool.loss_mask)
    expected = list(loader(memory, 1))
    for ranks in (1, 4):
        read = [list(loader(pool, ranks, rank)) for rank in range(ranks)]
        assert_same([joined(parts) for parts in zip(*read, strict=True)], expected)
    two = [loader(pool, 2, rank) for rank in (0, 1)]
    begun = [joined(parts) for parts in zip(*(islice(each, 6) for each in two), strict=True)]
    one = loader(pool, 1)
    one.load_state_dict(two[0].state_dict())
    assert_same([*begun, *one], expected)
    other = PackedLoader(pool, micro_batch_size=3, gradient_accumulation_steps=2, steps=5, seed=0)
    with pytest.raises(UserError, match="micro_batch_size"):
        other.load_state_dict(two[0].state_dict())


def loader(rows: PackedDataset, world_size: int, rank: int = 0) -> PackedLoader:
    size = 4 // world_size
    return PackedLoader(
        rows, micro_batch_size=size, gradient_accumulation_steps=2, steps=9, seed=3, rank=rank, world_size=world_size
    )


def joined(parts: Any) -> dict[str, torch.Tensor]:
    """What all ranks read, as one batch."""
    return {name: parts[0][name] if name == "step_tokens" else torch.cat([p[name] for p in parts]) for name in parts[0]}


def assert_same(actual: list[Any], expected: list[Any]) -> None:
    assert len(actual) == len(expected)
    for ours, theirs in zip(actual, expected, strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_part_of_the_pool_is_drawn_and_corpora_are_mixed(tmp_path: Path, tokenizer: Path) -> None:
    for name, rows in (("a", 40), ("b", 10)):
        write_tokens(tmp_path / f"{name}.bin", random_text(rows * 8))
    part = prepare_datasets(data(tmp_path / "a.bin", max_tokens=85), tokenizer, "pypi").train
    assert len(part) == 10 and len({*part.numbers.tolist()}) == 10 and part.numbers.max() < 39
    assert part.numbers.tolist() != list(range(10))
    corpora = {
        name: CorpusConfig(path=str(tmp_path / f"{name}.bin"), weight=weight) for name, weight in (("a", 1.0), ("b", 3.0))
    }
    mixed = DataConfig(corpora=corpora, sequence_length=8, max_tokens=40 * 8, validation_sequences=5)
    made = prepare_datasets(mixed, tokenizer, "pypi", with_corpus_ids=True)
    assert made.train.share_of_rows([0]) == 0.25 and made.train.share_of_rows([0, 1]) == 1.0
    ids = made.train.take(np.arange(40)).corpus_ids
    assert ids is not None and ids.mean() == 0.75 and ids.shape == (40, 8)
    # of the 50 rows 4 and 1 are held out; the nine others of b are read three times, and three of them once more
    _, times = np.unique(made.train.numbers[made.train.numbers >= 40], return_counts=True)
    assert sorted(times.tolist()) == [3] * 6 + [4] * 3 and made.train.numbers.max() == 48
    little = prepare_datasets(replace(mixed, max_tokens=7), tokenizer, "pypi").train  # less than a row: one of each
    assert len(little) == 2


def test_own_text_to_validate_on(tmp_path: Path, tokenizer: Path) -> None:
    write_tokens(tmp_path / "t.bin", text_of([8, 8]))
    corpus = CorpusConfig(path=str(write_lines(tmp_path / "v.jsonl", [{"text": "abcdefg"}, {"text": "h"}])))
    made = prepare_datasets(data(tmp_path / "t.bin", validation={"v": corpus}), tokenizer, "pypi", with_corpus_ids=True)
    assert len(made.train) == 2 and len(made.validation) == 1
    assert made.validation.corpus_ids is not None and made.validation.corpus_ids.max() == 1


def test_chats_to_validate_on_follow_the_template_of_ones_own(tmp_path: Path) -> None:
    tokenizer, template = save_tokenizer(tmp_path / "tokenizer", None), tmp_path / "own.jinja"
    write_tokens(tmp_path / "t.bin", text_of([8] * 8))
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]
    corpus = CorpusConfig(path=str(write_lines(tmp_path / "v.jsonl", [{"m": chat}])), messages="m")
    config = data(tmp_path / "t.bin", validation={"v": corpus}, validation_sequences=0, chat_template=str(template))
    found = {}
    for begin in "<[":
        template.write_text(f"{{% for m in messages %}}{begin}{{{{ m.role }}}}{{{{ m.content }}}}<|im_end|>{{% endfor %}}")
        found[begin] = prepare_datasets(replace(config, sequence_length=64), tokenizer, "pypi")
        said = byte_tokenizer().decode(found[begin].validation.input_ids[0].tolist())
        assert said.startswith(f"{begin}userHi<|im_end|>{begin}assistantYo<|im_end|>")
        assert found[begin].statistics["validation_tokens"] == found[begin].validation.num_tokens < 64
    assert found["<"].fingerprint != found["["].fingerprint
    template.write_text("{% if %}")
    with pytest.raises(UserError, match=r"data.chat_template.*template line 2"):
        check_data_config(config, "pypi")


# ---------------------------------------------------------------- ten billion tokens


def test_ten_billion_tokens_are_planned_and_read_without_reading_them_whole(tmp_path: Path, tokenizer: Path) -> None:
    """A sparse file of 20 GB in which only one row is written: seconds, some MB read, memory for the numbers of rows."""
    tokens, length = 10_000_000_000, 2048
    path = write_tokens(tmp_path / "t.bin", [])
    os.truncate(path, 2 * tokens)
    row = text_of([1000, 1048])
    with path.open("r+b") as file:
        file.seek(2 * length * 4_000_000)
        file.write(np.array(row, dtype=np.uint16).tobytes())
    config = data(path, sequence_length=length, validation_sequences=64)
    tracemalloc.start()
    start, before = time.monotonic(), bytes_read()
    check_data_config(config, "pypi")
    made: PreparedData = prepare_datasets(config, tokenizer, "pypi")
    batches = PackedLoader(made.train, micro_batch_size=8, gradient_accumulation_steps=2, steps=600_000, seed=0)
    batches.position = 7
    batch = next(iter(batches))
    seconds, read, peak = time.monotonic() - start, bytes_read() - before, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(made.train) == tokens // length - 64 and batch["input_ids"].shape == (8, length)
    assert made.train.take(np.array([4_000_000])).input_ids[0].tolist() == row
    assert seconds < 30 and read < 30e6 and peak < 300e6


def bytes_read() -> int:
    """By this process, from files."""
    return int(Path("/proc/self/io").read_text().split()[1])


# ---------------------------------------------------------------- faults

SIDECAR = {"tokenizer": FINGERPRINT, "dtype": "uint16"}
FAULTS: dict[str, tuple[Any, Any, str]] = {  # {name: (bytes, sidecar, what is said)}
    "no sidecar": (bytes(64), None, r"t.bin needs t.bin.json beside it, or tokens.json"),
    "no json": (bytes(64), "{", r"t.bin.json is not JSON"),
    "a list": (bytes(64), [], r"t.bin.json: no JSON object"),
    "another key": (bytes(64), {**SIDECAR, "vocab": 3}, r"unknown key 'vocab'; its keys are tokenizer"),
    "no dtype": (bytes(64), {"tokenizer": FINGERPRINT}, r"has dtype None; choose from uint8"),
    "a float": (bytes(64), {**SIDECAR, "dtype": "float32"}, r"has dtype 'float32'"),
    "an odd size": (bytes(65), SIDECAR, r"t.bin has 65 bytes, which are no whole number of uint16 tokens"),
    "empty": (b"", SIDECAR, r"t.bin has 0 bytes"),
    "shorter than its header": (bytes(64), {**SIDECAR, "header_bytes": 99}, r"t.bin has 64 bytes"),
    "a strange header": (bytes(64), {**SIDECAR, "header_bytes": -1}, r"header_bytes is -1, no whole number"),
    "it ends early": (bytes(64), {**SIDECAR, "tokens": 50}, r"holds 32 tokens, by its sidecar 50: it is not whole"),
    "another tokenizer": (
        bytes(64),
        {**SIDECAR, "tokenizer": "abc"},
        r"is of the tokenizer abc, and that of .*" + FINGERPRINT,
    ),
    "no tokenizer": (bytes(64), {"dtype": "uint16"}, r"is of the tokenizer unknown"),
    "beyond the vocabulary": (b"\xff\xff" * 32, SIDECAR, r"token 65,535, and the tokenizer has 259 tokens"),
    "a negative token": (b"\xff" * 64, {**SIDECAR, "dtype": "int32"}, r"token -1, and the tokenizer has 259"),
    "fewer rows than are held out": (
        bytes(16),
        SIDECAR,
        r"validation_sequences: 1 of the 1 rows of 8 tokens .* none to train",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_no_file_of_tokens_is_said_in_one_line(tmp_path: Path, tokenizer: Path, fault: str) -> None:
    content, sidecar, said = FAULTS[fault]
    (tmp_path / "t.bin").write_bytes(content)
    if sidecar is not None:
        (tmp_path / "t.bin.json").write_text(sidecar if isinstance(sidecar, str) else json.dumps(sidecar))
    with pytest.raises(UserError, match=said) as error:
        prepare_datasets(data(tmp_path / "t.bin"), tokenizer, "pypi")
    assert "\n" not in str(error.value)


def test_arrays_that_are_no_tokens(tmp_path: Path, tokenizer: Path) -> None:
    path = write_tokens(tmp_path / "t.npy", [1] * 32)
    for array, said in ((np.ones((4, 8), np.uint16), r"of shape \(4, 8\)"), (np.ones(32), "holds float64")):
        np.save(path, array)
        with pytest.raises(UserError, match=said):
            check_data_config(data(path), "pypi")
    np.save(path, np.ones(32, np.uint16))
    os.truncate(path, path.stat().st_size - 2)
    with pytest.raises(UserError, match="fewer tokens than the 32 of its header"):
        check_data_config(data(path), "pypi")
    path.write_bytes(bytes(64))
    with pytest.raises(UserError, match=r"is no \.npy file of NumPy; name raw numbers \.bin"):
        check_data_config(data(path), "pypi")


def test_what_tokens_cannot_be_combined_with(tmp_path: Path, tokenizer: Path) -> None:
    path = write_tokens(tmp_path / "t.bin", text_of([8] * 4))
    text = CorpusConfig(path=str(write_lines(tmp_path / "x.jsonl", [{"text": "a"}])))
    tokens = CorpusConfig(path=str(path))
    for config, said in (
        (DataConfig(corpora={"t": tokens, "x": text}), "data.corpora.x is text, and others are files of tokens"),
        (
            DataConfig(corpora={"t": tokens}, validation={"t": tokens}),
            "data.validation.t: text to validate on is given as text",
        ),
        (DataConfig(corpora={"t": CorpusConfig(path=str(path), text="{{ a }}")}), "have no columns for text; leave it out"),
        (DataConfig(corpora={"t": CorpusConfig(path=str(path), max_documents=3)}), "max_documents: .* set data.max_tokens"),
        (DataConfig(corpora={"t": CorpusConfig(path=str(tmp_path / "gone.bin"))}), "gone.bin: no such file"),
        (
            DataConfig(corpora={"t": tokens, "u": CorpusConfig(path=str(path), weight=1.0)}),
            "the other corpora have weights; give it one",
        ),
    ):
        with pytest.raises(UserError, match=said):
            check_data_config(config, "pypi")
    with pytest.raises(UserError, match="teacher.prompt: documents in files of tokens cannot be rendered"):
        prepare_datasets(data(path), tokenizer, "pypi", prompt=TeacherPromptConfig(prefix="x"))
    write_lines(tmp_path / "pool.jsonl", [])
    (tmp_path / "both").mkdir()
    write_tokens(tmp_path / "both/t.bin", text_of([8] * 4))
    write_lines(tmp_path / "both/x.jsonl", [{"text": "a"}])
    with pytest.raises(UserError, match=r"holds tokens and, in x.jsonl, text; give each a folder of its own"):
        check_data_config(data(tmp_path / "both"), "pypi")


def test_a_file_that_vanishes_or_changes(tmp_path: Path, tokenizer: Path) -> None:
    path = write_tokens(tmp_path / "t.bin", text_of([8] * 4))
    made = prepare_datasets(data(path), tokenizer, "pypi")
    with path.open("r+b") as file:  # between sessions: another fingerprint, by which a checkpoint is refused
        file.write(b"\x09")
    assert prepare_datasets(data(path), tokenizer, "pypi").fingerprint != made.fingerprint
    os.truncate(path, 40)
    with pytest.raises(UserError, match="t.bin has 40 bytes, and had 64: it has changed in use"):
        made.train.take(np.array([0]))
    path.unlink()
    with pytest.raises(UserError, match=r"t.bin was there and cannot be read now: No such file"):
        made.train.take(np.array([0]))
