"""Requests to a server, side by side: retries, rate limits, a budget, and what a reply must look like."""

import asyncio
import contextlib
import email.utils
import random
import time
from collections.abc import Callable
from typing import Any

from distill_lit.config import PriceConfig, RemoteConfig
from distill_lit.generation.completions import CUT, FINISHED, REFUSED, TOO_LONG
from distill_lit.generation.request_log import Entry, Journal, request_key

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 600.0  # seconds between tries
BYTES_PER_TOKEN = 4  # of text, where a server does not say how many tokens it counted
CHAT_OVERHEAD = 64  # tokens that a template may add to a prompt
UNREADABLE = "its reply cannot be read"
DOUBTS = 3  # refusals before the first answer that are about how we ask, not about what
NEVER_SENT = ("ConnectError", "ConnectTimeout", "PoolTimeout")  # of httpx, or whatever openai asks with
ABOUT_THE_PROMPT = ("content_filter", "content_policy_violation", "invalid_prompt", "moderation_blocked")


class Stopped(Exception):
    """No further request makes sense; the message says why."""


class Malformed(Exception):
    """A reply without what every reply has. is_booked: its cost is in the journal."""

    is_booked = False


class Asker:
    """Asks one server. `done`: replies in the journal since the start; `signal`: the one that asked to stop, or 0."""

    def __init__(self, remote: RemoteConfig, key: str, journal: Journal, advance: Callable[[int], Any]) -> None:
        """`advance` is called with the number of replies after each."""
        import openai

        self.remote, self.journal, self.advance = remote, journal, advance
        # its own retries know nothing of the other requests, of the budget, or of replies cut short
        self.client = openai.AsyncOpenAI(api_key=key, base_url=remote.base_url, max_retries=0, timeout=remote.timeout)
        self.done = self.signal = 0
        self._reserved = 0.0  # worst cost of what is on its way
        self._has_answered = any("reason" not in entry for entry in journal.entries.values())
        self._doubtful: list[Entry] = []  # refusals by a server that has answered nothing yet
        self._quiet_until = 0.0  # the server asked all of us to wait
        self._next_turn = 0.0  # when the next request may begin
        self._reason = ""
        self._stop = asyncio.Event()

    async def ask_all(self, requests: list[dict[str, Any]]) -> None:
        """Every request once answered. Raises Stopped after the first failure, when those on their way are answered."""
        waiting = iter(requests)
        async with self.client:
            await asyncio.gather(*(self._work(waiting) for _ in range(min(self.remote.concurrency, len(requests)))))
        if self._doubtful:
            self._give_up(self._doubtful[0]["reason"])
        if self._reason and not self.signal:
            raise Stopped(self._reason)

    def interrupt(self, number: int) -> None:
        """No new requests from now on."""
        self.signal = number
        self._stop.set()

    def _give_up(self, reason: str) -> None:
        self._reason = self._reason or reason
        self._stop.set()

    async def _work(self, waiting: Any) -> None:
        for request in waiting:
            if self._stop.is_set():
                return None
            try:
                entry = await self._ask_within_budget(request)
            except Stopped as stop:
                return self._give_up(str(stop))
            if entry is None:
                return None
            self._take(entry)
        return None

    def _take(self, entry: Entry) -> None:
        """Keeps a reply; a refusal that need not be about its prompt only once the server has answered another."""
        self._has_answered = self._has_answered or "reason" not in entry
        if not self._has_answered and not _is_about_prompt(entry):
            self._doubtful.append(entry)
            if len(self._doubtful) == DOUBTS:
                self._give_up(entry["reason"])
            return
        doubted = self._doubtful if self._has_answered else []
        for reply in (*doubted, entry):
            self.journal.add(reply)
            self.done += 1
        doubted.clear()
        self.advance(self.done)

    async def _ask_within_budget(self, request: dict[str, Any]) -> Entry | None:
        worst = worst_cost(request, self.remote.price)
        self._afford(worst)
        self._reserved += worst
        try:
            return await self._ask_patiently(request, worst)
        finally:
            self._reserved -= worst

    def _afford(self, more: float) -> None:
        """Raises Stopped when `more` beside what is on its way could pass the budget."""
        if self.remote.budget and self.journal.spent + self._reserved + more > self.remote.budget:
            raise Stopped(f"the budget of {self.remote.budget:g} is spent ({self.journal.spent:.4g})")

    async def _ask_patiently(self, request: dict[str, Any], worst: float) -> Entry | None:
        """The reply; None when no new request is wanted any more. `worst`: cost of a try whose reply is lost."""
        reason = ""
        for attempt in range(self.remote.retries + 1):
            await self._wait_for_turn()
            if self._stop.is_set():
                return None
            if attempt:
                self._afford(0.0)
            try:
                return await self._ask_once(request)
            except Exception as error:
                reason, pause = self._judge(error, attempt)
                if worst and _may_be_charged(error):
                    self.journal.add({"key": "", "cost": worst})
            await self._sleep(pause if attempt < self.remote.retries else 0)
        raise Stopped(f"{reason}, also after {self.remote.retries} retries")

    async def _wait_for_turn(self) -> None:
        """Waits as long as the server asked, and for a moment of its own, evenly spaced, where there is a limit."""
        await self._wait_for_quiet()
        while self.remote.requests_per_minute and not self._stop.is_set():
            turn = max(self._next_turn, time.monotonic())
            self._next_turn = turn + 60 / self.remote.requests_per_minute
            await self._sleep(turn - time.monotonic())
            if time.monotonic() >= self._quiet_until:
                return
            await self._wait_for_quiet()  # the turn has passed meanwhile

    async def _wait_for_quiet(self) -> None:
        while (left := self._quiet_until - time.monotonic()) > 0 and not self._stop.is_set():
            await self._sleep(left)

    async def _sleep(self, seconds: float) -> None:
        """A pause that ends at once when no new request is wanted."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._stop.wait(), seconds)

    async def _ask_once(self, request: dict[str, Any]) -> Entry:
        import openai

        surface = self.client.chat.completions if self.remote.protocol == "chat" else self.client.completions
        try:
            reply = await surface.create(**request)
        except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
            return _refusal(request, error)
        raw = reply.model_dump(warnings=False) if hasattr(reply, "model_dump") else reply
        usage = _usage(request, raw)
        usage["cost"] = cost_of(usage, self.remote.price)
        try:
            return {"key": request_key(request), **parse_reply(raw), **usage, "time": round(time.time(), 1)}
        except Malformed as error:
            if isinstance(raw, dict) and raw.get("usage"):
                self.journal.add({"key": "", **usage})  # it was charged all the same
                error.is_booked = True
            raise

    def _judge(self, error: Exception, attempt: int) -> tuple[str, float]:
        """(what went wrong, seconds to wait). Raises Stopped for what no retry can mend."""
        import openai

        pause = FIRST_PAUSE * 2**attempt * random.uniform(0.75, 1.25)
        if isinstance(error, openai.APITimeoutError):
            return f"no answer within {self.remote.timeout:g} s", pause
        if isinstance(error, openai.APIConnectionError):
            return "cannot be reached", pause
        if isinstance(error, openai.APIStatusError):
            return self._judge_status(error, pause)
        if isinstance(error, (Malformed, ValueError, TypeError, AttributeError, openai.APIResponseValidationError)):
            return UNREADABLE, pause
        raise error

    def _judge_status(self, error: Any, pause: float) -> tuple[str, float]:
        status, reason = error.status_code, f"HTTP {error.status_code}: {_said(error)}"
        if status in (401, 403):
            raise Stopped(f"{reason}; is {self.remote.key_variable} right?")
        if status == 404:
            raise Stopped(f"{reason}; is there a model {self.remote.model!r}?")
        if getattr(error, "code", None) == "insufficient_quota" or (status < 500 and status not in (408, 409, 429)):
            raise Stopped(reason)
        asked = retry_after(error.response.headers)
        if status == 429:
            # the limit is on all requests together, so all wait
            self._quiet_until = max(self._quiet_until, time.monotonic() + (pause if asked is None else asked))
        return reason, pause if asked is None else asked


def _may_be_charged(error: Exception) -> bool:
    """Whether the server may have written an answer, and count it, of which nothing has come here."""
    import openai

    if isinstance(error, openai.APIConnectionError):
        return type(error.__cause__).__name__ not in NEVER_SENT
    return not isinstance(error, openai.APIStatusError) and not getattr(error, "is_booked", False)


def retry_after(headers: Any) -> float | None:
    """Seconds that a server asks to wait, at most 10 minutes; None when it does not say. RFC 9110 §10.2.3."""
    value = headers.get("retry-after", "")
    try:
        seconds = float(value)
    except ValueError:
        moment = email.utils.parsedate_tz(value)
        if moment is None:
            return None
        seconds = email.utils.mktime_tz(moment) - time.time()
    return min(max(seconds, 0.0), LONGEST_PAUSE)


def parse_reply(raw: Any) -> dict[str, Any]:
    """{text, finish, log_probabilities} of a reply of either protocol. Raises Malformed where there is no answer in it.

    Log-probabilities of another shape than documented count as none given; a null text is an empty one.
    """
    try:
        choice = raw["choices"][0]
        text = choice["message"]["content"] if "message" in choice else choice["text"]
    except (TypeError, KeyError, IndexError):
        raise Malformed(UNREADABLE) from None
    if not isinstance(text, (str, type(None))):
        raise Malformed(UNREADABLE)
    reason = choice.get("finish_reason")
    finish = reason if reason in (FINISHED, CUT) else REFUSED if reason == "content_filter" else FINISHED
    return {"text": text or "", "finish": finish, "log_probabilities": _log_probabilities(choice.get("logprobs"))}


def _log_probabilities(said: Any) -> list[float]:
    try:
        if said.get("content") is not None:
            found = [entry["logprob"] for entry in said["content"]]
        else:
            found = list(said["token_logprobs"])
    except (TypeError, KeyError, AttributeError):
        return []
    is_right = all(isinstance(value, (int, float)) and not isinstance(value, bool) and value <= 1e-6 for value in found)
    return [round(float(value), 4) for value in found] if is_right else []


def _usage(request: dict[str, Any], raw: Any) -> dict[str, Any]:
    """Tokens charged, as the server counts them, or else about as many as the text has."""
    said: Any = raw.get("usage") if isinstance(raw, dict) else None
    try:
        return {"input_tokens": int(said["prompt_tokens"]), "output_tokens": int(said["completion_tokens"])}
    except (TypeError, KeyError, ValueError):
        try:
            text = parse_reply(raw)["text"]
        except Malformed:
            text = ""
        sizes = (len(_prompt_of(request)), len(text.encode()))
        return {
            name: size // BYTES_PER_TOKEN + 1 for name, size in zip(("input_tokens", "output_tokens"), sizes, strict=True)
        }


def cost_of(usage: dict[str, Any], price: PriceConfig) -> float:
    """What the tokens of a reply cost at this price."""
    return float(usage["input_tokens"] * price.input + usage["output_tokens"] * price.output) / 1e6


def worst_cost(request: dict[str, Any], price: PriceConfig) -> float:
    """The most a request can cost: a token for every byte of the prompt, and an answer of full length."""
    tokens = {"input_tokens": len(_prompt_of(request)) + CHAT_OVERHEAD, "output_tokens": request["max_tokens"]}
    return cost_of(tokens, price)


def _prompt_of(request: dict[str, Any]) -> bytes:
    if "prompt" in request:
        return str(request["prompt"]).encode()
    return "".join(message["content"] for message in request["messages"]).encode()


def _refusal(request: dict[str, Any], error: Any) -> Entry:
    """A request that the server takes for wrong: free of charge, and not asked again. Raises Stopped for a wrong key."""
    said, code = _said(error), getattr(error, "code", None)
    if code == "invalid_api_key" or "api key" in said.lower():
        raise Stopped(f"HTTP {error.status_code}: {said}")
    is_long = code == "context_length_exceeded" or "context length" in said.lower()
    return {
        "key": request_key(request),
        "text": "",
        "finish": TOO_LONG if is_long else REFUSED,
        "log_probabilities": [],
        "reason": f"HTTP {error.status_code}: {said}",
        "code": code,
        "input_tokens": 0,
        "output_tokens": 0,
        "cost": 0.0,
        "time": round(time.time(), 1),
    }


def _is_about_prompt(refusal: Entry) -> bool:
    """Whether a refusal says nothing about other prompts; one for a wrong parameter is every request's."""
    return refusal["finish"] == TOO_LONG or refusal["code"] in ABOUT_THE_PROMPT or "policy" in refusal["reason"].lower()


def _said(error: Any) -> str:
    """The first line of what a server said, at most 200 letters: whole bodies may repeat the prompt."""
    body = error.body if isinstance(getattr(error, "body", None), dict) else {}
    said = str(body.get("message") or error.message or "").splitlines()
    return said[0][:200] if said else "no reason given"
