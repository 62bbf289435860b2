"""Requests to a server, side by side: retries, rate limits, a budget, and what a reply must look like."""

import asyncio
import contextlib
import email.utils
import random
import time
from collections.abc import Callable
from typing import Any

from distill_lit.config import PriceConfig, RemoteConfig
from distill_lit.generation.completions import FINISH_LENGTH, FINISH_PROMPT_TOO_LONG, FINISH_REFUSED, FINISH_STOP
from distill_lit.generation.request_log import RequestLog, RequestLogEntry, request_key

INITIAL_BACKOFF_SECONDS, MAX_BACKOFF_SECONDS = 1.0, 600.0  # seconds between tries
FALLBACK_BYTES_PER_TOKEN = 4  # of text, where a server does not say how many tokens it counted
CHAT_TEMPLATE_TOKENS = 64  # tokens that a template may add to a prompt
MALFORMED_REPLY_MESSAGE = "its reply cannot be read"
MAX_INITIAL_REFUSALS = 3  # refusals before the first answer that are about how we ask, not about what
UNSENT_REQUEST_ERRORS = ("ConnectError", "ConnectTimeout", "PoolTimeout")  # of httpx, or whatever openai asks with
PROMPT_REFUSAL_CODES = ("content_filter", "content_policy_violation", "invalid_prompt", "moderation_blocked")


class RequestsAborted(Exception):
    """No further request makes sense; the message says why."""


class MalformedReply(Exception):
    """A reply without what every reply has. is_cost_logged: its cost is in the request log."""

    is_cost_logged = False


class APIClient:
    """Asks one server. `num_replies`: replies in the journal since the start; `received_signal`: the one that asked to
    stop, or 0."""

    def __init__(self, remote: RemoteConfig, api_key: str, request_log: RequestLog, on_reply: Callable[[int], Any]) -> None:
        """`on_reply` is called with the number of replies after each."""
        import openai

        self.remote, self.request_log, self.on_reply = remote, request_log, on_reply
        # its own retries know nothing of the other requests, of the budget, or of replies cut short
        self.client = openai.AsyncOpenAI(api_key=api_key, base_url=remote.base_url, max_retries=0, timeout=remote.timeout)
        self.num_replies = self.received_signal = 0
        self._reserved_cost = 0.0  # worst cost of what is on its way
        self._has_answered = any("reason" not in entry for entry in request_log.entries.values())
        self._unconfirmed_refusals: list[RequestLogEntry] = []  # refusals by a server that has answered nothing yet
        self._rate_limited_until = 0.0  # the server asked all of us to wait
        self._next_request_time = 0.0  # when the next request may begin
        self._reason = ""
        self._stop = asyncio.Event()

    async def send_all(self, requests: list[dict[str, Any]]) -> None:
        """Every request once answered. Raises Stopped after the first failure, when those on their way are answered."""
        waiting = iter(requests)
        async with self.client:
            await asyncio.gather(*(self._worker(waiting) for _ in range(min(self.remote.concurrency, len(requests)))))
        if self._unconfirmed_refusals:
            self._give_up(self._unconfirmed_refusals[0]["reason"])
        if self._reason and not self.received_signal:
            raise RequestsAborted(self._reason)

    def interrupt(self, number: int) -> None:
        """No new requests from now on."""
        self.received_signal = number
        self._stop.set()

    def _give_up(self, reason: str) -> None:
        self._reason = self._reason or reason
        self._stop.set()

    async def _worker(self, waiting: Any) -> None:
        for request in waiting:
            if self._stop.is_set():
                return None
            try:
                entry = await self._send_within_budget(request)
            except RequestsAborted as stop:
                return self._give_up(str(stop))
            if entry is None:
                return None
            self._record(entry)
        return None

    def _record(self, entry: RequestLogEntry) -> None:
        """Keeps a reply; a refusal that need not be about its prompt only once the server has answered another."""
        self._has_answered = self._has_answered or "reason" not in entry
        if not self._has_answered and not _is_about_prompt(entry):
            self._unconfirmed_refusals.append(entry)
            if len(self._unconfirmed_refusals) == MAX_INITIAL_REFUSALS:
                self._give_up(entry["reason"])
            return
        doubted = self._unconfirmed_refusals if self._has_answered else []
        for reply in (*doubted, entry):
            self.request_log.add(reply)
            self.num_replies += 1
        doubted.clear()
        self.on_reply(self.num_replies)

    async def _send_within_budget(self, request: dict[str, Any]) -> RequestLogEntry | None:
        worst = max_request_cost(request, self.remote.price)
        self._check_budget(worst)
        self._reserved_cost += worst
        try:
            return await self._send_with_retries(request, worst)
        finally:
            self._reserved_cost -= worst

    def _check_budget(self, more: float) -> None:
        """Raises Stopped when `more` beside what is on its way could pass the budget."""
        if self.remote.budget and self.request_log.total_cost + self._reserved_cost + more > self.remote.budget:
            raise RequestsAborted(f"the budget of {self.remote.budget:g} is spent ({self.request_log.total_cost:.4g})")

    async def _send_with_retries(self, request: dict[str, Any], worst: float) -> RequestLogEntry | None:
        """The reply; None when no new request is wanted any more. `worst`: cost of a try whose reply is lost."""
        reason = ""
        for attempt in range(self.remote.max_retries + 1):
            await self._wait_for_turn()
            if self._stop.is_set():
                return None
            if attempt:
                self._check_budget(0.0)
            try:
                return await self._send_once(request)
            except Exception as error:
                reason, pause = self._classify_error(error, attempt)
                if worst and _may_be_charged(error):
                    self.request_log.add({"key": "", "cost": worst})
            await self._sleep(pause if attempt < self.remote.max_retries else 0)
        raise RequestsAborted(f"{reason}, also after {self.remote.max_retries} retries")

    async def _wait_for_turn(self) -> None:
        """Waits as long as the server asked, and for a moment of its own, evenly spaced, where there is a limit."""
        await self._wait_for_quiet()
        while self.remote.requests_per_minute and not self._stop.is_set():
            turn = max(self._next_request_time, time.monotonic())
            self._next_request_time = turn + 60 / self.remote.requests_per_minute
            await self._sleep(turn - time.monotonic())
            if time.monotonic() >= self._rate_limited_until:
                return
            await self._wait_for_quiet()  # the turn has passed meanwhile

    async def _wait_for_quiet(self) -> None:
        while (left := self._rate_limited_until - time.monotonic()) > 0 and not self._stop.is_set():
            await self._sleep(left)

    async def _sleep(self, seconds: float) -> None:
        """A pause that ends at once when no new request is wanted."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._stop.wait(), seconds)

    async def _send_once(self, request: dict[str, Any]) -> RequestLogEntry:
        import openai

        surface = self.client.chat.completions if self.remote.protocol == "chat" else self.client.completions
        try:
            reply = await surface.create(**request)
        except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
            return _refusal_entry(request, error)
        raw = reply.model_dump(warnings=False) if hasattr(reply, "model_dump") else reply
        usage = _parse_usage(request, raw)
        usage["cost"] = reply_cost(usage, self.remote.price)
        try:
            return {"key": request_key(request), **parse_reply(raw), **usage, "time": round(time.time(), 1)}
        except MalformedReply as error:
            if isinstance(raw, dict) and raw.get("usage"):
                self.request_log.add({"key": "", **usage})  # it was charged all the same
                error.is_cost_logged = True
            raise

    def _classify_error(self, error: Exception, attempt: int) -> tuple[str, float]:
        """(what went wrong, seconds to wait). Raises Stopped for what no retry can mend."""
        import openai

        pause = INITIAL_BACKOFF_SECONDS * 2**attempt * random.uniform(0.75, 1.25)
        if isinstance(error, openai.APITimeoutError):
            return f"no answer within {self.remote.timeout:g} s", pause
        if isinstance(error, openai.APIConnectionError):
            return "cannot be reached", pause
        if isinstance(error, openai.APIStatusError):
            return self._classify_status(error, pause)
        if isinstance(error, (MalformedReply, ValueError, TypeError, AttributeError, openai.APIResponseValidationError)):
            return MALFORMED_REPLY_MESSAGE, pause
        raise error

    def _classify_status(self, error: Any, pause: float) -> tuple[str, float]:
        status, reason = error.status_code, f"HTTP {error.status_code}: {_error_message(error)}"
        if status in (401, 403):
            raise RequestsAborted(f"{reason}; is {self.remote.api_key_variable} right?")
        if status == 404:
            raise RequestsAborted(f"{reason}; is there a model {self.remote.model!r}?")
        if getattr(error, "code", None) == "insufficient_quota" or (status < 500 and status not in (408, 409, 429)):
            raise RequestsAborted(reason)
        asked = parse_retry_after(error.response.headers)
        if status == 429:
            # the limit is on all requests together, so all wait
            self._rate_limited_until = max(self._rate_limited_until, time.monotonic() + (pause if asked is None else asked))
        return reason, pause if asked is None else asked


def _may_be_charged(error: Exception) -> bool:
    """Whether the server may have written an answer, and count it, of which nothing has come here."""
    import openai

    if isinstance(error, openai.APIConnectionError):
        return type(error.__cause__).__name__ not in UNSENT_REQUEST_ERRORS
    return not isinstance(error, openai.APIStatusError) and not getattr(error, "is_cost_logged", False)


def parse_retry_after(headers: Any) -> float | None:
    """Seconds that a server asks to wait, at most 10 minutes; None when it does not say. RFC 9110 §10.2.3."""
    value = headers.get("retry-after", "")
    try:
        seconds = float(value)
    except ValueError:
        moment = email.utils.parsedate_tz(value)
        if moment is None:
            return None
        seconds = email.utils.mktime_tz(moment) - time.time()
    return min(max(seconds, 0.0), MAX_BACKOFF_SECONDS)


def parse_reply(raw: Any) -> dict[str, Any]:
    """{text, finish_reason, logprobs} of a reply of either protocol. Raises Malformed where there is no answer in it.

    Log-probabilities of another shape than documented count as none given; a null text is an empty one.
    """
    try:
        choice = raw["choices"][0]
        text = choice["message"]["content"] if "message" in choice else choice["text"]
    except (TypeError, KeyError, IndexError):
        raise MalformedReply(MALFORMED_REPLY_MESSAGE) from None
    if not isinstance(text, (str, type(None))):
        raise MalformedReply(MALFORMED_REPLY_MESSAGE)
    reason = choice.get("finish_reason")
    finish = (
        reason if reason in (FINISH_STOP, FINISH_LENGTH) else FINISH_REFUSED if reason == "content_filter" else FINISH_STOP
    )
    return {"text": text or "", "finish_reason": finish, "logprobs": _parse_logprobs(choice.get("logprobs"))}


def _parse_logprobs(logprobs: Any) -> list[float]:
    try:
        if logprobs.get("content") is not None:
            values = [entry["logprob"] for entry in logprobs["content"]]
        else:
            values = list(logprobs["token_logprobs"])
    except (TypeError, KeyError, AttributeError):
        return []
    is_right = all(isinstance(value, (int, float)) and not isinstance(value, bool) and value <= 1e-6 for value in values)
    return [round(float(value), 4) for value in values] if is_right else []


def _parse_usage(request: dict[str, Any], raw: Any) -> dict[str, Any]:
    """Tokens charged, as the server counts them, or else about as many as the text has."""
    usage: Any = raw.get("usage") if isinstance(raw, dict) else None
    try:
        return {"input_tokens": int(usage["prompt_tokens"]), "output_tokens": int(usage["completion_tokens"])}
    except (TypeError, KeyError, ValueError):
        try:
            text = parse_reply(raw)["text"]
        except MalformedReply:
            text = ""
        sizes = (len(_prompt_of(request)), len(text.encode()))
        return {
            name: size // FALLBACK_BYTES_PER_TOKEN + 1
            for name, size in zip(("input_tokens", "output_tokens"), sizes, strict=True)
        }


def reply_cost(usage: dict[str, Any], price: PriceConfig) -> float:
    """What the tokens of a reply cost at this price."""
    return float(usage["input_tokens"] * price.input + usage["output_tokens"] * price.output) / 1e6


def max_request_cost(request: dict[str, Any], price: PriceConfig) -> float:
    """The most a request can cost: a token for every byte of the prompt, and an answer of full length."""
    tokens = {"input_tokens": len(_prompt_of(request)) + CHAT_TEMPLATE_TOKENS, "output_tokens": request["max_tokens"]}
    return reply_cost(tokens, price)


def _prompt_of(request: dict[str, Any]) -> bytes:
    if "prompt" in request:
        return str(request["prompt"]).encode()
    return "".join(message["content"] for message in request["messages"]).encode()


def _refusal_entry(request: dict[str, Any], error: Any) -> RequestLogEntry:
    """A request that the server takes for wrong: free of charge, and not asked again. Raises Stopped for a wrong key."""
    message, code = _error_message(error), getattr(error, "code", None)
    if code == "invalid_api_key" or "api key" in message.lower():
        raise RequestsAborted(f"HTTP {error.status_code}: {message}")
    is_long = code == "context_length_exceeded" or "context length" in message.lower()
    return {
        "key": request_key(request),
        "text": "",
        "finish_reason": FINISH_PROMPT_TOO_LONG if is_long else FINISH_REFUSED,
        "logprobs": [],
        "reason": f"HTTP {error.status_code}: {message}",
        "code": code,
        "input_tokens": 0,
        "output_tokens": 0,
        "cost": 0.0,
        "time": round(time.time(), 1),
    }


def _is_about_prompt(refusal: RequestLogEntry) -> bool:
    """Whether a refusal says nothing about other prompts; one for a wrong parameter is every request's."""
    return (
        refusal["finish_reason"] == FINISH_PROMPT_TOO_LONG
        or refusal["code"] in PROMPT_REFUSAL_CODES
        or "policy" in refusal["reason"].lower()
    )


def _error_message(error: Any) -> str:
    """The first line of what a server said, at most 200 letters: whole bodies may repeat the prompt."""
    body = error.body if isinstance(getattr(error, "body", None), dict) else {}
    said = str(body.get("message") or error.message or "").splitlines()
    return said[0][:200] if said else "no reason given"
