"""A teacher behind a server: against the model itself, against a server that fails in every way, and a real vLLM (slow)."""

import os
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers import served_model
from helpers.distillation import SETTINGS, VOCABULARY, run
from helpers.mock_openai_server import FaultServer, failure, serving
from helpers.tiny_models import make_model

from distill_lit import data
from distill_lit.config import (
    ExperimentConfig,
    PriceConfig,
    ServiceConfig,
    StudentConfig,
    TeacherConfig,
    TeacherServerConfig,
    TermConfig,
    load_experiment,
)
from distill_lit.data.loader import PackedLoader, make_batch
from distill_lit.data.packing import pack
from distill_lit.data.tokenization import join_documents
from distill_lit.experiment.checks.model_checks import check_against_teacher, check_services
from distill_lit.experiment.checks.validation import check_experiment
from distill_lit.experiment.execution import services
from distill_lit.experiment.execution.run import build_run
from distill_lit.experiment.execution.services import keep_service, needed_services
from distill_lit.experiment.plan import plan_runs
from distill_lit.experiment.state.completion import is_run_built
from distill_lit.generation import api_client
from distill_lit.losses import build_objective
from distill_lit.models import CalibrationData, initial_student, load_model, load_tokenizer, size_of
from distill_lit.models.vocabulary import load_unpadded_vocab_size
from distill_lit.teachers import OnlineTeacher, ServedTeacher, TeacherServer, teacher_capabilities, teacher_source
from distill_lit.teachers import server as asking
from distill_lit.teachers.base import CachedTeacherSource, CacheRows, TeacherContext
from distill_lit.teachers.served import ServedSource
from distill_lit.teachers.service import read_endpoint, remove_endpoint, wait_for_service, write_endpoint
from distill_lit.training.loss import DistillationLoss
from distill_lit.utils.exceptions import UserError
from distill_lit.utils.files import read_json, write_json

pytest.importorskip("openai")
SHARED_CACHE = os.environ.get("DISTILL_LIT_CACHE", str(Path("~/.cache/distill-lit").expanduser()))
K = 7
QUIET = lambda *_: None  # noqa: E731
Answer = Callable[[dict[str, Any], int], Any]


@pytest.fixture(autouse=True)
def _fast(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTILL_LIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(api_client, "INITIAL_BACKOFF_SECONDS", 0.01)


@pytest.fixture(scope="module")
def model(tiny_teacher: Path) -> Any:
    return load_model(tiny_teacher).requires_grad_(False).eval()


@pytest.fixture(scope="module")
def tokenizer(tiny_teacher: Path) -> Any:
    return load_tokenizer(tiny_teacher)


@pytest.fixture(scope="module")
def few(prepared: data.PreparedData) -> data.PreparedData:
    """Eight rows and two held-out ones."""
    return data.PreparedData(
        prepared.train.take(np.arange(8)), prepared.validation.take(np.arange(2)), prepared.fingerprint, {}
    )


def connect(url: str, tokenizer: Any, top_k: int = K, **fields: Any) -> TeacherServer:
    config = TeacherServerConfig(**{"base_url": url, "model": "m", "max_retries": 2, **fields})
    return TeacherServer(config, top_k, tokenizer, VOCABULARY)


def context(url: str, folder: Path, rows: data.PreparedData, top_k: int = K, **fields: Any) -> TeacherContext:
    server = TeacherServerConfig(**{"base_url": url, "model": "m", "max_retries": 2, **fields})
    teacher = TeacherConfig(model=f"file:{folder}", source="served", top_k=top_k, dtype="float32", server=server)
    return TeacherContext(ExperimentConfig(name="x", teacher=teacher), folder, folder, rows)


def scored(server: FaultServer) -> list[list[int]]:
    """The tokens that the server was asked about, without probes."""
    return [r.get("prompt", r.get("input_ids")) for r in server.requests if "tokens" not in r]


def whole(teacher: Path, batch: dict[str, torch.Tensor], mask: torch.Tensor) -> torch.Tensor:
    target = OnlineTeacher(load_model(teacher), VOCABULARY).target(batch, mask)
    return target.lm_head.scale_and_cap(target.lm_head.project(target.hidden_states)).log_softmax(-1)


def rows_of(rows: data.PreparedData, *numbers: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    batch = make_batch(rows.train, np.array(numbers), 1)
    return batch, batch["labels"][:, 1:] >= 0


def documents_of(batch: dict[str, torch.Tensor]) -> list[asking.SupervisedDocument]:
    ids, numbers, labels = (batch[name].numpy() for name in ("input_ids", "document_ids", "labels"))
    return asking.supervised_documents(ids, numbers, labels >= 0)


def number_of_documents(batch: dict[str, torch.Tensor]) -> int:
    return len(documents_of(batch))


# ---------------------------------------------------------------- what it says


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_a_live_server_says_what_the_model_says(
    engine: str, model: Any, tokenizer: Any, tiny_teacher: Path, few: data.PreparedData
) -> None:
    batch, mask = rows_of(few, 3, 0)
    with serving(getattr(served_model, engine)(model, tokenizer)) as server:
        target = ServedTeacher(connect(server.url, tokenizer, engine=engine)).target(batch, mask)
    log_p = whole(tiny_teacher, batch, mask)
    values, ids = log_p.topk(K)
    assert torch.equal(target.ids, ids)
    torch.testing.assert_close(target.logprobs, values, atol=1e-5, rtol=1e-5)
    labels = batch["labels"][:, 1:][mask]
    torch.testing.assert_close(target.label_logprobs, log_p.gather(-1, labels[:, None])[:, 0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("top_k", [K, -1])
def test_a_cache_holds_what_the_model_says(
    top_k: int, model: Any, tokenizer: Any, tiny_teacher: Path, few: data.PreparedData
) -> None:
    with serving(served_model.vllm(model, tokenizer, max_logprobs=-1)) as server:
        asked = context(server.url, tiny_teacher, few, top_k)
        source = teacher_source(asked.config.teacher)
        assert isinstance(source, CachedTeacherSource)
        facts = source.write_cache(asked, QUIET)
    assert source.is_cache_complete(facts)
    teacher = source.build(asked)  # the server is not needed any more
    assert teacher is not None
    batch, mask = rows_of(few, 5, 1)
    target, log_p = teacher.target(batch, mask), whole(tiny_teacher, batch, mask)
    torch.testing.assert_close(target.logprobs, log_p.gather(-1, target.ids), atol=5e-3, rtol=2e-3)
    assert target.ids.shape[1] == (K if top_k == K else VOCABULARY)
    tail = 1 - log_p.topk(target.ids.shape[1]).values.exp().sum(-1)
    torch.testing.assert_close(1 - target.logprobs.exp().sum(-1), tail, atol=1e-5, rtol=2e-3)
    held_out = make_batch(few.validation, np.arange(2), 1)
    held_out["rows"] += len(few.train)
    mask = held_out["labels"][:, 1:] >= 0
    said = teacher.target(held_out, mask).logprobs
    torch.testing.assert_close(said, whole(tiny_teacher, held_out, mask).topk(said.shape[1]).values, atol=5e-3, rtol=2e-3)
    size = source.estimate_cache_bytes(
        asked.config.teacher, size_of(model), CacheRows(0, int(few.train.loss_mask.sum()), 64)
    )
    assert facts["bytes_per_token"] < size / few.train.loss_mask.sum() * 2 + 200


def test_a_student_learns_the_same_from_either(
    tmp_path: Path, model: Any, tokenizer: Any, tiny_teacher: Path, few: data.PreparedData
) -> None:
    """Live and cached server against the model beside the student, with the same loss on the same tokens."""
    terms = {"kl": TermConfig(kind="top_k_tail_kl", options={"k": K})}
    _, beside = run(tmp_path / "a", tiny_teacher, few, terms=terms)
    with serving(served_model.vllm(model, tokenizer)) as server:
        _, live = run(tmp_path / "b", tiny_teacher, few, terms=terms, signal=ServedTeacher(connect(server.url, tokenizer)))
        asked = context(server.url, tiny_teacher, few)
        cached_teacher = teacher_source(asked.config.teacher).build(asked)
    _, cached = run(tmp_path / "c", tiny_teacher, few, terms=terms, signal=cached_teacher)
    for name in ("validation/loss", "validation/student_nll", "validation/teacher_nll", "validation/agreement"):
        assert live[name] == pytest.approx(beside[name], abs=1e-4), name
        assert cached[name] == pytest.approx(beside[name], abs=5e-3), name


def test_nothing_is_asked_twice(model: Any, tokenizer: Any, few: data.PreparedData) -> None:
    batch, mask = rows_of(few, 2, 2)  # the same row twice
    with serving(served_model.vllm(model, tokenizer)) as server:
        first = ServedTeacher(connect(server.url, tokenizer)).target(batch, mask)
        before = len(server.requests)
        assert len(scored(server)) == 2 + number_of_documents(batch) // 2  # two probes
        again = ServedTeacher(connect(server.url, tokenizer)).target(batch, mask)
        assert len(server.requests) == before + 2  # a process asks for the probe, and what is allowed
    assert torch.equal(first.ids, again.ids)


def test_another_cache_of_the_same_documents_asks_for_nothing(
    model: Any, tokenizer: Any, tiny_teacher: Path, few: data.PreparedData
) -> None:
    """Another order of the rows, as of another seed, is another cache of the same answers."""
    turned = data.PreparedData(few.train.take(np.arange(8)[::-1]), few.validation, "turned", {})
    with serving(served_model.vllm(model, tokenizer)) as server:
        caches = [context(server.url, tiny_teacher, rows) for rows in (few, turned)]
        source = teacher_source(caches[0].config.teacher)
        assert isinstance(source, CachedTeacherSource)
        first = source.write_cache(caches[0], QUIET)
        asked = scored(server)
        second = source.write_cache(caches[1], QUIET)
        again = scored(server)[len(asked) :]
    assert second["teacher_cache"] != first["teacher_cache"]
    assert len(asked) > 8 and set(map(tuple, again)) <= set(map(tuple, asked[:2]))  # the probes of a new process
    targets = [source.build(cache) for cache in caches]
    (batch, mask), (same, _) = rows_of(few, 5), rows_of(turned, 2)
    assert torch.equal(targets[0].target(batch, mask).ids, targets[1].target(same, mask).ids)  # type: ignore[union-attr]


def test_documents_are_asked_about_one_by_one_up_to_the_last_supervised_token() -> None:
    ids = np.arange(12).reshape(1, 12)
    documents = np.array([[1, 1, 1, 1, 2, 2, 2, 3, 3, 3, 0, 0]])
    mask = np.array([[0, 0, 1, 0, 0, 1, 1, 0, 0, 0, 0, 0]], dtype=bool)
    found = asking.supervised_documents(ids, documents, mask)
    assert [(d.start, d.ids, d.first, d.is_supervised.tolist()) for d in found] == [
        (0, [0, 1, 2], 2, [True]),
        (4, [4, 5, 6], 1, [True, True]),
    ]


def test_tokens_of_a_padded_head_are_no_tokens(tokenizer: Any, few: data.PreparedData, tmp_path: Path) -> None:
    """A head of 320 rows whose last 20 are the most probable: what remains are real tokens with their own probability."""
    padded = load_model(make_model(tmp_path / "padded", vocab_size=320)).eval()
    batch, mask = rows_of(few, 0)
    with serving(served_model.vllm(padded, tokenizer)) as server:
        target = ServedTeacher(connect(server.url, tokenizer, top_k=20)).target(batch, mask)
    assert int(target.ids.max()) < VOCABULARY
    assert all(len(set(row)) == 20 for row in target.ids.tolist())
    assert bool((target.logprobs.diff(dim=-1) <= 0).all())


def test_the_next_batch_is_asked_about_while_the_student_reads_this_one(
    model: Any, tokenizer: Any, few: data.PreparedData
) -> None:
    loader = PackedLoader(few.train, micro_batch_size=2, gradient_accumulation_steps=1, steps=3, seed=0)
    with serving(served_model.vllm(model, tokenizer)) as server:
        teacher = ServedTeacher(connect(server.url, tokenizer))
        loader.look_ahead = teacher.prefetch
        batches = iter(loader)
        batch = next(batches)
        teacher.target(batch, batch["labels"][:, 1:] >= 0)
        asked = len(server.requests)
        batch = next(batches)
        target = teacher.target(batch, batch["labels"][:, 1:] >= 0)
        del batches
        of_first_two = {tuple(ids) for ids in scored(server)[:asked]}
    assert {tuple(document.ids) for document in documents_of(batch)} <= of_first_two  # before it was needed
    assert len(target.ids) == int((batch["labels"][:, 1:] >= 0).sum())


# ---------------------------------------------------------------- a server that fails


def wrong(change: Callable[[list[Any], dict[str, Any]], Any], model: Any, tokenizer: Any, after: int = 0) -> Answer:
    """A server whose log-probabilities of a long text are changed."""
    right = served_model.vllm(model, tokenizer)

    def answer(body: dict[str, Any], number: int) -> Any:
        status, reply, headers = right(body, number)
        if "tokens" not in body and len(body["prompt"]) > 2 and number >= after:
            reply["choices"][0]["prompt_logprobs"] = change(reply["choices"][0]["prompt_logprobs"], body)
        return status, reply, headers

    return answer


def fewer(places: list[Any], body: dict[str, Any]) -> list[Any]:
    kept = [str(token) for token in body["prompt"]]
    return [place and {label: place[label]} for place, label in zip(places, kept, strict=True)]


def not_a_number(places: list[Any], body: dict[str, Any]) -> list[Any]:
    return [place and {token: {"logprob": float("nan")} for token in place} for place in places]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda places, body: places[:-3], "about .* of .* tokens; does it truncate prompts"),
        (fewer, "gives 1 log-probabilities of a token where 7 were asked for"),
        (not_a_number, "log-probabilities that are none .NaN.*also after 2 retries"),
        (lambda places, body: [place and {"299": {"logprob": -1.0}} for place in places], "other tokens"),
        (lambda places, body: None, "gives no prompt_logprobs"),
        (lambda places, body: "x" * len(places), "its reply cannot be read, also after 2 retries"),
    ],
    ids=["truncated", "fewer", "nan", "other tokens", "none", "malformed"],
)
def test_a_wrong_reply_ends_in_one_line_and_costs_no_other(
    change: Any, words: str, model: Any, tokenizer: Any, few: data.PreparedData
) -> None:
    batch, mask = rows_of(few, 0, 1, 2, 3)
    with serving(wrong(change, model, tokenizer, after=5)) as server:
        teacher = ServedTeacher(connect(server.url, tokenizer, concurrency=1))
        with pytest.raises(UserError, match=words):
            teacher.target(batch, mask)
        kept = len(list(teacher.server.store.folder.rglob("*.safetensors")))
        count = number_of_documents(batch)
        assert 0 < kept < count
        server.respond = served_model.vllm(model, tokenizer)
        before = len(server.requests)
        teacher.target(batch, mask)
        assert len(server.requests) == before + count - kept


def test_a_server_that_is_down_slow_or_limits_is_waited_for(model: Any, tokenizer: Any, few: data.PreparedData) -> None:
    right, batch = served_model.vllm(model, tokenizer), rows_of(few, 0)
    trouble = iter([failure(503), failure(429, retry_after="0"), failure(500)])

    def answer(body: dict[str, Any], number: int) -> Any:
        if "tokens" in body or len(body["prompt"]) < 3 or number < 4:
            return right(body, number)
        said = next(trouble, None)
        if number == 5:
            time.sleep(0.5)  # longer than the client waits
        return said or right(body, number)

    with serving(answer) as server:
        target = ServedTeacher(connect(server.url, tokenizer, timeout=0.4, max_retries=4)).target(*batch)
    with serving(right) as server:
        expected = ServedTeacher(connect(server.url, tokenizer, revision="other")).target(*batch)
    assert torch.equal(target.ids, expected.ids)


def test_a_server_that_is_not_there_is_told_before_anything_runs(
    model: Any, tokenizer: Any, tiny_teacher: Path, few: data.PreparedData
) -> None:
    with serving(served_model.vllm(model, tokenizer)) as server:
        url = server.url
    asked = context(url, tiny_teacher, few, max_retries=0)
    with pytest.raises(UserError, match="cannot be reached"):
        teacher_source(asked.config.teacher).check_service(asked.config.teacher, tiny_teacher)


def test_an_interrupted_cache_goes_on_where_it_was(
    model: Any, tokenizer: Any, tiny_teacher: Path, few: data.PreparedData
) -> None:
    right = served_model.vllm(model, tokenizer)
    left = threading.Semaphore(12)

    def answer(body: dict[str, Any], number: int) -> Any:
        return right(body, number) if "tokens" in body or left.acquire(blocking=False) else failure(503)

    with serving(answer) as server:
        asked = context(server.url, tiny_teacher, few, price=PriceConfig(input=1.0))
        source = teacher_source(asked.config.teacher)
        assert isinstance(source, CachedTeacherSource)
        with pytest.raises(UserError, match="all others are kept: run again to go on"):
            source.write_cache(asked, QUIET)
        first = [tuple(ids) for ids in scored(server)]
        server.respond = right
        server.requests.clear()
        facts = source.write_cache(asked, QUIET)
        second = [tuple(ids) for ids in scored(server) if len(ids) > 2][1:]  # without the probe
    answered = first[2:12]
    assert not set(answered) & set(second)
    assert source.is_cache_complete(facts)
    assert facts["cost"] > 0


def test_another_model_under_the_same_name_is_noticed(
    model: Any, tokenizer: Any, tmp_path: Path, few: data.PreparedData
) -> None:
    other = load_model(make_model(tmp_path / "other", seed=1)).eval()
    with serving(served_model.vllm(model, tokenizer)) as server:
        connect(server.url, tokenizer).check()
        server.respond = served_model.vllm(other, tokenizer)
        with pytest.raises(UserError, match=r"another model answers as 'm' .* set teacher.server.revision"):
            connect(server.url, tokenizer).check()
        connect(server.url, tokenizer, revision="2").check()


def test_tokens_with_other_numbers_are_found(model: Any, tokenizer: Any, few: data.PreparedData) -> None:
    right = served_model.vllm(model, tokenizer)
    swapped = {270: 271, 271: 270}

    def answer(body: dict[str, Any], number: int) -> Any:
        if "tokens" in body:
            return 200, {"prompt": tokenizer.decode([swapped.get(i, i) for i in body["tokens"]])}, {}
        return right(body, number)

    with serving(answer) as server, pytest.raises(UserError, match="numbers its tokens otherwise .*: 270 is"):
        connect(server.url, tokenizer).check()


@pytest.mark.parametrize(("top_k", "words"), [(50, "at most 20 log-probabilities of a token, not 50"), (-1, "whole")])
def test_how_many_log_probabilities_are_allowed_is_known_before(top_k: int, words: str, model: Any, tokenizer: Any) -> None:
    with serving(served_model.vllm(model, tokenizer)) as server, pytest.raises(UserError, match=words):
        connect(server.url, tokenizer, top_k=top_k).check()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"base_url": ""}, "teacher.server.base_url: '' is no address"),
        ({"base_url": "http://gpu7:8000/v1"}, "unencrypted; use https"),
        ({"model": ""}, "teacher.server.model: a value is needed"),
        ({"budget": 1.0}, "teacher.server.budget: needs teacher.server.price"),
        (
            {"base_url": "", "service": ServiceConfig(command="vllm serve it's --port {port}")},
            """teacher.server.service.command: no closing quotation in "vllm serve it's --port {port}"$""",
        ),
        ({"base_url": "", "service": ServiceConfig(command=" ", port=1)}, "service.command: it names no program"),
    ],
)
def test_what_cannot_be_is_refused_by_the_config(fields: dict[str, Any], words: str) -> None:
    server = TeacherServerConfig(**{"base_url": "http://localhost:1/v1", "model": "m", **fields})
    teacher = TeacherConfig(model="file:x", source="served", server=server)
    with pytest.raises(UserError, match=words):
        teacher_source(teacher).check(teacher)


def test_plain_http_to_another_machine_is_for_those_who_ask_for_it() -> None:
    server = TeacherServerConfig(base_url="http://gpu7:8000/v1", model="m", allow_http=True)
    teacher = TeacherConfig(model="file:x", source="served", server=server)
    teacher_source(teacher).check(teacher)


# ---------------------------------------------------------------- in an experiment

EXPERIMENT = """
name: served
teacher: {{model: "file:{teacher}", source: served, top_k: 7, server: {{base_url: "{url}", model: m, max_retries: 1}}}}
students: {{one: {{num_layers: 1, layers: uniform}}}}
data: {{sequence_length: 32, validation_sequences: 3, max_tokens: 2000, corpora: {{text: {{path: "file:{corpus}"}}}}}}
objective: {{terms: {{kl: {{kind: top_k_tail_kl, options: {{k: 7}}}}}}, compile: never}}
training: {{max_tokens: 256, micro_batch_size: 4, precision: float32, accelerator: cpu}}
evaluation: {{tasks: [sciq], limit: 4}}
baselines: []
"""


def test_an_experiment_writes_the_cache_once_and_students_read_it(
    tmp_path: Path, model: Any, tokenizer: Any, tiny_teacher: Path, tiny_corpus: Path
) -> None:
    with serving(served_model.vllm(model, tokenizer)) as server:
        (file := tmp_path / "served.yaml").write_text(
            EXPERIMENT.format(teacher=tiny_teacher, corpus=tiny_corpus, url=server.url)
        )
        config = load_experiment(file, [])
        check_experiment(config)
        first, second = runs = plan_runs(config)
        assert (first.role, first.label, second.depends_on) == (
            "teacher_cache",
            "teacher-cache-served-top_k_7",
            (first.name,),
        )
        check_against_teacher(runs)
        check_services(runs, runs)
        moved = plan_runs(
            load_experiment(file, ["teacher.server.base_url=http://localhost:9/v1", "teacher.server.timeout=9"])
        )
        assert [run.fingerprint for run in moved] == [run.fingerprint for run in runs]
        other = plan_runs(load_experiment(file, ["teacher.server.model=n"]))
        assert not {run.fingerprint for run in other} & {run.fingerprint for run in runs}
        for one in (first, second):
            (folder := tmp_path / one.name).mkdir()
            build_run(one, folder, QUIET)
            assert is_run_built(one, folder)
    assert read_json(tmp_path / first.name / "manifest.json")["served_model"]["model"] == "m"
    metrics = read_json(tmp_path / second.name / "manifest.json")["metrics"]
    assert 0 < metrics["validation/loss"] < 10
    live = load_experiment(file, ["teacher.server.live=true"])
    assert [run.role for run in plan_runs(live)] == ["distilled"]
    assert teacher_capabilities(live.teacher).scores_student_text
    assert not teacher_capabilities(live.teacher).runs_beside_student


# ---------------------------------------------------------------- a server that the experiment starts

SERVICE = """
import http.server, pathlib, sys
lives = pathlib.Path(sys.argv[1])
lives.write_text(lives.read_text() + "x" if lives.exists() else "x")
if len(lives.read_text()) <= int(sys.argv[3]):
    sys.exit(3)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2])), Handler).serve_forever()
"""


def service_of(tmp_path: Path, early_deaths: int, **fields: Any) -> ServiceConfig:
    (script := tmp_path / "service.py").write_text(SERVICE)
    command = f"{sys.executable} -S {script} {tmp_path / 'lives'} {{port}} {early_deaths}"
    return ServiceConfig(command=command, **{"start_timeout": 60.0, "max_restarts": 2, **fields})


def test_a_service_dies_is_started_again_and_ends_with_its_need(tmp_path: Path) -> None:
    service, needed, notes = service_of(tmp_path, early_deaths=1), threading.Event(), []
    thread = threading.Thread(target=keep_service, args=(service, lambda: not needed.is_set(), notes.append))
    thread.start()
    url = wait_for_service(service)
    health = url.removesuffix("/v1") + "/health"
    assert urllib.request.urlopen(health).status == 200
    needed.set()
    thread.join(60)
    assert not thread.is_alive()
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(health)
    assert read_endpoint(service) == {}
    assert (tmp_path / "lives").read_text() == "xx"
    assert [note.split(": ", 1)[1].split(" at ")[0] for note in notes] == [
        "it ended with exit code 3; started again",
        "ready",
    ]


@pytest.mark.slow
def test_the_server_of_a_killed_owner_is_ended_before_another_starts(tmp_path: Path) -> None:
    service = service_of(tmp_path, early_deaths=0)
    owner = "from distill_lit.config import ServiceConfig"
    owner += "; from distill_lit.experiment.execution.services import keep_service"
    owner += f"; keep_service(ServiceConfig(command={service.command!r}), lambda: True, print)"
    with subprocess.Popen([sys.executable, "-c", owner], stdout=subprocess.DEVNULL) as process:
        first = wait_for_service(service)
        process.kill()
    needed = threading.Event()
    thread = threading.Thread(target=keep_service, args=(service, lambda: not needed.is_set(), QUIET))
    thread.start()
    while read_endpoint(service).get("base_url") in (first, ""):
        time.sleep(0.05)
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(first.removesuffix("/v1") + "/health")
    needed.set()
    thread.join()


def test_a_service_that_cannot_be_started_says_so_to_those_who_wait(tmp_path: Path) -> None:
    service, needed = service_of(tmp_path, early_deaths=9, max_restarts=1), threading.Event()
    thread = threading.Thread(target=keep_service, args=(service, lambda: not needed.is_set(), QUIET))
    thread.start()
    try:
        with pytest.raises(UserError, match="ended with exit code 3; see .*log.txt"):
            wait_for_service(service)
    finally:
        needed.set()
        thread.join()
    assert (tmp_path / "lives").read_text() == "xx"


@pytest.mark.parametrize(("start", "is_ended"), [("7", True), ("8", False), ("", False), ("?", False)])
def test_only_a_process_that_is_known_to_be_the_left_server_is_ended(
    monkeypatch: pytest.MonkeyPatch, start: str, is_ended: bool
) -> None:
    """A number may have been given to another process; where the system does not tell when one began, nobody knows."""
    service, ended = ServiceConfig(command=f"left {start}"), list[int]()
    services._process_path(service).parent.mkdir(parents=True, exist_ok=True)
    write_json(services._process_path(service), {"pid": 123_456, "started": start if start != "8" else "7"})
    monkeypatch.setattr(services, "process_start", lambda _: start)
    monkeypatch.setattr(services.os, "killpg", lambda pid, _: ended.append(pid))
    services._end_orphan(service)
    assert ended == ([123_456] if is_ended else [])


def test_the_time_until_a_service_is_ready_is_time_and_no_number_of_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each look takes five seconds of a clock by hand: after twelve there are three."""
    clock, looks = [0.0], list[float]()

    def look(*_: Any) -> bool:
        looks.append(clock[0])
        clock[0] += 5.0
        return False

    monkeypatch.setattr(services, "_is_healthy", look)
    monkeypatch.setattr(services, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(services, "POLL_SECONDS", 0.0)
    service = ServiceConfig(command="sleep 60", start_timeout=12.0)
    services.service_folder(service).mkdir(parents=True, exist_ok=True)
    with (tmp_path / "log").open("ab") as log:
        reason = services._run_once(service, 1, "", lambda: len(looks) < 100, QUIET, log)
    assert reason == "was not ready after 12 s"
    assert looks == [0.0, 5.0, 10.0]


def test_a_service_is_found_through_disk_also_after_it_has_moved(
    model: Any, tokenizer: Any, few: data.PreparedData
) -> None:
    service = ServiceConfig(command="serve --port {port}", start_timeout=30.0)
    right, batch = served_model.vllm(model, tokenizer), rows_of(few, 0)
    with serving(right) as first:
        write_endpoint(service, "ready", first.url)
        teacher = ServedTeacher(connect("", tokenizer, service=service, max_retries=0))
    with serving(right) as second:
        timer = threading.Timer(0.2, write_endpoint, (service, "ready", second.url))
        timer.start()
        target = teacher.target(*batch)
        timer.join()
        assert len(scored(second)) == number_of_documents(batch[0])
    assert len(target.ids) == int(batch[1].sum())


def test_machines_with_one_cache_have_services_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The address of each, on the loopback interface, leads nowhere from the other."""
    service, hosts = ServiceConfig(command="serve --port {port}", port=8123), ("node1", "node2")
    for host in hosts:
        monkeypatch.setattr(services.socket, "gethostname", lambda host=host: host)
        assert read_endpoint(service) == {}
        write_endpoint(service, "ready", f"http://127.0.0.1:8123/v1?{host}")
    for host in hosts:
        monkeypatch.setattr(services.socket, "gethostname", lambda host=host: host)
        assert wait_for_service(service).endswith(host)
        remove_endpoint(service)


def test_the_runs_that_need_a_service_are_those_that_ask_it(
    tmp_path: Path, tiny_teacher: Path, tiny_corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (file := tmp_path / "served.yaml").write_text(EXPERIMENT.format(teacher=tiny_teacher, corpus=tiny_corpus, url=""))
    command = "teacher.server.service.command=serve --port {port}"
    cache, student = plan_runs(load_experiment(file, [command]))
    ((service, names),) = needed_services([cache, student], tmp_path)
    assert (service.command, names) == ("serve --port {port}", {cache.name})
    everyone = [command, "teacher.server.live=true", "baselines=[teacher,untrained,ce_only]"]
    teacher, *students = plan_runs(load_experiment(file, everyone))
    assert [run.role for run in students] == ["untrained", "ce_only", "distilled"]
    ((_, names),) = needed_services([teacher, *students], tmp_path)  # all students are validated beside it
    assert names == {run.name for run in students}
    built = set[str]()
    monkeypatch.setattr(services, "is_run_built", lambda run, folder: folder == tmp_path / run.name and run.name in built)
    built |= {run.name for run in students[1:]}  # and left to be evaluated, as after a change of the tasks
    ((_, names),) = needed_services([teacher, *students], tmp_path)
    assert names == {students[0].name}
    built.add(students[0].name)
    assert needed_services([teacher, *students], tmp_path) == []
    with pytest.raises(UserError, match="service.command: there is no program 'serve' on this machine"):
        check_services(students, students[1:2])
    for change, words in (
        ("launcher.engine=slurm", "is for launcher.engine=local"),
        ("training.nodes=2", "its own machine"),
    ):
        elsewhere = plan_runs(load_experiment(file, [*everyone, change]))
        with pytest.raises(UserError, match=words):
            check_services(elsewhere, elsewhere)
    monkeypatch.setattr(services.shutil, "which", lambda name: f"/bin/{name}")
    asked = list[TeacherConfig]()
    monkeypatch.setattr(ServedSource, "check_service", lambda _, config, folder: asked.append(config))
    check_services(students, students[:1])
    assert asked == [students[0].config.teacher]


# ---------------------------------------------------------------- a real server


@pytest.fixture(scope="module")
def smollm2() -> tuple[Path, data.PreparedData]:
    """The folder of SmolLM2, and rows of 64 tokens: the last is held out."""
    folder = next((Path(SHARED_CACHE) / "models").glob("SmolLM2-135M-Instruct*/config.json")).parent
    texts = [
        "The capital of France is Paris, and the river that flows through it is the Seine, which ends at Le Havre.",
        "To boil an egg, put it into cold water, bring the water to the boil, and wait for nine minutes.",
        "Water is made of hydrogen and oxygen. It freezes at zero degrees and boils at one hundred.",
    ]
    ids = [np.array(text) for text in load_tokenizer(folder)(texts)["input_ids"]]
    rows, _ = pack(join_documents(ids, [np.ones(len(text), dtype=bool) for text in ids]), 32)
    return folder, data.PreparedData(rows.take(np.arange(len(rows) - 1)), rows.take(np.array([len(rows) - 1])), "x", {})


real = pytest.mark.skipif(
    "VLLM_SERVER" not in os.environ,
    reason="VLLM_SERVER: address of `vllm serve SMOLLM2 --served-model-name smollm2 --dtype float32 --max-logprobs 50`",
)


@pytest.mark.slow
@real
@pytest.mark.parametrize("top_k", [10, 50])
def test_a_real_vllm_says_what_the_model_says(top_k: int, smollm2: tuple[Path, data.PreparedData]) -> None:
    folder, rows = smollm2
    tokenizer, size = load_tokenizer(folder), load_unpadded_vocab_size(folder)
    batch = make_batch(rows.train, np.arange(len(rows.train)), 1)
    mask = batch["labels"][:, 1:] >= 0
    config = TeacherServerConfig(base_url=os.environ["VLLM_SERVER"], model="smollm2", timeout=600.0)
    target = ServedTeacher(TeacherServer(config, top_k, tokenizer, size)).target(batch, mask)
    said = OnlineTeacher(load_model(folder), size).target(batch, mask)
    log_p = said.lm_head.scale_and_cap(said.lm_head.project(said.hidden_states)).log_softmax(-1)
    torch.testing.assert_close(target.logprobs, log_p.topk(top_k).values, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(log_p.gather(-1, target.ids), target.logprobs, atol=1e-3, rtol=1e-4)
    labels = log_p.gather(-1, batch["labels"][:, 1:][mask][:, None])[:, 0]
    torch.testing.assert_close(target.label_logprobs, labels, atol=1e-3, rtol=1e-4)


@pytest.mark.slow
@real
def test_a_student_learns_the_same_from_a_real_vllm(smollm2: tuple[Path, data.PreparedData]) -> None:
    """Losses and gradients of a student of 18 layers, and its KL on the held-out row, beside the model and by both ways of
    asking the server."""
    folder, rows = smollm2
    size = load_unpadded_vocab_size(folder)
    student = initial_student(StudentConfig(num_layers=18, layers="uniform"), folder, CalibrationData([], ""), seed=0)
    batch = make_batch(rows.train, np.arange(len(rows.train)), 1)
    held_out = make_batch(rows.validation, np.arange(1), 1)
    held_out["rows"] += len(rows.train)
    found = {}
    for name in ("beside", "live", "cached"):
        fields = {"model": "smollm2", "live": name == "live", "local_validation": True, "timeout": 600.0}
        asked = context(os.environ["VLLM_SERVER"], folder, rows, 50, **fields)
        beside = OnlineTeacher(load_model(folder), size)
        teacher = beside if name == "beside" else teacher_source(asked.config.teacher).build(asked)
        objective = build_objective({"kl": TermConfig(kind="top_k_tail_kl", options={"k": 50})})
        criterion = DistillationLoss(objective, teacher, size, None, SETTINGS)
        student.zero_grad()
        losses = criterion(student, batch)
        losses.total.backward()
        gradient = torch.cat([p.grad.flatten() for p in student.model.layers.parameters()])
        with torch.no_grad():
            kept = criterion(student, held_out, compute_metrics=True)
        found[name] = (losses.total.item(), gradient, kept.metric_sums["teacher_kl"].item())
    for name in ("live", "cached"):
        tolerance = 1e-4 if name == "live" else 2e-3  # a cache keeps 16 bits
        assert found[name][0] == pytest.approx(found["beside"][0], rel=tolerance)
        assert (found[name][1] - found["beside"][1]).norm() < 5 * tolerance * found["beside"][1].norm()
        assert found[name][2] == pytest.approx(found["beside"][2], rel=1e-6)
