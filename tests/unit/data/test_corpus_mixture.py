"""Corpora by weight, and text of one's own to validate on: counted by hand, every document ten tokens long."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from helpers.tiny_data import byte_tokenizer, save_tokenizer, write_lines

from distill_lit.config.data import CorpusConfig, DataConfig
from distill_lit.data import PackedDataset, check_data_config, prepare_datasets
from distill_lit.data.loader import PackedLoader
from distill_lit.utils.exceptions import UserError

DOCUMENT = re.compile(r"([a-z])(\d{8})")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTILL_LIT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    return save_tokenizer(tmp_path / "tokenizer")


def corpus(folder: Path, letter: str, documents: int, weight: float | None = None) -> CorpusConfig:
    """Documents of nine letters, ten tokens with their end."""
    rows = [{"text": f"{letter}{i:08d}"} for i in range(documents)]
    return CorpusConfig(path=str(write_lines(folder / f"{letter}.jsonl", rows)), weight=weight)


def data(folder: Path, validation: int = 0, **corpora: tuple[int, float | None]) -> DataConfig:
    """corpora: {letter: (documents, weight)}; validation: documents to validate on; 0: 40 tokens are held out."""
    own = {"v": corpus(folder, "v", validation)} if validation else {}
    named = {letter: corpus(folder, letter, *given) for letter, given in corpora.items()}
    return DataConfig(corpora=named, sequence_length=20, validation=own, validation_sequences=2)


def documents(packed: PackedDataset) -> Counter[str]:
    """How often each document is in the rows."""
    text = byte_tokenizer().decode(packed.input_ids.flatten().tolist())
    return Counter(f"{letter}{int(number)}" for letter, number in DOCUMENT.findall(text))


def by_corpus(packed: PackedDataset) -> Counter[str]:
    found: Counter[str] = Counter()
    for name, times in documents(packed).items():
        found[name[0]] += times
    return found


# ---------------------------------------------------------------- weights


def test_each_corpus_gives_its_share_of_the_tokens(tmp_path: Path, tokenizer: Path) -> None:
    """3 : 1 of 400 tokens is 30 documents to 10; of 500 the 125 tokens of b are 12 documents, for 13 do not fit."""
    config = data(tmp_path, a=(100, 3.0), b=(100, 1.0))
    config.max_tokens = 400
    prepared = prepare_datasets(config, tokenizer, "pypi")
    assert by_corpus(prepared.train) == {"a": 30, "b": 10}
    assert max(documents(prepared.train).values()) == 1
    assert prepared.statistics["mixture"] == {
        "a": {"share": 0.75, "tokens": 300, "documents": 30, "repeats": 0},
        "b": {"share": 0.25, "tokens": 100, "documents": 10, "repeats": 0},
    }
    assert prepared.statistics["tokens"] == 400
    config.max_tokens = 500
    assert by_corpus(prepare_datasets(config, tokenizer, "pypi").train) == {"a": 37, "b": 12}


def test_a_corpus_that_is_too_small_is_read_again_and_counted(
    tmp_path: Path, tokenizer: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Half of 450 tokens from 5 documents: 22 reads, four whole passes and two documents more."""
    config = data(tmp_path, validation=4, a=(100, 1.0), b=(5, 1.0))
    config.max_tokens = 450
    prepared = prepare_datasets(config, tokenizer, "pypi")
    assert by_corpus(prepared.train) == {"a": 22, "b": 22}
    times = [documents(prepared.train)[f"b{i}"] for i in range(5)]
    assert sorted(times) == [4, 4, 4, 5, 5]
    assert prepared.statistics["mixture"]["b"] == {"share": 0.5, "tokens": 220, "documents": 5, "repeats": 17}
    assert [record.getMessage() for record in caplog.records if "mixture" in record.name] == [
        "data.corpora.b: its 5 documents are read 4.4 times, since its weight asks for more tokens than they hold"
    ]


def test_without_a_size_the_pool_is_the_largest_that_repeats_nothing(tmp_path: Path, tokenizer: Path) -> None:
    """b has 100 tokens, a fifth of 500: the other four fifths are 40 documents of a, though it has 100."""
    prepared = prepare_datasets(data(tmp_path, validation=4, a=(100, 4.0), b=(10, 1.0)), tokenizer, "pypi")
    assert by_corpus(prepared.train) == {"a": 40, "b": 10}
    assert max(documents(prepared.train).values()) == 1


def test_a_weight_of_0_leaves_a_corpus_out_of_training_only(tmp_path: Path, tokenizer: Path) -> None:
    held_out = {}
    for weight in (None, 0.0, 1.0, 7.0):
        config = data(tmp_path, a=(60, None if weight is None else 1.0), b=(60, weight))
        prepared = prepare_datasets(config, tokenizer, "pypi")
        held_out[weight] = documents(prepared.validation)
        assert not set(held_out[weight]) & set(documents(prepared.train))
        assert (by_corpus(prepared.train)["b"] == 0) == (weight == 0)
    assert held_out[None] == held_out[0.0] == held_out[1.0] == held_out[7.0]
    assert len(held_out[None]) == 4


def test_a_mixture_follows_the_seed_of_the_data_and_nothing_else(
    tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = data(tmp_path, a=(50, 1.0), b=(5, 1.0))
    config.max_tokens = 300
    first = prepare_datasets(config, tokenizer, "pypi")
    monkeypatch.setenv("DISTILL_LIT_CACHE", str(tmp_path / "other"))
    again = prepare_datasets(config, tokenizer, "pypi")
    assert again.fingerprint == first.fingerprint
    assert (again.train.input_ids == first.train.input_ids).all()
    loaders = [
        PackedLoader(prepared.train, micro_batch_size=2, gradient_accumulation_steps=1, steps=12, seed=3)
        for prepared in (first, again)
    ]
    loaders[1].load_state_dict({**loaders[1].state_dict(), "position": 7})
    rest = [batch["input_ids"].tolist() for batch in loaders[0]][7:]
    assert [batch["input_ids"].tolist() for batch in loaders[1]] == rest
    config.seed = 1
    assert documents(prepare_datasets(config, tokenizer, "pypi").train) != documents(first.train)


def test_corpora_alternate_within_the_rows(tmp_path: Path, tokenizer: Path) -> None:
    """A row of two documents is of both corpora about every other time."""
    config = data(tmp_path, validation=4, a=(100, 1.0), b=(100, 1.0))
    rows = prepare_datasets(config, tokenizer, "pypi").train
    mixed = sum(len(by_corpus(rows.take([i]))) == 2 for i in range(len(rows)))  # type: ignore[arg-type]
    assert 30 < mixed < 70


# ---------------------------------------------------------------- text of one's own to validate on


def test_own_text_is_validated_on_and_left_out_of_training(tmp_path: Path, tokenizer: Path) -> None:
    config = data(tmp_path, validation=8, a=(20, None))
    texts = ["a00000003", "a00000004", " v00000002\n", "v00000003", "v00000003"]
    rows = [{"text": text} for text in texts]
    config.corpora["c"] = CorpusConfig(path=str(write_lines(tmp_path / "c.jsonl", rows)))
    prepared = prepare_datasets(config, tokenizer, "pypi")
    assert set(documents(prepared.train)) == {f"a{i}" for i in range(20)}
    assert len(documents(prepared.validation)) == 4 and by_corpus(prepared.validation) == {"v": 4}
    found = prepared.statistics
    assert (found["rows"], found["documents"], found["duplicates"], found["in_validation"]) == (25, 20, 2, 3)
    assert found["corpora"]["c"] == {"rows": 5, "documents": 0, "duplicates": 2, "empty": 0, "in_validation": 3}
    assert (found["validation_rows"], found["validation_tokens"], found["train_rows"]) == (2, 40, 10)


def test_all_rows_of_own_text_or_as_many_as_are_asked_for(tmp_path: Path, tokenizer: Path) -> None:
    config = data(tmp_path, validation=130, a=(20, None))
    config.validation_sequences = 64
    assert len(prepare_datasets(config, tokenizer, "pypi").validation) == 64
    config.validation_sequences = 0
    prepared = prepare_datasets(config, tokenizer, "pypi")
    assert len(prepared.validation) == 65 and len(documents(prepared.validation)) == 130
    config.validation_sequences = 66
    with pytest.raises(UserError, match=r"data\.validation fills only 65 of 66 sequences; 0 takes all"):
        prepare_datasets(config, tokenizer, "pypi")


def test_the_pool_has_its_size_beside_own_text(tmp_path: Path, tokenizer: Path) -> None:
    config = data(tmp_path, validation=8, a=(50, None))
    config.max_tokens = 305
    assert prepare_datasets(config, tokenizer, "pypi").train.num_tokens == 300
    before = prepare_datasets(config, tokenizer, "pypi").fingerprint
    corpus(tmp_path, "v", 9)
    assert prepare_datasets(config, tokenizer, "pypi").fingerprint != before


def test_training_text_that_is_all_validated_on_is_refused(tmp_path: Path, tokenizer: Path) -> None:
    config = data(tmp_path, validation=8, a=(5, None))
    config.validation = {"same": config.corpora["a"]}
    with pytest.raises(UserError, match=r"^data\.corpora: no document left of 5 rows; .* in data\.validation"):
        prepare_datasets(config, tokenizer, "pypi")


CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


def test_a_chat_to_validate_on_is_the_same_chat_in_training(tmp_path: Path, tokenizer: Path) -> None:
    other = [CHAT[0], {"role": "assistant", "content": "Good day to you, and to all who read this"}]
    train = CorpusConfig(path=str(write_lines(tmp_path / "t.jsonl", [{"m": CHAT}, {"m": other}])), messages="m")
    held = CorpusConfig(path=str(write_lines(tmp_path / "v.jsonl", [{"m": CHAT}])), messages="m")
    config = DataConfig(corpora={"t": train}, validation={"v": held}, sequence_length=256, validation_sequences=1)
    prepared = prepare_datasets(config, tokenizer, "pypi")
    assert (prepared.statistics["in_validation"], prepared.statistics["documents"]) == (1, 1)
    write_lines(tmp_path / "v.jsonl", [{"m": "Hi"}])
    with pytest.raises(UserError, match=r"^data\.validation\.v\.messages: row 1: "):
        prepare_datasets(config, tokenizer, "pypi")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"corpora": {"a": {"weight": 1.0}, "b": {}}}, "data.corpora.b.weight: the other corpora have weights; give it"),
        ({"corpora": {"a": {"weight": 0.0}}}, "data.corpora: no corpus has a weight above 0"),
        ({"validation": {"v": {"path": "nowhere.jsonl"}}}, "data.validation.v.path: nowhere.jsonl: no such file"),
        ({"validation": {"v": {"weight": 1.0}}}, "data.validation.v.weight: text to validate on is read as it is"),
        ({"validation": {"v": {"path": "", "generated": {}}}}, "data.validation.v.generated: text to validate on is not"),
        ({"validation": {"v": {"text": "{{ a"}}}, "data.validation.v.text: template line 1"),
        ({"validation_sequences": 0}, "data.validation_sequences: 0 means all of data.validation, which names no corpus"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_read(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    path = corpus(tmp_path, "a", 3).path
    settings = {"corpora": {"a": {}}, **changes}
    for section in ("corpora", "validation"):
        settings[section] = {name: {"path": path, **given} for name, given in settings.get(section, {}).items()}
    with pytest.raises(UserError) as refused:
        check_data_config(DataConfig(**settings), "pypi")
    assert str(refused.value).startswith(words)


def test_a_corpus_with_no_document_left_for_its_weight_is_refused(tmp_path: Path, tokenizer: Path) -> None:
    config = data(tmp_path, validation=8, a=(20, 1.0), b=(1, 1.0))
    config.validation["b"] = CorpusConfig(path=config.corpora["b"].path)
    with pytest.raises(UserError, match=r"^data\.corpora\.b\.weight: no document of it is left to train on; set it to 0"):
        prepare_datasets(config, tokenizer, "pypi")
