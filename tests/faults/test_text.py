"""Text as users bring it: chats with tools and weights, odd files, hidden labels, tokenizers that add a blank."""

import json
import logging
import re
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from helpers import tiny_models, tiny_tasks
from helpers.caches import new_cache
from helpers.chat_templates import STYLES
from helpers.chat_tokenizers import tokenizer_of
from helpers.tiny_data import byte_tokenizer, save_tokenizer
from helpers.training_processes import cli
from transformers import AutoTokenizer

from distill_lit.config import CorpusConfig, DataConfig, load_experiment
from distill_lit.config.evaluation import EvaluationConfig
from distill_lit.data import check_data_config, prepare_datasets
from distill_lit.data.chat import encode_chat
from distill_lit.data.corpora import read_documents
from distill_lit.data.tokenization import tokenize
from distill_lit.evaluation.evaluator import evaluate_loaded, evaluate_model
from distill_lit.evaluation.task_evaluation import require_chat_template
from distill_lit.evaluation.tasks import check_user_tasks, load_task, resolve_tasks
from distill_lit.experiment import plan as experiments
from distill_lit.experiment.execution.run import build_run
from distill_lit.generation.local import decode_continuation
from distill_lit.models import load_model, load_tokenizer
from distill_lit.models.vocabulary import check_special_tokens, unpadded_vocab_size
from distill_lit.teachers.token_alignment import align_tokens, token_byte_lengths
from distill_lit.training.callbacks import evaluation as midway
from distill_lit.utils import template_limits as limits
from distill_lit.utils.exceptions import UserError

USER, REPLY = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}
CALL = {"role": "assistant", "tool_calls": [{"function": {"name": "look", "arguments": {"at": "sky"}}}]}
TOOLS = """{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content or '' }}{% for c in m.tool_calls or [] %}<call>{{ c.function | tojson }}</call>{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def chats(path: Path, *rows: list[dict[str, Any]]) -> dict[str, CorpusConfig]:
    path.write_text("".join(json.dumps({"m": row}) + "\n" for row in rows))
    return {"mine": CorpusConfig(path=f"file:{path}", messages="m")}


def supervised(tmp_path: Path, tokenizer: Any, *rows: list[dict[str, Any]]) -> str:
    """What is supervised of these chats, | between them."""
    documents = read_documents(chats(tmp_path / "c.jsonl", *rows), 0, "pypi").items
    parts = []
    for document in documents:
        made = tokenize([document], tokenizer, 0, 0, 0)
        parts.append(tokenizer.decode(made.tokens[made.loss_mask].tolist()))
    return "|".join(parts)


def documents_of(path: Path, text: str = "{{ text }}") -> list[str]:
    corpus = CorpusConfig(path=f"file:{path}", text=text)
    return [document.text for document in read_documents({"mine": corpus}, 0, "pypi").items]


# ---------------------------------------------------------------- chats


def test_a_tool_call_is_supervised_as_the_template_writes_it(tmp_path: Path) -> None:
    said = supervised(tmp_path, byte_tokenizer(TOOLS), [USER, CALL, {"role": "tool", "content": "blue"}, REPLY])
    assert said == '<call>{"name": "look", "arguments": {"at": "sky"}}</call><|im_end|>Yo<|im_end|>'


@pytest.mark.parametrize("form", [lambda tools: tools, json.dumps, lambda tools: [json.dumps(tool) for tool in tools]])
def test_tools_reach_the_template_in_whatever_form_they_are_kept(tmp_path: Path, form: Any) -> None:
    row = {"m": [USER, REPLY], "tools": form([{"name": "look"}])}
    (tmp_path / "c.jsonl").write_text(json.dumps(row) + "\n" + json.dumps({"m": [USER, REPLY], "tools": None}) + "\n")
    documents = read_documents({"mine": CorpusConfig(path=f"file:{tmp_path}/c.jsonl", messages="m")}, 0, "pypi").items
    assert [document.tools for document in documents] == [({"name": "look"},), ()]
    (tmp_path / "c.jsonl").write_text(json.dumps({"m": [USER, REPLY], "tools": "hammer"}) + "\n")
    with pytest.raises(UserError, match=r"mine\.messages: row 1: column 'tools' must be a list of JSON schemas"):
        read_documents({"mine": CorpusConfig(path=f"file:{tmp_path}/c.jsonl", messages="m")}, 0, "pypi")


@pytest.mark.parametrize("message", [{**REPLY, **CALL}, {**REPLY, "reasoning_content": "because"}])
def test_what_a_template_does_not_write_is_refused(tmp_path: Path, message: Any) -> None:
    words = (
        r"mine\.messages: row 2: message 2 has (tool_calls|reasoning_content), of which the chat template writes nothing"
    )
    with pytest.raises(UserError, match=words):
        supervised(tmp_path, byte_tokenizer(), [USER, REPLY], [USER, message])


def test_weights_of_messages(tmp_path: Path) -> None:
    again = {"role": "assistant", "content": "Again"}
    for template in (STYLES["chatml"][0](True), STYLES["chatml"][0](False)):
        tokenizer = byte_tokenizer(template)
        assert supervised(tmp_path, tokenizer, [USER, {**REPLY, "weight": 0}, USER, again]) == "Again<|im_end|>"
        assert supervised(tmp_path, tokenizer, [USER, REPLY, USER, {**again, "train": False}]) == "Yo<|im_end|>"
    with pytest.raises(UserError, match=r"row 1: a message has weight 0\.5; only 0 and 1"):
        supervised(tmp_path, byte_tokenizer(), [USER, {**REPLY, "weight": 0.5}])


def test_parts_of_text_are_joined_and_images_refused(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "Y"}, {"type": "text", "text": "o", "image": None}]
    assert supervised(tmp_path, byte_tokenizer(), [USER, {**REPLY, "content": parts}]) == "Yo<|im_end|>"
    with pytest.raises(UserError, match="row 1: message 1 has a part that is no text"):
        supervised(tmp_path, byte_tokenizer(), [{**USER, "content": [{"type": "image", "url": "x"}]}, REPLY])


def test_a_template_that_refuses_is_quoted(tmp_path: Path) -> None:
    strict = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    rows = [USER, REPLY], [{"role": "system", "content": "S"}, USER, REPLY]
    with pytest.raises(UserError, match=r"mine\.messages: row 2: the chat template refuses it: System role not supported"):
        supervised(tmp_path, byte_tokenizer(strict + STYLES["chatml"][0](False)), *rows)
    with pytest.raises(UserError, match=r"mine\.messages: row 1: it holds half a surrogate pair"):
        supervised(tmp_path, byte_tokenizer(), [{**USER, "content": "a \ud800 b"}, REPLY])


def test_a_letter_of_several_tokens_and_a_macro_around_the_answer() -> None:
    tokenizer = byte_tokenizer(
        "{% macro say(m) %}<|im_start|>{{ m.role }}\n{% generation %}{{ m.content }}{% endgeneration %}{% endmacro %}"
        "{% for m in messages %}{{ say(m) }}{% endfor %}"
    )
    ids, marks = encode_chat(tokenizer, [{"role": "assistant", "content": "漢"}])
    assert tokenizer.decode([i for i, mark in zip(ids, marks, strict=True) if mark]) == "漢"


def test_the_header_of_an_empty_response_is_not_supervised(tmp_path: Path) -> None:
    bare = "{% for m in messages %}{{ m.role }}:{% if m.content %} {{ m.content }}{% endif %}\n{% endfor %}"
    rows = [USER, {"role": "assistant", "content": ""}, USER, REPLY]
    assert supervised(tmp_path, byte_tokenizer(bare), rows) == "Yo"


def test_the_last_response_is_supervised_and_that_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = byte_tokenizer(STYLES["qwen3"][0](False))
    with caplog.at_level(logging.WARNING):
        said = supervised(tmp_path, tokenizer, [USER, REPLY, USER, {"role": "assistant", "content": "Z"}])
    assert said == "<think>\n\n</think>\n\nZ<|im_end|>"
    assert "data.corpora.mine: 1 of 2 responses are not supervised" in caplog.text


def test_it_is_said_too_where_a_part_of_the_pool_is_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = ([USER | {"content": str(i)}, REPLY, USER, {"role": "assistant", "content": "Z"}] for i in range(9))
    documents = read_documents(chats(tmp_path / "c.jsonl", *rows), 0, "pypi").items
    with caplog.at_level(logging.WARNING):
        made = tokenize(documents, byte_tokenizer(STYLES["qwen3"][0](False)), 0, 0, max_tokens=100)
    assert len(made.offsets) - 1 < 9
    assert "data.corpora.mine: 9 of 18 responses are not supervised" in caplog.text


def test_a_template_of_ones_own(tmp_path: Path) -> None:
    corpora = chats(tmp_path / "c.jsonl", *([USER | {"content": str(i)}, REPLY] for i in range(40)))
    tokenizer = save_tokenizer(tmp_path / "tokenizer", None)
    own = tmp_path / "own.jinja"

    def prepared(template: str) -> Any:
        own.write_text(template)
        data = DataConfig(corpora=corpora, sequence_length=64, validation_sequences=1, chat_template=str(own))
        return prepare_datasets(data, tokenizer, "pypi")

    first, second = (prepared(STYLES[name][0](True)) for name in ("chatml", "zephyr"))
    assert first.fingerprint != second.fingerprint
    labels = first.train.labels
    assert set(re.findall(r"Yo<\|im_end\|>|.", byte_tokenizer().decode(labels[labels >= 0].tolist()))) == {"Yo<|im_end|>"}
    own.write_text("{% if %}")
    for path, words in ((own, "template line 2"), (tmp_path / "no", "no such file")):
        with pytest.raises(UserError, match=f"data.chat_template.*{words}"):
            check_data_config(DataConfig(corpora=corpora, chat_template=str(path)), "pypi")


@pytest.mark.parametrize("older", [None, "{{ 'old' }}"])
def test_a_student_answers_with_the_template_it_was_trained_on(
    tmp_path: Path, older: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether its base has none, or an older one in the tokenizer's config; scores on the way and after use it too."""
    monkeypatch.setenv("DISTILL_LIT_CACHE", str(new_cache(tmp_path / "cache")))
    base = tiny_models.make_model(tmp_path / "base", bos_token_id=None, eos_token_id=258)
    save_tokenizer(base, None)
    settings = json.loads((base / "tokenizer_config.json").read_text())
    (base / "tokenizer_config.json").write_text(json.dumps({**settings, **({"chat_template": older} if older else {})}))
    own = tmp_path / "own.jinja"
    own.write_text(STYLES["zephyr"][0](True))
    rows = [{"m": [USER | {"content": f"{i} {text}"}, REPLY]} for i, text in enumerate(tiny_models.sentences(60))]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = tmp_path / "tiny.yaml"
    file.write_text(f"""
name: tiny
teacher: {{model: "file:{base}", dtype: float32}}
students: {{one: {{layers: [0]}}}}
data: {{sequence_length: 128, validation_sequences: 2, chat_template: "{own}",
       corpora: {{text: {{path: "file:{tmp_path / "c.jsonl"}", messages: m}}}}}}
objective: {{compile: never, terms: {{kl: {{kind: forward_kl}}}}}}
training: {{max_tokens: 512, micro_batch_size: 2, precision: float32, accelerator: cpu}}
evaluation: {{tasks: [colours], include_path: "{tiny_tasks.make_tasks(tmp_path / "tasks", "colours")}", limit: 6,
             apply_chat_template: true, interval: 1.0}}
baselines: []
""")
    config = load_experiment(file)
    asked = []
    monkeypatch.setattr(
        midway, "evaluate_loaded", lambda *given: asked.append(given[1].chat_template) or evaluate_loaded(*given)
    )
    build_run(experiments.plan_runs(config)[0], tmp_path / "run", lambda *_: None)
    student = tmp_path / "run/student"
    assert AutoTokenizer.from_pretrained(student).chat_template == own.read_text()
    assert set(asked) == {own.read_text()}
    found = evaluate_model(student, config.evaluation, "pypi")
    model, tokenizer, questions = load_model(student), load_tokenizer(base), []
    for template in (own.read_text(), STYLES["chatml"][0](True)):
        tokenizer.chat_template = template
        result = evaluate_loaded(model, tokenizer, config.evaluation, "pypi")
        questions.append(sorted(result.records.reset_index()["key"]))  # hashes of all that is asked
    assert sorted(found.records.reset_index()["key"]) == questions[0] != questions[1]


def test_the_command_line_ends_with_2(tmp_path: Path, experiment: Path) -> None:
    code, said = cli("plan", experiment, "--root", tmp_path, "data.chat_template=/nowhere.jinja")
    assert code == 2
    assert "data.chat_template: /nowhere.jinja: no such file" in " ".join(said.split())


# ---------------------------------------------------------------- files


def test_binary_columns(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    table = pyarrow.table({"text": [b"one", "zwölf".encode()], "image": [b"\xff\xfe", b"\x00\xff"]})
    pyarrow.parquet.write_table(table, path)
    assert documents_of(path, "Q: {{ text }}") == ["Q: one", "Q: zwölf"]
    for template in ("{{ image }}", "{{ 'Q' ~ image }}"):
        with pytest.raises(UserError, match=r"x\.parquet: row 1: column 'image' is binary data that is no UTF-8 text"):
            documents_of(path, template)


@pytest.mark.parametrize("value", [["a"], {"a": 1}, [], float("nan")])
def test_what_is_no_text_is_refused(tmp_path: Path, value: Any) -> None:
    (tmp_path / "x.jsonl").write_text(json.dumps({"text": value, "n": 3}) + "\n")
    with pytest.raises(UserError, match=r"mine\.text: it prints (a list|a dict|nan), which is no text"):
        documents_of(tmp_path / "x.jsonl")
    assert documents_of(tmp_path / "x.jsonl", "{{ n }} {{ text | string | length > 0 }}") == ["3 True"]


def test_byte_order_marks(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes("\ufeffone\n\ntwo\n".encode())
    assert documents_of(tmp_path / "x.txt") == ["one", "two"]
    (tmp_path / "x.jsonl").write_text(json.dumps({"text": "\ufeffone"}) + "\n")
    assert documents_of(tmp_path / "x.jsonl") == ["one"]
    for encoding in ("utf-16", "utf-16-le", "utf-32"):
        (tmp_path / "y.txt").write_bytes("one two".encode(encoding))
        with pytest.raises(UserError, match=r"y\.txt: not UTF-8, but UTF-16"):
            documents_of(tmp_path / "y.txt")


# ---------------------------------------------------------------- tokens and text


@pytest.mark.parametrize("name", ["bytes", "pieces", "legacy pieces"])
@pytest.mark.parametrize("whole", ["Once upon a time", "Once upon  a\ntime.", "漢字 🙂 a"])
def test_a_continuation_keeps_its_blank(name: str, whole: str) -> None:
    tokenizer = tokenizer_of(name)
    ids = tokenizer(whole, add_special_tokens=False)["input_ids"]
    for cut in range(1, len(ids)):
        said = decode_continuation(tokenizer, ids[:cut], [*ids[cut:], tokenizer.eos_token_id])
        before = tokenizer.decode(ids[:cut]).rstrip("\ufffd")
        assert before + said == tokenizer.decode(ids)


def test_half_a_character_at_the_end_is_left_out() -> None:
    tokenizer = byte_tokenizer()
    ids = tokenizer("a漢")["input_ids"]
    assert decode_continuation(tokenizer, [], ids[:-1], is_finished=False) == "a"


@pytest.mark.parametrize("name", ["pieces", "legacy pieces"])
@pytest.mark.parametrize("text", ["A river, a stone.", " begins with a blank", "漢字 and 🙂", "a\n\nb"])
def test_spans_with_a_blank_in_front_cover_the_same_text(name: str, text: str) -> None:
    from distill_lit.teachers.token_alignment import token_bytes

    found = []
    for tokenizer in (tokenizer_of(name), tokenizer_of("bytes")):
        table = token_bytes(tokenizer)
        pieces = [table[i] for i in tokenizer(text, add_special_tokens=False)["input_ids"]]
        sizes = token_byte_lengths(text.encode(), pieces)
        assert sizes is not None
        assert sizes.sum() == len(text.encode())
        found.append(sizes)
    spans = align_tokens(*found)
    for sizes, part in zip(found, spans, strict=True):
        ends = np.cumsum(sizes)
        assert ends[part[-1][1] - 1] == len(text.encode())
    for ours, theirs in zip(spans.student, spans.teacher, strict=True):
        assert found[0][slice(*ours)].sum() == found[1][slice(*theirs)].sum()
    assert token_byte_lengths(b"other", pieces) is None


def test_a_token_beyond_the_embeddings(tmp_path: Path) -> None:
    model = tiny_models.make_model(tmp_path / "model")
    tokenizer = load_tokenizer(model)
    tokenizer.add_tokens(["<image>"])
    tokenizer.save_pretrained(model)
    tokenizer = load_tokenizer(model)
    assert (unpadded_vocab_size(tokenizer), unpadded_vocab_size(tokenizer, 300)) == (301, 300)
    check_special_tokens(tokenizer, 300, model)
    for extra, refused in (("", False), (" <image>", True)):
        path = tmp_path / "x.jsonl"
        path.write_text("".join(json.dumps({"text": text + extra}) + "\n" for text in tiny_models.sentences(60)))
        data = DataConfig(corpora={"a": CorpusConfig(path=f"file:{path}")}, sequence_length=32, validation_sequences=1)
        if refused:
            with pytest.raises(UserError, match="data.corpora: the text holds '<image>', token 300 of a model"):
                prepare_datasets(data, model, "pypi")
        else:
            assert len(prepare_datasets(data, model, "pypi").train)


# ---------------------------------------------------------------- hidden labels


@pytest.mark.parametrize("hidden", [-1, None, ""])
def test_hidden_labels_are_refused_before_a_model_is_loaded(tmp_path: Path, hidden: Any) -> None:
    folder = tiny_tasks.make_tasks(tmp_path / "tasks", "colours")
    settings = EvaluationConfig(tasks=["colours"], include_path=str(folder))
    words = "task 'colours': none of its 24 documents .* has a known right"
    check_user_tasks(settings, "pypi")
    file = folder / "colours.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps({**row, "label": hidden}) + "\n" for row in rows))
    with pytest.raises(UserError, match=words):
        check_user_tasks(settings, "pypi")
    file.write_text("".join(json.dumps({**row, "label": hidden if i else 0}) + "\n" for i, row in enumerate(rows)))
    with pytest.raises(UserError, match=r"task 'colours': 23 of 24 examples .* have no known right"):
        check_user_tasks(EvaluationConfig(tasks=["colours"], include_path=str(folder), num_fewshot=1), "pypi")


def rewrite(file: Path, change: Callable[[int, dict[str, Any]], dict[str, Any]]) -> None:
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(change(number, row)) + "\n" for number, row in enumerate(rows)))


@pytest.mark.parametrize("number", [0, 5])
@pytest.mark.parametrize("label", [9, "blue"])
def test_a_label_that_is_no_choice_is_named(tmp_path: Path, number: int, label: Any) -> None:
    folder = tiny_tasks.make_tasks(tmp_path / "tasks", "colours")
    rewrite(folder / "colours.jsonl", lambda n, row: {**row, "label": str(label if n == number else row["label"])})
    words = f"document {number + 1} of split 'test' has label {label!r}, which is none of its {3 + number % 2} choices"
    with pytest.raises(UserError, match=words):
        check_user_tasks(EvaluationConfig(tasks=["colours"], include_path=str(folder)), "pypi")


def test_some_hidden_labels_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tiny_tasks.make_tasks(tmp_path / "tasks", "colours", "shapes")
    rewrite(folder / "shapes.jsonl", lambda n, row: {**row, "label": -1} if n in (0, 7, 9) else row)
    settings = EvaluationConfig(tasks=["colours", "shapes"], include_path=str(folder), dtype="float32")
    check_user_tasks(settings, "pypi")
    model = tiny_models.make_model(tmp_path / "model")
    with caplog.at_level(logging.WARNING):
        found = evaluate_loaded(load_model(model), load_tokenizer(model), settings, "pypi")
    assert "task shapes: 3 of 24 documents without a known right answer count as wrong" in caplog.text
    assert "task colours" not in caplog.text
    assert found.records.loc[found.records.task == "shapes", "correct"].tolist()[0] == 0


WRITING = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
output_type: generate_until
test_split: test
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_target: "{{{{passage}}}}"
generation_kwargs: {{until: ["\\n"], max_gen_toks: 4}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
metadata: {{version: 1.0}}
"""


def make_writing(folder: Path, name: str = "writing") -> Path:
    folder.mkdir(exist_ok=True)
    data = tiny_tasks.make_documents(folder / f"{name}.jsonl")
    (folder / f"{name}.yaml").write_text(WRITING.format(name=name, data=data))
    return data


@pytest.mark.parametrize("hidden", [None, "", " ", []])
def test_hidden_answers_of_a_task_that_writes_and_of_a_group(tmp_path: Path, hidden: Any) -> None:
    folder = tiny_tasks.make_tasks(tmp_path / "tasks", "colours")
    data = make_writing(folder)
    (folder / "both.yaml").write_text("group: both\ntask: [colours, writing]\n")
    settings = EvaluationConfig(tasks=["both"], include_path=str(folder))
    check_user_tasks(settings, "pypi")
    rewrite(data, lambda n, row: {**row, "passage": hidden})
    with pytest.raises(
        UserError, match="task 'writing': none of its 24 documents in split 'test' has a known right answer"
    ):
        check_user_tasks(settings, "pypi")


def test_a_question_beyond_the_embeddings_of_a_model_that_writes(tmp_path: Path) -> None:
    data = make_writing(tmp_path / "tasks")
    model = tiny_models.make_model(tmp_path / "model")
    tokenizer = load_tokenizer(model)
    tokenizer.add_tokens(["<image>"])
    settings = EvaluationConfig(tasks=["writing"], include_path=str(data.parent), dtype="float32", limit=4)
    assert len(evaluate_loaded(load_model(model), tokenizer, settings, "pypi").records) == 4
    rewrite(data, lambda n, row: {**row, "question": "what is <image> here"})
    with pytest.raises(UserError, match="the text holds '<image>', token 300 of a model that has 300"):
        evaluate_loaded(load_model(model), tokenizer, settings, "pypi")


# ---------------------------------------------------------------- documents that cannot be asked


@pytest.mark.parametrize("number", [0, 5])
@pytest.mark.parametrize(
    ("choices", "words"),
    [([], "no choices"), (None, "no choices"), ("", "no choices"), ("missing", "no choices"),
     (["a", None, "b"], "None among its choices"), (["", "a", "b"], "'' among its choices")],
)  # fmt: skip
def test_a_document_without_choices_is_named(tmp_path: Path, number: int, choices: Any, words: str) -> None:
    folder = tiny_tasks.make_tasks(tmp_path / "tasks", "colours")

    def change(n: int, row: dict[str, Any]) -> dict[str, Any]:
        without = {key: value for key, value in row.items() if key != "choices"}
        return row if n != number else without if choices == "missing" else {**row, "choices": choices, "label": 0}

    rewrite(folder / "colours.jsonl", change)
    settings = EvaluationConfig(tasks=["colours"], include_path=str(folder), dtype="float32")
    said = f"task 'colours': document {number + 1} of split 'test' has {words}"
    with pytest.raises(UserError, match=said):
        check_user_tasks(settings, "pypi")
    model = tiny_models.make_model(tmp_path / "model")
    with pytest.raises(UserError, match=said):  # as for a task that is known, whose data is not read when a run is planned
        evaluate_loaded(load_model(model), load_tokenizer(model), settings, "pypi")


def test_more_examples_than_there_are(tmp_path: Path) -> None:
    folder = tiny_tasks.make_tasks(tmp_path / "tasks", "colours")
    settings = EvaluationConfig(tasks=["colours"], include_path=str(folder), num_fewshot=23)
    check_user_tasks(settings, "pypi")  # all but the question itself
    settings.num_fewshot = 24
    with pytest.raises(
        UserError, match="task 'colours': 24 examples are asked for, and split 'test' has 23 beside the question"
    ):
        check_user_tasks(settings, "pypi")
    shown = tiny_tasks.make_documents(folder / "shown.jsonl", count=5)
    task = (folder / "colours.yaml").read_text().replace("data_files: {", f"data_files: {{train: {shown}, ")
    for more in ("training_split: train", "training_split: train\nfewshot_config: {sampler: first_n}"):
        (folder / "colours.yaml").write_text(f"{task}{more}\n")
        settings.num_fewshot = 5
        check_user_tasks(settings, "pypi")
        settings.num_fewshot = 6
        with pytest.raises(UserError, match="task 'colours': 6 examples are asked for, and split 'train' has 5; set eval"):
            check_user_tasks(settings, "pypi")


@pytest.mark.parametrize("split", ["test", "validation"])
@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("sampler", ["default", "first_n"])
def test_a_question_is_no_example_of_itself(tmp_path: Path, split: str, named: bool, sampler: str) -> None:
    folder = tiny_tasks.make_tasks(tmp_path / "tasks", "colours")
    file = folder / "colours.yaml"
    more = f"fewshot_config: {{sampler: {sampler}}}\n" + (f"fewshot_split: {split}\n" if named else "")
    task_file = file.read_text().replace("test_split: test", f"{split}_split: {split}").replace("{test:", f"{{{split}:")
    file.write_text(task_file + more)
    settings = EvaluationConfig(tasks=["colours"], include_path=str(folder), num_fewshot=20)
    (spec,) = resolve_tasks(settings, "pypi")
    task = load_task(spec)
    task.set_config("num_fewshot", spec.num_fewshot)
    task.set_fewshot_seed(settings.seed)
    for document in task.eval_docs:
        context = task.fewshot_context(document, 20)
        assert context.count("Question: ") == 21
        assert context.count(f"Question: {document['question']}\n") == 1


# ---------------------------------------------------------------- templates that take too much

TURNS = "{% for i in range(99999) %}"
DOUBLED = "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x | length }}"
HOSTILE = {
    "{% for i in range(10**12) %}{% endfor %}": "refuses it: Range too big",
    TURNS * 4 + "{% endfor %}" * 4: "is stopped: it takes more than 0.5 seconds",
    "{{ 'a' * 10**8 }}": "is stopped: it writes 100,000,000 characters",
    DOUBLED: "is stopped: it takes more than 1,024 MiB of memory",
    "{{ 'a' | center(10**12) }}": "is stopped: it takes more than 1,024 MiB of memory",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}": "refuses it: maximum recursion depth",
    "{{ ''.__class__.__mro__ }}": "refuses it: access to attribute '__class__' of 'str' object is unsafe",
}


@pytest.mark.parametrize("template", HOSTILE)
def test_a_hostile_template_is_stopped(tmp_path: Path, template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if "0.5" in HOSTILE[template]:
        monkeypatch.setattr(limits, "TEMPLATE_TIMEOUT_S", 0.5)
    known = resource.getrlimit(resource.RLIMIT_AS), signal.getsignal(signal.SIGVTALRM)
    tokenizer = byte_tokenizer(template)
    with pytest.raises(UserError, match=f"mine.messages: row 1: the chat template {HOSTILE[template]}"):
        supervised(tmp_path, tokenizer, [USER, REPLY])
    asking = EvaluationConfig(apply_chat_template=True)
    with pytest.raises(
        UserError, match=f"evaluation.apply_chat_template: of teacher: the chat template {HOSTILE[template]}"
    ):
        require_chat_template(asking, tokenizer, "teacher")
    assert (resource.getrlimit(resource.RLIMIT_AS), signal.getsignal(signal.SIGVTALRM)) == known
    assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0, 0)


def test_a_template_that_is_hostile_later_is_stopped_where_it_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "TEMPLATE_TIMEOUT_S", 0.5)
    loops = TURNS * 4 + "{% endfor %}" * 4
    late = f"{{% if messages | length == 3 or 'Question' in messages[-1].content %}}{loops}{{% endif %}}"
    late += "{% for m in messages %}{{ m.content }}|{% endfor %}"
    folder = tiny_tasks.make_tasks(tmp_path / "tasks", "colours")
    settings = EvaluationConfig(tasks=["colours"], include_path=str(folder), dtype="float32", apply_chat_template=True)
    model = tiny_models.make_model(tmp_path / "model")
    tokenizer = load_tokenizer(model)
    tokenizer.chat_template = late
    with pytest.raises(UserError, match="the chat template is stopped: it takes more than 0.5 seconds"):
        evaluate_loaded(load_model(model), tokenizer, settings, "pypi")
    with pytest.raises(UserError, match=r"row 1: the chat template is stopped"):  # of a part of a chat, too
        supervised(tmp_path, byte_tokenizer(late), [USER, REPLY, USER, REPLY])
