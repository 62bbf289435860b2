"""What a teacher with a prompt of its own reads: the same response, token by token, behind another prompt."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.chat_templates import STYLES
from helpers.chat_tokenizers import TOKENIZERS, smollm2_tokenizer, tokenizer_of
from helpers.tiny_data import byte_tokenizer, save_tokenizer, write_lines

from distill_lit.config import CorpusConfig, DataConfig, MessageConfig, TeacherPromptConfig
from distill_lit.data import PreparedData, TeacherDocuments, check_teacher_prompt, prepare_datasets
from distill_lit.data.chat import encode_chat
from distill_lit.data.corpora import Document, TeacherPrompt, read_documents
from distill_lit.data.teacher_prompts import match_positions, prompt_renderer, tokenize_teacher_documents
from distill_lit.data.tokenization import TokenizedDocuments, tokenize
from distill_lit.utils.exceptions import UserError

QUESTION, ANSWER = {"role": "user", "content": "Who are you?\n"}, {"role": "assistant", "content": " A fox's 漢字\n"}
CHATS = {
    "one turn": [QUESTION, ANSWER],
    "own system message": [{"role": "system", "content": "Bark."}, QUESTION, ANSWER],
    "two turns": [QUESTION, ANSWER, {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "I am red."}],
    "a turn after it": [QUESTION, ANSWER, {"role": "user", "content": "Thanks."}],
}
PROMPTS = {
    "system": TeacherPrompt(system="You are the fox of the tale.\n\nIt is red."),
    "user": TeacherPrompt(user="It is a red fox. Who are you?"),
    "both": TeacherPrompt(system="A tale.", user="The answer is: A fox's 漢字"),
}


def documents_of(*chats: list[dict[str, str]], prompt: TeacherPrompt = PROMPTS["system"]) -> list[Document]:
    return [
        Document("tales", "text", tuple(messages), row=i + 1, teacher_prompt=prompt) for i, messages in enumerate(chats)
    ]


def read_both(
    documents: list[Document], tokenizer: Any, most_tokens: int = 10_000
) -> tuple[TokenizedDocuments, TokenizedDocuments]:
    """(the student's tokens, the teacher's) of documents in their order."""
    student = tokenize(documents, tokenizer, 0, 0, 0)
    order = np.random.default_rng(0).permutation(len(documents))
    return student, tokenize_teacher_documents([documents[i] for i in order], tokenizer, student, 10_000, most_tokens)


@pytest.mark.parametrize("marked", [False, True], ids=["plain", "marked"])
@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("style", STYLES)
def test_a_response_is_the_same_tokens_under_both_prompts(style: str, name: str, marked: bool) -> None:
    """Ten templates × four tokenizers × four chats × three prompts: every supervised token of the student stands in its
    place in the teacher's document, behind what the template makes of the teacher's prompt."""
    tokenizer = tokenizer_of(name)
    make, _ = STYLES[style]
    tokenizer.chat_template = make(marked)
    for messages in CHATS.values():
        if style == "qwen3" and not marked and messages[-1]["role"] != "assistant":
            continue  # nothing of it is supervised
        for prompt in PROMPTS.values():
            student, teacher = read_both(documents_of(messages, prompt=prompt), tokenizer)
            positions = match_positions(student, teacher).tokens
            supervised = student.loss_mask
            assert supervised.any()
            assert (positions[~supervised] == -1).all()
            assert np.array_equal(teacher.tokens[positions[supervised]], student.tokens[supervised])
            assert (np.diff(positions[supervised]) >= 1).all()
            assert positions[supervised].min() > 0
            changed = [dict(message) for message in messages if prompt.system is None or message["role"] != "system"]
            if prompt.user is not None:
                before = 0 if messages[-1]["content"] == "Thanks." else -2
                users = [i for i, message in enumerate(changed) if message["role"] == "user"]
                changed[users[0] if before == 0 else len(changed) + before]["content"] = prompt.user
            if prompt.system is not None:
                changed = [{"role": "system", "content": prompt.system}, *changed]
            alone = tokenize(documents_of(changed), tokenizer, 0, 0, 0)
            assert np.array_equal(alone.tokens, teacher.tokens)
            assert np.array_equal(alone.loss_mask, teacher.loss_mask)


def test_real_template_token_by_token() -> None:
    """Of SmolLM2: which tokens of a chat are supervised, and the same response behind another prompt."""
    tokenizer = smollm2_tokenizer()
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo!"}]
    expected = [
        "<|im_start|>", "system", "Ċ", "Be", "Ġbrief", ".", "<|im_end|>", "Ċ",
        "<|im_start|>", "user", "Ċ", "Hi", "<|im_end|>", "Ċ",
        "<|im_start|>", "ass", "istant", "Ċ", "Y", "o", "!", "<|im_end|>", "Ċ",
    ]  # fmt: skip
    ids, supervised = encode_chat(tokenizer, [{"role": "system", "content": "Be brief."}, *chat])
    assert tokenizer.convert_ids_to_tokens(ids) == expected
    assert np.flatnonzero(supervised).tolist() == [18, 19, 20, 21]
    student, teacher = read_both(documents_of(chat, prompt=TeacherPrompt(system="Be brief.")), tokenizer)
    assert tokenizer.convert_ids_to_tokens(teacher.tokens.tolist()) == expected
    positions = match_positions(student, teacher).tokens
    assert positions[positions >= 0].tolist() == [18, 19, 20, 21]
    assert tokenizer.convert_ids_to_tokens(student.tokens[positions >= 0].tolist()) == ["Y", "o", "!", "<|im_end|>"]


# ---------------------------------------------------------------- refusals

CHATML = STYLES["chatml"][0](False)
NO_THINKING = CHATML.replace(
    "{{ m['content'] + '<|im_end|>' }}",
    "{{ ('<think></think>' if m['role'] == 'assistant' and '/no_think' in messages[0]['content'] else '')"
    " + m['content'] + '<|im_end|>' }}",
)
SYSTEM_NOT_SUPPORTED = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + CHATML
)
BARE_WITH_SYSTEM = (
    "{% for m in messages %}{% if m['role'] == 'assistant' or messages[0]['role'] != 'system' %}{{ m['content'] }}"
    "{% endif %}{% endfor %}"
)
HIDES_EARLIER = CHATML.replace(
    "{{ m['content'] + '<|im_end|>' }}{% else %}",
    "{{ (m['content'] if loop.last or messages[0]['role'] != 'system' else '…') + '<|im_end|>' }}{% else %}",
)


@pytest.mark.parametrize(
    ("template", "messages", "prompt", "message"),
    [
        (NO_THINKING, CHATS["one turn"], TeacherPrompt(system="Be brief. /no_think"), "writes the response "),
        (SYSTEM_NOT_SUPPORTED, CHATS["one turn"], PROMPTS["system"], "the chat template refuses it: System role not"),
        (STYLES["llama2"][0](False).replace("and system", "and false"), CHATS["one turn"], PROMPTS["both"],
         "the chat template writes nothing of teacher.prompt.system"),
        (CHATML.replace("m['content'] + '<|im_end|>' }}{% endif", "'…' }}{% endif"), CHATS["one turn"], PROMPTS["user"],
         "the chat template writes nothing of teacher.prompt.user"),
        (HIDES_EARLIER, CHATS["two turns"], PROMPTS["system"], "1 responses are supervised instead of 2"),
        (CHATML, [ANSWER], PROMPTS["user"], "teacher.prompt.user: no turn of the user stands before the last response"),
        (BARE_WITH_SYSTEM, CHATS["one turn"], PROMPTS["system"], "nothing stands before the response"),
    ],
)  # fmt: skip
def test_a_template_that_does_not_keep_the_response_is_refused(
    template: str, messages: list[dict[str, str]], prompt: TeacherPrompt, message: str
) -> None:
    tokenizer = tokenizer_of("bytes")
    tokenizer.chat_template = template
    with pytest.raises(UserError, match=message) as refused:
        read_both(documents_of(messages, prompt=prompt), tokenizer)
    assert str(refused.value).startswith("data.corpora.tales.messages: row 1: with teacher.prompt")
    assert "\n" not in str(refused.value)


def test_a_response_that_is_cut_into_other_tokens_is_refused() -> None:
    """The student's " river" in letters, as a tokenizer may cut it that looks at what stands before."""
    tokenizer = tokenizer_of("bytes")
    tokenizer.chat_template = CHATML
    documents = documents_of([{"role": "user", "content": "Q"}, {"role": "assistant", "content": "a river"}])
    student = tokenize(documents, tokenizer, 0, 0, 0)
    at = student.tokens.tolist().index(tokenizer.convert_tokens_to_ids("Ġriver"))
    letters = tokenizer.convert_tokens_to_ids(list("Ġriver"))
    tokens = [*student.tokens[:at], *letters, *student.tokens[at + 1 :]]
    mask = [*student.loss_mask[:at], *[True] * 6, *student.loss_mask[at + 1 :]]
    apart = TokenizedDocuments(np.array(tokens), np.array([0, len(tokens)]), np.array(mask))
    assert tokenizer.decode(tokens) == tokenizer.decode(student.tokens)
    tokenize_teacher_documents(documents, tokenizer, student, 100, 100)
    with pytest.raises(UserError, match=r"row 1: .*the response 'a river<\|im_end\|>' is cut into other tokens"):
        tokenize_teacher_documents(documents, tokenizer, apart, 100, 100)


def test_a_prompt_that_does_not_fit_is_refused_with_row_and_length() -> None:
    tokenizer = byte_tokenizer()
    chats = [[QUESTION, {"role": "assistant", "content": "a" * size}] for size in (10, 30, 20)]
    _, teacher = read_both(documents_of(*chats), tokenizer)
    longest = int(np.diff(teacher.offsets).max())
    read_both(documents_of(*chats), tokenizer, longest)
    with pytest.raises(
        UserError, match=rf"tales: row 2: {longest} tokens .* 1 of 3 documents .*sequence_length to {longest}"
    ):
        read_both(documents_of(*chats), tokenizer, longest - 1)


@pytest.mark.parametrize(
    ("prompt", "chat", "message"),
    [
        ({"system": "{{ solution"}, True, "teacher.prompt.system: template line 1: "),
        (
            {"prefix": "x"},
            True,
            "teacher.prompt.prefix: it is for plain text, and no corpus is; give teacher.prompt.system",
        ),
        ({"user": "x"}, False, "teacher.prompt.user: it is for chats, and no corpus is; give teacher.prompt.prefix"),
    ],
)
def test_what_no_corpus_can_use_is_refused(prompt: dict[str, str], chat: bool, message: str) -> None:
    data = DataConfig(corpora={"a": CorpusConfig(path="a.jsonl", messages="m" if chat else "")})
    with pytest.raises(UserError, match=message):
        check_teacher_prompt(TeacherPromptConfig(**prompt), data)


# ---------------------------------------------------------------- templates over the row


def rendered(tmp_path: Path, row: dict[str, Any], prompt: TeacherPromptConfig, **corpus: Any) -> Document:
    path = write_lines(tmp_path / "rows.jsonl", [row])
    corpora = {"a": CorpusConfig(path=str(path), **corpus)}
    return read_documents(corpora, 0, "pypi", render_prompt=prompt_renderer(prompt)).items[0]


def test_a_prompt_is_a_template_over_the_row_and_the_students_chat(tmp_path: Path) -> None:
    row = {"m": CHATS["own system message"], "solution": "red", "facts": ["a", "b"]}
    prompt = TeacherPromptConfig(
        system="{{ student.system }} {{ facts | join(', ') }}\n",
        user="{{ student.user }}({{ solution }})",
        prefix="{{ no }}",
    )
    document = rendered(tmp_path, row, prompt, messages="m")
    assert document.teacher_prompt == TeacherPrompt(system="Bark. a, b", user="Who are you?\n(red)")
    hint = TeacherPromptConfig(user="{{ student.response }}|{{ student.system }}")
    assert rendered(tmp_path, {"m": CHATS["one turn"]}, hint, messages="m").teacher_prompt.user == "A fox's 漢字\n|"
    plain = rendered(tmp_path, {"text": "x", "title": "T"}, TeacherPromptConfig(prefix="{{ title }}:\n", system="{{ no }}"))
    assert plain.teacher_prompt == TeacherPrompt(prefix="T:\n")
    with pytest.raises(UserError, match=r"teacher\.prompt\.system: 'no' is undefined; the columns are m; the row begins"):
        rendered(tmp_path, {"m": CHATS["one turn"]}, TeacherPromptConfig(system="{{ no }}"), messages="m")


def test_messages_made_by_templates(tmp_path: Path) -> None:
    messages = [MessageConfig("user", "{{ q }}?\n"), MessageConfig("assistant", "{{ a }}")]
    document = rendered(tmp_path, {"q": "Who", "a": "A fox"}, TeacherPromptConfig(), messages=messages)
    assert document.messages == ({"role": "user", "content": "Who?"}, {"role": "assistant", "content": "A fox"})
    with pytest.raises(UserError, match=r"data\.corpora\.a\.messages\[1\]: 'a' is undefined"):
        rendered(tmp_path, {"q": "Who"}, TeacherPromptConfig(), messages=messages)
    with pytest.raises(UserError, match="no document left of 1 rows; all are empty"):
        rendered(tmp_path, {"q": "Who", "a": " "}, TeacherPromptConfig(), messages=messages)


# ---------------------------------------------------------------- packed rows


def write_rows(path: Path, numbers: range) -> Path:
    """Chats of q12 and abab, with the hint h12, and stories of the same numbers."""
    return write_lines(path, [
        {
            "m": [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": "ab" * (i % 9 + 1)}],
            "hint": f"h{i} " * (i % 4 + 1),
            "text": f"story {i} " + "word " * (i % 30),
        }
        for i in numbers
    ])  # fmt: skip


def prepare(folder: Path, prompt: TeacherPromptConfig | None, rows: int = 40, **corpus: Any) -> PreparedData:
    path = write_rows(folder / "rows.jsonl", range(rows))
    config = DataConfig(corpora={"a": CorpusConfig(path=str(path), **corpus)}, sequence_length=100, validation_sequences=2)
    return prepare_datasets(config, save_tokenizer(folder / "tokenizer", CHATML), "pypi", prompt=prompt)


@pytest.fixture(autouse=True)
def own_cache(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "real_template" not in request.node.name:
        monkeypatch.setenv("DISTILL_LIT_CACHE", str(tmp_path / "cache"))


def check_rows(prepared: PreparedData, hint_in: str) -> None:
    """Each supervised token of each packed row is read by the teacher in a document of its own, with its hint."""
    documents, tokenizer = prepared.teacher_documents, byte_tokenizer(CHATML)
    assert isinstance(documents, TeacherDocuments)
    for packed, first in ((prepared.train, 0), (prepared.validation, len(prepared.train))):
        numbers = list(range(first, first + len(packed)))
        found = documents.of_rows(numbers, packed.loss_mask)
        assert sum(len(document.columns) for document in found) == packed.loss_mask.sum()
        for document in found:
            ours = packed.input_ids[document.row, document.columns]
            assert np.array_equal(document.input_ids[document.places], ours)
            assert document.places.min() >= 1
            owner = np.unique(packed.document_ids[document.row, document.columns])
            assert len(owner) == 1
            whole = packed.input_ids[document.row][packed.document_ids[document.row] == owner]
            text, mine = tokenizer.decode(document.input_ids), tokenizer.decode(whole)
            assert hint_in in text
            assert hint_in not in mine
            number = mine.split("q" if "q" in mine else "story ")[1].split("<")[0].split(" ")[0]
            assert f"h{number} " in text


def test_supervised_tokens_of_packed_chats_are_found_in_the_teachers_documents(tmp_path: Path) -> None:
    prompt = TeacherPromptConfig(system="Hint: {{ hint }} .", sequence_length=150)
    prepared = prepare(tmp_path, prompt, messages="m")
    check_rows(prepared, "Hint: ")
    plain = prepare(tmp_path, None, messages="m")
    assert plain.teacher_documents is None
    assert plain.fingerprint == prepared.fingerprint
    assert np.array_equal(plain.train.input_ids, prepared.train.input_ids)
    assert prepared.statistics["teacher_tokens_per_token"] > 1.2


def test_corpora_with_weights_and_text_of_ones_own_to_validate_on(tmp_path: Path) -> None:
    """The documents of one are read several times; the other has a part of its documents left out."""
    paths = {name: write_rows(tmp_path / f"{name}.jsonl", numbers) for name, numbers in
             (("few", range(5)), ("many", range(10, 60)), ("own", range(3, 14)))}  # fmt: skip
    config = DataConfig(
        corpora={
            name: CorpusConfig(path=str(paths[name]), messages="m", weight=weight)
            for name, weight in (("few", 0.6), ("many", 0.4))
        },
        validation={"own": CorpusConfig(path=str(paths["own"]), messages="m")},
        sequence_length=100,
        validation_sequences=2,
        max_tokens=1500,
    )
    prompt = TeacherPromptConfig(system="Hint: {{ hint }} .", sequence_length=150)
    prepared = prepare_datasets(config, save_tokenizer(tmp_path / "tokenizer", CHATML), "pypi", prompt=prompt)
    assert prepared.statistics["mixture"]["few"]["repeats"] > 3
    assert prepared.statistics["in_validation"] > 3
    check_rows(prepared, "Hint: ")
    data = dataclasses.replace(config, corpora={"many": CorpusConfig(path=str(paths["many"]), messages="m")})
    check_rows(prepare_datasets(data, tmp_path / "tokenizer", "pypi", prompt=prompt), "Hint: ")


def test_plain_text_behind_a_prefix(tmp_path: Path) -> None:
    prompt = TeacherPromptConfig(prefix="Hint: {{ hint }}.\n", sequence_length=140)
    prepared = prepare(tmp_path, prompt, text="{{ text }}")
    documents = prepared.teacher_documents
    assert documents is not None
    assert prepared.statistics["split"] > 0  # each piece has the prefix
    texts = [byte_tokenizer().decode(document) for document in np.split(documents.tokens, documents.offsets[1:-1])]
    assert all(text.startswith("Hint: h") for text in texts)
    assert sum("story" not in text for text in texts) >= prepared.statistics["split"]
    stories = [re.fullmatch(r"Hint: (h\d+ )+\.\nstory (\d+).*", text) for text in texts if "story" in text]
    assert all(story is not None and story[1] == f"h{story[2]} " for story in stories)
    for packed, first in ((prepared.train, 0), (prepared.validation, len(prepared.train))):
        found = documents.of_rows(range(first, first + len(packed)), packed.loss_mask)
        for document in found:
            assert np.array_equal(document.input_ids[document.places], packed.input_ids[document.row, document.columns])
        assert sum(len(document.columns) for document in found) == packed.loss_mask.sum()


def test_a_token_that_begins_every_text_stays_the_first() -> None:
    class WithBos:
        bos_token_id, eos_token_id = 1, 2

        def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
            return {"input_ids": [10 + ord(letter) % 10 for letter in text]}

    student = TokenizedDocuments(np.array([1, 5, 6, 7, 2]), np.array([0, 5]), np.ones(5, dtype=bool))
    document = Document("a", "x", teacher_prompt=TeacherPrompt(prefix="ab"))
    teacher = tokenize_teacher_documents([document], WithBos(), student, 3, 100)
    before = WithBos()("ab")["input_ids"]
    assert teacher.tokens.tolist() == [1, *before, 5, 6, 1, *before, 7, 2]
    assert teacher.offsets.tolist() == [0, 5, 10]
    assert match_positions(student, teacher).tokens.tolist() == [0, 3, 4, 8, 9]


def test_the_prompt_is_in_the_fingerprint_and_a_changed_row_is_read_anew(tmp_path: Path) -> None:
    prompts = [TeacherPromptConfig(system=text, sequence_length=n) for text, n in (("a", 150), ("b", 150), ("a", 160))]
    keys = [prepare(tmp_path, prompt, messages="m").teacher_documents.fingerprint for prompt in prompts]
    keys.append(prepare(tmp_path, prompts[0], rows=39, messages="m").teacher_documents.fingerprint)
    assert len(set(keys)) == 4


@pytest.mark.parametrize("kind", ["chat", "plain"])
def test_what_stands_before_a_text_of_the_student(tmp_path: Path, kind: str) -> None:
    """For each document of each row: the teacher's prompt, and of plain text as much of it as the student has read."""
    chat = kind == "chat"
    prompt = TeacherPromptConfig(**({"system": "{{ hint }}"} if chat else {"prefix": "{{ hint }}\n"}), sequence_length=150)
    prepared = prepare(tmp_path, prompt, **({"messages": "m"} if chat else {"text": "{{ text }}"}))
    documents, packed, tokenizer = prepared.teacher_documents, prepared.train, byte_tokenizer(CHATML)
    checked = 0
    for row in range(len(packed)):
        for number in range(1, packed.document_ids[row].max() + 1):
            columns = np.flatnonzero(packed.document_ids[row] == number)
            supervised = np.flatnonzero(packed.loss_mask[row, columns])
            counts = [supervised[0]] if chat else [1, len(columns) // 2, len(columns)]
            for count in counts if len(supervised) else []:
                mine = tokenizer.decode(packed.input_ids[row, columns[:count]])
                read = tokenizer.decode(documents.prompt_of(row, columns[count - 1]))
                if chat:
                    number_of_row = int(mine.split("q")[1].split("<")[0])
                    hint = f"h{number_of_row} " * (number_of_row % 4 + 1)
                    assert read == f"<|im_start|>system\n{hint.strip()}<|im_end|>\n{mine}"
                else:
                    assert read.endswith(mine)
                    assert read[: -len(mine)].endswith(" \n")
                    assert read[: -len(mine)].count("\n") == 1
                checked += 1
    assert checked > 20
