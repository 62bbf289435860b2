"""What the self-checks read: random tokens of a model's vocabulary, as documents and as packed rows."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from distill_lit.models.packed_forward import PackedBatch
from distill_lit.utils.exceptions import UserError


def dummy_documents(model: Any, size: int) -> list[list[int]]:
    """Three documents that nearly fill a row of `size` tokens, and one that does."""
    first, second = max(2, size // 8), size // 3
    sizes = [first, second, size - first - second - 1, size]
    return [part.tolist() for part in random_tokens(model, sum(sizes)).split(sizes)]


def random_tokens(model: Any, count: int) -> Tensor:
    """Ids (count,) of tokens that stand for text, always the same for the same vocabulary."""
    usual = text_token_ids(model)
    return usual[torch.randint(len(usual), (count,), generator=torch.Generator().manual_seed(0))]


def text_token_ids(model: Any) -> Tensor:
    """Ids of tokens that stand for text: an image's token would ask for an image, and padded rows may hold anything."""
    table = model.get_input_embeddings().weight
    count = min(len(table), int(model.config.get_text_config().vocab_size))
    special = {n for n in _special_tokens(model.config.to_dict()) if 0 <= n < count}
    usual = torch.isfinite(table[:count]).all(-1).cpu()
    usual[list(special)] = False
    if not usual.any():
        raise UserError(f"{type(model).__name__}: its config names every token as one that is no text")
    return usual.nonzero()[:, 0]


def _special_tokens(config: Any) -> Iterator[int]:
    """Every token id that a config names, in the configs within it too."""
    for name, value in config.items():
        if isinstance(value, dict):
            yield from _special_tokens(value)
        elif "token" in str(name) and str(name).endswith(("_id", "_ids", "_index")):
            yield from (n for n in (value if isinstance(value, list) else [value]) if isinstance(n, int))


def replace_every_token(model: Any, text: list[int]) -> list[int]:
    """A text of the same length that differs in every token, where the vocabulary has two."""
    usual = text_token_ids(model).tolist()
    place = {token: n for n, token in enumerate(usual)}
    return [usual[(place[token] + 1 + n) % len(usual)] for n, token in enumerate(text)]


def pack_dummy_documents(documents: list[list[int]], device: torch.device) -> PackedBatch:
    """Two rows: all documents but the last with some padding, and the last."""
    size = len(documents[-1])
    batch: PackedBatch = {n: torch.zeros(2, size, dtype=torch.int64) for n in ("input_ids", "document_ids", "position_ids")}
    for row, texts in enumerate((documents[:-1], documents[-1:])):
        start = 0
        for number, text in enumerate(texts, 1):
            here = slice(start, start := start + len(text))
            batch["input_ids"][row, here] = torch.tensor(text)
            batch["document_ids"][row, here] = number
            batch["position_ids"][row, here] = torch.arange(len(text))
    return {name: value.to(device) for name, value in batch.items()}


def split_by_document(batch: PackedBatch, values: Tensor) -> list[Tensor]:
    """The states of each document (tokens, …) of the batch that `pack_dummy_documents` makes."""
    numbers = batch["document_ids"]
    return [values[row][numbers[row] == n] for row in range(2) for n in range(1, int(numbers[row].max()) + 1)]
