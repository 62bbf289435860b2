"""The offline teacher: it reads the packed rows once, and any number of students and seeds learn from what it said.

The big idea
    A frozen teacher says the same of the same text, so asking it again for every student, seed and loss is waste. It runs
    once over the packed rows (`write_teacher_cache`, a run of its own in an experiment) and leaves a folder of shards; a
    training then reads shards instead of running the teacher, and needs only the teacher's lm_head in memory, or nothing.
    It works because rows are fixed before training: packing, order and validation split depend on the data and its seed
    alone. What it cannot do follows from this too: text that the student writes while it trains is in no cache.

What is kept (`teacher.cache_format`), with bytes per token for SmolLM2-135M (576 channels, 49,152 tokens)
    hidden_states   last hidden states (T, D) of every row: 1,152 bytes in bfloat16, where logits would take 98,304. The
                    lm_head makes the whole distribution of them again, a chunk at a time. `teacher.hidden_layers` adds the
                    states behind these layers, for hidden-state losses, at the same price each.
    hidden_states_int8   the same of training rows in 8 bits, with a scale for each token: 578 bytes. The whole
                    distribution, nearly.
    top_k           the k most probable tokens of every supervised position, their log-probabilities, and the mass of all
                    others: 4 k + 4 bytes, 204 for 50 tokens.
    top_p           of every position as many of the most probable tokens as have a mass of `teacher.top_p`, its nucleus,
                    but at most `teacher.top_k`, and the mass of all others: 4 bytes for each and 5 more for the position,
                    6 where the limit is above 255. A position where the teacher is sure pays for one token.
    sampled         n tokens drawn from the teacher with replacement: 4 n + 2 bytes, 50 for 12 samples.
    Held-out rows keep hidden states in any format, so that fidelity is measured the same whatever a student learns from.

Precision
    Hidden states are stored in the teacher's number format, so they are what the online teacher would have given, but for
    the rounding of batches of another shape. Sparse formats store log-probabilities in float16: at most 0.004 nats off
    between -8 and -16. The stored mass of all others restores the sum of the k best, which rounding would blur. The
    labels' own log-probabilities are stored beside them, whether or not they are among the tokens kept.

Under another prompt (`teacher.prompt`)
    The teacher then reads documents of its own, and what it says of a response is kept at the places of the student's rows:
    the same shards, read in the same way, with hidden states of 0 where nothing is supervised.

Biased or unbiased
    hidden_states gives the exact loss and the exact gradient. top_k and top_p are biased: the tail is cut off
    (`truncated_kl`) or counted as one token (`top_k_tail_kl`, never above the true KL), so a student learns too little
    of rare tokens, however long it trains. sampled is unbiased: each sample weighs 1 / n, or p / (n · q) where it was
    drawn from q = p^(1 / temperature) normalized, so the expected gradient is that of the whole KL, and its variance
    falls as 1 / n (Anshumann et al. 2025, "Sparse Logit Sampling", 2503.16870 §4). Samples depend on the shard alone:
    written again, they are the same.

Integrity
    The folder's name hashes all that decides its content: the teacher's files, its tokenizer among them, the fingerprint
    of the packed rows, number format, and cache format. Another teacher behind the same path, another packing, another k:
    another folder. Every shard of 64 rows has its sha256 in `shards.jsonl`, written after the file is whole;
    `manifest.json` comes last. A killed writer goes on where it stopped, several writers share the shards, a damaged
    shard is written again, alone, and a teacher is refused as long as one hash does not agree. A batch that supervises
    other positions than the cache is refused too: the numbers would be of other tokens.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill_lit.config import TeacherConfig
from distill_lit.data import PackedDataset
from distill_lit.losses.hidden_states import HIDDEN_STATES
from distill_lit.losses.lm_head import LMHead, get_lm_head
from distill_lit.losses.targets import DenseTarget, TeacherTarget
from distill_lit.models import ModelSize, model_fingerprint
from distill_lit.models.activations import Activations, LayersByKind
from distill_lit.models.loading import torch_dtype
from distill_lit.models.sharding import broadcast_tensor
from distill_lit.teachers.base import CachedTeacherSource, CacheRows, TeacherCapabilities, TeacherContext
from distill_lit.teachers.cache_shards import LAST_HIDDEN_STATE, HiddenStateShards, SparseShards, layer_array_name
from distill_lit.teachers.compression import (
    CACHE_HIDDEN_STATES,
    CACHE_HIDDEN_STATES_INT8,
    CACHE_SAMPLED,
    CACHE_TOP_K,
    CACHE_TOP_P,
    TeacherCacheFormat,
    decompress_target,
)
from distill_lit.teachers.registry import register_teacher
from distill_lit.teachers.teacher_cache import (
    check_teacher_cache,
    is_teacher_cache_complete,
    measure_bytes_per_token,
    read_cache_format,
    teacher_cache_folder,
    teacher_cache_metadata,
    write_teacher_cache,
)
from distill_lit.utils.distributed.ranks import broadcast_from_rank_zero
from distill_lit.utils.exceptions import UserError
from distill_lit.utils.progress import ProgressCallback


class OfflineTeacher:
    """Reads a cache that `write_teacher_cache` has written; only the teacher's lm_head is in memory.

    Example:
        text = {"text": CorpusConfig(path="file:text.jsonl")}
        rows = prepare_datasets(DataConfig(corpora=text), tokenizer_folder, "pypi")
        write_teacher_cache(folder, model, rows.train, cache_format=TeacherCacheFormat("sampled", 12))
        teacher = OfflineTeacher(folder, rows.train, get_lm_head(model, vocab_size))
        batch = make_batch(rows.train, np.array([3, 0]), 1)  # its `rows` say which rows these are
        target = teacher.target(batch, batch["labels"][:, 1:] >= 0)
    """

    def __init__(
        self,
        folder: Path,
        train: PackedDataset,
        lm_head: LMHead | None,
        num_validation_rows: int = 0,
        cache_format: TeacherCacheFormat | None = None,
    ) -> None:
        """Raises UserError when the cache is incomplete, or a shard does not have its hash.

        Args:
            train: the training rows that were cached, in their order.
            lm_head: the teacher's, for whatever is kept as hidden states; None where nothing is.
            num_validation_rows: held-out rows that were cached; batches number them from len(train).
            cache_format: what the cache keeps; None: what its manifest says.
        """
        num_rows = len(train) + num_validation_rows
        check_teacher_cache(folder, num_rows)
        self.cache_format = cache_format or read_cache_format(folder)
        self.lm_head, self.num_train_rows, self._folder = lm_head, len(train), folder
        self.vocab_size = None if lm_head is None else lm_head.vocab_size
        is_exact = self.cache_format.kind == CACHE_HIDDEN_STATES
        self._sparse = None if self.cache_format.is_dense else SparseShards(folder, train, self.cache_format)
        self._states = HiddenStateShards(folder, first_row=0 if is_exact else len(train))
        is_rounded = self.cache_format.is_dense and not is_exact
        self._rounded = HiddenStateShards(folder, kind=self.cache_format.kind) if is_rounded else None

    def to(self, device: torch.device) -> None:
        """Moves the lm_head; shards stay on disk."""
        self.lm_head = None if self.lm_head is None else self.lm_head.to(device)

    def shard(self, mesh: Any, device: torch.device) -> None:
        """Gives every rank the first one's lm_head."""
        if self.lm_head is None:
            return
        self.lm_head = self.lm_head._replace(
            weight=broadcast_tensor(self.lm_head.weight, device),
            bias=None if self.lm_head.bias is None else broadcast_tensor(self.lm_head.bias, device),
        )

    def target(self, batch: dict[str, Tensor], loss_mask: Tensor) -> TeacherTarget:
        """What the teacher said of the N positions that `loss_mask` (B, T − 1) marks: what was kept of training rows, the
        whole distribution of held-out rows."""
        if self._sparse is None or int(batch["rows"].max()) >= self.num_train_rows:
            return DenseTarget(self.hidden_states(batch)[:, :-1][loss_mask], self._head)
        arrays = self._sparse.read(batch["rows"].tolist(), loss_mask.any(1).tolist())
        if len(arrays["label_logprobs"]) != int(loss_mask.sum()):
            raise UserError(
                "the teacher cache holds other positions than this batch supervises; remove it to have it written again"
            )
        target = decompress_target(arrays, self.cache_format)
        return type(target)(*(value.to(loss_mask.device) for value in target))

    @property
    def _head(self) -> LMHead:
        assert self.lm_head is not None, "hidden states are kept, and there is no lm_head"
        return self.lm_head

    def hidden_states(self, batch: dict[str, Tensor]) -> Tensor:
        """Last hidden states (B, T, D) of the rows in `batch["rows"]`; of training rows as they were rounded."""
        if self._rounded is not None and int(batch["rows"].max()) < self.num_train_rows:
            return self._rounded.read(LAST_HIDDEN_STATE, batch["rows"]).to(self._head.weight.dtype)
        return self._states.read(LAST_HIDDEN_STATE, batch["rows"])

    def activations(self, batch: dict[str, Tensor], wanted: LayersByKind) -> AbstractContextManager[Activations]:
        """Hidden states behind the wanted layers. Raises UserError for what the cache does not hold."""
        missing = [
            f"{kind} of layer {layer}"
            for kind, layers in wanted.items()
            for layer in sorted(layers)
            if kind != HIDDEN_STATES or layer not in self.cache_format.hidden_layers
        ]
        if missing:
            raise UserError(f"the teacher cache {self._folder} has no {missing[0]}; write one with hidden_layers")
        layers = sorted(wanted.get(HIDDEN_STATES, ()))
        return nullcontext({(HIDDEN_STATES, n): self._states.read(layer_array_name(n), batch["rows"]) for n in layers})


@register_teacher("offline")
class OfflineSource(CachedTeacherSource):
    """A run writes what the teacher says of all rows into a cache, once; trainings read it."""

    def capabilities(self, config: TeacherConfig) -> TeacherCapabilities:
        """Those of the format that is kept."""
        cache_format = _cache_format(config)
        return TeacherCapabilities(
            target_form=cache_format.target_form,
            max_target_tokens=cache_format.tokens_per_position,
            hidden_layers=() if config.prompt.is_set else cache_format.hidden_layers,
            hidden_layers_key="" if config.prompt.is_set else "teacher.hidden_layers",
            needs_cache=True,
            keeps_lm_head=True,  # held-out rows keep hidden states in any format
            reads_prompt=True,
            is_shardable=True,
        )

    def describe(self, config: TeacherConfig) -> str:
        """With its format, which decides what it can do."""
        return f"teacher.source {config.source} with cache_format {config.cache_format}"

    def check(self, config: TeacherConfig) -> None:
        """Raises UserError for a number of tokens that is none."""
        super().check(config)
        if _cache_format(config).target_form == CACHE_TOP_K and config.top_k < 1:
            raise UserError(f"teacher.top_k: {config.top_k}, and at least 1 is kept; hidden_states keep all")

    def check_model(self, config: TeacherConfig, model_config: Any) -> None:
        """Raises UserError for layers or tokens that the teacher does not have."""
        text = model_config.get_text_config()
        beyond = [layer for layer in _cache_format(config).hidden_layers if layer >= text.num_hidden_layers]
        if beyond:
            raise UserError(
                f"teacher.hidden_layers: {beyond[0]} is beyond the teacher's last layer {text.num_hidden_layers - 1}"
            )
        if _cache_format(config).target_form == CACHE_TOP_K and config.top_k > text.vocab_size:
            raise UserError(f"teacher.top_k: {config.top_k} is above the teacher's vocabulary of {text.vocab_size}")

    def build(self, context: TeacherContext) -> OfflineTeacher:
        """Reads the cache. What is missing of it is written first: it may have been damaged since its own run was done, or
        the teacher may have changed behind its path."""
        rows, cache_format, model = context.data, _cache_format(context.config.teacher), context.load_model()
        folder = teacher_cache_folder(_metadata(context))
        num_rows = len(rows.train) + len(rows.validation)
        if not broadcast_from_rank_zero(lambda: is_teacher_cache_complete(folder, num_rows)):
            if context.is_sharded:  # of several ranks, only the first has its weights
                raise UserError(f"the teacher cache {folder} is incomplete; run the run that writes it again")
            _write(model, context)
        lm_head = get_lm_head(model, context.vocab_size).copy()  # the rest of the model is not needed any more
        return OfflineTeacher(folder, rows.train, lm_head, len(rows.validation), cache_format)

    def cache_label(self, config: TeacherConfig) -> str:
        """Such as top_k_50, sampled_12 or prompt-sampled_12; empty for hidden states of the student's documents."""
        cache_format = _cache_format(config)
        parts = ["prompt"] if config.prompt.is_set else []
        if cache_format.kind != CACHE_HIDDEN_STATES:
            parts.append(cache_format.label)
        return "-".join(parts)

    def write_cache(self, context: TeacherContext, progress: ProgressCallback) -> dict[str, Any]:
        """Runs the teacher over all rows."""
        rows, folder = context.data, _write(context.load_model(), context, progress)
        return {
            "teacher_cache": str(folder),
            "rows": len(rows.train) + len(rows.validation),
            "bytes_per_token": measure_bytes_per_token(folder, rows.train, _cache_format(context.config.teacher)),
        }

    def is_cache_complete(self, facts: Mapping[str, Any]) -> bool:
        """Whether all its shards are there with their hashes."""
        return is_teacher_cache_complete(Path(facts["teacher_cache"]), facts["rows"])

    def estimate_cache_bytes(self, config: TeacherConfig, model: ModelSize, rows: CacheRows) -> int:
        """Hidden states of all rows, or a few numbers per supervised token and the hidden states of held-out rows."""
        cache_format = _cache_format(config)
        per_state = torch_dtype(config.dtype).itemsize * model.hidden_size
        if cache_format.kind == CACHE_HIDDEN_STATES:
            return (rows.train_positions + rows.validation_positions) * per_state * (1 + len(cache_format.hidden_layers))
        if cache_format.is_dense:
            return rows.train_positions * (model.hidden_size + 2) + rows.validation_positions * per_state
        return rows.supervised * cache_format.bytes_per_token(model.vocab_size) + rows.validation_positions * per_state


def _cache_format(config: TeacherConfig) -> TeacherCacheFormat:
    """What the cache of a teacher keeps."""
    if config.cache_format == CACHE_HIDDEN_STATES:
        return TeacherCacheFormat(hidden_layers=tuple(sorted(set(config.hidden_layers))))
    if config.cache_format == CACHE_HIDDEN_STATES_INT8:
        return TeacherCacheFormat(CACHE_HIDDEN_STATES_INT8)
    if config.cache_format == CACHE_TOP_K:
        return TeacherCacheFormat(CACHE_TOP_K, config.top_k)
    if config.cache_format == CACHE_TOP_P:
        return TeacherCacheFormat(CACHE_TOP_P, config.top_k, top_p=config.top_p)
    return TeacherCacheFormat(CACHE_SAMPLED, config.num_samples, config.sampling_temperature)


def _metadata(context: TeacherContext) -> dict[str, Any]:
    files, cache_format = model_fingerprint(context.model_folder), _cache_format(context.config.teacher)
    documents = context.data.teacher_documents
    read = context.data.fingerprint if documents is None else documents.fingerprint
    metadata, quantize = teacher_cache_metadata(files, read, context.dtype, cache_format), context.config.teacher.quantize
    return metadata if quantize == "none" else {**metadata, "quantize": quantize}


def _write(model: Any, context: TeacherContext, progress: ProgressCallback | None = None) -> Path:
    """Completes the cache; its folder."""
    metadata = _metadata(context)
    folder = teacher_cache_folder(metadata)
    write_teacher_cache(
        folder,
        context.place(model),
        context.data.train,
        context.data.validation,
        context.config.training.micro_batch_size,
        _cache_format(context.config.teacher),
        context.vocab_size,
        metadata,
        progress,
        context.data.teacher_documents,
    )
    return folder
