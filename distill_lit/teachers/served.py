"""A teacher behind a server (vLLM, SGLang): a model that does not fit beside the student, with its probabilities.

The big idea
    Servers say of given tokens how probable each was, and which k tokens were most probable in its place. That is what a
    top-k cache keeps: the k best tokens, the exact mass of all others, the label's own log-probability. So a run of its own
    asks once about every document of the packed rows and writes the cache that `OfflineTeacher` reads; or the server is
    asked while students train (`teacher.server.live`), a batch ahead of them, and about text that the student writes too.

What is asked
    Each document of a row by itself, as token ids, up to its last supervised token: packing stays here. Held-out rows are
    asked about like all others, unless the same model is here too (`teacher.server.local_validation`). `teacher.top_k: -1`
    asks for the whole distribution, which is long: about 4 bytes for each token of the vocabulary in the cache, and 80 on
    the wire. `teacher.server.outputs: hidden_states` gives it at the width of the model: `teachers/hidden_state_server.py`.

What `teacher.model` is for
    Its tokenizer makes the rows and must number tokens as the server does, which is checked id by id. Its weights are not
    needed: any model with this tokenizer will do, such as the smallest of the family.

Nothing is lost
    A reply is on disk before the next request goes out. What has been answered is not asked again, by any experiment, as
    long as the same model answers: `teachers/server.py`.
"""

import functools
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distill_lit.config import TeacherConfig
from distill_lit.data import PackedDataset
from distill_lit.data.packing import ChainedRows
from distill_lit.generation.api_connection import check_api_key, check_asked_model, check_connection
from distill_lit.losses.targets import TeacherTarget
from distill_lit.models import ModelSize, load_tokenizer
from distill_lit.models.document_spans import document_ids_of
from distill_lit.models.loading import torch_dtype
from distill_lit.models.vocabulary import load_unpadded_vocab_size
from distill_lit.teachers.base import CachedTeacherSource, CacheRows, TeacherCapabilities, TeacherContext
from distill_lit.teachers.cache_shards import shard_rows
from distill_lit.teachers.compression import CACHE_HIDDEN_STATES, CACHE_TOP_K, TeacherCacheFormat
from distill_lit.teachers.hidden_state_server import HiddenStateServer, load_lm_head
from distill_lit.teachers.offline import OfflineTeacher
from distill_lit.teachers.online import OnlineTeacher
from distill_lit.teachers.registry import register_teacher
from distill_lit.teachers.server import SupervisedDocument, TeacherServer, supervised_documents
from distill_lit.teachers.server_api import WHOLE_DISTRIBUTION
from distill_lit.teachers.service import start_command
from distill_lit.teachers.teacher_cache import (
    is_teacher_cache_complete,
    measure_bytes_per_token,
    teacher_cache_folder,
    teacher_cache_metadata,
)
from distill_lit.utils.distributed.ranks import rank_zero_first
from distill_lit.utils.exceptions import UserError
from distill_lit.utils.progress import ProgressCallback
from distill_lit.utils.shards import Shards

SHARDS_PER_WAVE = 16  # whose documents are asked about together


class ServedTeacher:
    """Asks a server while the student trains.

    Example:
        server = TeacherServer(TeacherServerConfig(base_url="http://127.0.0.1:8000/v1", model="big"), 50, tokenizer, 49152)
        teacher = ServedTeacher(server)
        teacher.prefetch(next_batch)  # while the student reads another
        target = teacher.target(batch, batch["labels"][:, 1:] >= 0)
    """

    def __init__(self, server: TeacherServer) -> None:
        """Raises UserError where the server cannot be asked, or is not the one that it was."""
        server.check()
        self.server, self.vocab_size = server, server.vocab_size
        self._thread = ThreadPoolExecutor(1, "served-teacher")  # asking is not for the main thread, which handles signals

    def to(self, device: torch.device) -> None:
        """Moves what of it is here: at most a head."""
        self.server.to(device)

    def prefetch(self, batch: dict[str, Tensor]) -> None:
        """Begins to ask about a batch of packed rows. What fails is asked again by the `target` that needs it."""
        documents = _documents(batch, batch["labels"][:, 1:] >= 0)
        self._thread.submit(lambda: self.server.ask(self.server.requests(documents)))

    def target(self, batch: dict[str, Tensor], loss_mask: Tensor) -> TeacherTarget:
        """What the server gives of the N positions that `loss_mask` (B, T − 1) marks."""
        requests = self.server.requests(_documents(batch, loss_mask))
        self._thread.submit(self.server.ask, requests).result()  # after what is on its way, which it need not ask again
        return self.server.target(requests, loss_mask.device)


class LocallyValidatedTeacher:
    """A teacher that is asked about training rows, and the same model here about held-out ones, whose whole distribution it
    gives. num_train_rows: batches number held-out rows from there."""

    def __init__(self, teacher: OfflineTeacher | ServedTeacher, local: OnlineTeacher, num_train_rows: int) -> None:
        self.teacher, self.local, self.num_train_rows, self.vocab_size = teacher, local, num_train_rows, local.vocab_size

    def to(self, device: torch.device) -> None:
        """Moves both."""
        self.teacher.to(device)
        self.local.to(device)

    def prefetch(self, batch: dict[str, Tensor]) -> None:
        """Begins with a batch of training rows, where the server is asked live."""
        if isinstance(self.teacher, ServedTeacher):
            self.teacher.prefetch(batch)

    def target(self, batch: dict[str, Tensor], loss_mask: Tensor) -> TeacherTarget:
        """What the one or the other says at the N positions that `loss_mask` (B, T − 1) marks."""
        is_held_out = int(batch["rows"].max()) >= self.num_train_rows
        return (self.local if is_held_out else self.teacher).target(batch, loss_mask)


def _documents(batch: Mapping[str, Tensor], loss_mask: Tensor) -> list[SupervisedDocument]:
    """The documents of a batch with tokens to predict; without packing one a row. Raises UserError where the first token of
    one is to be predicted: a server says nothing of it."""
    ids = batch["input_ids"].cpu().numpy()
    is_supervised = np.zeros(ids.shape, dtype=bool)
    is_supervised[:, 1:] = loss_mask.cpu().numpy()
    documents = supervised_documents(ids, document_ids_of(batch).cpu().numpy(), is_supervised)
    if any(document.first == 0 for document in documents):
        raise UserError(
            "labels: the first token of a document is to be predicted, as in rows padded on the left, and a server says "
            "nothing of it; set its label to -100"
        )
    return documents


@register_teacher("served")
class ServedSource(CachedTeacherSource):
    """A model behind a vLLM or SGLang server (`teacher.server`), asked once into a cache, or live."""

    def capabilities(self, config: TeacherConfig) -> TeacherCapabilities:
        """The most probable tokens, or all of them; live, of the student's own text too."""
        return TeacherCapabilities(
            target_form="dense" if _gives_states(config) else "top_k",
            max_target_tokens=max(config.top_k, 0),
            needs_model=config.server.local_validation,
            needs_cache=not config.server.live,
            keeps_lm_head=_gives_states(config),
            reads_held_out_rows=config.server.local_validation,
            scores_student_text=config.server.live,
        )

    def describe(self, config: TeacherConfig) -> str:
        """With what it may be asked about."""
        return f"teacher.source {config.source}{'' if config.server.live else ' without teacher.server.live'}"

    def check(self, config: TeacherConfig) -> None:
        """Raises UserError for a server that cannot be asked."""
        super().check(config)
        if _gives_states(config) and config.server.engine != "vllm":
            raise UserError(
                f"teacher.server.outputs: hidden_states are asked of vllm alone, and not of {config.server.engine}"
            )
        if _gives_states(config) and config.server.local_validation:
            raise UserError(
                "teacher.server.local_validation: hidden_states are the whole distribution of held-out rows too"
            )
        if not config.top_k:
            raise UserError("teacher.top_k: 0 tokens say nothing; give how many, or -1 for the whole distribution")
        server = config.server
        if not server.service.command:
            check_connection("teacher.server", server, server.allow_http)
        elif server.base_url:
            raise UserError("teacher.server: base_url is of one that runs, service.command starts one; give one of them")
        else:
            check_asked_model("teacher.server", server)
            start_command(server.service, server.service.port)
            if "{port}" not in server.service.command and not server.service.port:
                raise UserError("teacher.server.service.command: it has no {port}; give it one, or service.port")

    def check_model(self, config: TeacherConfig, model_config: Any) -> None:
        """Raises UserError for more tokens than there are."""
        size = model_config.get_text_config().vocab_size
        if config.top_k > size:
            raise UserError(f"teacher.top_k: {config.top_k} is above the vocabulary of {size}; -1 is all of it")

    def check_service(self, config: TeacherConfig, tokenizer_folder: Path) -> None:
        """Asks the server what it allows, and which model it is; one that the experiment starts is asked by its runs."""
        if config.server.service.command:
            return
        check_api_key("teacher.server", config.server)
        _server(config, tokenizer_folder).check()

    def build(self, context: TeacherContext) -> OfflineTeacher | ServedTeacher | LocallyValidatedTeacher:
        """Reads the cache, or asks while the student trains. A damaged cache is written again first."""
        config = context.config.teacher.server
        server = _server_of(context)
        teacher = ServedTeacher(server) if config.live else _cached_teacher(context, server)
        if not config.local_validation:
            return teacher
        return LocallyValidatedTeacher(
            teacher, OnlineTeacher(context.load_model(), context.vocab_size), len(context.data.train)
        )

    def cache_label(self, config: TeacherConfig) -> str:
        """Such as served-top_k_50, or served-hidden_states."""
        if _gives_states(config):
            return f"served-{CACHE_HIDDEN_STATES}"
        return f"served-top_k_{'all' if config.top_k == WHOLE_DISTRIBUTION else config.top_k}"

    def write_cache(self, context: TeacherContext, progress: ProgressCallback) -> dict[str, Any]:
        """Asks the server about all rows."""
        server = _server_of(context)
        with rank_zero_first():  # the others find it complete
            folder = _write(context, server, progress)
        rows = _all_rows(context)
        return {
            "teacher_cache": str(folder),
            "rows": len(rows),
            "bytes_per_token": measure_bytes_per_token(folder, rows, server.cache_format),
            "served_model": server.identity(),
            "cost": round(server.store.total_cost, 6),
        }

    def is_cache_complete(self, facts: Mapping[str, Any]) -> bool:
        """Whether all its shards are there with their hashes."""
        return is_teacher_cache_complete(Path(facts["teacher_cache"]), facts["rows"])

    def estimate_cache_bytes(self, config: TeacherConfig, model: ModelSize, rows: CacheRows) -> int:
        """Hidden states of all rows, or a few numbers per supervised token, of held-out rows too."""
        if _gives_states(config):
            per_state = torch_dtype(config.dtype).itemsize * model.hidden_size
            return (rows.train_positions + rows.validation_positions) * per_state
        k = model.vocab_size if config.top_k == WHOLE_DISTRIBUTION else config.top_k
        tokens = rows.supervised + (0 if config.server.local_validation else rows.validation_positions)
        return tokens * TeacherCacheFormat(CACHE_TOP_K, k).bytes_per_token(model.vocab_size)


def _gives_states(config: TeacherConfig) -> bool:
    return config.server.outputs == "hidden_states"


def _server_of(context: TeacherContext) -> TeacherServer:
    return _server(context.config.teacher, context.model_folder)


def _server(config: TeacherConfig, folder: Path) -> TeacherServer:
    """folder: of `teacher.model`, for its tokenizer and, where hidden states are given, its head."""
    tokenizer, vocab_size = load_tokenizer(folder), load_unpadded_vocab_size(folder)
    if _gives_states(config):
        return HiddenStateServer(config.server, load_lm_head(folder, torch_dtype(config.dtype), vocab_size), tokenizer)
    return TeacherServer(config.server, config.top_k, tokenizer, vocab_size)


def _cached_teacher(context: TeacherContext, server: TeacherServer) -> OfflineTeacher:
    folder, rows = _cache_folder(context, server), _all_rows(context)
    with rank_zero_first():  # the others find it complete
        if not is_teacher_cache_complete(folder, len(rows)):
            _write(context, server)
    return OfflineTeacher(folder, rows, server.lm_head, 0, server.cache_format)


def _all_rows(context: TeacherContext) -> PackedDataset:
    """The rows that the server is asked about: training and held-out ones, one after the other, as batches number them."""
    if context.config.teacher.server.local_validation:
        return context.data.train
    return ChainedRows([context.data.train, context.data.validation])


def _metadata(context: TeacherContext, server: TeacherServer) -> dict[str, Any]:
    identity = {name: str(value) for name, value in server.identity().items()}
    dtype = torch.float16 if server.lm_head is None else server.lm_head.weight.dtype
    facts = teacher_cache_metadata(identity, context.data.fingerprint, dtype, server.cache_format)
    return {**facts, "rows": len(_all_rows(context))}


def _cache_folder(context: TeacherContext, server: TeacherServer) -> Path:
    return teacher_cache_folder(_metadata(context, server))


def _write(context: TeacherContext, server: TeacherServer, progress: ProgressCallback | None = None) -> Path:
    """Completes the cache; its folder. Documents are asked about side by side, shards written of the answers."""
    server.check()
    folder, rows = _cache_folder(context, server), _all_rows(context)
    if is_teacher_cache_complete(folder, len(rows)):
        return folder
    shards = Shards(folder)
    parts, total = shard_rows(server.cache_format.kind, len(rows)), len(rows) * rows.sequence_length
    for start in range(0, len(parts), SHARDS_PER_WAVE):
        wave = [(name, numbers) for name, numbers in parts[start : start + SHARDS_PER_WAVE]]
        missing = {name: _asked(server, rows, numbers) for name, numbers in wave if not shards.is_intact(name)}
        requests = [request for asked in missing.values() for request in asked["requests"]]
        before = wave[0][1][0] * rows.sequence_length
        tokens = (wave[-1][1][-1] + 1) * rows.sequence_length - before

        def advance(done: int, before: int = before, tokens: int = tokens, count: int = max(1, len(requests))) -> None:
            if progress:
                progress("cache", before + int(tokens * min(1.0, done / count)), total, "tokens")

        server.ask(requests, advance)
        shards.write_missing({name: functools.partial(server.write_shard, **asked) for name, asked in missing.items()})
        advance(len(requests))
    facts = {"cache_format": server.cache_format.metadata(), "rows": len(rows), "shards": [name for name, _ in parts]}
    shards.write_manifest({**_metadata(context, server), **facts})
    return folder


def _asked(server: TeacherServer, rows: PackedDataset, numbers: Sequence[int]) -> dict[str, Any]:
    """What the writer of a shard of these rows needs: their documents, what is asked about them, and the shard's shape."""
    part = rows.take(np.array(numbers))
    documents = supervised_documents(part.input_ids, part.document_ids, part.loss_mask)
    return {"documents": documents, "requests": server.requests(documents), "shape": part.input_ids.shape}
