"""One forward pass over a batch of packs: the log-probability of every scored token, and whether greedy decoding has it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from distill_lit.evaluation.prefix_tree import Pack, ancestor_mask
from distill_lit.models.packed_forward import as_attention_takes

HEAD_ROWS = 16  # rows of logits normalised at a time: what the sums need then stays in the processor's cache
BLOCK = 2048  # words of the vocabulary that the head is applied to at a time: as whole logits, products leave the cache
Prefix: TypeAlias = list[tuple[torch.Tensor, torch.Tensor]]  # keys and values of each layer, (1, heads, tokens, width)


@torch.inference_mode()
def read_prefix(model: PreTrainedModel, tokens: list[int]) -> Prefix:
    """Keys and values of a context that many sequences share. Raises TypeError for a model that keeps anything else."""
    cache = DynamicCache()
    ids = torch.tensor([tokens], device=model.device)
    with _head_only_at(model, torch.zeros(1, dtype=torch.int64, device=model.device)):
        cache = model(input_ids=ids, past_key_values=cache, use_cache=True).past_key_values
    layers = getattr(cache, "layers", [])
    if not layers or any(type(layer) is not DynamicLayer for layer in layers):
        raise TypeError(f"{model.config.model_type} keeps more than keys and values")
    return [(layer.keys, layer.values) for layer in layers]


@torch.inference_mode()
def score_batch(
    model: PreTrainedModel, batch: list[Pack], prefix: Prefix | None = None, *, in_blocks: bool = False
) -> tuple[list[float], list[bool]]:
    """(log-probability in nats, whether it is the most probable token) of every scored token, sequence after sequence.

    batch: the longest pack first. prefix: what every node attends to besides its ancestors; the batch is then one pack.
    in_blocks: apply the head to BLOCK words at a time, which `head_is_last` must allow.
    """
    width, device = len(batch[0].tokens), model.device
    places = [
        (row * width + node, token)
        for row, pack in enumerate(batch)
        for scored in pack.scored
        for node, token in zip(scored.nodes, scored.targets, strict=True)
    ]
    nodes = sorted({node for node, _ in places})
    line_of = {node: line for line, node in enumerate(nodes)}
    lines = torch.tensor([line_of[node] for node, _ in places], device=device)
    targets = torch.tensor([token for _, token in places], device=device)
    past = prefix[0][0].shape[-2] if prefix else 0
    with _head_only_at(model, torch.tensor(nodes, device=device), in_blocks) as kept:
        logits = model(
            input_ids=_padded([pack.tokens for pack in batch], width, device),
            attention_mask=attention_mask(model, batch, width, past),
            position_ids=_padded([pack.depths for pack in batch], width, device) + past,
            past_key_values=_cache_of(prefix) if prefix else None,
            use_cache=prefix is not None,
        ).logits[0]  # (nodes, V)
    if in_blocks:
        head: Any = model.get_output_embeddings()
        chosen, totals, best = _score_in_blocks(kept[0][0], head.weight, head.bias, lines, targets)
    else:
        chosen, (totals, best) = logits[lines, targets], _normalise(logits)
    logprobs = chosen.to(totals.dtype) - totals[lines]
    return logprobs.double().tolist(), (best[lines] == targets).tolist()


def _score_in_blocks(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, lines: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The logits of `targets` in rows `lines`, and as `_normalise`: the logits (nodes, V) of hidden states (nodes, width)
    are there for one block of the vocabulary at a time."""
    wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    chosen = torch.full((len(lines),), torch.nan, dtype=wide, device=hidden.device)
    highest = torch.full((len(hidden),), torch.finfo(wide).min, dtype=wide, device=hidden.device)
    total = torch.zeros(len(hidden), dtype=torch.float64, device=hidden.device)  # of exponentials, less the highest logit
    best = torch.zeros(len(hidden), dtype=torch.int64, device=hidden.device)
    for start in range(0, len(weight), BLOCK):
        block = slice(start, start + BLOCK)
        logits = torch.nn.functional.linear(hidden, weight[block], None if bias is None else bias[block]).to(wide)
        here = ((targets >= start) & (targets < start + BLOCK)).nonzero()[:, 0]
        chosen[here] = logits[lines[here], targets[here] - start]
        peak, word = logits.max(-1)
        best = torch.where(peak > highest, word + start, best)
        before, highest = highest, torch.maximum(highest, peak)
        total = total * (before - highest).exp() + logits.sub_(highest[:, None]).exp_().sum(-1)
    return chosen, highest + total.log().to(wide), best


@torch.inference_mode()
def score_alone(model: PreTrainedModel, tokens: list[int], count: int) -> float:
    """The log-probability of the last `count` tokens in nats, by a forward pass of this sequence alone, without a mask."""
    device = model.device
    places = torch.arange(len(tokens) - 1 - count, len(tokens) - 1, device=device)
    with _head_only_at(model, places):
        logits = model(input_ids=torch.tensor([tokens[:-1]], device=device), use_cache=False).logits[0]
    totals, _ = _normalise(logits)
    chosen = logits.gather(-1, torch.tensor(tokens[-count:], device=device)[:, None])[:, 0]
    return float((chosen.to(totals.dtype) - totals).sum())


@torch.inference_mode()
def head_is_last(model: PreTrainedModel) -> bool:
    """Whether a model's logits are the product of its head, without a scale or a cap afterwards."""
    head: Any = model.get_output_embeddings()
    if type(head) is not torch.nn.Linear:
        return False
    returned: list[torch.Tensor] = []
    hook = head.register_forward_hook(lambda _, inputs, output: returned.append(output))
    try:
        logits = model(input_ids=torch.arange(4, device=model.device)[None], use_cache=False).logits
    finally:
        hook.remove()
    return len(returned) == 1 and torch.equal(returned[0], logits)


def attention_mask(model: PreTrainedModel, batch: list[Pack], width: int, past: int = 0) -> torch.Tensor:
    """(rows, 1, N, past + N): booleans, or numbers to add where the attention is written out."""
    mask = torch.eye(width, dtype=torch.bool).repeat(len(batch), 1, 1)  # padding sees itself, for no row is empty
    for row, pack in enumerate(batch):
        count = len(pack.parents)
        mask[row, :count, :count] = ancestor_mask(pack.parents)
    mask = torch.nn.functional.pad(mask, (past, 0), value=True)[:, None].to(model.device)
    return as_attention_takes(model, mask)


def _cache_of(prefix: Prefix) -> DynamicCache:
    """A cache that a forward pass may add to: it makes new tensors and leaves the prefix's as they are."""
    cache = DynamicCache()
    for number, (keys, values) in enumerate(prefix):
        cache.update(keys, values, number)
    return cache


def _padded(rows: list[list[int]], width: int, device: torch.device) -> torch.Tensor:
    return torch.tensor([row + [0] * (width - len(row)) for row in rows], device=device)


@contextmanager
def _head_only_at(model: PreTrainedModel, nodes: torch.Tensor, in_blocks: bool = False) -> Iterator[list[torch.Tensor]]:
    """Logits inside are (1, len(nodes), V), for these places of the flattened batch, or in blocks the first of them. Yields
    a list that then holds the hidden states there. `logits_to_keep` of transformers takes the same places in every row,
    and not every model knows it."""
    head: Any = model.get_output_embeddings()
    kept: list[torch.Tensor] = []

    def keep(_: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        kept.append(inputs[0].flatten(0, -2)[nodes][None])
        return (kept[0][:, :1] if in_blocks else kept[0], *inputs[1:])

    hook = head.register_forward_pre_hook(keep)
    try:
        yield kept
    finally:
        hook.remove()


def _normalise(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(log of the sum of exponentials, the most probable token) of each row; float32, because bfloat16 makes ties."""
    totals, best = [], []
    for part in logits.split(HEAD_ROWS):
        wide = part if part.dtype == torch.float64 else part.float()
        totals.append(torch.logsumexp(wide, -1))
        best.append(part.argmax(-1))
    return torch.cat(totals), torch.cat(best)
