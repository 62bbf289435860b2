"""A student learns from a teacher that reads another prompt: against plain forward passes of both on one document alone."""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import tiny_models
from helpers.distillation import TRAINING, VOCABULARY, new_student, run, weights
from helpers.tiny_data import write_lines
from transformers import AutoTokenizer

from distill_lit import DistillationLoss, data, losses
from distill_lit.config import (
    CorpusConfig,
    DataConfig,
    ExperimentConfig,
    OnPolicyConfig,
    TeacherPromptConfig,
    TermConfig,
    load_experiment,
)
from distill_lit.data.loader import ValidationLoader, make_batch
from distill_lit.experiment.checks.model_checks import check_against_teacher
from distill_lit.experiment.checks.validation import check_experiment
from distill_lit.experiment.estimates.run_estimate import estimate_runs
from distill_lit.experiment.execution.run import build_run
from distill_lit.experiment.plan import plan_runs
from distill_lit.losses.lm_head import get_lm_head
from distill_lit.models import load_model, load_model_config, size_from_config
from distill_lit.teachers import OfflineTeacher, OnlineTeacher, write_teacher_cache
from distill_lit.teachers.compression import CACHE_SAMPLED, CACHE_TOP_K, TeacherCacheFormat
from distill_lit.training.loss import FusedLossSettings
from distill_lit.training.on_policy import OnPolicyGenerator
from distill_lit.utils.exceptions import UserError
from distill_lit.utils.files import read_json

LENGTH, ROWS = 128, 60
TEMPLATE = (
    "{% for m in messages %}{{ '<s>' + m['role'] + '\n' + m['content'] + '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant\n' }}{% endif %}"
)
PROMPT = TeacherPromptConfig(system="Fact {{ number }}: {{ fact }}", user="{{ student.user }} Why?", sequence_length=160)


@pytest.fixture(scope="module")
def chatty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random teacher of two layers whose tokenizer has a chat template."""
    return give_template(tiny_models.make_model(tmp_path_factory.mktemp("chatty")))


def give_template(folder: Path) -> Path:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = tiny_models.sentences(3 * ROWS, seed=3)
    rows = [
        {"q": f"{i} {question.split()[0]}", "a": " ".join(answer.split()[:5]), "fact": fact, "number": i}
        for i, (question, answer, fact) in enumerate(zip(words[::3], words[1::3], words[2::3], strict=True))
    ]
    return write_lines(tmp_path_factory.mktemp("corpus") / "chats.jsonl", rows)


def chats(corpus: Path) -> CorpusConfig:
    return CorpusConfig(
        path=f"file:{corpus}",
        messages=[{"role": "user", "content": "{{ q }}"}, {"role": "assistant", "content": "{{ a }}"}],
    )


@pytest.fixture(scope="module")
def prompted(chatty: Path, corpus: Path) -> data.PreparedData:
    config = DataConfig(corpora={"a": chats(corpus)}, sequence_length=LENGTH, validation_sequences=4)
    return data.prepare_datasets(config, chatty, "pypi", prompt=PROMPT)


@functools.cache
def _tokenizer(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder)


def log_probs(model: Any, before: str, response: list[int]) -> torch.Tensor:
    """Log-probabilities (len(response), V) of a plain forward pass over one document alone."""
    tokenizer = _tokenizer(Path(model.name_or_path))
    ids = tokenizer(before, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logits = model(torch.tensor([[*ids, *response]])).logits[0]
    return logits[len(ids) - 1 : -1, :VOCABULARY].log_softmax(-1)


def document_texts(folder: Path, corpus: Path, packed: data.PackedDataset, row: int) -> list[tuple[str, str, list[int]]]:
    """[(the student's prompt as text, the teacher's, response)] of the documents of a packed row, by the corpus' file."""
    rows = [json.loads(line) for line in corpus.read_text().splitlines()]
    found = []
    for number in range(1, packed.document_ids[row].max() + 1):
        here = packed.document_ids[row] == number
        mine = _tokenizer(folder).decode(packed.input_ids[row][here])
        own = rows[int(mine.removeprefix("<s>user\n").split(" ")[0])]
        ours = f"<s>user\n{own['q']}</s><s>assistant\n"
        assert mine.startswith(ours)
        theirs = f"<s>system\nFact {own['number']}: {own['fact']}</s><s>user\n{own['q']} Why?</s><s>assistant\n"
        response = packed.input_ids[row][here & packed.loss_mask[row]]
        assert _tokenizer(folder).decode(response) == own["a"] + "</s>"
        found.append((ours, theirs, response.tolist()))
    return found


def plain_kl(student: Any, teacher: Any, texts: list[tuple[str, str, list[int]]]) -> tuple[float, int]:
    """(Σ KL(teacher behind its prompt ‖ student behind its own), tokens)."""
    total, count = 0.0, 0
    for ours, theirs, response in texts:
        q, p = log_probs(student, ours, response), log_probs(teacher, theirs, response)
        total += float((p.exp() * (p - q)).sum())
        count += len(response)
    return total, count


def kl(student: Any, teacher: Any, batch: Any) -> float:
    criterion = DistillationLoss(losses.ForwardKL(), teacher, VOCABULARY, settings=FusedLossSettings(32, False))
    return float(criterion(student, batch).total)


def students(chatty: Path) -> tuple[Any, Any]:
    student = new_student(chatty).eval()
    student.name_or_path = str(chatty)
    return student, load_model(chatty).requires_grad_(False)


def test_kl_is_that_of_plain_forward_passes(chatty: Path, corpus: Path, prompted: data.PreparedData) -> None:
    """Training rows and held-out ones; documents of one row are spread over several rows of the teacher."""
    student, model = students(chatty)
    teacher = OnlineTeacher(model, VOCABULARY, documents=prompted.teacher_documents)
    assert any(prompted.train.document_ids.max(1) > 1)
    for packed, first in ((prompted.train, 0), (prompted.validation, len(prompted.train))):
        batch = make_batch(packed, np.arange(4), 1)
        batch["rows"] += first
        batch["step_tokens"] = torch.tensor(int(packed.targets_per_row[:4].sum()))
        texts = [text for row in range(4) for text in document_texts(chatty, corpus, packed, row)]
        total, count = plain_kl(student, model, texts)
        assert count == int(batch["step_tokens"])
        assert kl(student, teacher, batch) == pytest.approx(total / count, rel=1e-4)
        assert kl(model, teacher, batch) > 0.01  # the same model without the prompt
        assert kl(model, OnlineTeacher(model, VOCABULARY), batch) == pytest.approx(0, abs=1e-5)


def test_rows_in_any_order_and_size_say_the_same(chatty: Path, prompted: data.PreparedData) -> None:
    _, model = students(chatty)
    teacher = OnlineTeacher(model, VOCABULARY, documents=prompted.teacher_documents)
    numbers = np.array([5, 0, 3, 1])
    batch = make_batch(prompted.train, numbers, 1)
    whole = teacher.hidden_states(batch)
    for i, number in enumerate(numbers):
        alone = teacher.hidden_states(make_batch(prompted.train, np.array([number]), 1))
        torch.testing.assert_close(whole[i], alone[0], rtol=1e-4, atol=1e-5)
    assert (whole[:, :-1][batch["labels"][:, 1:] < 0] == 0).all()
    batch["labels"][:] = -100
    assert (teacher.hidden_states(batch) == 0).all()


# ---------------------------------------------------------------- the cache


@pytest.mark.parametrize("kind", ["hidden_states", CACHE_TOP_K, CACHE_SAMPLED])
def test_a_cache_says_what_the_online_teacher_says(
    tmp_path: Path, chatty: Path, prompted: data.PreparedData, kind: str
) -> None:
    _, model = students(chatty)
    online = OnlineTeacher(model, VOCABULARY, documents=prompted.teacher_documents)
    cache_format = TeacherCacheFormat() if kind == "hidden_states" else TeacherCacheFormat(kind, 9)
    write_teacher_cache(
        tmp_path, model, prompted.train, prompted.validation, 3, cache_format, VOCABULARY,
        documents=prompted.teacher_documents,
    )  # fmt: skip
    cached = OfflineTeacher(tmp_path, prompted.train, get_lm_head(model, VOCABULARY), len(prompted.validation))
    held_out = next(iter(ValidationLoader(prompted.validation, micro_batch_size=4, first_row=len(prompted.train))))
    for batch, is_sparse in ((make_batch(prompted.train, np.array([4, 1]), 1), kind != "hidden_states"), (held_out, False)):
        loss_mask = batch["labels"][:, 1:] >= 0
        expected, found = online.target(batch, loss_mask), cached.target(batch, loss_mask)
        if not is_sparse:
            torch.testing.assert_close(found.hidden_states, expected.hidden_states, rtol=1e-4, atol=1e-5)
            continue
        logprobs = expected.lm_head.project(expected.hidden_states).log_softmax(-1)
        torch.testing.assert_close(found.logprobs, logprobs.gather(-1, found.ids), rtol=5e-3, atol=5e-3)
        labels = batch["labels"][:, 1:][loss_mask]
        torch.testing.assert_close(found.label_logprobs, logprobs.gather(-1, labels[:, None])[:, 0], rtol=5e-3, atol=5e-3)


def test_online_and_cached_train_alike_and_the_prompt_is_learned(
    tmp_path: Path, chatty: Path, prompted: data.PreparedData
) -> None:
    _, model = students(chatty)
    terms = {"kl": TermConfig(kind="forward_kl")}
    training = dataclasses.replace(TRAINING, max_tokens=LENGTH * 8 * 12)
    online = OnlineTeacher(load_model(chatty), VOCABULARY, documents=prompted.teacher_documents)
    one, metrics = run(tmp_path / "a", chatty, prompted, training, terms, online)
    write_teacher_cache(
        tmp_path / "cache", model, prompted.train, prompted.validation, 8, documents=prompted.teacher_documents
    )
    head = get_lm_head(model, VOCABULARY)
    cached = OfflineTeacher(tmp_path / "cache", prompted.train, head, len(prompted.validation))
    other, _ = run(tmp_path / "b", chatty, prompted, training, terms, cached)
    torch.testing.assert_close(weights(one), weights(other), rtol=1e-3, atol=1e-4)
    start = json.loads((tmp_path / "a/metrics.jsonl").read_text().splitlines()[0])["validation/teacher_kl"]
    assert metrics["validation/teacher_kl"] < 0.9 * start


# ---------------------------------------------------------------- text of the student


@pytest.mark.parametrize("kind", ["chat", "plain"])
def test_the_teacher_judges_the_students_text_behind_its_own_prompt(chatty: Path, corpus: Path, kind: str) -> None:
    if kind == "chat":
        prompt, source = PROMPT, chats(corpus)
    else:
        prompt = TeacherPromptConfig(prefix="Fact {{ number }}: {{ fact }}\n", sequence_length=160)
        source = CorpusConfig(path=f"file:{corpus}", text="{{ q }} {{ a }}")
    config = DataConfig(corpora={"a": source}, sequence_length=LENGTH, validation_sequences=2)
    prepared = data.prepare_datasets(config, chatty, "pypi", prompt=prompt)
    student, model = students(chatty)
    generator = OnPolicyGenerator(OnPolicyConfig(fraction=1.0, max_new_tokens=8), [2], VOCABULARY, None, 0, 10)
    source_batch = make_batch(prepared.train, np.array([2, 0, 5, 3]), 1)
    batch, _ = generator.maybe_generate(source_batch, student, 0, 0)
    assert batch["rows"].tolist() == [-1] * 4
    rows, total, count = [json.loads(line) for line in corpus.read_text().splitlines()], 0.0, 0
    tokenizer = _tokenizer(chatty)
    for i in range(4):
        written = batch["on_policy_mask"][i]
        first = int(written.nonzero()[0])
        mine = tokenizer.decode(batch["input_ids"][i, :first])
        number = int(mine.removeprefix("<s>user\n").split(" ")[0])
        own = rows[number]
        theirs = (
            f"<s>system\nFact {number}: {own['fact']}</s><s>user\n{own['q']} Why?</s><s>assistant\n"
            if kind == "chat"
            else f"Fact {number}: {own['fact']}\n{mine}"
        )
        response = batch["input_ids"][i, written].tolist()
        part, size = plain_kl(student, model, [(mine, theirs, response)])
        total, count = total + part, count + size
    teacher = OnlineTeacher(model, VOCABULARY, documents=prepared.teacher_documents)
    assert kl(student, teacher, batch) == pytest.approx(total / count, rel=1e-4)


# ---------------------------------------------------------------- experiments

EXPERIMENT = """
name: tiny
teacher:
  model: "file:{teacher}"
  dtype: float32
  prompt: {{system: "Fact: {{{{ fact }}}}", sequence_length: 160}}
students: {{same: {{from: "file:{teacher}"}}}}
data:
  sequence_length: 128
  validation_sequences: 3
  corpora:
    chats:
      path: "file:{corpus}"
      messages: [{{role: user, content: "{{{{ q }}}}"}}, {{role: assistant, content: "{{{{ a }}}}"}}]
objective: {{terms: {{kl: {{kind: forward_kl}}}}, compile: never}}
training: {{max_tokens: 1024, micro_batch_size: 4, learning_rate: 1.0e-3, precision: float32, accelerator: cpu}}
evaluation: {{tasks: [sciq], limit: 4}}
baselines: [untrained]
"""


NO_PROMPT = ["teacher.prompt={system: '', sequence_length: 0}"]


@pytest.fixture
def load(tmp_path: Path, chatty: Path, corpus: Path) -> Any:
    def load_config(*changes: str) -> ExperimentConfig:
        (file := tmp_path / "tiny.yaml").write_text(EXPERIMENT.format(teacher=chatty, corpus=corpus))
        return load_experiment(file, list(changes))

    return load_config


@pytest.mark.parametrize(
    "changes",
    [
        [],
        ["teacher.source=offline"],
        ["on_policy={fraction: 0.5, max_new_tokens: 8}"],
        ["teacher={source: ema, ema_decay: 0.9}", "on_policy={fraction: 0.5, max_new_tokens: 8}"],
    ],
    ids=["online", "offline", "on-policy", "average"],
)
def test_a_model_learns_from_itself_with_a_prompt(load: Any, tmp_path: Path, changes: list[str]) -> None:
    config = load(*changes)
    check_experiment(config)
    runs = plan_runs(config)
    check_against_teacher(runs)
    assert [run.label for run in runs if not run.is_model] == (
        ["teacher-cache-prompt"] if "offline" in str(changes) else []
    )
    made = {}
    for planned in runs:
        (folder := tmp_path / planned.name).mkdir()
        build_run(planned, folder, lambda *_: None)
        made[planned.role] = read_json(folder / "manifest.json")
    before, after = (made[role]["metrics"]["validation/teacher_kl"] for role in ("untrained", "distilled"))
    assert before > 0.01  # the same weights, without the prompt
    assert after < before
    ratio = made["distilled"]["data"]["teacher_tokens_per_token"]
    flops = {name: made["distilled"][f"{name}_training_flops"] for name in ("teacher", "student")}
    assert flops["teacher"] == pytest.approx(ratio * flops["student"] / 3)
    assert ratio > 1.3
    assert "teacher.prompt" in made["distilled"]["origin"]


def test_the_prompt_decides_what_is_one_run(load: Any) -> None:
    def fingerprints(*changes: str) -> dict[str, str]:
        runs = plan_runs(load("teacher.source=offline", "baselines=[untrained, ce_only]", *changes))
        return {run.role: run.fingerprint for run in runs}

    first, again, other, none = (fingerprints(*changes) for changes in ([], [], ["teacher.prompt.system=No."], NO_PROMPT))
    assert first == again
    for role in ("teacher_cache", "untrained", "ce_only", "distilled"):  # how near they are to the teacher is in all
        assert len({first[role], other[role], none[role]}) == 3, role


def test_the_estimate_counts_what_the_teacher_reads(load: Any, chatty: Path) -> None:
    """By the length of the templates, four characters a token and 120 tokens a document; once prepared, as measured."""
    config = load("baselines=[]")
    unknown, none = load("baselines=[]", f"teacher.prompt.system={'Long.' * 96}"), load("baselines=[]", *NO_PROMPT)
    prepared = data.prepare_datasets(config.data, chatty, "pypi", prompt=config.teacher.prompt)
    known_flops, unknown_flops, flops = (
        next(iter(estimate_runs(plan_runs(c)).values())).flops for c in (config, unknown, none)
    )
    tokens = estimate_runs(plan_runs(none)).popitem()[1].tokens
    validated = none.data.validation_sequences * none.data.sequence_length  # once, for its hidden states are kept
    teacher_flops = size_from_config(load_model_config(chatty)).flops_per_token(head=False) * (tokens + validated)
    assert unknown_flops - flops == pytest.approx(teacher_flops * (5 * 96 / 4 / 120))
    assert known_flops - flops == pytest.approx(teacher_flops * (prepared.statistics["teacher_tokens_per_token"] - 1))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["teacher.prompt={system: '', sequence_length: 64}"], "teacher.prompt.sequence_length: there is no prompt; give"),
        (["teacher.source=none", "objective.terms={kl: null, ce: {}}"],
         "teacher.prompt: teacher.source none has no prompt of its own; choose teacher.source online or offline"),
        (["objective.terms.inner={kind: hidden_states}"], "teacher.prompt: objective.terms.inner compares inner states"),
        (["teacher.source=offline", "teacher.hidden_layers=[0]"], "teacher.prompt: teacher.hidden_layers keeps inner"),
        (["on_policy={fraction: 1, teacher_mix_fraction: 0.2}"], "teacher.prompt: on_policy.teacher_mix_fraction draws"),
        (["teacher.prompt.prefix=x"], "teacher.prompt.prefix: it is for plain text, and no corpus is"),
        (["teacher.prompt.user={{ x"], "teacher.prompt.user: template line 1"),
    ],
)  # fmt: skip
def test_what_a_prompt_does_not_go_with_is_refused(load: Any, changes: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        check_experiment(load(*changes))


def test_a_prompt_beyond_the_positions_of_the_teacher_is_refused(load: Any, tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    GPT2LMHeadModel(GPT2Config(vocab_size=300, n_positions=100, n_embd=8, n_layer=1, n_head=1)).save_pretrained(
        tmp_path / "m"
    )
    tiny_models.make_tokenizer(tmp_path / "m")
    give_template(tmp_path / "m")
    base = [
        f"teacher.model=file:{tmp_path}/m",
        "students.same={from: '', layers: [0]}",
        "data.sequence_length=64",
        "teacher.prompt.sequence_length=96",
    ]
    check_against_teacher(plan_runs(load(*base)))
    for changes, tokens in (
        (["teacher.prompt.sequence_length=120"], 120),
        (["on_policy={fraction: 1, max_new_tokens: 8}"], 104),
    ):
        with pytest.raises(UserError, match=f"teacher.prompt.sequence_length: {tokens} exceeds the 100 positions"):
            check_against_teacher(plan_runs(load(*base, *changes)))
