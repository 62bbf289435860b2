"""A model behind `mock_openai_server`, which answers as vLLM's and SGLang's servers do about the tokens of a prompt."""

import base64
from collections.abc import Callable
from typing import Any

import torch

from helpers.mock_openai_server import Reply, failure

MAX_LOGPROBS = 20  # what this server allows unless it is told otherwise


def score(model: Any, ids: list[int]) -> torch.Tensor:
    """Log-probabilities (T − 1, V) of what follows each token."""
    with torch.no_grad():
        logprobs: torch.Tensor = model(torch.tensor([ids])).logits[0, :-1].float().log_softmax(-1)
    return logprobs


def vllm(model: Any, tokenizer: Any, max_logprobs: int = MAX_LOGPROBS) -> Callable[[dict[str, Any], int], Reply]:
    """Answers to /v1/completions with `prompt_logprobs`, and to /detokenize."""

    def answer(body: dict[str, Any], number: int) -> Reply:
        if "tokens" in body:
            return 200, {"prompt": tokenizer.decode(body["tokens"])}, {}
        ids, k = body["prompt"], body["prompt_logprobs"]
        if max_logprobs != -1 and (k > max_logprobs or k == -1):
            return failure(400, f"Requested prompt logprobs of {k}, which is greater than max allowed: {max_logprobs}")
        places: list[dict[str, Any] | None] = [None]
        for row, label in zip(score(model, ids), ids[1:], strict=True):
            best = row.topk(len(row) if k == -1 else k).indices.tolist()
            kept = dict.fromkeys([label, *best])
            places.append({str(token): {"logprob": float(row[token]), "decoded_token": "?"} for token in kept})
        choice = {"index": 0, "text": "x", "finish_reason": "length", "prompt_logprobs": places}
        return 200, {"choices": [choice], "usage": {"prompt_tokens": len(ids), "completion_tokens": 1}}, {}

    return answer


def vllm_pooling(model: Any, tokenizer: Any, change: Callable[[Any], Any] = lambda states: states) -> Callable[..., Reply]:
    """Answers to /pooling with the states (T, D) of every token after the final norm, and to /detokenize."""

    def answer(body: dict[str, Any], number: int) -> Reply:
        if "tokens" in body:
            return 200, {"prompt": tokenizer.decode(body["tokens"])}, {}
        asked = (body["task"], body["use_activation"], body["encoding_format"], body["embed_dtype"], body["endianness"])
        assert asked == ("token_embed", False, "base64", "float32", "little")
        with torch.no_grad():
            states = change(model.model(torch.tensor([body["input"]])).last_hidden_state[0].float()).numpy()
        data = base64.b64encode(states.astype("<f4").tobytes()).decode()
        usage = {"prompt_tokens": len(body["input"]), "completion_tokens": 0}
        return 200, {"data": [{"index": 0, "data": data}], "usage": usage}, {}

    return answer


def sglang(model: Any, tokenizer: Any) -> Callable[[dict[str, Any], int], Reply]:
    """Answers to /generate with `return_logprob`, and to /detokenize."""

    def answer(body: dict[str, Any], number: int) -> Reply:
        if "tokens" in body:
            return 200, {"text": tokenizer.decode(body["tokens"])}, {}
        ids, start, k = body["input_ids"], body["logprob_start_len"], body["top_logprobs_num"]
        rows = score(model, ids)[start:]
        labels = [[None, ids[start], None]]
        labels += [[float(row[token]), token, None] for row, token in zip(rows, ids[start + 1 :], strict=True)]
        last = len(rows[0]) - 1
        labels = [[value, 0 if token == last else token, text] for value, token, text in labels]
        best = [None, *([[float(v), int(i), None] for v, i in zip(*row.topk(k), strict=True)] for row in rows)]
        return 200, {"text": "", "meta_info": {"input_token_logprobs": labels, "input_top_logprobs": best}}, {}

    return answer
