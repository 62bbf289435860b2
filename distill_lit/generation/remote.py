"""Answers from an OpenAI-compatible server: black-box distillation, where only text comes back.

Requests go out side by side, failed ones again after a pause; every reply is in the request log before the next is asked
for.
"""

import functools
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock

from distill_lit.config import GeneratedConfig, RemoteConfig
from distill_lit.generation.api_client import TextAPI
from distill_lit.generation.api_connection import check_connection, send_requests
from distill_lit.generation.api_replies import reply_cost
from distill_lit.generation.completions import build_completion, write_completions
from distill_lit.generation.prompts import Prompt
from distill_lit.generation.request_log import RequestLog, RequestLogEntry, request_key, request_log_path
from distill_lit.utils.exceptions import UserError
from distill_lit.utils.shards import Shards

COMPLETIONS_PER_SHARD = 256
RemoteJob = tuple[Prompt, int, dict[str, Any]]  # prompt, sample, request


def check_remote(key: str, remote: RemoteConfig, system: str = "") -> None:
    """Raises UserError for a server that cannot be asked, as far as that shows without asking."""
    check_connection(key, remote)
    if remote.protocol == "completions" and system:
        raise UserError(f"{key}.protocol: completions have no system message; use chat")


def generate_remotely(
    folder: Path,
    generated: GeneratedConfig,
    prompts: list[Prompt],
    progress_callback: Callable[[int, int], Any] = lambda done, total: None,
) -> dict[str, Any]:
    """Asks for every answer that the request log lacks, then writes all into shards of `folder`.

    Returns {requests: asked now, input_tokens, output_tokens, cost: of all answers, without_logprobs, refusal:
    the commonest reason of those refused, where there are any}.
    Raises UserError when the server cannot be reached, refuses the key, or the budget is spent; what was answered is kept.
    """
    remote = generated.remote
    assert remote is not None
    jobs = [(p, sample, _request(generated, remote, p, sample)) for p in prompts for sample in range(generated.num_samples)]
    path = request_log_path(remote.base_url, remote.model)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        request_log = RequestLog(path)
        missing = [request for _, _, request in jobs if request_key(request) not in request_log.entries]
        if missing:
            send_requests(
                remote,
                missing,
                request_log,
                TextAPI(remote.protocol),
                lambda done: progress_callback(len(jobs) - len(missing) + done, len(jobs)),
            )
    entries = [request_log.entries[request_key(request)] for _, _, request in jobs]
    is_continuation = remote.protocol == "completions" and generated.chat
    _write_shards(folder, jobs, entries, strip=is_continuation)
    progress_callback(len(jobs), len(jobs))
    reasons = Counter(entry["reason"] for entry in entries if "reason" in entry)
    return {
        "requests": len(missing),
        "input_tokens": sum(entry["input_tokens"] for entry in entries),
        "output_tokens": sum(entry["output_tokens"] for entry in entries),
        "cost": round(sum(reply_cost(entry, remote.price) for entry in entries), 6),
        "without_logprobs": sum(not entry["logprobs"] for entry in entries),
        **({"refusal": max(reasons, key=reasons.__getitem__)} if reasons else {}),
    }


def _request(generated: GeneratedConfig, remote: RemoteConfig, prompt: Prompt, sample: int) -> dict[str, Any]:
    """The body of a request. Answers to one prompt differ in their seed, so each is asked for, and kept, by itself."""
    prompt_fields: dict[str, Any] = {"messages": prompt.messages} if remote.protocol == "chat" else {"prompt": prompt.text}
    is_chat, count = remote.protocol == "chat", remote.top_logprobs
    logprob_fields = {"logprobs": True if is_chat else count} if remote.logprobs or count else {}
    logprob_fields |= {"top_logprobs": count} if is_chat and count else {}
    return {
        "model": remote.model,
        **prompt_fields,
        "max_tokens": generated.max_new_tokens,
        "temperature": generated.temperature,
        "top_p": generated.top_p,
        "seed": generated.seed + sample,
        **logprob_fields,
    }


def _write_shards(folder: Path, jobs: list[RemoteJob], entries: list[RequestLogEntry], strip: bool) -> None:
    """strip: of texts that go on where their prompt ends, the blank that would begin a response."""
    completions = [
        build_completion(
            prompt,
            sample,
            entry["text"].strip() if strip else entry["text"],
            entry["finish_reason"],
            logprobs=entry["logprobs"],
            reported_tokens=entry["output_tokens"],
            alternatives=entry.get("alternatives", []),
        )
        for (prompt, sample, _), entry in zip(jobs, entries, strict=True)
    ]
    starts = range(0, len(completions), COMPLETIONS_PER_SHARD)
    Shards(folder).write_missing(
        {
            f"completions-{number:05d}.jsonl": functools.partial(
                write_completions, completions=completions[start : start + COMPLETIONS_PER_SHARD]
            )
            for number, start in enumerate(starts)
        }
    )
