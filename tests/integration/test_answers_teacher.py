"""Alternatives of the tokens that an API wrote, as a teacher: what replies hold, and where two tokenizers agree."""

import math
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.mock_openai_server import good, serving
from helpers.rounding import bfloat16_default

from distill_lit.config import (
    CorpusConfig,
    DataConfig,
    GeneratedConfig,
    RemoteConfig,
    TeacherConfig,
)
from distill_lit.generation.api_replies import parse_alternatives
from distill_lit.generation.completions import Completion, read_completions
from distill_lit.generation.prompts import Prompt
from distill_lit.generation.remote import generate_remotely
from distill_lit.models import load_tokenizer
from distill_lit.teachers import AnswersTeacher, teacher_source
from distill_lit.utils.exceptions import UserError

TEXT = "river stone bridge"


@pytest.fixture(scope="module")
def tokenizer(tiny_teacher: Path) -> Any:
    return load_tokenizer(tiny_teacher)


def content(pieces: list[str], others: dict[str, float], own: float = -0.5) -> list[dict[str, Any]]:
    best = [{"token": text, "bytes": list(text.encode()), "logprob": value} for text, value in others.items()]
    return [{"token": text, "bytes": list(text.encode()), "logprob": own, "top_logprobs": best} for text in pieces]


def reply(text: str, entries: list[dict[str, Any]]) -> Any:
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
    return good(text, choices=[{**choice, "logprobs": {"content": entries}}])


def pieces_of(tokenizer: Any, text: str) -> list[str]:
    return [tokenizer.decode([token]) for token in tokenizer(text, add_special_tokens=False)["input_ids"]]


def batch_of(tokenizer: Any, prompt: str, answer: str) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Prompt, answer, end of text; loss on the last two."""
    asked, said = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, answer))
    ids = torch.tensor([[*asked, *said, tokenizer.eos_token_id]])
    labels = ids.clone()
    labels[0, : len(asked)] = -100
    return {"input_ids": ids, "labels": labels}, labels[:, 1:] >= 0


def test_alternatives_of_both_protocols_come_to_disk(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISTILL_LIT_CACHE", str(tmp_path / "cache"))
    pieces = pieces_of(tokenizer, TEXT)
    entries = content(pieces, {"a": -1.5, "ö": -2.0})
    with serving(lambda request, number: reply(TEXT, entries)) as server:
        remote = RemoteConfig(base_url=server.url, model="m", top_logprobs=2)
        generate_remotely(tmp_path / "a", GeneratedConfig(remote=remote), [Prompt("question")])
        assert (server.requests[0]["logprobs"], server.requests[0]["top_logprobs"]) == (True, 2)
    (answer,) = read_completions(tmp_path / "a")
    assert [token for token, _ in answer.alternatives] == pieces
    assert answer.alternatives[0][1] == [["a", -1.5], ["Ã¶", -2.0], [pieces[0], -0.5]]
    best = [{"a": -1.5, "ö": -2.0} for _ in pieces]
    plain = {"tokens": pieces, "token_logprobs": [-0.5] * len(pieces), "top_logprobs": best}
    assert parse_alternatives({"choices": [{"text": TEXT, "logprobs": plain}]}) == answer.alternatives
    assert parse_alternatives({"choices": [{"text": TEXT, "logprobs": {"tokens": pieces}}]}) == []


def answered(pieces: list[str], others: dict[str, float], text: str = TEXT, prompt: str = "question ") -> Completion:
    raw = {"choices": [{"logprobs": {"content": content(pieces, others)}}]}
    return Completion(prompt, 0, text, "stop", alternatives=parse_alternatives(raw))


def test_tokens_that_both_cut_alike_have_the_alternatives_and_others_their_label(tokenizer: Any) -> None:
    pieces = pieces_of(tokenizer, TEXT)
    joined = [*pieces[:-2], pieces[-2] + pieces[-1]]  # the writer has one token where the student has two
    teacher = AnswersTeacher([answered(joined, {"a": -1.5, "no such token": -2.0})], tokenizer)
    batch, mask = batch_of(tokenizer, "question ", TEXT)
    target = teacher.target(batch, mask)
    labels = batch["labels"][:, 1:][mask]
    known = len(pieces) - 2
    (a,) = tokenizer("a", add_special_tokens=False)["input_ids"]
    for row in range(len(labels)):
        probable = {i: p for i, p in zip(target.ids[row].tolist(), target.logprobs[row].tolist(), strict=True) if p > -50}
        if row < known:
            assert probable == pytest.approx({int(labels[row]): -0.5, a: -1.5})
            assert target.label_logprobs[row] == -0.5
        else:  # the joined token, and the end of the text
            assert probable == pytest.approx({int(labels[row]): 0.0}, abs=1e-3)
        assert len(set(target.ids[row].tolist())) == teacher.tokens_per_position
    assert bool((target.logprobs.diff(dim=-1) <= 0).all())
    assert float(target.logprobs.exp().sum(-1).max()) <= 1.0


def test_log_probabilities_are_float32_whatever_the_default_format_is(tokenizer: Any) -> None:
    teacher = AnswersTeacher([answered(pieces_of(tokenizer, TEXT), {"a": -1.001})], tokenizer)
    plain = teacher.target(*batch_of(tokenizer, "question ", TEXT))
    with bfloat16_default():
        found = teacher.target(*batch_of(tokenizer, "question ", TEXT))
    assert found.logprobs.dtype == found.label_logprobs.dtype == torch.float32
    assert all(torch.equal(one, other) for one, other in zip(found, plain, strict=True))


def test_answers_take_few_bytes_for_each_alternative(tokenizer: Any) -> None:
    """200,000 alternatives as lists are 20 MB and more, in every rank."""
    letters = [letter for letter in map(chr, range(33, 127)) if len(tokenizer(letter)["input_ids"]) == 1][:20]
    pieces = ["a"] * 50

    def many() -> Iterator[Completion]:
        others = {letter: -1.0 - 0.01 * i for i, letter in enumerate(letters)}
        for number in range(200):
            yield answered([*pieces, str(number)], others, "a" * 50 + str(number))

    tracemalloc.start()
    teacher = AnswersTeacher(many(), tokenizer)
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert teacher.tokens_per_position > 20
    assert size < 16 * 200 * 51 * 20


def test_the_same_answer_to_two_prompts_has_two_sets_of_alternatives(tokenizer: Any) -> None:
    pieces = pieces_of(tokenizer, TEXT)
    one = answered(pieces, {"a": -1.0}, prompt="paper")
    other = answered(pieces, {"b": -1.0}, prompt="glass")
    teacher = AnswersTeacher([one, other], tokenizer)
    for prompt, letter in (("paper ", "a"), ("glass ", "b")):
        target = teacher.target(*batch_of(tokenizer, prompt, TEXT))
        assert tokenizer(letter, add_special_tokens=False)["input_ids"][0] in target.ids[0].tolist()


def test_answers_without_alternatives_are_no_teacher(tokenizer: Any) -> None:
    with pytest.raises(UserError, match="no answer came with alternatives"):
        AnswersTeacher([Completion("p", 0, TEXT, "stop")], tokenizer)
    teacher = TeacherConfig(model="file:x", source="answers")
    remote = RemoteConfig(base_url="http://localhost:1/v1", model="m")
    data = DataConfig(corpora={"text": CorpusConfig(generated=GeneratedConfig(remote=remote))})
    with pytest.raises(UserError, match="no corpus has generated.remote.top_logprobs"):
        teacher_source(teacher).check_data(teacher, data)


def test_a_text_that_nobody_wrote_has_labels_alone(tokenizer: Any) -> None:
    teacher = AnswersTeacher([answered(pieces_of(tokenizer, TEXT), {"a": -1.0})], tokenizer)
    batch, mask = batch_of(tokenizer, "question ", "another answer")
    target = teacher.target(batch, mask)
    assert np.allclose(target.label_logprobs.numpy(), 0.0, atol=1e-3)
    assert math.isclose(float(target.logprobs.exp().sum(-1).mean()), 1.0, abs_tol=1e-3)
