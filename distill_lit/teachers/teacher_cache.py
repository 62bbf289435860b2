"""Writing a teacher cache. What it is good for is told at the top of `teachers/offline.py`."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import save_file
from torch import Tensor

from distill_lit.data import PackedDataset, TeacherDocuments
from distill_lit.data.loader import make_batch
from distill_lit.data.packing import ChainedRows
from distill_lit.losses.hidden_states import HIDDEN_STATES
from distill_lit.losses.lm_head import LMHead, get_lm_head
from distill_lit.models.activations import Activations, capture_activations
from distill_lit.models.packed_forward import PackedBatch
from distill_lit.models.packing_check import last_hidden_state
from distill_lit.teachers.cache_shards import LAST_HIDDEN_STATE, SHARD_ROWS, layer_array_name, shard_rows
from distill_lit.teachers.compression import (
    CACHE_HIDDEN_STATES,
    INT8_SCALE,
    TeacherCacheFormat,
    compress_logprobs,
    round_to_int8,
)
from distill_lit.teachers.prompted import hidden_states_with_prompt
from distill_lit.utils.distributed.ranks import (
    all_gather_rows,
    barrier,
    broadcast_from_rank_zero,
    get_rank,
    get_world_size,
)
from distill_lit.utils.exceptions import UserError
from distill_lit.utils.files import cache_root, fingerprint
from distill_lit.utils.progress import ProgressCallback
from distill_lit.utils.seeding import derive_seed
from distill_lit.utils.shards import Shards

SHARD_VERSION = 3  # raise when the bytes of a shard change their meaning
HIDDEN_STATES_ONLY = TeacherCacheFormat()
COMPRESSION_CHUNK_TOKENS = 256  # whose whole distributions are in memory at a time
ShardWriter = Callable[[Path | None], None]  # None: another rank writes, this one only takes part


def teacher_cache_metadata(
    teacher: dict[str, str],
    data_fingerprint: str,
    dtype: torch.dtype,
    cache_format: TeacherCacheFormat = HIDDEN_STATES_ONLY,
) -> dict[str, Any]:
    """What a cache depends on: the teacher's files ({name: sha256}), its tokenizer among them, the packed data in their
    order and the teacher's own prompt, number format, and what is kept."""
    return {
        "teacher": teacher,
        "data": data_fingerprint,
        "dtype": str(dtype),
        "shard_version": SHARD_VERSION,
        "cache_format": cache_format.metadata(),
    }


def teacher_cache_folder(metadata: dict[str, Any]) -> Path:
    """Where the cache with this metadata lives: with any other value it is another folder, never reused."""
    return cache_root() / "teacher_caches" / fingerprint(metadata)


def write_teacher_cache(
    folder: Path,
    model: Any,
    train: PackedDataset,
    validation: PackedDataset | None = None,
    batch_size: int = 8,
    cache_format: TeacherCacheFormat = HIDDEN_STATES_ONLY,
    vocab_size: int | None = None,
    metadata: dict[str, Any] | None = None,
    progress: ProgressCallback | None = None,
    documents: TeacherDocuments | None = None,
) -> None:
    """Runs a model over packed rows and writes what it says as shards, for `OfflineTeacher`.

    A cache that is complete is left alone; a half-written one goes on; several writers, in processes of their own, share
    the work. Of a model that is sharded over ranks all of these call this: they share out the rows, and the first writes.

    Args:
        model: a causal language model of transformers, on the device where it is to run.
        validation: held-out rows, of which hidden states are kept in any format.
        batch_size: rows per forward pass.
        vocab_size: the teacher's real tokens, where its lm_head has padded rows; None: all rows.
        metadata: goes into the manifest.
        progress: told the tokens done and all tokens.
        documents: what the model reads instead of the documents in the rows, where it has a prompt of its own.
    """
    validation = train.take(np.arange(0)) if validation is None else validation
    shards, total, done = Shards(folder), len(train) + len(validation), 0
    if broadcast_from_rank_zero(lambda: is_teacher_cache_complete(folder, total)):
        return  # of another root's run, in a cache that perhaps may only be read

    def advance() -> None:
        nonlocal done
        done = min(done + SHARD_ROWS, total)
        if progress:
            progress("cache", done * train.sequence_length, total * train.sequence_length, "tokens")

    vocab_size = vocab_size or model.get_output_embeddings().weight.shape[0]
    reader = _Reader(model, batch_size, documents)
    writers = _shard_writers(reader, train, validation, cache_format, vocab_size)
    if get_world_size() > 1:
        _write_together(shards, writers, advance)
    else:
        shards.write_missing(writers, advance)
    facts = {"cache_format": cache_format.metadata(), "rows": total, "shards": list(writers)}
    if get_rank() == 0:
        shards.write_manifest({**(metadata or {}), **facts})
    barrier()


def _write_together(shards: Shards, writers: Mapping[str, ShardWriter], advance: Callable[[], None]) -> None:
    """Makes the missing shards by all ranks, in the same order, as a forward pass of a sharded model needs them all."""
    missing = broadcast_from_rank_zero(lambda: [name for name in writers if not shards.is_intact(name)])
    for name, write in writers.items():
        if name in missing and get_rank() == 0:
            shards.write(name, write)
        elif name in missing:
            write(None)
        advance()


class _Reader(NamedTuple):
    """The model that reads rows, `batch_size` at a time. documents: what it reads in place of those in the rows."""

    model: Any
    batch_size: int
    documents: TeacherDocuments | None

    @torch.inference_mode()
    def read(
        self, rows: PackedDataset, numbers: range, first_row: int = 0, states: Activations | None = None
    ) -> tuple[Tensor, PackedBatch]:
        """(last hidden states (rows, T, D), the batch) of rows, on the model's device. first_row: the number of rows[0]
        among those of training and held-out ones."""
        batch = self._batch(rows, np.array(numbers), first_row)
        if self.documents is not None:
            return hidden_states_with_prompt(self.model, batch, self.documents), batch
        if get_world_size() == 1:
            return last_hidden_state(self.model, batch, states), batch
        share = -(-len(numbers) // get_world_size())  # the last rows once more, so that all ranks read equally many
        own = [numbers[min(get_rank() * share + i, len(numbers) - 1)] for i in range(share)]
        hidden = last_hidden_state(self.model, self._batch(rows, np.array(own), first_row), states)
        for name in states or {}:
            states[name] = all_gather_rows(states[name])[: len(numbers)]  # type: ignore[index]
        return all_gather_rows(hidden)[: len(numbers)], batch

    def _batch(self, rows: PackedDataset, numbers: np.ndarray, first_row: int) -> PackedBatch:
        device = self.model.get_output_embeddings().weight.device
        batch = {name: value.to(device) for name, value in make_batch(rows, numbers, 1).items()}
        batch["rows"] += first_row
        return batch

    def parts(self, numbers: range) -> list[range]:
        """What is read at a time, by all ranks together."""
        size = self.batch_size * get_world_size()
        return [numbers[i : i + size] for i in range(0, len(numbers), size)]


def _shard_writers(
    reader: _Reader,
    train: PackedDataset,
    validation: PackedDataset,
    cache_format: TeacherCacheFormat,
    vocab_size: int,
) -> dict[str, ShardWriter]:
    """{name of a shard: function that writes its file}."""
    states = functools.partial(_write_hidden_states, reader=reader)
    if cache_format.kind == CACHE_HIDDEN_STATES:
        rows = ChainedRows([train, validation])
        write = functools.partial(states, rows=rows, layers=cache_format.hidden_layers)
        return {name: functools.partial(write, numbers=part) for name, part in shard_rows(CACHE_HIDDEN_STATES, len(rows))}
    if cache_format.is_dense:
        compressed = functools.partial(states, rows=train, is_rounded=True)
    else:
        head = get_lm_head(reader.model, vocab_size)
        compressed = functools.partial(_write_sparse, reader=reader, lm_head=head, rows=train, cache_format=cache_format)
    train_shards, validation_shards = (
        shard_rows(cache_format.kind, len(train)),
        shard_rows(CACHE_HIDDEN_STATES, len(validation)),
    )
    return {
        **{name: functools.partial(compressed, numbers=part) for name, part in train_shards},
        **{
            name: functools.partial(states, rows=validation, numbers=part, first_row=len(train))
            for name, part in validation_shards
        },
    }


def is_teacher_cache_complete(folder: Path, rows: int) -> bool:
    """Whether the cache holds all rows and every shard has the hash that was written down for it."""
    manifest = Shards(folder).manifest()
    return manifest.get("rows") == rows and Shards(folder).are_intact(manifest.get("shards"))


def check_teacher_cache(folder: Path, rows: int) -> None:
    """Raises UserError for a cache that is not complete."""
    if not is_teacher_cache_complete(folder, rows):
        raise UserError(f"the teacher cache {folder} is incomplete or corrupt, or not of {rows} rows; write it again")


def read_cache_format(folder: Path) -> TeacherCacheFormat:
    """What a cache keeps, by its manifest. Raises UserError where that is damaged."""
    try:
        return TeacherCacheFormat.from_metadata(Shards(folder).manifest()["cache_format"])
    except (KeyError, TypeError, ValueError):  # whoever damaged it left it JSON
        raise UserError(f"the manifest of the teacher cache {folder} is corrupt; write it again") from None


def measure_bytes_per_token(folder: Path, train: PackedDataset, cache_format: TeacherCacheFormat) -> float:
    """Bytes on disk per supervised token of the training rows; for hidden states per token of all rows."""
    file_sizes = {path.name: path.stat().st_size for path in folder.glob("*.safetensors")}
    format_bytes = sum(size for name, size in file_sizes.items() if name.startswith(cache_format.kind))
    if cache_format.is_dense:
        is_of_all = cache_format.kind == CACHE_HIDDEN_STATES
        rows = Shards(folder).manifest()["rows"] if is_of_all else len(train)
        tokens = rows * train.sequence_length
    else:
        tokens = int(train.targets_per_row.sum())
    return format_bytes / max(tokens, 1)


def _write_hidden_states(
    path: Path | None,
    *,
    reader: _Reader,
    rows: PackedDataset,
    numbers: range,
    layers: tuple[int, ...] = (),
    first_row: int = 0,
    is_rounded: bool = False,
) -> None:
    written = []
    for part in reader.parts(numbers):
        with capture_activations(reader.model, {HIDDEN_STATES: set(layers)}) as states:
            last, _ = reader.read(rows, part, first_row, states)
        named = {LAST_HIDDEN_STATE: last, **{layer_array_name(n): states[HIDDEN_STATES, n] for n in layers}}
        if is_rounded:
            named[LAST_HIDDEN_STATE], named[INT8_SCALE] = round_to_int8(last)
        written.append({name: tensor.cpu() for name, tensor in named.items()})
    if path is not None:
        save_file({name: torch.cat([tensors[name] for tensors in written]).contiguous() for name in written[0]}, path)


@torch.inference_mode()
def _write_sparse(
    path: Path | None,
    *,
    reader: _Reader,
    lm_head: LMHead,
    rows: PackedDataset,
    numbers: range,
    cache_format: TeacherCacheFormat,
) -> None:
    # samples depend on the shard alone, so one that is written again is the same
    generator = torch.Generator(lm_head.weight.device).manual_seed(derive_seed(0, numbers[0]))
    written = []
    for part in reader.parts(numbers):
        hidden, batch = reader.read(rows, part)
        loss_mask = batch["labels"][:, 1:] >= 0
        tokens, labels = hidden[:, :-1][loss_mask], batch["labels"][:, 1:][loss_mask]
        for start in range(0, max(len(tokens), 1), COMPRESSION_CHUNK_TOKENS):
            chunk = slice(start, start + COMPRESSION_CHUNK_TOKENS)
            logprobs = lm_head.scale_and_cap(lm_head.project(tokens[chunk])).log_softmax(-1)
            written.append(compress_logprobs(logprobs, labels[chunk], cache_format, generator))
    if path is not None:
        save_arrays({name: np.concatenate([arrays[name] for arrays in written]) for name in written[0]}, path)
