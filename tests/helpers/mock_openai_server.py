"""An OpenAI-like server on loopback that misbehaves as told: for tests of what asks it."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[int, Any, dict[str, str]]  # status, JSON value or raw bytes, headers


def good(text: str, finish: str = "stop", **changes: Any) -> Reply:
    """A whole answer: two log-probabilities, 10 tokens in, 2 out."""
    content = [{"token": "x", "logprob": -0.5, "top_logprobs": []}, {"token": "y", "logprob": -0.25, "top_logprobs": []}]
    choice = {
        "index": 0,
        "finish_reason": finish,
        "message": {"role": "assistant", "content": text},
        "logprobs": {"content": content},
    }
    body = {
        "id": "1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [choice],
        "usage": {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12},
    }
    return 200, {**body, **changes}, {}


def failure(status: int, message: str = "no", code: str | None = None, **headers: str) -> Reply:
    body = {"error": {"message": message, "type": "error", "code": code}}
    return status, body, {name.replace("_", "-"): value for name, value in headers.items()}


class FaultServer:
    """`answer(request, number)` says what becomes of the number-th request; `requests`: all bodies that came in."""

    def __init__(self, answer: Callable[[dict[str, Any], int], Reply]) -> None:
        self.respond, self.requests, self.headers = answer, [], []
        self.num_concurrent = self.max_concurrent = 0
        self.lock = threading.Lock()
        self.url = ""

    def handle(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["content-length"])))
        with self.lock:
            number = len(self.requests)
            self.requests.append({"path": handler.path, "at": time.monotonic(), **body})
            self.headers.append(dict(handler.headers))
            self.num_concurrent += 1
            self.max_concurrent = max(self.max_concurrent, self.num_concurrent)
        try:
            status, value, headers = self.respond(body, number)
        finally:
            with self.lock:
                self.num_concurrent -= 1
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        handler.send_response(status)
        for name, text in {"content-type": "application/json", "content-length": str(len(data)), **headers}.items():
            handler.send_header(name, text)
        handler.end_headers()
        handler.wfile.write(data)


@contextmanager
def serving(answer: Callable[[dict[str, Any], int], Reply]) -> Iterator[FaultServer]:
    """A server on a free port of 127.0.0.1."""
    fault = FaultServer(answer)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            with suppress(BrokenPipeError, ConnectionResetError):  # the client has given up
                fault.handle(self)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    fault.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield fault
    finally:
        server.shutdown()
        server.server_close()
