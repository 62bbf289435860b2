"""Requests to a server, side by side: retries, rate limits, and a budget."""

import asyncio
import contextlib
import random
import time
from collections.abc import Callable
from typing import Any, Protocol

from distill_lit.config import ServerConfig
from distill_lit.generation.api_replies import (
    MALFORMED_REPLY_MESSAGE,
    MalformedReply,
    RequestsAborted,
    error_message,
    is_about_prompt,
    max_request_cost,
    parse_alternatives,
    parse_reply,
    parse_retry_after,
    parse_usage,
    refusal_entry,
    reply_cost,
)
from distill_lit.generation.request_log import ReplyLog, RequestLogEntry, request_key

INITIAL_BACKOFF_SECONDS = 1.0  # before the first retry; doubled for each further one
MAX_INITIAL_REFUSALS = 3  # refusals before the first answer that are about how we ask, not about what
UNSENT_REQUEST_ERRORS = ("ConnectError", "ConnectTimeout", "PoolTimeout")  # of httpx, or whatever openai asks with


class API(Protocol):
    """What is asked for, and how. keeps_refusals: a request that the server takes for wrong is an answer too; if not, it
    ends all asking."""

    keeps_refusals: bool

    async def ask(self, client: Any, request: dict[str, Any]) -> Any:
        """Sends one request with openai's client; what came back, as JSON has it."""
        ...

    def read(self, request: dict[str, Any], raw: Any) -> dict[str, Any]:
        """What an entry of the log holds of a reply. Raises MalformedReply where there is no answer in it, and
        RequestsAborted where no further one makes sense."""
        ...


class TextAPI:
    """Answers in text. protocol: chat or completions."""

    keeps_refusals = True

    def __init__(self, protocol: str) -> None:
        self.protocol = protocol

    async def ask(self, client: Any, request: dict[str, Any]) -> Any:
        """The whole answer."""
        surface = client.chat.completions if self.protocol == "chat" else client.completions
        reply = await surface.create(**request)
        return reply.model_dump(warnings=False) if hasattr(reply, "model_dump") else reply

    def read(self, request: dict[str, Any], raw: Any) -> dict[str, Any]:
        """{text, finish_reason, logprobs}, and alternatives where they were asked for."""
        is_asked = request.get("top_logprobs") or (self.protocol == "completions" and request.get("logprobs"))
        return {**parse_reply(raw), **({"alternatives": parse_alternatives(raw)} if is_asked else {})}


class APIClient:
    """Asks one server. `num_replies`: replies in the request log since the start; `received_signal`: the one that asked to
    stop, or 0."""

    def __init__(
        self, remote: ServerConfig, api_key: str, request_log: ReplyLog, api: API, on_reply: Callable[[int], Any]
    ) -> None:
        """`on_reply` is called with the number of replies after each."""
        import openai

        self.remote, self.request_log, self.api, self.on_reply = remote, request_log, api, on_reply
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
        self._loop: asyncio.AbstractEventLoop | None = None

    async def send_all(self, requests: list[dict[str, Any]]) -> None:
        """Every request once answered. Raises RequestsAborted after the first failure, once those on their way are done."""
        self._loop, waiting = asyncio.get_running_loop(), iter(requests)
        async with self.client:
            await asyncio.gather(*(self._worker(waiting) for _ in range(min(self.remote.concurrency, len(requests)))))
        if self._unconfirmed_refusals:
            self._give_up(self._unconfirmed_refusals[0]["reason"])
        if self._reason and not self.received_signal:
            raise RequestsAborted(self._reason)

    def interrupt(self, number: int) -> None:
        """No new requests from now on; any thread may call this."""
        self.received_signal = number
        if self._loop is None:
            self._stop.set()
        else:
            self._loop.call_soon_threadsafe(self._stop.set)

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
        if not self._has_answered and not is_about_prompt(entry):
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
        """Raises RequestsAborted when `more` beside what is on its way could pass the budget."""
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

        try:
            raw = await self.api.ask(self.client, request)
        except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
            if not self.api.keeps_refusals:
                raise RequestsAborted(f"HTTP {error.status_code}: {error_message(error)}") from error
            return refusal_entry(request, error)
        usage = parse_usage(request, raw)
        usage["cost"] = reply_cost(usage, self.remote.price)
        try:
            return {"key": request_key(request), **self.api.read(request, raw), **usage, "time": round(time.time(), 1)}
        except (MalformedReply, RequestsAborted) as error:
            if isinstance(raw, dict) and raw.get("usage"):
                self.request_log.add({"key": "", **usage})  # it was charged all the same
                if isinstance(error, MalformedReply):
                    error.is_cost_logged = True
            raise

    def _classify_error(self, error: Exception, attempt: int) -> tuple[str, float]:
        """(what went wrong, seconds to wait). Raises RequestsAborted for what no retry can fix."""
        import openai

        pause = INITIAL_BACKOFF_SECONDS * 2**attempt * random.uniform(0.75, 1.25)
        if isinstance(error, openai.APITimeoutError):
            return f"no answer within {self.remote.timeout:g} s", pause
        if isinstance(error, openai.APIConnectionError):
            return "cannot be reached", pause
        if isinstance(error, openai.APIStatusError):
            return self._classify_status(error, pause)
        if isinstance(error, MalformedReply):
            return str(error), pause
        if isinstance(error, (ValueError, TypeError, AttributeError, openai.APIResponseValidationError)):
            return MALFORMED_REPLY_MESSAGE, pause
        raise error

    def _classify_status(self, error: Any, pause: float) -> tuple[str, float]:
        status, reason = error.status_code, f"HTTP {error.status_code}: {error_message(error)}"
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
