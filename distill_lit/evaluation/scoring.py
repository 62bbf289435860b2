"""One forward pass over a batch of packs: the log-probability of every scored token, and whether greedy decoding has it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from distill_lit.evaluation.prefix_tree import Pack, ancestor_mask
from distill_lit.models.packed_forward import format_attention_mask

LOGSUMEXP_ROWS = 16  # rows of logits normalized at a time: what the sums need then stays in the processor's cache
VOCAB_BLOCK_SIZE = (
    2048  # words of the vocabulary that the head is applied to at a time: as whole logits, products leave the cache
)
KVPrefix: TypeAlias = list[tuple[torch.Tensor, torch.Tensor]]  # keys and values of each layer, (1, heads, tokens, width)


@torch.inference_mode()
def compute_kv_prefix(model: PreTrainedModel, tokens: list[int]) -> KVPrefix:
    """Prefix cache: keys and values of a context that many sequences share. Raises TypeError for a model that keeps
    anything else."""
    cache = DynamicCache()
    ids = torch.tensor([tokens], device=model.device)
    with _lm_head_at(model, torch.zeros(1, dtype=torch.int64, device=model.device)):
        cache = model(input_ids=ids, past_key_values=cache, use_cache=True).past_key_values
    layers = getattr(cache, "layers", [])
    if not layers or any(type(layer) is not DynamicLayer for layer in layers):
        raise TypeError(f"{model.config.model_type} keeps more than keys and values")
    return [(layer.keys, layer.values) for layer in layers]


@torch.inference_mode()
def score_batch(
    model: PreTrainedModel, batch: list[Pack], prefix: KVPrefix | None = None, *, in_vocab_blocks: bool = False
) -> tuple[list[float], list[bool]]:
    """(log-probability in nats, whether it is the most probable token) of every scored token, sequence after sequence.

    batch: the longest pack first. prefix: what every node attends to besides its ancestors; the batch is then one pack.
    in_vocab_blocks: apply the lm_head to VOCAB_BLOCK_SIZE tokens of the vocabulary at a time, which
    `logits_are_head_output` must allow.
    """
    width, device = len(batch[0].tokens), model.device
    scored_positions = [
        (row * width + node, token)
        for row, pack in enumerate(batch)
        for scored in pack.scored
        for node, token in zip(scored.nodes, scored.targets, strict=True)
    ]
    nodes = sorted({node for node, _ in scored_positions})
    logit_row_of = {node: line for line, node in enumerate(nodes)}
    logit_rows = torch.tensor([logit_row_of[node] for node, _ in scored_positions], device=device)
    targets = torch.tensor([token for _, token in scored_positions], device=device)
    past = prefix[0][0].shape[-2] if prefix else 0
    with _lm_head_at(model, torch.tensor(nodes, device=device), in_vocab_blocks) as hidden_states:
        logits = model(
            input_ids=_padded([pack.tokens for pack in batch], width, device),
            attention_mask=tree_attention_mask(model, batch, width, past),
            position_ids=_padded([pack.depths for pack in batch], width, device) + past,
            past_key_values=_cache_of(prefix) if prefix else None,
            use_cache=prefix is not None,
        ).logits[0]  # (nodes, V)
    if in_vocab_blocks:
        head: Any = model.get_output_embeddings()
        target_logits, logsumexp, argmax = _score_in_blocks(
            hidden_states[0][0], head.weight, head.bias, logit_rows, targets
        )
    else:
        target_logits, (logsumexp, argmax) = logits[logit_rows, targets], _logsumexp_and_argmax(logits)
    logprobs = target_logits.to(logsumexp.dtype) - logsumexp[logit_rows]
    return logprobs.double().tolist(), (argmax[logit_rows] == targets).tolist()


def _score_in_blocks(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, logit_rows: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The logits of `targets` in rows `logit_rows`, and as `_logsumexp_and_argmax`: the logits (nodes, V) of hidden states
    (nodes, width) are there for one block of the vocabulary at a time."""
    sum_dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    target_logits = torch.full((len(logit_rows),), torch.nan, dtype=sum_dtype, device=hidden.device)
    highest = torch.full((len(hidden),), torch.finfo(sum_dtype).min, dtype=sum_dtype, device=hidden.device)
    total = torch.zeros(len(hidden), dtype=torch.float64, device=hidden.device)  # of exponentials, less the highest logit
    argmax = torch.zeros(len(hidden), dtype=torch.int64, device=hidden.device)
    for start in range(0, len(weight), VOCAB_BLOCK_SIZE):
        block = slice(start, start + VOCAB_BLOCK_SIZE)
        logits = torch.nn.functional.linear(hidden, weight[block], None if bias is None else bias[block]).to(sum_dtype)
        in_block = ((targets >= start) & (targets < start + VOCAB_BLOCK_SIZE)).nonzero()[:, 0]
        target_logits[in_block] = logits[logit_rows[in_block], targets[in_block] - start]
        peak, word = logits.max(-1)
        argmax = torch.where(peak > highest, word + start, argmax)
        before, highest = highest, torch.maximum(highest, peak)
        total = total * (before - highest).exp() + logits.sub_(highest[:, None]).exp_().sum(-1)
    return target_logits, highest + total.log().to(sum_dtype), argmax


@torch.inference_mode()
def score_sequence(model: PreTrainedModel, tokens: list[int], count: int) -> float:
    """The log-probability of the last `count` tokens in nats, by a forward pass of this sequence alone, without a mask."""
    device = model.device
    positions = torch.arange(len(tokens) - 1 - count, len(tokens) - 1, device=device)
    with _lm_head_at(model, positions):
        logits = model(input_ids=torch.tensor([tokens[:-1]], device=device), use_cache=False).logits[0]
    logsumexp, _ = _logsumexp_and_argmax(logits)
    target_logits = logits.gather(-1, torch.tensor(tokens[-count:], device=device)[:, None])[:, 0]
    return float((target_logits.to(logsumexp.dtype) - logsumexp).sum())


@torch.inference_mode()
def logits_are_head_output(model: PreTrainedModel) -> bool:
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


def tree_attention_mask(model: PreTrainedModel, batch: list[Pack], width: int, past: int = 0) -> torch.Tensor:
    """(rows, 1, N, past + N): booleans, or numbers to add where the attention is written out."""
    mask = torch.eye(width, dtype=torch.bool).repeat(len(batch), 1, 1)  # padding sees itself, for no row is empty
    for row, pack in enumerate(batch):
        count = len(pack.parents)
        mask[row, :count, :count] = ancestor_mask(pack.parents)
    mask = torch.nn.functional.pad(mask, (past, 0), value=True)[:, None].to(model.device)
    return format_attention_mask(model, mask)


def _cache_of(prefix: KVPrefix) -> DynamicCache:
    """A cache that a forward pass may add to: it makes new tensors and leaves the prefix's as they are."""
    cache = DynamicCache()
    for number, (keys, values) in enumerate(prefix):
        cache.update(keys, values, number)
    return cache


def _padded(rows: list[list[int]], width: int, device: torch.device) -> torch.Tensor:
    return torch.tensor([row + [0] * (width - len(row)) for row in rows], device=device)


@contextmanager
def _lm_head_at(
    model: PreTrainedModel, positions: torch.Tensor, in_vocab_blocks: bool = False
) -> Iterator[list[torch.Tensor]]:
    """Logits inside are (1, len(nodes), V), for these places of the flattened batch, or in blocks the first of them. Yields
    a list that then holds the hidden states there. `logits_to_keep` of transformers takes the same places in every row,
    and not every model knows it."""
    head: Any = model.get_output_embeddings()
    hidden_states: list[torch.Tensor] = []

    def select_positions(_: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden_states.append(inputs[0].flatten(0, -2)[positions][None])
        return (hidden_states[0][:, :1] if in_vocab_blocks else hidden_states[0], *inputs[1:])

    hook = head.register_forward_pre_hook(select_positions)
    try:
        yield hidden_states
    finally:
        hook.remove()


def _logsumexp_and_argmax(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(log of the sum of exponentials, the most probable token) of each row; float32, because bfloat16 makes ties."""
    logsumexp, argmax = [], []
    for part in logits.split(LOGSUMEXP_ROWS):
        wide = part if part.dtype == torch.float64 else part.float()
        logsumexp.append(torch.logsumexp(wide, -1))
        argmax.append(part.argmax(-1))
    return torch.cat(logsumexp), torch.cat(argmax)
