"""The cached teacher: it runs once over the packed rows, and many students and seeds read what it said from shards.

    hidden     last hidden states (rows, T, width); its head gives the whole distribution again, exactly; where a form
               names layers, the states behind them too
    top_k,     a few numbers per supervised token of the training rows (`compress_logprobs`); held-out rows keep their
    hidden sampled    states, so that fidelity is measured the same whatever a student learns from

SmolLM2 needs 1,152 bytes per token for hidden states in bfloat16, 50 for 12 draws, 98,304 for logits.
"""

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import save_file
from torch import Tensor

from distill_lit.data import PackedDataset
from distill_lit.data.loader import make_batch
from distill_lit.losses.lm_head import LMHead, get_lm_head
from distill_lit.losses.targets import DenseTarget, SampledTarget, TeacherTarget, TopKTarget
from distill_lit.models.activations import HIDDEN_STATES as STATES
from distill_lit.models.activations import Activations, LayersByKind, capture_activations
from distill_lit.models.packing_check import last_hidden_state
from distill_lit.teachers.compression import CACHE_HIDDEN_STATES, TeacherCacheFormat, compress_logprobs, decompress_target
from distill_lit.utils.exceptions import UserError
from distill_lit.utils.files import cache_root, fingerprint
from distill_lit.utils.seeding import derive_seed
from distill_lit.utils.shards import Shards

SHARD_ROWS = 64
TEACHER_CACHE_FORMAT_VERSION = 2  # raise when the bytes of a shard change their meaning
HIDDEN_STATES_ONLY = TeacherCacheFormat()
COMPRESSION_CHUNK_TOKENS = 256  # whose whole distributions are in memory at a time
ProgressCallback = Callable[[int, int], Any]  # rows done, of all


def teacher_cache_metadata(
    teacher: dict[str, str],
    data_fingerprint: str,
    dtype: torch.dtype,
    cache_format: TeacherCacheFormat = HIDDEN_STATES_ONLY,
) -> dict[str, Any]:
    """What a cache depends on: the teacher's files, its tokenizer among them, the packed data in their order, number
    format, and what is kept."""
    return {
        "teacher": teacher,
        "data": data_fingerprint,
        "dtype": str(dtype),
        "format": TEACHER_CACHE_FORMAT_VERSION,
        **cache_format.metadata(),
    }


def teacher_cache_folder(metadata: dict[str, Any]) -> Path:
    """Where the cache with these facts lives: with any other fact it is another folder, never reused."""
    return cache_root() / "signals" / fingerprint(metadata)


def write_cache_shards(
    folder: Path,
    model: Any,
    train: PackedDataset,
    validation: PackedDataset,
    batch_size: int,
    cache_format: TeacherCacheFormat = HIDDEN_STATES_ONLY,
    vocab_size: int = 0,
    metadata: dict[str, Any] | None = None,
    progress: ProgressCallback | None = None,
) -> None:
    """Runs the teacher over all rows and writes shards. A half-written cache goes on; several writers share the work.

    batch: rows per forward pass; vocabulary: the teacher's real tokens, for sparse forms; facts: go into the manifest.
    """
    shards, total, done = Shards(folder), len(train) + len(validation), 0
    if is_teacher_cache_complete(folder, total):  # of another root's run, in a cache that perhaps may only be read
        return

    def advance() -> None:
        nonlocal done
        done = min(done + SHARD_ROWS, total)
        if progress:
            progress(done, total)

    hidden = functools.partial(_write_hidden, model=model, batch=batch_size)
    writers: dict[str, Callable[[Path], None]]
    if cache_format.kind == CACHE_HIDDEN_STATES:
        rows = PackedDataset.concatenate([train, validation])
        write = functools.partial(hidden, rows=rows, layers=cache_format.hidden_layers)
        writers = {
            name: functools.partial(write, numbers=part) for name, part in _shard_rows(CACHE_HIDDEN_STATES, len(rows))
        }
    else:
        head = get_lm_head(model, vocab_size)
        sparse = functools.partial(_write_sparse, model=model, head=head, rows=train, batch=batch_size, form=cache_format)
        writers = {
            name: functools.partial(sparse, numbers=part) for name, part in _shard_rows(cache_format.kind, len(train))
        }
        validation_shards = _shard_rows(CACHE_HIDDEN_STATES, len(validation))
        writers |= {name: functools.partial(hidden, rows=validation, numbers=part) for name, part in validation_shards}
    shards.write_missing(writers, advance)
    shards.write_manifest({**(metadata or {}), "rows": total, "shards": list(writers)})


def is_teacher_cache_complete(folder: Path, rows: int) -> bool:
    """Whether the cache holds all rows and every shard has the hash that was written down for it."""
    manifest = Shards(folder).manifest()
    return manifest.get("rows") == rows and Shards(folder).are_intact(manifest.get("shards"))


def measure_bytes_per_token(folder: Path, train: PackedDataset, cache_format: TeacherCacheFormat) -> float:
    """Bytes on disk per supervised token of the training rows; for hidden states per token of all rows."""
    file_sizes = {path.name: path.stat().st_size for path in folder.glob("*.safetensors")}
    format_bytes = sum(size for name, size in file_sizes.items() if name.startswith(cache_format.kind))
    tokens = (
        Shards(folder).manifest()["rows"] * train.sequence_length
        if cache_format.kind == CACHE_HIDDEN_STATES
        else int(train.targets_per_row.sum())
    )
    return format_bytes / max(tokens, 1)


def _shard_rows(prefix: str, rows: int) -> list[tuple[str, range]]:
    """[(name of a shard, its rows)]."""
    starts = range(0, rows, SHARD_ROWS)
    return [(_shard_name(prefix, i), range(start, min(start + SHARD_ROWS, rows))) for i, start in enumerate(starts)]


def _shard_name(prefix: str, number: int) -> str:
    return f"{prefix}-{number:05d}.safetensors"


@torch.inference_mode()
def _hidden_of(
    model: Any, rows: PackedDataset, numbers: range, states: Activations | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    device = next(model.parameters()).device
    inputs = {name: value.to(device) for name, value in make_batch(rows, np.array(numbers), 1).items()}
    return last_hidden_state(model, inputs, states), inputs


def _write_hidden(
    path: Path, *, model: Any, rows: PackedDataset, numbers: range, batch: int, layers: tuple[int, ...] = ()
) -> None:
    parts = []
    for i in range(0, len(numbers), batch):
        with capture_activations(model, {STATES: set(layers)}) as states:
            last, _ = _hidden_of(model, rows, numbers[i : i + batch], states)
        named = {"hidden_states": last, **{_layer_name(number): states[STATES, number] for number in layers}}
        parts.append({name: tensor.cpu() for name, tensor in named.items()})
    save_file({name: torch.cat([part[name] for part in parts]).contiguous() for name in parts[0]}, path)


def _layer_name(number: int) -> str:
    return f"layer-{number}"


@torch.inference_mode()
def _write_sparse(
    path: Path, *, model: Any, head: LMHead, rows: PackedDataset, numbers: range, batch: int, form: TeacherCacheFormat
) -> None:
    # draws depend on the shard alone, so one that is written again is the same
    generator = torch.Generator(next(model.parameters()).device).manual_seed(derive_seed(0, numbers[0]))
    parts = []
    for i in range(0, len(numbers), batch):
        hidden, inputs = _hidden_of(model, rows, numbers[i : i + batch])
        loss_mask = inputs["labels"][:, 1:] >= 0
        tokens, labels = hidden[:, :-1][loss_mask], inputs["labels"][:, 1:][loss_mask]
        for start in range(0, max(len(tokens), 1), COMPRESSION_CHUNK_TOKENS):
            chunk = slice(start, start + COMPRESSION_CHUNK_TOKENS)
            log_p = head.scale_and_cap(head.project(tokens[chunk])).log_softmax(-1)
            parts.append(compress_logprobs(log_p, labels[chunk], form, generator))
    save_arrays({name: np.concatenate([part[name] for part in parts]) for name in parts[0]}, path)


class OfflineTeacher:
    """Hidden states from shards; only the teacher's head is in memory."""

    def __init__(self, folder: Path, num_rows: int, lm_head: LMHead, first_row: int = 0) -> None:
        """`first_row`: number of the first row that the shards hold. Raises UserError when the cache is incomplete or a
        shard does not have its hash."""
        _check_complete(folder, num_rows)
        self.lm_head, self.first_row = lm_head, first_row
        self._read_slice = _ShardReader(folder, CACHE_HIDDEN_STATES, "pt")

    def to(self, device: torch.device) -> None:
        """Moves the head; shards stay on disk."""
        self.lm_head = self.lm_head.to(device)

    def target(self, batch: dict[str, Tensor], loss_mask: Tensor) -> DenseTarget:
        """Its whole distribution at the chosen positions (B, T − 1)."""
        return DenseTarget(self.hidden_states(batch)[:, :-1][loss_mask], self.lm_head)

    def hidden_states(self, batch: dict[str, Tensor]) -> Tensor:
        """Last hidden states (B, T, D) of the rows in `batch["rows"]`."""
        return self._states("hidden_states", batch)

    def activations(self, batch: dict[str, Tensor], wanted: LayersByKind) -> AbstractContextManager[Activations]:
        """Hidden states behind the wanted layers, which the cache must hold."""
        return nullcontext({(STATES, n): self._states(_layer_name(n), batch) for n in sorted(wanted[STATES])})

    def _states(self, name: str, batch: dict[str, Tensor]) -> Tensor:
        numbers = (batch["rows"] - self.first_row).tolist()
        shard_positions = [(n // SHARD_ROWS, n % SHARD_ROWS) for n in numbers]
        return torch.cat([self._read_slice(shard, name, row, row + 1) for shard, row in shard_positions]).to(
            batch["rows"].device
        )


class SparseOfflineTeacher:
    """A few numbers per supervised token for training rows, the whole distribution for held-out rows."""

    def __init__(
        self, folder: Path, train: PackedDataset, num_validation_rows: int, form: TeacherCacheFormat, lm_head: LMHead
    ) -> None:
        """`train`: the rows that were cached; `held_out`: number of held-out rows; `head`: the teacher's, for these.

        Raises UserError when the cache is incomplete or a shard does not have its hash.
        """
        self.validation_teacher = OfflineTeacher(folder, len(train) + num_validation_rows, lm_head, first_row=len(train))
        self.cache_format, self.num_train_rows = form, len(train)
        self._supervised_per_row = train.targets_per_row
        self._shard_offsets = _starts_within_shards(self._supervised_per_row)
        self._read = _ShardReader(folder, form.kind, "numpy")

    def to(self, device: torch.device) -> None:
        """Moves the head."""
        self.validation_teacher.to(device)

    def target(self, batch: dict[str, Tensor], loss_mask: Tensor) -> TeacherTarget:
        """What was kept of the chosen positions (B, T − 1); of held-out rows everything."""
        numbers = batch["rows"].tolist()
        if max(numbers) >= self.num_train_rows:
            return self.validation_teacher.target(batch, loss_mask)
        parts = [self._row(n, is_supervised) for n, is_supervised in zip(numbers, loss_mask.any(1).tolist(), strict=True)]
        arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        if len(arrays["ids"]) != int(loss_mask.sum()):
            raise UserError("the teacher cache holds other positions than this batch supervises; remove it to mend it")
        target: TopKTarget | SampledTarget = decompress_target(arrays, self.cache_format)
        return type(target)(*(value.to(loss_mask.device) for value in target))

    def _row(self, number: int, is_supervised: bool) -> dict[str, np.ndarray]:
        """What was kept of a row, or as many empty arrays."""
        shard = number // SHARD_ROWS
        start, end = (
            self._shard_offsets[number],
            self._shard_offsets[number] + self._supervised_per_row[number] * is_supervised,
        )
        return {name: self._read(shard, name, start, end) for name in self._read.names(shard)}


def _starts_within_shards(targets: np.ndarray) -> np.ndarray:
    """Place of each row's first supervised token in the arrays of its shard. targets: (rows,) supervised of each row."""
    before = np.cumsum(targets) - targets
    within: np.ndarray = before - before[np.arange(len(targets)) // SHARD_ROWS * SHARD_ROWS]
    return within


class _ShardReader:
    """Slices of the arrays of shards, which stay on disk; the most recent files are kept open."""

    def __init__(self, folder: Path, prefix: str, framework: str) -> None:
        self._open = functools.lru_cache(maxsize=256)(
            lambda shard: safe_open(folder / _shard_name(prefix, shard), framework=framework)
        )

    def __call__(self, shard: int, name: str, start: int, end: int) -> Any:
        return self._open(shard).get_slice(name)[int(start) : int(end)]

    def names(self, shard: int) -> list[str]:
        return list(self._open(shard).keys())


def _check_complete(folder: Path, rows: int) -> None:
    if not is_teacher_cache_complete(folder, rows):
        raise UserError(f"the teacher cache {folder} is incomplete or corrupt; run the experiment again to mend it")
