"""Text that a teacher writes: decoding against teacher forcing, seeds, resuming, filters, the plan."""

import dataclasses
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import ROOT, tiny_models
from helpers.tiny_data import save_tokenizer, write_lines
from helpers.warm_processes import MAY_BE_WARM

from distill_lit import data
from distill_lit.config import (
    CorpusConfig,
    DataConfig,
    FiltersConfig,
    GeneratedConfig,
    PromptsConfig,
    RemoteConfig,
    load_experiment,
)
from distill_lit.config.roles import Role
from distill_lit.experiment.execution.run_data import prepare_run_data, write_generated_corpora
from distill_lit.experiment.plan import plan_runs
from distill_lit.experiment.planning.fingerprint import corpus_fingerprint_fields, validation_data_fingerprint
from distill_lit.generation import filters
from distill_lit.generation.completions import Completion, read_completions
from distill_lit.generation.corpus import (
    GenerationContext,
    check_generated_corpora,
    generate_corpus,
    generated_corpus_path,
    resolve_generated_corpora,
)
from distill_lit.generation.filters import (
    extract_final_answer,
    filter_completions,
    ngram_repetition,
    self_consistency,
    word_f1,
)
from distill_lit.generation.local import encode_prompt, generate_locally
from distill_lit.generation.perplexity import mean_completion_logprobs
from distill_lit.generation.prompts import Prompt, read_prompts
from distill_lit.generation.sampling import SamplingParams, generate_batch, get_eos_token_ids
from distill_lit.models import drawing, load_model, load_tokenizer
from distill_lit.models.vocabulary import unpadded_vocab_size
from distill_lit.utils.exceptions import UserError
from distill_lit.utils.files import hashes_of, read_json
from distill_lit.utils.shards import Shards, append_line

SHARED_CACHE = os.environ.get("DISTILL_LIT_CACHE", "")
GREEDY = SamplingParams(0.0, 1.0, 12)


@pytest.fixture(scope="module")
def chatty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny teacher whose tokens are bytes and whose tokenizer has a chat template."""
    folder = tiny_models.make_model(tmp_path_factory.mktemp("chatty"), bos_token_id=None, eos_token_id=258)
    return save_tokenizer(folder)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTILL_LIT_CACHE", str(tmp_path / "cache"))


def questions(folder: Path, count: int = 9) -> Path:
    rows = [{"q": f"{text[: 5 + 3 * i]}?"} for i, text in enumerate(tiny_models.sentences(count))]
    return write_lines(folder / "q.jsonl", rows)


def settings(path: Path, **changes: object) -> GeneratedConfig:
    base = GeneratedConfig(PromptsConfig(path=str(path), text="{{ q }}"), max_new_tokens=8, batch_size=2)
    return dataclasses.replace(base, **changes)


# ---------------------------------------------------------------- decoding


def test_padding_and_company_change_no_answer(chatty: Path) -> None:
    model, tokenizer = load_model(chatty), load_tokenizer(chatty)
    prompts = [encode_prompt(tokenizer, Prompt(text), True) for text in ("Hi", "A longer question?", "Why")]
    ends = get_eos_token_ids(model, tokenizer, True)
    together = generate_batch(model, prompts, ends, GREEDY, seed=0)
    for prompt, written in zip(prompts, together, strict=True):
        assert generate_batch(model, [prompt], ends, GREEDY, seed=5)[0].token_ids == written.token_ids
        ids = torch.tensor([prompt + written.token_ids])
        with torch.no_grad():
            logits = model(ids).logits[0, len(prompt) - 1 : -1]
        assert written.token_ids == logits.argmax(-1).tolist()
        forced = logits.log_softmax(-1).gather(-1, ids[0, len(prompt) :, None])[:, 0]
        assert written.logprobs == pytest.approx(forced.tolist(), abs=1e-3)


def test_the_padded_rows_of_a_head_are_never_written(tmp_path: Path, chatty: Path) -> None:
    model, tokenizer = load_model(chatty), load_tokenizer(chatty)
    tiny_models.pad_head(model, 310)
    generate_locally(tmp_path, model, tokenizer, [Prompt("Hi")], GeneratedConfig(max_new_tokens=8, batch_size=2))
    (answer,) = read_completions(tmp_path)
    assert answer.token_ids and max(answer.token_ids) < unpadded_vocab_size(tokenizer) == 259


def test_prompts_are_checked_once_however_many_answers_they_get(
    tmp_path: Path, chatty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By one number each: a list of all tokens of all samples would take 8 bytes for each of them."""
    checked: list[int] = []
    monkeypatch.setattr("distill_lit.generation.local.check_ids", lambda ids, *_: checked.extend(ids))
    config, prompts = GeneratedConfig(max_new_tokens=1, batch_size=4, num_samples=4), [Prompt("A longer question?")]
    generate_locally(tmp_path, load_model(chatty), load_tokenizer(chatty), prompts, config)
    assert checked == [max(encode_prompt(load_tokenizer(chatty), prompts[0], config.chat))]
    assert len(list(read_completions(tmp_path))) == 4


def test_log_probabilities_are_the_models_own_whatever_the_sampling(chatty: Path) -> None:
    model, tokenizer = load_model(chatty), load_tokenizer(chatty)
    prompt = encode_prompt(tokenizer, Prompt("Hi"), True)
    written = generate_batch(
        model, [prompt], get_eos_token_ids(model, tokenizer, True), SamplingParams(3.0, 0.9, 12), seed=1
    )[0]
    ids = torch.tensor([prompt + written.token_ids])
    with torch.no_grad():
        logits = model(ids).logits[0, len(prompt) - 1 : -1]
    forced = logits.log_softmax(-1).gather(-1, ids[0, len(prompt) :, None])[:, 0]
    assert written.logprobs == pytest.approx(forced.tolist(), abs=1e-3)


def test_an_answer_stops_at_any_end_token_and_keeps_it(chatty: Path) -> None:
    model, tokenizer = load_model(chatty), load_tokenizer(chatty)
    prompt = encode_prompt(tokenizer, Prompt("Hi"), True)
    free = generate_batch(model, [prompt], [258], GREEDY, seed=0)[0].token_ids
    cut = generate_batch(model, [prompt], [258, free[3]], GREEDY, seed=0)[0]
    assert cut.is_finished
    assert cut.token_ids == free[: free.index(free[3]) + 1]
    assert len(cut.logprobs) == len(cut.token_ids)


def test_generation_settings_of_the_model_do_not_leak_in(chatty: Path) -> None:
    model, tokenizer = load_model(chatty), load_tokenizer(chatty)
    prompt, ends = encode_prompt(tokenizer, Prompt("Hi"), True), [258]
    plain = generate_batch(model, [prompt], ends, GREEDY, seed=0)[0]
    model.generation_config.update(do_sample=True, temperature=5.0, repetition_penalty=3.0, no_repeat_ngram_size=1)
    assert generate_batch(model, [prompt], ends, GREEDY, seed=0)[0] == plain


def test_the_token_that_ends_a_turn_ends_an_answer(chatty: Path) -> None:
    model, tokenizer = load_model(chatty), load_tokenizer(chatty)
    tokenizer.eos_token = "<|endoftext|>"
    model.generation_config.eos_token_id = None
    names = tokenizer.convert_ids_to_tokens(get_eos_token_ids(model, tokenizer, True))
    assert names == ["<|endoftext|>", "<|im_end|>"]
    assert tokenizer.convert_ids_to_tokens(get_eos_token_ids(model, tokenizer, False)) == ["<|endoftext|>"]


# ---------------------------------------------------------------- on disk


def write(folder: Path, teacher: Path, path: Path, **changes: object) -> list[Completion]:
    config = settings(path, **changes)
    prompts = read_prompts("p", config.prompts, 0, "pypi")
    generate_locally(folder, load_model(teacher), load_tokenizer(teacher), prompts, config)
    return list(read_completions(folder))


def test_same_seed_same_text_another_seed_another(tmp_path: Path, chatty: Path) -> None:
    path = questions(tmp_path)
    sampled = {"temperature": 1.0, "num_samples": 2}
    one = write(tmp_path / "a", chatty, path, **sampled)
    assert one == write(tmp_path / "b", chatty, path, **sampled)
    assert [a.text for a in one] != [a.text for a in write(tmp_path / "c", chatty, path, seed=1, **sampled)]
    assert len(one) == 18
    assert len({(a.prompt, a.sample_index) for a in one}) == 18
    assert [len(a.prompt) for a in one] == sorted(len(a.prompt) for a in one)


def test_lost_and_damaged_shards_are_written_again_and_only_they(tmp_path: Path, chatty: Path) -> None:
    path, folder = questions(tmp_path), tmp_path / "a"
    write(folder, chatty, path, temperature=1.0)
    shards = sorted(folder.glob("completions-*"))
    assert len(shards) == 2
    before, times = hashes_of(folder), {p: p.stat().st_mtime_ns for p in shards}
    shards[1].write_text(shards[1].read_text().replace("sample", "simple", 1))
    write(folder, chatty, path, temperature=1.0)
    assert hashes_of(folder) == before
    assert shards[0].stat().st_mtime_ns == times[shards[0]]
    assert shards[1].stat().st_mtime_ns != times[shards[1]]


KILLED = (
    MAY_BE_WARM
    + """
import os, signal
from pathlib import Path
from distill_lit.config import GeneratedConfig, PromptsConfig
from distill_lit.generation import local as w
from distill_lit.generation.prompts import read_prompts
from distill_lit.models import load_model, load_tokenizer
real, calls = w.generate_batch, []
def dying(*a, **k):
    calls.append(1)
    if len(calls) == 2: os.kill(os.getpid(), signal.SIGKILL)
    return real(*a, **k)
w.generate_batch = dying
config = GeneratedConfig(PromptsConfig(path={path!r}, text="{{{{ q }}}}"), max_new_tokens=8, batch_size=2, temperature=1.0)
teacher, prompts = Path({teacher!r}), read_prompts("p", config.prompts, 0, "pypi")
w.generate_locally(Path({folder!r}), load_model(teacher), load_tokenizer(teacher), prompts, config)
"""
)


def test_killed_while_writing_loses_one_shard_at_most(tmp_path: Path, chatty: Path) -> None:
    path, folder = questions(tmp_path, 20), tmp_path / "a"
    values = {"folder": str(folder), "teacher": str(chatty), "path": str(path)}
    result = subprocess.run([sys.executable, "-c", KILLED.format(**values)], cwd=ROOT, timeout=120)
    assert result.returncode == -signal.SIGKILL
    kept = folder / "completions-00000.jsonl"
    assert Shards(folder).is_intact(kept.name)
    assert not (folder / "completions-00001.jsonl").exists()
    changed = kept.stat().st_mtime_ns
    again = write(folder, chatty, path, temperature=1.0)
    assert kept.stat().st_mtime_ns == changed
    assert again == write(tmp_path / "whole", chatty, path, temperature=1.0)


def test_two_writers_do_no_harm(tmp_path: Path) -> None:
    code = (
        MAY_BE_WARM
        + """
import sys, time
from pathlib import Path
from distill_lit.utils.shards import Shards
folder = Path(sys.argv[1])
def writer(name):
    def write(path):
        (folder.parent / "made").open("a").write(name + "\\n")
        time.sleep(0.1)
        path.write_text(name)
    return write
names = [f"s-{i}" for i in range(8)]
Shards(folder).write_missing({n: writer(n) for n in names})
assert Shards(folder).are_intact(names)
"""
    )
    both = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "f")], cwd=ROOT) for _ in range(2)]
    assert [p.wait(60) for p in both] == [0, 0]
    assert sorted((tmp_path / "made").read_text().split()) == [f"s-{i}" for i in range(8)]


def test_a_torn_line_costs_only_itself(tmp_path: Path) -> None:
    shards = Shards(tmp_path)
    shards.write_missing({"a": lambda path: path.write_text("a") and None})
    with (tmp_path / "shards.jsonl").open("a") as file:
        file.write('{"name": "b", "sha')
    append_line(tmp_path / "shards.jsonl", {"name": "c", "sha256": "0"})
    assert set(shards.hashes()) == {"a", "c"}
    assert shards.is_intact("a")
    assert not shards.is_intact("c")


def test_a_line_that_the_disk_has_no_room_for_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, write_all = tmp_path / "shards.jsonl", os.write
    with monkeypatch.context() as full:
        full.setattr(os, "write", lambda descriptor, content: write_all(descriptor, content[:9]))
        with pytest.raises(OSError, match="No space left"):
            append_line(path, {"name": "a", "sha256": "0"})
    append_line(path, {"name": "b", "sha256": "1"})
    assert Shards(tmp_path).hashes() == {"b": "1"}


def test_a_prompt_too_long_for_the_context_is_counted_not_lost(tmp_path: Path, chatty: Path) -> None:
    path = write_lines(tmp_path / "q.jsonl", [{"q": "x" * 250}, {"q": "Hi"}])
    long, short = sorted(write(tmp_path / "a", chatty, path), key=lambda a: -len(a.prompt))
    assert (long.finish_reason, long.text, long.token_ids) == ("too_long", "", [])
    assert short.finish_reason != "too_long"
    kept, dropped = filter_completions([long, short], FiltersConfig(min_tokens=0))
    assert [a.prompt for a in kept] == ["Hi"]
    assert dropped == {"too_long": 1}


# ---------------------------------------------------------------- filters


def answer(text: str, sample: int = 0, **facts: object) -> Completion:
    return Completion("q", sample, text, **{"finish_reason": "stop", "token_ids": [0] * len(text.split()), **facts})


def test_repetition_by_hand() -> None:
    assert ngram_repetition("a b c a b c") == pytest.approx(1 / 4)  # abc bca cab abc
    assert ngram_repetition("a b") == 0
    assert ngram_repetition("go go go go go") == pytest.approx(2 / 3)


def test_overlap_by_hand() -> None:
    assert word_f1("The red cat", "a red dog") == pytest.approx(2 * 1 / (2 + 2))
    assert word_f1("1,000", "1000.") == 1
    assert word_f1("-3", "3") == 0
    assert word_f1("", "") == 0
    assert word_f1("A", "a.") == 1
    assert word_f1("A", "B") == 0
    assert word_f1("The", "a") == 0


@pytest.mark.parametrize(
    ("text", "right", "is_right"),
    [
        ("Answer: A", "A", True),
        ("Answer: a.", "A", True),
        ("Answer: B", "A", False),
        ("I do not know", "A", False),
        ("Answer:", "A", False),
        ("Answer: the bridge", "A bridge", True),
        ("Answer: +", "-", False),
        ("Answer: +", "+", True),
        ("I do not know", "+", False),
    ],
)
def test_a_final_answer_may_be_an_article_or_a_sign(text: str, right: str, is_right: bool) -> None:
    kept, dropped = filter_completions(
        [answer(text, reference_answer=right)], FiltersConfig(require_correct=True, answer_pattern=r"Answer:(.*)")
    )
    assert (len(kept), dropped) == ((1, {}) if is_right else (0, {"wrong": 1}))


def test_unanimous_answers_agree_whatever_they_are() -> None:
    finals = ["A", "A", "A", "B"]
    assert [self_consistency(finals, i) for i in range(4)] == pytest.approx([2 / 3, 2 / 3, 2 / 3, 0])


def test_agreement_counts_all_answers_to_a_prompt_wherever_they_stand() -> None:
    answers = [answer("4", 0), Completion("long", 0, "", "too_long"), answer("4", 1)]
    kept, dropped = filter_completions(answers, FiltersConfig(min_agreement=1.0))
    assert [a.sample_index for a in kept] == [0, 1]
    assert dropped == {"too_long": 1}


def test_agreement_is_the_share_of_equal_final_answers() -> None:
    finals = [extract_final_answer(f"so … Answer: {x}", r"Answer: (\S+)") for x in ("4", "4", "5", "4.")]
    assert [self_consistency(finals, i) for i in range(4)] == pytest.approx([2 / 3, 2 / 3, 0, 2 / 3])
    assert extract_final_answer("Answer: 1 Answer: 2", r"Answer: (\S+)") == "2"
    assert extract_final_answer("none", r"Answer: (\S+)") == ""


def test_every_filter_takes_what_it_should() -> None:
    answers = [
        answer("", 0),
        answer("one", 1),
        answer("x " * 50, 2),
        answer("cut off here", 3, finish_reason="length"),
        answer("go go go go go go", 4),
        answer("Answer: 3 or so", 5, reference_answer="4"),
        answer("Answer: 4 I think", 6, reference_answer="4"),
        answer("declined", 7, finish_reason="refused"),
    ]
    strict = FiltersConfig(
        min_tokens=2,
        max_tokens=20,
        require_finished=True,
        max_repetition=0.4,
        require_correct=True,
        answer_pattern=r"Answer: (\S+)",
    )
    kept, dropped = filter_completions(answers, strict)
    assert [a.sample_index for a in kept] == [6]
    reasons = ("empty", "short", "long", "unfinished", "repetitive", "wrong", "refused")
    assert dropped == dict.fromkeys(reasons, 1)


def test_the_perplexity_filter_reads_answers_as_a_loop_over_them_would(chatty: Path) -> None:
    model, tokenizer = load_model(chatty), load_tokenizer(chatty)
    answers = [answer("yes", 0), answer("no, never", 1), answer("x" * 300, 2)]
    scores = mean_completion_logprobs(model, tokenizer, answers, chat=True, batch_size=2)
    for one, score in zip(answers[:2], scores, strict=False):
        prompt = encode_prompt(tokenizer, Prompt("q"), True)
        reply = [*tokenizer(one.text)["input_ids"], tokenizer.eos_token_id]
        with torch.no_grad():
            logits = model(torch.tensor([prompt + reply])).logits[0, len(prompt) - 1 : -1, :259]
        values = logits.log_softmax(-1)[range(len(reply)), reply]
        assert score == pytest.approx(float(values.mean()), abs=1e-4)
    assert scores[2] == float("-inf")
    kept, dropped = filter_completions(answers, FiltersConfig(min_mean_logprob=-1e9), lambda some: scores)
    assert [a.sample_index for a in kept] == [0, 1]
    assert dropped == {"perplexity": 1}


# ---------------------------------------------------------------- as a corpus


def test_answers_become_a_corpus_with_the_loss_on_them_alone(tmp_path: Path, chatty: Path) -> None:
    generated = settings(questions(tmp_path, 40), temperature=1.0, filters=FiltersConfig(min_tokens=3))
    config = DataConfig({"answers": CorpusConfig(generated=generated)}, sequence_length=256, validation_sequences=2)
    writer = GenerationContext(f"file:{chatty}", torch.float32)
    with pytest.raises(UserError, match="not written yet"):
        resolve_generated_corpora(config, writer, "pypi")
    facts = generate_corpus("answers", generated, writer, "pypi", lambda *_: None)
    assert facts["prompts"] == 40
    assert facts["kept"] + sum(facts["dropped"].values()) == facts["answers"] == 40
    manifest = read_json(Path(facts["corpus"]).parent / "manifest.json")
    assert manifest["config"]["temperature"] == 1.0
    assert "model.safetensors" in manifest["writer"]["files"]
    tokenizer = load_tokenizer(chatty)
    prepared = data.prepare_datasets(resolve_generated_corpora(config, writer, "pypi"), chatty, "pypi")
    texts = {json.loads(line)["messages"][-1]["content"] for line in Path(facts["corpus"]).read_text().splitlines()}
    rows = prepared.train
    for row in range(len(rows)):
        for number in range(1, int(rows.document_ids[row].max()) + 1):
            here = rows.document_ids[row] == number
            supervised = rows.input_ids[row][here & rows.loss_mask[row]]
            text = tokenizer.decode(supervised)
            assert text.removesuffix("<|im_end|>") in texts, text


def test_filters_choose_a_corpus_and_nothing_is_written_twice(tmp_path: Path, chatty: Path) -> None:
    path, writer = questions(tmp_path), GenerationContext(f"file:{chatty}", torch.float32)
    first = generate_corpus("a", settings(path, temperature=1.0), writer, "pypi", lambda *_: None)
    folder = Path(first["corpus"]).parent
    times = {p: p.stat().st_mtime_ns for p in folder.glob("completions-*")}
    strict = settings(path, temperature=1.0, filters=FiltersConfig(min_tokens=3))
    second = Path(generate_corpus("a", strict, writer, "pypi", lambda *_: None)["corpus"])
    assert second.parent == folder
    assert second.name != Path(first["corpus"]).name
    impossible = settings(path, temperature=1.0, filters=FiltersConfig(min_tokens=99))
    with pytest.raises(UserError, match="none of 9 answers is left; .* short"):
        generate_corpus("a", impossible, writer, "pypi", lambda *_: None)
    assert times == {p: p.stat().st_mtime_ns for p in folder.glob("completions-*")}
    other = generate_corpus("a", settings(path, temperature=0.5), writer, "pypi", lambda *_: None)
    assert Path(other["corpus"]).parent != folder


def test_more_documents_are_those_of_fewer_and_others(tmp_path: Path) -> None:
    path = questions(tmp_path, 40)

    def asked(documents: int) -> list[tuple[int, str]]:
        prompts = PromptsConfig(path=str(path), text="{{ q }}", max_documents=documents)
        return [(prompt.row_index, prompt.text) for prompt in read_prompts("p", prompts, 3, "pypi")]

    every = asked(0)
    assert [row for row, _ in every] == list(range(40))
    few, more = asked(7), asked(19)
    assert len(few) == 7 and len(more) == 19
    assert set(few) < set(more) < set(every)
    assert more == sorted(more)


@pytest.mark.parametrize(("temperature", "is_new"), [(0.7, True), (0.0, False)])
def test_text_that_is_drawn_otherwise_is_other_text(
    tmp_path: Path, chatty: Path, monkeypatch: pytest.MonkeyPatch, temperature: float, is_new: bool
) -> None:
    """The most probable tokens are the same whoever writes them, and a server draws as it did before."""
    path, writer = questions(tmp_path), GenerationContext(f"file:{chatty}", torch.float32)
    config = load_experiment(ROOT / "experiments/sequence_level.yaml")
    here = settings(path, temperature=temperature)
    served = settings(path, temperature=0.7, remote=RemoteConfig(base_url="http://127.0.0.1:1/v1", model="m"))

    def identities(generated: GeneratedConfig) -> list[object]:
        corpus = CorpusConfig(generated=generated)
        return [generated_corpus_path("a", generated, writer, "pypi"), corpus_fingerprint_fields(corpus, config)]

    before = [identities(generated) for generated in (here, served)]
    monkeypatch.setattr(drawing, "SAMPLING_VERSION", 99)
    after = [identities(generated) for generated in (here, served)]
    assert [old != new for old, new in zip(before[0], after[0], strict=True)] == [is_new, is_new]
    assert after[1] == before[1]


def test_how_a_model_says_it_generates_belongs_to_its_answers(tmp_path: Path, chatty: Path) -> None:
    mine = tmp_path / "model"
    shutil.copytree(chatty, mine)
    place = functools.partial(
        generated_corpus_path, "a", settings(questions(tmp_path)), GenerationContext(f"file:{mine}", torch.float32), "pypi"
    )
    (mine / "generation_config.json").write_text('{"eos_token_id": 1}')
    before = place()
    (mine / "generation_config.json").write_text('{"eos_token_id": [1, 22]}')
    assert place().parent != before.parent


@pytest.mark.parametrize("changes", [{"require_correct": True}, {"min_agreement": 0.5}], ids=str)
def test_another_comparison_of_final_answers_filters_again_and_writes_nothing(
    tmp_path: Path, chatty: Path, monkeypatch: pytest.MonkeyPatch, changes: dict
) -> None:
    path = questions(tmp_path)
    prompts = PromptsConfig(path=str(path), text="{{ q }}", reference_answer="A")
    comparing = settings(path, prompts=prompts, num_samples=2, temperature=1.0, filters=FiltersConfig(**changes))
    plain = dataclasses.replace(comparing, filters=FiltersConfig(min_tokens=2))
    writer, config = (
        GenerationContext(f"file:{chatty}", torch.float32),
        load_experiment(ROOT / "experiments/sequence_level.yaml"),
    )

    def places() -> list[tuple[Path, object]]:
        return [
            (
                generated_corpus_path("a", generated, writer, "pypi"),
                corpus_fingerprint_fields(CorpusConfig(generated=generated), config),
            )
            for generated in (comparing, plain)
        ]

    before = places()
    monkeypatch.setattr(filters, "ANSWER_COMPARISON_VERSION", 99)
    after = places()
    assert after[0][0].parent == before[0][0].parent
    assert after[0][0].name != before[0][0].name
    assert after[0][1] != before[0][1]
    assert after[1] == before[1]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_samples": 2}, "temperature 0"),
        ({"filters": FiltersConfig(min_agreement=0.5)}, "several answers"),
        ({"filters": FiltersConfig(require_correct=True)}, "prompts.reference_answer"),
        ({"filters": FiltersConfig(min_tokens=5, max_tokens=3)}, "below min_tokens"),
        ({"filters": FiltersConfig(answer_pattern="(")}, "filters.answer_pattern"),
        ({"filters": FiltersConfig(answer_pattern="x")}, "group"),
        ({"prompts": PromptsConfig(text="{{ q }}")}, "exactly one of dataset and path"),
        ({"prompts": PromptsConfig(dataset="a/b")}, "not in the benchmark packages"),
        ({"chat": False, "prompts": PromptsConfig(dataset="baber/piqa", system_prompt="s")}, "no system message"),
    ],
)
def test_bad_input_is_refused_by_name(tmp_path: Path, changes: dict, words: str) -> None:
    generated = settings(questions(tmp_path), **changes)
    with pytest.raises(UserError, match=words) as found:
        check_generated_corpora(DataConfig({"a": CorpusConfig(generated=generated)}), "pypi")
    assert "data.corpora.a.generated" in str(found.value)


def test_a_corpus_is_either_generated_or_read(tmp_path: Path) -> None:
    corpus = CorpusConfig(path=str(questions(tmp_path)), generated=settings(questions(tmp_path)))
    with pytest.raises(UserError, match="both generated and path"):
        data.check_data_config(DataConfig({"a": corpus}), "pypi")


# ---------------------------------------------------------------- the plan


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command line, with the cache that holds the benchmark data."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DISTILL_LIT_CACHE": SHARED_CACHE}
    command = [sys.executable, "-m", "distill_lit", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=300)


def test_answers_per_prompt_are_an_axis(tmp_path: Path, chatty: Path) -> None:
    """A corpus is written for each number of answers, whatever its weight; each student waits for its own and reads it."""
    questions(tmp_path)
    file = tmp_path / "tiny.yaml"
    file.write_text(f"""
name: tiny
teacher: {{model: "file:{chatty}", source: none, dtype: float32}}
students: {{one: {{num_layers: 1, layers: uniform}}}}
data:
  sequence_length: 256
  validation_sequences: 1
  corpora:
    answers:
      generated: {{prompts: {{path: "{tmp_path}/q.jsonl", text: "{{{{ q }}}}"}}, temperature: 1.0, max_new_tokens: 4}}
      weight: 1
  validation: {{own: {{path: "file:{tiny_models.make_corpus(tmp_path / "text.jsonl")}"}}}}
objective: {{terms: {{ce: {{weight: 1}}}}}}
training: {{precision: float32, accelerator: cpu}}
evaluation: {{tasks: [sciq]}}
grid: {{data.corpora.answers.generated.num_samples: [1, 3], data.corpora.answers.weight: [1.0, 2.0]}}
baselines: []
""")
    runs = plan_runs(load_experiment(file))
    written = {run.label: run for run in runs if run.role == Role.GENERATED}
    assert list(written) == ["generated-answers-num_samples=1", "generated-answers-num_samples=3"]
    students = {run.label: run for run in runs if run.student}
    assert set(students) == {f"one-num_samples={n}-weight={weight}" for n in (1, 3) for weight in (1.0, 2.0)}
    assert len({run.fingerprint for run in students.values()}) == 4
    assert len({validation_data_fingerprint(run.config) for run in students.values()}) == 1
    for samples in (1, 3):
        maker = written[f"generated-answers-num_samples={samples}"]
        facts = write_generated_corpora(maker.config, lambda *_: None)["answers"]
        student = students[f"one-num_samples={samples}-weight=2.0"]
        assert student.depends_on == (maker.name,)
        assert (facts["prompts"], facts["answers"]) == (9, 9 * samples)
        statistics = prepare_run_data(student.config, chatty).statistics
        assert statistics["rows"] == facts["kept"] > 6 * samples
        assert statistics["mixture"]["answers"]["documents"] == statistics["documents"]


@pytest.mark.slow
def test_an_experiment_writes_its_corpus_once_and_trains_on_it(tmp_path: Path, chatty: Path) -> None:
    path = questions(tmp_path, 60)
    file = tmp_path / "tiny.yaml"
    file.write_text(f"""
name: tiny
teacher: {{model: "file:{chatty}", source: offline, dtype: float32}}
students: {{one: {{num_layers: 1, layers: uniform}}}}
data:
  sequence_length: 256
  validation_sequences: 2
  corpora:
    answers:
      generated:
        prompts: {{path: "file:{path}", text: "{{{{ q }}}}"}}
        max_new_tokens: 8
        batch_size: 16
objective: {{terms: {{ce: {{weight: 1}}}}, compile: never}}
training: {{max_tokens: 2048, micro_batch_size: 2, precision: float32, accelerator: cpu}}
evaluation: {{tasks: [sciq], limit: 4}}
baselines: [teacher]
""")
    place = ("--root", str(tmp_path))
    alone = run("generate", str(file), *place)
    assert alone.returncode == 0, alone.stdout + alone.stderr
    assert "'prompts': 60" in alone.stdout
    written = list((tmp_path / "runs/tiny").glob("generated-*")) + list((tmp_path / "runs/tiny").glob("one-*"))
    assert [p.name.rsplit("-", 1)[0] for p in written] == ["generated-answers"]  # and nothing is trained
    corpus = Path(read_json(written[0] / "manifest.json")["corpora"]["answers"]["corpus"])
    corpus.write_text(corpus.read_text()[:-20])  # cut short: made again from the answers
    answers = next(corpus.parent.glob("completions-*"))
    changed = answers.stat().st_mtime_ns
    whole = run("run", str(file), *place)
    assert whole.returncode == 0, whole.stdout + whole.stderr
    done = read_json(next((tmp_path / "runs/tiny").glob("one-*")) / "manifest.json")
    assert done["data"]["documents"] == read_json(written[0] / "manifest.json")["corpora"]["answers"]["kept"]
    assert answers.stat().st_mtime_ns == changed
