"""The connection to a server: what is refused before it is asked, and asking it until all is answered or a signal comes."""

import asyncio
import importlib.util
import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

from distill_lit.config import ServerConfig
from distill_lit.generation.api_client import API, APIClient
from distill_lit.generation.api_replies import RequestsAborted
from distill_lit.generation.request_log import ReplyLog
from distill_lit.utils.exceptions import UserError
from distill_lit.utils.files import is_hub_offline

LOOPBACK = ("localhost", "127.0.0.1", "::1")


def check_connection(key: str, server: ServerConfig, allow_http: bool = False) -> None:
    """Raises UserError for a server that cannot be asked, as far as that shows without asking. allow_http: plain http to
    another machine too."""
    parts = urlsplit(server.base_url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(f"{key}.base_url: {server.base_url!r} is no address, as in https://api.openai.com/v1")
    if parts.username or parts.password or parts.query:
        raise UserError(f"{key}.base_url: holds a secret or a query; the key comes from the environment only")
    if parts.scheme == "http" and not is_local_server(server) and not allow_http:
        raise UserError(f"{key}.base_url: {server.base_url!r} would send key and prompts unencrypted; use https")
    check_asked_model(key, server)


def check_asked_model(key: str, server: ServerConfig) -> None:
    """Raises UserError for a server without a model, a budget without prices, or no package to ask with."""
    if not server.model:
        raise UserError(f"{key}.model: a value is needed, the server's name for its model")
    if server.budget and not (server.price.input or server.price.output):
        raise UserError(f"{key}.budget: needs {key}.price to count against")
    if importlib.util.find_spec("openai") is None:
        raise UserError(f"{key}: needs the openai package; pip install openai")


def check_api_key(key: str, server: ServerConfig) -> None:
    """Raises UserError when the environment lacks the server's key. A plan can be drawn without."""
    if not is_local_server(server) and not os.environ.get(server.api_key_variable):
        raise UserError(
            f"{key}.api_key_variable: the environment has no {server.api_key_variable}; set it to the server's key"
        )


def is_local_server(server: ServerConfig) -> bool:
    """Whether the server runs on this machine."""
    return urlsplit(server.base_url).hostname in LOOPBACK


def send_requests(
    server: ServerConfig,
    requests: list[dict[str, Any]],
    reply_log: ReplyLog,
    api: API,
    on_reply: Callable[[int], Any] = lambda count: None,
) -> None:
    """Has every request answered; what was answered is in `reply_log`, also after an error.

    Raises UserError when the server cannot be reached, refuses the key or a request, or the budget is spent.
    """
    if is_hub_offline() and not is_local_server(server):
        raise UserError(f"{server.base_url}: {len(requests)} answers are missing and HF_HUB_OFFLINE is set")
    client = APIClient(server, os.environ.get(server.api_key_variable) or "none", reply_log, api, on_reply)
    try:
        _run_to_end(client, requests)
    except RequestsAborted as stop:
        num_missing = len(requests) - client.num_replies
        raise UserError(
            f"{server.base_url}: {stop}; {num_missing} answers are missing, all others are kept: run again to go on"
        ) from stop


def _run_to_end(client: APIClient, requests: list[dict[str, Any]]) -> None:
    """`_send_until_interrupted`, in a thread of its own where this one has a running loop, as a notebook's has."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(_send_until_interrupted(client, requests))
    with ThreadPoolExecutor(1, "requests") as thread:
        answered = thread.submit(asyncio.run, _send_until_interrupted(client, requests))
        try:
            return answered.result()
        except KeyboardInterrupt:
            client.interrupt(signal.SIGINT)
            raise


async def _send_until_interrupted(client: APIClient, requests: list[dict[str, Any]]) -> None:
    """After SIGTERM or Ctrl-C no new request goes out; replies on their way, which cost money, are waited for and kept."""
    loop = asyncio.get_running_loop()
    handled_signals = []
    for number in (signal.SIGTERM, signal.SIGINT):
        try:
            loop.add_signal_handler(number, client.interrupt, number)
            handled_signals.append(number)
        except (RuntimeError, ValueError):  # not the main thread
            break
    try:
        await client.send_all(requests)
    finally:
        for number in handled_signals:
            loop.remove_signal_handler(number)
    if client.received_signal:
        raise SystemExit(128 + client.received_signal)
