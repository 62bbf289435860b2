"""The cached teacher: it runs once over the packed rows, and many students and seeds read what it said from shards.

    hidden     last hidden states (rows, T, width); its head gives the whole distribution again, exactly; where a form
               names layers, the states behind them too
    top_k,     a few numbers per supervised token of the training rows (`compress`); held-out rows keep their hidden
    sampled    states, so that fidelity is measured the same whatever a student learns from

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

from distill_lit.data import Packed
from distill_lit.data.loader import make_batch
from distill_lit.losses.lm_head import Head, head_of
from distill_lit.losses.targets import DenseTarget, Draws, Target, TopK
from distill_lit.models.activations import HIDDEN as STATES
from distill_lit.models.activations import States, Wanted, watching
from distill_lit.models.packing_check import last_hidden
from distill_lit.teachers.compression import HIDDEN, Form, compress, expand
from distill_lit.utils.exceptions import UserError
from distill_lit.utils.files import cache_root, fingerprint
from distill_lit.utils.seeding import seed_of
from distill_lit.utils.shards import Shards

SHARD_ROWS = 64
FORMAT = 2  # raise when the bytes of a shard change their meaning
WHOLE = Form()
CHUNK_TOKENS = 256  # whose whole distributions are in memory at a time
Progress = Callable[[int, int], Any]  # rows done, of all


def cache_facts(teacher: dict[str, str], data: str, dtype: torch.dtype, form: Form = WHOLE) -> dict[str, Any]:
    """What a cache depends on: the teacher's files, its tokenizer among them, the packed data in their order, number
    format, and what is kept."""
    return {"teacher": teacher, "data": data, "dtype": str(dtype), "format": FORMAT, **form.facts()}


def cache_folder(facts: dict[str, Any]) -> Path:
    """Where the cache with these facts lives: with any other fact it is another folder, never reused."""
    return cache_root() / "signals" / fingerprint(facts)


def write_cache(
    folder: Path,
    model: Any,
    train: Packed,
    validation: Packed,
    batch: int,
    form: Form = WHOLE,
    vocabulary: int = 0,
    facts: dict[str, Any] | None = None,
    progress: Progress | None = None,
) -> None:
    """Runs the teacher over all rows and writes shards. A half-written cache goes on; several writers share the work.

    batch: rows per forward pass; vocabulary: the teacher's real tokens, for sparse forms; facts: go into the manifest.
    """
    shards, total, done = Shards(folder), len(train) + len(validation), 0
    if is_complete(folder, total):  # of another root's run, in a cache that perhaps may only be read
        return

    def advance() -> None:
        nonlocal done
        done = min(done + SHARD_ROWS, total)
        if progress:
            progress(done, total)

    hidden = functools.partial(_write_hidden, model=model, batch=batch)
    writers: dict[str, Callable[[Path], None]]
    if form.kind == HIDDEN:
        rows = Packed.concatenate([train, validation])
        write = functools.partial(hidden, rows=rows, layers=form.layers)
        writers = {name: functools.partial(write, numbers=part) for name, part in _parts(HIDDEN, len(rows))}
    else:
        head = head_of(model, vocabulary)
        sparse = functools.partial(_write_sparse, model=model, head=head, rows=train, batch=batch, form=form)
        writers = {name: functools.partial(sparse, numbers=part) for name, part in _parts(form.kind, len(train))}
        held = _parts(HIDDEN, len(validation))
        writers |= {name: functools.partial(hidden, rows=validation, numbers=part) for name, part in held}
    shards.make_all(writers, advance)
    shards.write_manifest({**(facts or {}), "rows": total, "shards": list(writers)})


def is_complete(folder: Path, rows: int) -> bool:
    """Whether the cache holds all rows and every shard has the hash that was written down for it."""
    manifest = Shards(folder).manifest()
    return manifest.get("rows") == rows and Shards(folder).are_intact(manifest.get("shards"))


def bytes_per_token(folder: Path, train: Packed, form: Form) -> float:
    """Bytes on disk per supervised token of the training rows; for hidden states per token of all rows."""
    used = {path.name: path.stat().st_size for path in folder.glob("*.safetensors")}
    mine = sum(size for name, size in used.items() if name.startswith(form.kind))
    tokens = Shards(folder).manifest()["rows"] * train.length if form.kind == HIDDEN else int(train.targets.sum())
    return mine / max(tokens, 1)


def _parts(prefix: str, rows: int) -> list[tuple[str, range]]:
    """[(name of a shard, its rows)]."""
    starts = range(0, rows, SHARD_ROWS)
    return [(_shard_name(prefix, i), range(start, min(start + SHARD_ROWS, rows))) for i, start in enumerate(starts)]


def _shard_name(prefix: str, number: int) -> str:
    return f"{prefix}-{number:05d}.safetensors"


@torch.inference_mode()
def _hidden_of(model: Any, rows: Packed, numbers: range, states: States | None = None) -> tuple[Tensor, dict[str, Tensor]]:
    device = next(model.parameters()).device
    inputs = {name: value.to(device) for name, value in make_batch(rows, np.array(numbers), 1).items()}
    return last_hidden(model, inputs, states), inputs


def _write_hidden(
    path: Path, *, model: Any, rows: Packed, numbers: range, batch: int, layers: tuple[int, ...] = ()
) -> None:
    parts = []
    for i in range(0, len(numbers), batch):
        with watching(model, {STATES: set(layers)}) as states:
            last, _ = _hidden_of(model, rows, numbers[i : i + batch], states)
        named = {"hidden": last, **{_layer_name(number): states[STATES, number] for number in layers}}
        parts.append({name: tensor.cpu() for name, tensor in named.items()})
    save_file({name: torch.cat([part[name] for part in parts]).contiguous() for name in parts[0]}, path)


def _layer_name(number: int) -> str:
    return f"layer-{number}"


@torch.inference_mode()
def _write_sparse(path: Path, *, model: Any, head: Head, rows: Packed, numbers: range, batch: int, form: Form) -> None:
    # draws depend on the shard alone, so one that is written again is the same
    generator = torch.Generator(next(model.parameters()).device).manual_seed(seed_of(0, numbers[0]))
    parts = []
    for i in range(0, len(numbers), batch):
        hidden, inputs = _hidden_of(model, rows, numbers[i : i + batch])
        chosen = inputs["labels"][:, 1:] >= 0
        tokens, labels = hidden[:, :-1][chosen], inputs["labels"][:, 1:][chosen]
        for start in range(0, max(len(tokens), 1), CHUNK_TOKENS):
            here = slice(start, start + CHUNK_TOKENS)
            log_p = head.finish(head.project(tokens[here])).log_softmax(-1)
            parts.append(compress(log_p, labels[here], form, generator))
    save_arrays({name: np.concatenate([part[name] for part in parts]) for name in parts[0]}, path)


class CachedTeacher:
    """Hidden states from shards; only the teacher's head is in memory."""

    def __init__(self, folder: Path, rows: int, head: Head, first_row: int = 0) -> None:
        """`first_row`: number of the first row that the shards hold. Raises UserError when the cache is incomplete or a
        shard does not have its hash."""
        _check(folder, rows)
        self.head, self.first_row = head, first_row
        self._read = _Reader(folder, HIDDEN, "pt")

    def to(self, device: torch.device) -> None:
        """Moves the head; shards stay on disk."""
        self.head = self.head.to(device)

    def target(self, batch: dict[str, Tensor], chosen: Tensor) -> DenseTarget:
        """Its whole distribution at the chosen positions (B, T − 1)."""
        return DenseTarget(self.hidden(batch)[:, :-1][chosen], self.head)

    def hidden(self, batch: dict[str, Tensor]) -> Tensor:
        """Last hidden states (B, T, D) of the rows in `batch["rows"]`."""
        return self._states("hidden", batch)

    def inner_states(self, batch: dict[str, Tensor], wanted: Wanted) -> AbstractContextManager[States]:
        """Hidden states behind the wanted layers, which the cache must hold."""
        return nullcontext({(STATES, n): self._states(_layer_name(n), batch) for n in sorted(wanted[STATES])})

    def _states(self, name: str, batch: dict[str, Tensor]) -> Tensor:
        numbers = (batch["rows"] - self.first_row).tolist()
        places = [(n // SHARD_ROWS, n % SHARD_ROWS) for n in numbers]
        return torch.cat([self._read(shard, name, at, at + 1) for shard, at in places]).to(batch["rows"].device)


class SparseTeacher:
    """A few numbers per supervised token for training rows, the whole distribution for held-out rows."""

    def __init__(self, folder: Path, train: Packed, held_out: int, form: Form, head: Head) -> None:
        """`train`: the rows that were cached; `held_out`: number of held-out rows; `head`: the teacher's, for these.

        Raises UserError when the cache is incomplete or a shard does not have its hash.
        """
        self.held_out = CachedTeacher(folder, len(train) + held_out, head, first_row=len(train))
        self.form, self.rows = form, len(train)
        self._sizes = train.targets
        self._starts = _starts_within_shards(self._sizes)
        self._read = _Reader(folder, form.kind, "numpy")

    def to(self, device: torch.device) -> None:
        """Moves the head."""
        self.held_out.to(device)

    def target(self, batch: dict[str, Tensor], chosen: Tensor) -> Target:
        """What was kept of the chosen positions (B, T − 1); of held-out rows everything."""
        numbers = batch["rows"].tolist()
        if max(numbers) >= self.rows:
            return self.held_out.target(batch, chosen)
        parts = [self._row(n, wanted) for n, wanted in zip(numbers, chosen.any(1).tolist(), strict=True)]
        arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        if len(arrays["ids"]) != int(chosen.sum()):
            raise UserError("the teacher cache holds other positions than this batch supervises; remove it to mend it")
        target: TopK | Draws = expand(arrays, self.form)
        return type(target)(*(value.to(chosen.device) for value in target))

    def _row(self, number: int, wanted: bool) -> dict[str, np.ndarray]:
        """What was kept of a row, or as many empty arrays."""
        shard = number // SHARD_ROWS
        start, end = self._starts[number], self._starts[number] + self._sizes[number] * wanted
        return {name: self._read(shard, name, start, end) for name in self._read.names(shard)}


def _starts_within_shards(targets: np.ndarray) -> np.ndarray:
    """Place of each row's first supervised token in the arrays of its shard. targets: (rows,) supervised of each row."""
    before = np.cumsum(targets) - targets
    within: np.ndarray = before - before[np.arange(len(targets)) // SHARD_ROWS * SHARD_ROWS]
    return within


class _Reader:
    """Slices of the arrays of shards, which stay on disk; the most recent files are kept open."""

    def __init__(self, folder: Path, prefix: str, framework: str) -> None:
        self._open = functools.lru_cache(maxsize=256)(
            lambda shard: safe_open(folder / _shard_name(prefix, shard), framework=framework)
        )

    def __call__(self, shard: int, name: str, start: int, end: int) -> Any:
        return self._open(shard).get_slice(name)[int(start) : int(end)]

    def names(self, shard: int) -> list[str]:
        return list(self._open(shard).keys())


def _check(folder: Path, rows: int) -> None:
    if not is_complete(folder, rows):
        raise UserError(f"the teacher cache {folder} is incomplete or corrupt; run the experiment again to mend it")
