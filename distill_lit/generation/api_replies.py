"""What a server's reply holds and costs, what it refuses and why, and how long it asks to wait."""

import email.utils
import time
from typing import Any

from distill_lit.config import PriceConfig
from distill_lit.generation.completions import FINISH_LENGTH, FINISH_PROMPT_TOO_LONG, FINISH_REFUSED, FINISH_STOP
from distill_lit.generation.request_log import RequestLogEntry, request_key

MAX_RETRY_AFTER_SECONDS = 600.0
FALLBACK_BYTES_PER_TOKEN = 4  # of text, where a server does not say how many tokens it counted
CHAT_TEMPLATE_TOKENS = 64  # tokens that a template may add to a prompt
MALFORMED_REPLY_MESSAGE = "its reply cannot be read"
PROMPT_REFUSAL_CODES = ("content_filter", "content_policy_violation", "invalid_prompt", "moderation_blocked")


class RequestsAborted(Exception):
    """No further request makes sense; the message says why."""


class MalformedReply(Exception):
    """A reply without what every reply has. is_cost_logged: its cost is in the request log."""

    is_cost_logged = False


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
    return min(max(seconds, 0.0), MAX_RETRY_AFTER_SECONDS)


def parse_reply(raw: Any) -> dict[str, Any]:
    """{text, finish_reason, logprobs} of a reply of either protocol. Raises MalformedReply where there is no answer in it.

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


def parse_alternatives(raw: Any) -> list[Any]:
    """Of each token [its bytes as latin-1, [[bytes of a probable token, its log-probability in nats], …]], the token itself
    among them; empty where a reply of either protocol has none, or of another shape than documented."""
    try:
        logprobs = raw["choices"][0]["logprobs"]
        if logprobs.get("content") is not None:
            every = [
                (_letters(entry), {_letters(one): one["logprob"] for one in [*entry["top_logprobs"], entry]})
                for entry in logprobs["content"]
            ]
        else:
            written = zip(logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True)
            every = [
                (_as_letters(token), {_as_letters(one): value for one, value in {**best, token: own}.items()})
                for token, own, best in written
            ]
        return [[token, [[one, round(float(value), 4)] for one, value in best.items()]] for token, best in every]
    except (TypeError, KeyError, IndexError, ValueError, AttributeError):
        return []


def _letters(entry: Any) -> str:
    """The bytes of a token that a chat server gives, as latin-1; those of its text where it does not."""
    return bytes(entry["bytes"]).decode("latin-1") if entry.get("bytes") else _as_letters(entry["token"])


def _as_letters(text: str) -> str:
    return text.encode().decode("latin-1")


def parse_usage(request: dict[str, Any], raw: Any) -> dict[str, Any]:
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


def refusal_entry(request: dict[str, Any], error: Any) -> RequestLogEntry:
    """A request that the server takes for wrong: free, and not asked again. Raises RequestsAborted for a wrong key."""
    message, code = error_message(error), getattr(error, "code", None)
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


def is_about_prompt(refusal: RequestLogEntry) -> bool:
    """Whether a refusal says nothing about other prompts; one for a wrong parameter is every request's."""
    return (
        refusal["finish_reason"] == FINISH_PROMPT_TOO_LONG
        or refusal["code"] in PROMPT_REFUSAL_CODES
        or "policy" in refusal["reason"].lower()
    )


def error_message(error: Any) -> str:
    """The first line of what a server said, at most 200 letters: whole bodies may repeat the prompt."""
    body = error.body if isinstance(getattr(error, "body", None), dict) else {}
    said = str(body.get("message") or error.message or "").splitlines()
    return said[0][:200] if said else "no reason given"
