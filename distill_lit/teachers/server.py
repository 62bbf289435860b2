"""A model behind a server as a teacher needs it: which model it is, whether it numbers tokens as the student does, how many
log-probabilities it allows, and what it says of documents.

Which model it is shows in what it says of a fixed text. The first answer is written down under the model's name and
compared with each later one: whoever puts another model behind the same name is told so, before anything is mixed.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.numpy import save_file

from distill_lit.config import PriceConfig, TeacherServerConfig
from distill_lit.generation.api_client import API
from distill_lit.generation.api_connection import send_requests
from distill_lit.generation.api_replies import RequestsAborted
from distill_lit.generation.request_log import request_key
from distill_lit.losses.lm_head import LMHead
from distill_lit.losses.targets import TeacherTarget, TopKTarget
from distill_lit.models.document_spans import document_spans
from distill_lit.teachers.compression import CACHE_TOP_K, TeacherCacheFormat, top_k_arrays
from distill_lit.teachers.score_store import MemoryReplies, ScoreStore
from distill_lit.teachers.server_api import (
    WHOLE_DISTRIBUTION,
    Detokenized,
    SGLangScores,
    TopKScores,
    VLLMScores,
    score_request,
)
from distill_lit.teachers.service import wait_for_service
from distill_lit.utils.exceptions import UserError
from distill_lit.utils.files import cache_root, file_lock, fingerprint, read_json, write_json

PROBE_TEXT = (
    "The river Thames rises in Gloucestershire and flows east through Oxford and London to the North Sea. "
    "In 1676, Ole Rømer measured the speed of light: about 220,000 km/s. def area(r): return 3.14159 * r ** 2"
)
MAX_PROBE_DIFFERENCE = (
    0.05  # nats per token on average: by so much one model may differ, in another batch or on another GPU
)
TOKENS_PER_ROUND_TRIP = 512
RESTART_PAUSE_SECONDS = 1.0
UNREACHABLE = "cannot be reached"  # in what the client says of a server that is not there


class SupervisedDocument(NamedTuple):
    """A document of a row, up to its last supervised token. row, start: where it begins; is_supervised: (P,) bool of the
    tokens from `first` on."""

    row: int
    start: int
    ids: list[int]
    first: int
    is_supervised: np.ndarray


class ScoreRequest(NamedTuple):
    """What a server is asked about a document. key: under which its answer is kept."""

    key: str
    body: dict[str, Any]
    is_supervised: np.ndarray


def supervised_documents(
    input_ids: np.ndarray, document_ids: np.ndarray, is_supervised: np.ndarray
) -> list[SupervisedDocument]:
    """The documents that hold supervised tokens, row by row. All arrays (rows, T); document 0 is padding."""
    found = []
    for span in document_spans(document_ids):
        ids, mask = (array[span.row, span.columns] for array in (input_ids, is_supervised))
        supervised = np.flatnonzero(mask)
        if len(supervised):
            first, end = int(supervised[0]), int(supervised[-1]) + 1
            found.append(SupervisedDocument(span.row, span.start, ids[:end].tolist(), first, mask[first:end].astype(bool)))
    return found


class TeacherServer:
    """The server of `teacher.server`. vocab_size: real tokens of `tokenizer`, which the student reads with."""

    lm_head: LMHead | None = None  # where hidden states come

    def __init__(self, config: TeacherServerConfig, top_k: int, tokenizer: Any, vocab_size: int) -> None:
        self.config, self.top_k, self.tokenizer, self.vocab_size = config, top_k, tokenizer, vocab_size
        self._probe = tokenizer(PROBE_TEXT, add_special_tokens=False)["input_ids"]
        self.folder = cache_root() / "served" / fingerprint([config.model, config.revision, self._probe])
        self.store = ScoreStore(self.folder / "scores")

    @property
    def tokens_per_position(self) -> int:
        """k, or all tokens."""
        return self.vocab_size if self.top_k == WHOLE_DISTRIBUTION else self.top_k

    @property
    def cache_format(self) -> TeacherCacheFormat:
        """What a cache keeps of what it says."""
        return TeacherCacheFormat(CACHE_TOP_K, self.tokens_per_position)

    def identity(self) -> dict[str, Any]:
        """What is known of the model behind the name: what it has said of the probe. Asks where nobody has asked before."""
        return self._recorded() or self.check()

    def check(self) -> dict[str, Any]:
        """Asks the server; returns `identity`.

        Raises UserError where it cannot be asked, another model answers than before, tokens are numbered otherwise, or
        fewer log-probabilities are allowed than `top_k`.
        """
        said = [round(float(value), 4) for value in self._probe_logprobs()]
        with file_lock(self._identity_path):
            known = self._recorded()
            if not known:
                self._check_token_numbers(said)
                known = {"model": self.config.model, "revision": self.config.revision, "probe_logprobs": said}
                write_json(self._identity_path, known)
        self._check_same_model(known["probe_logprobs"], said)
        self._check_top_k()
        return known

    def requests(self, documents: Iterable[SupervisedDocument]) -> list[ScoreRequest]:
        """What it is asked about each document."""
        bodies = [(score_request(self.config.model, one.ids, one.first, self.top_k), one) for one in documents]
        return [ScoreRequest(request_key(body), body, document.is_supervised) for body, document in bodies]

    def ask(self, requests: Iterable[ScoreRequest], on_reply: Callable[[int], Any] = lambda count: None) -> None:
        """Has everything in the store that it says of these. Raises UserError where the server fails; what it has answered
        is kept."""
        bodies = {request.key: request.body for request in requests}
        self._send({key: body for key, body in bodies.items() if not self.store.holds(key)}, self.store, on_reply)

    def target(self, requests: Sequence[ScoreRequest], device: torch.device) -> TeacherTarget:
        """What it said of the supervised tokens of documents, one after the other."""
        ids, logprobs, labels = (torch.from_numpy(array).to(device) for array in self._read(requests))
        return TopKTarget(ids.long(), logprobs, labels)

    def to(self, device: torch.device) -> None:
        """Nothing of it is here."""

    def write_shard(
        self, path: Path, *, documents: Sequence[SupervisedDocument], requests: Sequence[ScoreRequest], shape: Sequence[int]
    ) -> None:
        """The file of a shard of the cache, of what was said of its documents. shape: (rows, T)."""
        ids, logprobs, labels = (torch.from_numpy(array) for array in self._read(requests))
        save_file(top_k_arrays(ids, logprobs, labels, self.vocab_size), path)

    def _read(self, requests: Iterable[ScoreRequest]) -> TopKScores:
        parts = []
        for request in requests:
            scores = self.store.read(request.key, TopKScores)
            parts.append(TopKScores(*(array[request.is_supervised] for array in scores)))
        if not parts:
            empty = np.zeros((0, self.tokens_per_position))
            return TopKScores(empty.astype(np.int32), empty.astype(np.float32), np.zeros(0, np.float32))
        return TopKScores(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))

    @property
    def _identity_path(self) -> Path:
        return self.folder / "identity.json"

    def _recorded(self) -> dict[str, Any]:
        try:
            return dict(read_json(self._identity_path))
        except (OSError, ValueError, TypeError):
            return {}

    def _send(
        self,
        requests: dict[str, dict[str, Any]],
        replies: ScoreStore | MemoryReplies,
        on_reply: Callable[[int], Any] = lambda count: None,
    ) -> None:
        """Has requests answered, {key: request}. A server that the experiment runs itself is waited for, also while it is
        started again."""
        service = self.config.service
        for restart in range(service.max_restarts + 1):
            missing = [request for key, request in requests.items() if not replies.holds(key)]
            if not missing:
                return
            connection = self._connection()
            is_scored = "tokens" not in missing[0]
            api = self._api(connection.base_url) if is_scored else Detokenized(connection.base_url)
            if not is_scored:  # the texts of tokens cost nothing
                connection = replace(connection, price=PriceConfig(), budget=0.0)
            done = len(requests) - len(missing)

            def advance(count: int, done: int = done) -> None:
                on_reply(done + count)

            try:
                send_requests(connection, missing, replies, api, advance)
            except UserError as error:
                if not service.command or UNREACHABLE not in str(error) or restart == service.max_restarts:
                    raise
                time.sleep(RESTART_PAUSE_SECONDS * 2**restart)  # until its death has been noticed

    def _connection(self) -> TeacherServerConfig:
        """Where the server is now."""
        service = self.config.service
        return replace(self.config, base_url=wait_for_service(service)) if service.command else self.config

    def _api(self, base_url: str) -> API:
        return SGLangScores(base_url, self.vocab_size) if self.config.engine == "sglang" else VLLMScores(self.vocab_size)

    def _ask_now(self, ids: Sequence[int], first: int, top_k: int) -> TopKScores:
        """An answer that is not kept."""
        scores: TopKScores = self._reply(score_request(self.config.model, ids, first, top_k))["scores"]
        return scores

    def _reply(self, request: dict[str, Any]) -> dict[str, Any]:
        replies, key = MemoryReplies(), request_key(request)
        self._send({key: request}, replies)
        reply: dict[str, Any] = replies.reply(key)
        return reply

    def _probe_logprobs(self) -> list[float]:
        """Its log-probabilities of the probe's tokens but the first."""
        said: list[float] = self._ask_now(self._probe, 1, 1).label_logprobs.tolist()
        return said

    def _check_same_model(self, known: Sequence[float], said: Sequence[float]) -> None:
        difference = float(np.abs(np.subtract(known, said)).mean()) if len(known) == len(said) else float("inf")
        if difference > MAX_PROBE_DIFFERENCE:
            raise UserError(
                f"teacher.server.model: another model answers as {self.config.model!r} than before: its log-probabilities "
                f"of a fixed text differ by {difference:.3g} nats per token. If that is meant, set teacher.server.revision "
                "to another word; what the other said is kept"
            )

    def _check_top_k(self) -> None:
        """Raises UserError where the server allows fewer log-probabilities."""
        if self._allows(self.top_k):
            return
        flag = "--max-logprobs" if self.config.engine == "vllm" else "its limit"
        if self.top_k == WHOLE_DISTRIBUTION:
            raise UserError(f"teacher.top_k: the server does not give the whole distribution; start it with {flag} -1")
        least, most = 0, self.top_k - 1
        while least < most:
            middle = (least + most + 1) // 2
            least, most = (middle, most) if self._allows(middle) else (least, middle - 1)
        raise UserError(
            f"teacher.top_k: the server gives at most {least} log-probabilities of a token, not {self.top_k}; lower it, or "
            f"start the server with {flag} {self.top_k}"
        )

    def _allows(self, top_k: int) -> bool:
        try:
            self._ask_now(self._probe[:2], 1, top_k)
        except UserError as error:
            if isinstance(error.__cause__, RequestsAborted) and "HTTP 4" in str(error.__cause__):
                return False
            raise
        return True

    def _check_token_numbers(self, probe_logprobs: Sequence[float]) -> None:
        """Raises UserError where the server's token of some number is another text than ours: a round trip, id by id.

        Several go at a time, with a line break between any two. Without /detokenize the probe decides: a model that is
        shown other tokens than were meant finds a text less probable than chance.
        """
        separator = self.tokenizer("\n", add_special_tokens=False)["input_ids"][-1:]
        numbers = range(self.vocab_size)
        blocks = [numbers[i : i + TOKENS_PER_ROUND_TRIP] for i in range(0, len(numbers), TOKENS_PER_ROUND_TRIP)]
        try:
            differing = self._differing([[token for i in block for token in (i, *separator)] for block in blocks])
        except UserError as error:
            if not any(f"HTTP {status}" in str(error) for status in (404, 405, 501)):
                raise
            if np.mean(probe_logprobs) < -np.log(self.vocab_size):
                raise UserError(
                    f"teacher.server: {self.config.model} finds a plain text less probable than chance; its tokens are "
                    "numbered otherwise than those of teacher.model, and it has no /detokenize to say which"
                ) from None
            return
        for block in (blocks[i] for i in differing):
            single = self._differing([[i] for i in block])
            if single:
                token = block[single[0]]
                raise UserError(
                    f"teacher.server: {self.config.model} numbers its tokens otherwise than teacher.model: {token} is "
                    f"{self.tokenizer.decode([token])!r} here, and another text there; both need one tokenizer"
                )

    def _differing(self, sequences: Sequence[Sequence[int]]) -> list[int]:
        """Which sequences of tokens are another text on the server."""
        requests = [{"model": self.config.model, "tokens": list(ids), "prompt": [], "max_tokens": 0} for ids in sequences]
        keys, replies = [request_key(request) for request in requests], MemoryReplies()
        self._send(dict(zip(keys, requests, strict=True)), replies)
        texts = [replies.reply(key)["text"] for key in keys]
        return [i for i, (ids, text) in enumerate(zip(sequences, texts, strict=True)) if self.tokenizer.decode(ids) != text]
