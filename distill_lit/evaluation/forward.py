"""One forward pass over a batch of packs: the log-probability of every scored token, and whether greedy decoding has it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from distill_lit.evaluation.packing import Pack, ancestor_mask

HEAD_ROWS = 16  # rows of logits normalised at a time: what the sums need then stays in the processor's cache
PART_ROWS = 256  # rows of hidden states that the head gets at a time, so that logits of a whole batch are never there
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
    model: PreTrainedModel, batch: list[Pack], prefix: Prefix | None = None, *, in_parts: bool = False
) -> tuple[list[float], list[bool]]:
    """(log-probability in nats, whether it is the most probable token) of every scored token, sequence after sequence.

    batch: the longest pack first. prefix: what every node attends to besides its ancestors; the batch is then one pack.
    in_parts: apply the head to PART_ROWS nodes at a time, which `head_is_last` must allow.
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
    with _head_only_at(model, torch.tensor(nodes, device=device), in_parts) as kept:
        logits = model(
            input_ids=_padded([pack.tokens for pack in batch], width, device),
            attention_mask=attention_mask(model, batch, width, past),
            position_ids=_padded([pack.depths for pack in batch], width, device) + past,
            past_key_values=_cache_of(prefix) if prefix else None,
            use_cache=prefix is not None,
        ).logits[0]  # (nodes, V)
    head: Any = model.get_output_embeddings()
    logprobs, greedy = torch.empty(len(places), dtype=torch.float64), torch.empty(len(places), dtype=torch.bool)
    for start in range(0, len(nodes), PART_ROWS if in_parts else len(nodes)):
        part = head(kept[0][:, start : start + PART_ROWS])[0] if in_parts else logits
        totals, best = _normalise(part)
        here = ((lines >= start) & (lines < start + len(part))).nonzero()[:, 0]
        rows, words = lines[here] - start, targets[here]
        logprobs[here.cpu()] = (part[rows, words].to(totals.dtype) - totals[rows]).double().cpu()
        greedy[here.cpu()] = (best[rows] == words).cpu()
    return logprobs.tolist(), greedy.tolist()


@torch.inference_mode()
def score_alone(model: PreTrainedModel, tokens: list[int], count: int) -> float:
    """The log-probability of the last `count` tokens in nats, by a forward pass of this sequence alone, without a mask."""
    device = model.device
    places = torch.arange(len(tokens) - 1 - count, len(tokens) - 1, device=device)
    with _head_only_at(model, places):
        logits = model(input_ids=torch.tensor([tokens[:-1]], device=device)).logits[0]
    totals, _ = _normalise(logits)
    chosen = logits.gather(-1, torch.tensor(tokens[-count:], device=device)[:, None])[:, 0]
    return float((chosen.to(totals.dtype) - totals).sum())


@torch.inference_mode()
def head_is_last(model: PreTrainedModel) -> bool:
    """Whether a model's logits are what its head returns, without a scale or a cap afterwards."""
    head: Any = model.get_output_embeddings()
    if head is None:
        return False
    returned: list[torch.Tensor] = []
    hook = head.register_forward_hook(lambda _, inputs, output: returned.append(output))
    try:
        logits = model(input_ids=torch.arange(4, device=model.device)[None]).logits
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
    if model.config._attn_implementation == "eager":
        kept = torch.zeros(mask.shape, dtype=model.dtype, device=model.device)
        return kept.masked_fill_(~mask, torch.finfo(model.dtype).min)
    return mask


def _cache_of(prefix: Prefix) -> DynamicCache:
    """A cache that a forward pass may add to: it makes new tensors and leaves the prefix's as they are."""
    cache = DynamicCache()
    for number, (keys, values) in enumerate(prefix):
        cache.update(keys, values, number)
    return cache


def _padded(rows: list[list[int]], width: int, device: torch.device) -> torch.Tensor:
    return torch.tensor([row + [0] * (width - len(row)) for row in rows], device=device)


@contextmanager
def _head_only_at(model: PreTrainedModel, nodes: torch.Tensor, in_parts: bool = False) -> Iterator[list[torch.Tensor]]:
    """Inside: logits are (1, len(nodes), V), for these places of the flattened batch, or in parts the first of them; yields
    a list that then holds the hidden states there. `logits_to_keep` of transformers takes the same places in every row,
    and not every model knows it."""
    head: Any = model.get_output_embeddings()
    kept: list[torch.Tensor] = []

    def keep(_: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        kept.append(inputs[0].flatten(0, -2)[nodes][None])
        return (kept[0][:, :1] if in_parts else kept[0], *inputs[1:])

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
