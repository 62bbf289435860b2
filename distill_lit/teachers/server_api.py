"""How a server is asked what it says of given tokens, and how its reply is read: vLLM and SGLang.

A request is neutral, {model, prompt: token ids, max_tokens, top_k, first}, and identifies what is asked whichever server
answers. `first` is the first token whose probability is wanted, from 1.
"""

import base64
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from distill_lit.generation.api_replies import MALFORMED_REPLY_MESSAGE, MalformedReply, RequestsAborted

WHOLE_DISTRIBUTION = -1  # for top_k
LEAST_LOGPROB = -1e4  # what stands for −inf; vLLM writes −9999
MAX_ROUNDING = 1e-3  # by which a log-probability may be above 0
OTHER_TOKENS_MESSAGE = "its reply is about other tokens than it was asked about"
FILLING_LOGPROB = -100.0  # of places for which a server has given only tokens that do not exist


class TopKScores(NamedTuple):
    """What a server says of P tokens that follow each other. ids: (P, k) int32, falling in probability; logprobs: (P, k)
    float32 nats; label_logprobs: (P,) float32 nats of the tokens themselves."""

    ids: np.ndarray
    logprobs: np.ndarray
    label_logprobs: np.ndarray


class HiddenStates(NamedTuple):
    """What a server has inside after reading P tokens that follow each other. states: (P, D) float32, after the final
    norm."""

    states: np.ndarray


def hidden_state_request(model: str, ids: Sequence[int], first: int) -> dict[str, Any]:
    """The request for hidden states of the tokens of `ids` from the place `first` on, from 0."""
    return {"model": model, "prompt": list(ids), "max_tokens": 1, "outputs": "hidden_states", "first": first}


def score_request(model: str, ids: Sequence[int], first: int, top_k: int) -> dict[str, Any]:
    """The request for the tokens of `ids` from the place `first` on."""
    return {"model": model, "prompt": list(ids), "max_tokens": 1, "top_k": top_k, "first": first}


def server_root(base_url: str) -> str:
    """The address without /v1."""
    return base_url.rstrip("/").removesuffix("/v1")


class VLLMScores:
    """`prompt_logprobs` of vLLM's /v1/completions, for token ids. vocab_size: the teacher's real tokens."""

    keeps_refusals = False

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    async def ask(self, client: Any, request: dict[str, Any]) -> Any:
        """Asks for what is said of the prompt; the one token that has to be written is thrown away."""
        body = {name: request[name] for name in ("model", "prompt", "max_tokens")}
        body |= {"temperature": 0.0, "prompt_logprobs": request["top_k"]}
        return json.loads(await client.post("/completions", cast_to=str, body=body))

    def read(self, request: dict[str, Any], raw: Any) -> dict[str, Any]:
        """{scores}."""
        ids = request["prompt"]
        try:
            said = raw["choices"][0].get("prompt_logprobs")
            if said is None:
                raise RequestsAborted("it gives no prompt_logprobs; is it a vLLM server? (teacher.server.engine)")
            check_length(len(said), len(ids))
            places = [
                {int(token): float(entry["logprob"]) for token, entry in said[at].items()}
                for at in range(request["first"], len(ids))
            ]
        except (TypeError, KeyError, IndexError, ValueError, AttributeError):
            raise MalformedReply(MALFORMED_REPLY_MESSAGE) from None
        return {"scores": collect_scores(request, places, self.vocab_size)}


class SGLangScores:
    """`input_top_logprobs` of SGLang's /generate, for token ids. vocab_size: the teacher's real tokens."""

    keeps_refusals = False

    def __init__(self, base_url: str, vocab_size: int) -> None:
        self.url, self.vocab_size = f"{server_root(base_url)}/generate", vocab_size

    async def ask(self, client: Any, request: dict[str, Any]) -> Any:
        """Asks for what is said of the prompt; nothing is written."""
        is_whole = request["top_k"] == WHOLE_DISTRIBUTION
        body = {
            "input_ids": request["prompt"],
            "sampling_params": {"max_new_tokens": 0, "temperature": 0.0},
            "return_logprob": True,
            "logprob_start_len": request["first"] - 1,  # the place before, which predicts it
            "top_logprobs_num": self.vocab_size if is_whole else request["top_k"],
        }
        return json.loads(await client.post(self.url, cast_to=str, body=body))

    def read(self, request: dict[str, Any], raw: Any) -> dict[str, Any]:
        """{scores}."""
        ids = request["prompt"][request["first"] - 1 :]
        try:
            labels, best = raw["meta_info"]["input_token_logprobs"], raw["meta_info"]["input_top_logprobs"]
            check_length(len(labels), len(ids))
            check_length(len(best), len(ids))
            for (_, said, *_), asked in zip(labels, ids, strict=True):
                if said != asked and said != 0:  # SGLang writes 0 for the last token of its vocabulary
                    raise RequestsAborted(OTHER_TOKENS_MESSAGE)
            places = [
                {**{int(token): float(logprob) for logprob, token, *_ in best[at]}, ids[at]: float(labels[at][0])}
                for at in range(1, len(ids))
            ]
        except (TypeError, KeyError, IndexError, ValueError, AttributeError):
            raise MalformedReply(MALFORMED_REPLY_MESSAGE) from None
        return {"scores": collect_scores(request, places, self.vocab_size)}


class VLLMHiddenStates:
    """The states of every token, by /pooling of a vLLM server that is started with `--runner pooling --convert embed`.
    width: of the model."""

    keeps_refusals = False

    def __init__(self, base_url: str, width: int) -> None:
        self.url, self.width = f"{server_root(base_url)}/pooling", width

    async def ask(self, client: Any, request: dict[str, Any]) -> Any:
        """Asks for the states as they are, in binary."""
        body = {"model": request["model"], "input": request["prompt"], "task": "token_embed", "use_activation": False}
        body |= {"encoding_format": "base64", "embed_dtype": "float32", "endianness": "little"}
        return json.loads(await client.post(self.url, cast_to=str, body=body))

    def read(self, request: dict[str, Any], raw: Any) -> dict[str, Any]:
        """{scores}. Raises RequestsAborted for other than all tokens, MalformedReply for what are no numbers."""
        try:
            content = base64.b64decode(raw["data"][0]["data"], validate=True)
            states = np.frombuffer(content, "<f4").reshape(-1, self.width)
        except (TypeError, KeyError, IndexError, ValueError, AttributeError):
            raise MalformedReply(MALFORMED_REPLY_MESSAGE) from None
        check_length(len(states), len(request["prompt"]))
        if not np.isfinite(states).all():
            raise MalformedReply("it gives hidden states that are no finite numbers")
        return {"scores": HiddenStates(states[request["first"] :].astype(np.float32))}


class Detokenized:
    """The text that a server makes of token ids (`tokens` of a request), by /detokenize."""

    keeps_refusals = False

    def __init__(self, base_url: str) -> None:
        self.url = f"{server_root(base_url)}/detokenize"

    async def ask(self, client: Any, request: dict[str, Any]) -> Any:
        """Asks for one text."""
        body = {"model": request["model"], "tokens": request["tokens"], "skip_special_tokens": False}
        return json.loads(await client.post(self.url, cast_to=str, body=body))

    def read(self, request: dict[str, Any], raw: Any) -> dict[str, Any]:
        """{text}."""
        text = raw.get("prompt", raw.get("text")) if isinstance(raw, dict) else None
        if not isinstance(text, str):
            raise MalformedReply(MALFORMED_REPLY_MESSAGE)
        return {"text": text}


def check_length(given: int, asked: int) -> None:
    """Raises RequestsAborted where a server has read other than all tokens."""
    if given != asked:
        raise RequestsAborted(f"it answers about {given} of {asked} tokens; does it truncate prompts?")


def collect_scores(request: dict[str, Any], places: Sequence[Mapping[int, float]], vocab_size: int) -> TopKScores:
    """Scores of the tokens of a request. places: for each {token: log-probability} of what the server gave.

    Raises RequestsAborted where there are fewer than were asked for, or not the token itself, MalformedReply for what is no
    log-probability. Tokens beyond `vocab_size`, of a padded head, are left out, their mass is that of the rest.
    """
    whole = request["top_k"] == WHOLE_DISTRIBUTION
    k, labels = vocab_size if whole else request["top_k"], request["prompt"][request["first"] :]
    ids, logprobs = np.zeros((len(labels), k), np.int32), np.zeros((len(labels), k), np.float32)
    label_logprobs = np.zeros(len(labels), np.float32)
    for row, (label, given) in enumerate(zip(labels, places, strict=True)):
        _check_values(given.values())
        if label not in given:
            raise RequestsAborted(OTHER_TOKENS_MESSAGE)
        if len(given) < k:
            raise RequestsAborted(f"it gives {len(given)} log-probabilities of a token where {k} were asked for")
        best = sorted((item for item in given.items() if item[0] < vocab_size), key=lambda item: -item[1])[:k]
        best += filling(best, k - len(best))
        ids[row], logprobs[row] = [token for token, _ in best], [logprob for _, logprob in best]
        label_logprobs[row] = given[label]
    np.maximum(logprobs, LEAST_LOGPROB, out=logprobs)
    np.maximum(label_logprobs, LEAST_LOGPROB, out=label_logprobs)
    if whole:  # without the padding of the head they are a distribution of their own
        rest = np.log(np.exp(logprobs.astype(np.float64)).sum(1)).astype(np.float32)
        logprobs, label_logprobs = logprobs - rest[:, None], label_logprobs - rest
    return TopKScores(ids, logprobs, label_logprobs)


def _check_values(values: Iterable[float]) -> None:
    if any(math.isnan(value) or value > MAX_ROUNDING for value in values):
        raise MalformedReply("it gives log-probabilities that are none (NaN, or above 0)")


def filling(best: Sequence[tuple[int, float]], count: int) -> list[tuple[int, float]]:
    """As many more tokens, of no probability to speak of."""
    taken = {token for token, _ in best}
    unused = (token for token in range(len(best) + count) if token not in taken)
    return [(token, FILLING_LOGPROB) for token, _ in zip(unused, range(count), strict=False)]
