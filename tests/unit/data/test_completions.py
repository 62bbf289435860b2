"""Prompts with a completion: which tokens they become, and that the loss is on the completion and the end alone."""

import re
from pathlib import Path
from typing import Any

import pytest
from helpers.chat_tokenizers import TOKENIZERS, smollm2_tokenizer, tokenizer_of
from helpers.tiny_data import byte_tokenizer, save_tokenizer, write_lines
from tokenizers.processors import TemplateProcessing

from distill_lit.config import TeacherPromptConfig
from distill_lit.config.data import CorpusConfig, DataConfig, MessageConfig
from distill_lit.config.generation import GeneratedConfig
from distill_lit.data import check_data_config, prepare_datasets
from distill_lit.data.corpora import Documents, TeacherPrompt, corpora_fingerprint, corpus_text_fields, read_documents
from distill_lit.data.teacher_prompts import prompt_renderer, tokenize_teacher_documents
from distill_lit.data.tokenization import tokenize
from distill_lit.models import load_tokenizer
from distill_lit.utils.exceptions import UserError
from distill_lit.utils.files import fingerprint

DOLLY = {"prompt": "### Q:\n{{ q }}\n### A:\n", "completion": "{{ a }}"}


def documents_of(folder: Path, rows: list[dict[str, str]], **corpus: Any) -> Documents:
    path = write_lines(folder / "rows.jsonl", rows)
    return read_documents({"c": CorpusConfig(path=str(path), **{**DOLLY, **corpus})}, 0, "pypi")


def encoded(folder: Path, tokenizer: Any, prompt: str, completion: str) -> tuple[list[int], list[bool]]:
    found = documents_of(folder, [{"p": prompt, "c": completion}], prompt="{{ p }}", completion="{{ c }}")
    tokens = tokenize(found.items, tokenizer, 0, 0, 0)
    return tokens.tokens.tolist(), tokens.loss_mask.tolist()


def test_texts_meet_as_they_are_written(tmp_path: Path) -> None:
    rows = [{"q": "Why?", "a": " So. \n"}, {"q": "Why?", "a": "  So."}, {"q": "Why?", "a": " \n"}, {"q": "Why", "a": "?"}]
    found = documents_of(tmp_path, rows)
    assert [(d.text[: d.prompt_length], d.text[d.prompt_length :]) for d in found.items] == [
        ("### Q:\nWhy?\n### A:\n", " So."), ("### Q:\nWhy\n### A:\n", "?"),
    ]  # fmt: skip
    counts = found.statistics()
    assert (counts["documents"], counts["duplicates"], counts["empty"]) == (2, 1, 1)
    # one text with another border is another document
    assert (
        len(
            documents_of(tmp_path, [{"p": "ab", "c": "c"}, {"p": "a", "c": "bc"}], prompt="{{p}}", completion="{{c}}").items
        )
        == 2
    )


def test_bytes_by_hand(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    ids, supervised = encoded(tmp_path, tokenizer, "Q: é\nA:", " b")
    text = "Q: é\nA: b".encode()
    assert ids == [*tokenizer(text.decode())["input_ids"], tokenizer.eos_token_id]
    assert supervised == [False] * len("Q: é\nA:".encode()) + [True] * 3


def test_tokens_that_a_tokenizer_puts_around_a_text(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    start, end = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    tokenizer._tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A <|im_end|>", special_tokens=[("<|im_start|>", start), ("<|im_end|>", end)]
    )
    ids, supervised = encoded(tmp_path, tokenizer, "ab", "cd")
    letters = tokenizer("abcd", add_special_tokens=False)["input_ids"]
    assert (ids, supervised) == ([start, *letters, end], [False] * 3 + [True] * 3)


def test_the_real_tokenizer_by_hand(tmp_path: Path) -> None:
    """A blank before a word is of its token, so the border is where the prompt ends if the completion begins with it."""
    tokenizer = smollm2_tokenizer()
    end = tokenizer.eos_token_id

    def pieces(ids: list[int]) -> list[str]:
        return [tokenizer.decode([i]) for i in ids]

    ids, supervised = encoded(tmp_path, tokenizer, "The capital:", " Paris")
    assert pieces(ids) == ["The", " capital", ":", " Paris", tokenizer.decode([end])]
    assert supervised == [False, False, False, True, True]
    assert ids == [*tokenizer("The capital: Paris")["input_ids"], end]
    # " Paris" would reach over the border: both parts are read by themselves, as where a model writes behind the prompt
    ids, supervised = encoded(tmp_path, tokenizer, "The capital: ", "Paris")
    assert pieces(ids) == ["The", " capital", ":", " ", "Paris", tokenizer.decode([end])]
    assert supervised == [False, False, False, False, True, True]


BORDERS = [
    ("red fox", " sleeps"),
    ("red fox ", "sleeps"),
    ("red fox.\n", "\nsleeps"),
    ("red fox\n\n", "a"),
    ("漢", "字 é"),
    ("re", "d fox"),
]


@pytest.mark.parametrize("name", [*TOKENIZERS, "smollm2"])
@pytest.mark.parametrize(("prompt", "completion"), BORDERS)
def test_no_token_is_of_both(tmp_path: Path, name: str, prompt: str, completion: str) -> None:
    """What is supervised is the completion, whole and alone; the tokens are those of the joined text where these begin with
    the prompt's own."""
    tokenizer = smollm2_tokenizer() if name == "smollm2" else tokenizer_of(name)
    ids, supervised = encoded(tmp_path, tokenizer, prompt, completion)
    start = supervised.index(True)
    assert all(supervised[start:]) and ids[-1] == tokenizer.eos_token_id
    joined, alone = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt + completion, prompt))
    assert ids[:start] == alone
    if joined[: len(alone)] == alone:
        assert ids[:-1] == joined
    if name != "words":  # which drops the blanks
        assert tokenizer.decode(ids[start:-1]).strip() == completion.strip()
        assert tokenizer.decode(ids[:-1]).split() == (prompt + completion).split() or prompt == "re"


def test_prepared_rows_learn_completions_only(tmp_path: Path) -> None:
    rows = [{"q": f"number {i}?", "a": f"it is {i}"} for i in range(40)]
    corpus = CorpusConfig(path=str(write_lines(tmp_path / "rows.jsonl", rows)), **DOLLY)
    data = DataConfig(corpora={"c": corpus}, sequence_length=64, validation_sequences=2)
    prepared = prepare_datasets(data, save_tokenizer(tmp_path / "tokenizer"), "pypi")
    assert prepared.statistics["documents"] == 40
    learned = prepared.train.input_ids[prepared.train.loss_mask].tolist()
    said = load_tokenizer(tmp_path / "tokenizer").decode(learned).split("<|im_end|>")
    assert len(said) > 30
    assert said[-1] == "" and all(re.fullmatch(r"it is \d+", text) for text in said[:-1])


def test_the_templates_are_in_the_fingerprints(tmp_path: Path) -> None:
    path = str(write_lines(tmp_path / "rows.jsonl", [{"q": "a", "a": "b"}]))
    corpora = [CorpusConfig(path=path, **DOLLY), CorpusConfig(path=path, **{**DOLLY, "completion": "{{ a }}."})]
    corpora.append(CorpusConfig(path=path, text=DOLLY["prompt"] + DOLLY["completion"]))
    assert len({fingerprint(corpora_fingerprint({"c": corpus}, "pypi")) for corpus in corpora}) == 3
    assert not {"prompt", "completion"} & set(corpus_text_fields(corpora[2]))


@pytest.mark.parametrize(
    ("corpus", "message"),
    [
        ({"prompt": "a"}, r"data\.corpora\.c\.prompt: it goes with data\.corpora\.c\.completion, which is missing"),
        ({"completion": "a"}, r"data\.corpora\.c\.completion: it goes with data\.corpora\.c\.prompt, which is missing"),
        ({**DOLLY, "text": "{{ q }}"}, r"data\.corpora\.c has text, and prompt and completion too; give one of"),
        ({**DOLLY, "messages": "chat"}, r"data\.corpora\.c has messages, and prompt and completion too; give one of"),
        ({"text": "{{ q }}", "messages": [MessageConfig("assistant", "a")]}, r"has text, and messages too"),
        ({**DOLLY, "path": "", "generated": GeneratedConfig()}, r"has prompt and completion, and generated too"),
        ({**DOLLY, "completion": "{{ a"}, r"data\.corpora\.c\.completion: template line 1"),
        ({**DOLLY, "completion": "a"}, r"c\.completion: 'a' is the same text for every row; .* in braces: {{ a }}"),
        ({**DOLLY, "prompt": "q"}, r"data\.corpora\.c\.prompt: 'q' is the same text for every row"),
        ({"text": "q"}, r"data\.corpora\.c\.text: 'q' is the same text for every row; a column stands in braces: {{ q }}"),
        ({"text": ""}, r"data\.corpora\.c\.text: '' is the same text for every row"),
        (
            {"messages": [MessageConfig("user", "{{ q }}"), MessageConfig("assistant", "a")]},
            r"messages\[1\]: 'a' is the same",
        ),
        (
            {"messages": [MessageConfig("user", "q"), MessageConfig("assistant", "{{ a }}")]},
            r"messages\[0\]: 'q' is the same",
        ),
        ({**DOLLY, "completion": "{{ b }}"}, r"data\.corpora\.c\.completion: 'b' is undefined; the columns are a, q"),
    ],
)
def test_what_is_refused(tmp_path: Path, corpus: dict[str, Any], message: str) -> None:
    path = str(write_lines(tmp_path / "rows.jsonl", [{"q": "a", "a": "b"}]))
    corpora = {"c": CorpusConfig(**{"path": path, **corpus})}
    if "undefined" not in message:
        with pytest.raises(UserError, match=message):
            check_data_config(DataConfig(corpora=corpora), "pypi")
        return
    with pytest.raises(UserError, match=message):
        read_documents(corpora, 0, "pypi")


def test_a_teacher_with_a_prefix_scores_the_same_tokens(tmp_path: Path) -> None:
    """The prefix stands before the prompt, and what is not supervised for the student is not for the teacher."""
    tokenizer = byte_tokenizer()
    path = write_lines(tmp_path / "rows.jsonl", [{"q": "ab", "a": "cd"}])
    corpora = {"c": CorpusConfig(path=str(path), prompt="{{ q }}", completion="{{ a }}")}
    render = prompt_renderer(TeacherPromptConfig(prefix="Hint: {{ a }}. "))
    (document,) = read_documents(corpora, 0, "pypi", render_prompt=render).items
    assert document.teacher_prompt == TeacherPrompt(prefix="Hint: cd. ")
    student = tokenize([document], tokenizer, 0, 0, 0)
    for length in (64, 3):  # whole, and in pieces with the prefix before each
        teacher = tokenize_teacher_documents([document], tokenizer, student, length, 64)
        scored = teacher.tokens[teacher.loss_mask].tolist()
        assert (
            scored == student.tokens[student.loss_mask].tolist() == tokenizer("cd")["input_ids"] + [tokenizer.eos_token_id]
        )
