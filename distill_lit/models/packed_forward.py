"""Rows that hold several documents, read so that each document is read as if it were alone.

How a model is told where documents begin depends on its layers, and what is told wrongly stays silent: a window that a mask
forgets, a state that runs on into the next document, a mask that is added where it should select. So no way is trusted.
`packing_check.choose_layout` compares each with the plain model on every document alone, and the first that agrees is
taken.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from distill_lit.models.backbone import get_backbone
from distill_lit.models.document_spans import DocumentSpan, document_spans, group_spans
from distill_lit.models.packed_attention import KERNELS, document_mask

PackedBatch = dict[str, Tensor]
ONE_MASK, MASK_PER_LAYER_TYPE, POSITION_RESETS = "one_mask", "mask_per_kind", "positions"  # several documents in a row
PADDED, UNPADDED = "padded", "alone"  # one
MAX_PADDING_RATIO = {PADDED: 1.25, UNPADDED: 1.0}  # tokens of a group, its padding included, per real token


class ForwardPass(NamedTuple):
    """What a model's forward takes of a batch at a time. valid: (n, L) bool, not padding; packed_indices: rows and columns
    (N,) of its valid tokens in the packed batch, None where it is the batch itself."""

    inputs: dict[str, Any]
    valid: Tensor
    packed_indices: tuple[Tensor, Tensor] | None = None


def block_causal_mask(document_ids: Tensor) -> Tensor:
    """Which positions see which: (B, 1, T, T) bool, True where query t (third) attends to key s (last).

    Within a document and not to the future. Padding (document 0) sees only itself, so no softmax is empty.
    document_ids: (B, T).
    """
    length = document_ids.shape[1]
    same = (document_ids[:, :, None] == document_ids[:, None, :]) & (document_ids[:, :, None] > 0)
    past = torch.ones(length, length, dtype=torch.bool, device=document_ids.device).tril()
    itself = torch.eye(length, dtype=torch.bool, device=document_ids.device)
    return ((same & past) | itself)[:, None]


def plan_forward_passes(model: Any, batch: PackedBatch, layout: str) -> list[ForwardPass]:
    """The forward passes that read a batch of packed rows in a layout.

    batch: `input_ids`, `position_ids`, `document_ids`, each (B, T). layout: `one_mask` for all layers; `mask_per_kind` of
    layer; `positions` that begin anew, by which transformers makes the masks; `segments`, `flex` or `varlen`: no mask, but
    a kernel that knows the documents; `padded`: a document a row, padded on the right; `alone`: documents of equal length
    together, so without padding.
    """
    ids, documents = batch["input_ids"], batch["document_ids"]
    inputs: dict[str, Any]
    if layout in KERNELS:
        inputs = {
            "input_ids": ids,
            "position_ids": batch["position_ids"],
            "attention_mask": document_mask(documents, layout),
        }
        return [ForwardPass(inputs, documents > 0)]
    if layout in (ONE_MASK, MASK_PER_LAYER_TYPE, POSITION_RESETS):
        inputs = {"input_ids": ids, "position_ids": batch["position_ids"]}
        if layout != POSITION_RESETS:
            mask = block_causal_mask(documents)
            masks = _by_kind(model, mask, batch["position_ids"]) if layout == MASK_PER_LAYER_TYPE else {"": mask}
            added = {kind: format_attention_mask(model, mask) for kind, mask in masks.items()}
            inputs["attention_mask"] = added if layout == MASK_PER_LAYER_TYPE else added[""]
        return [ForwardPass(inputs, documents > 0)]
    return [_part_of(ids, group) for group in group_spans(document_spans(documents), MAX_PADDING_RATIO[layout])]


def run_backbone(model: Any, forward_pass: ForwardPass) -> Tensor:
    """Hidden states (n, L, D) after the final norm, in the number format of the lm_head: some models keep them in float32
    beside weights in a short one."""
    hidden: Tensor = get_backbone(model)(**forward_pass.inputs, use_cache=False).last_hidden_state
    return hidden.to(model.get_output_embeddings().weight.dtype)


def scatter_to_packed(values: Sequence[Tensor], passes: Sequence[ForwardPass], shape: Sequence[int]) -> Tensor:
    """States (n, L, D) of the parts of a batch as one tensor (B, T, D) of its `shape`; 0 in padding."""
    if passes[0].packed_indices is None:
        return values[0]
    valid_values = torch.cat([value[part.valid] for value, part in zip(values, passes, strict=True)])
    rows, columns = (torch.cat([part.packed_indices[i] for part in passes if part.packed_indices]) for i in (0, 1))
    return valid_values.new_zeros(*shape, valid_values.shape[-1]).index_put((rows, columns), valid_values)


def scatter_attention_maps(values: Sequence[Tensor], passes: Sequence[ForwardPass], shape: Sequence[int]) -> Tensor:
    """Attention maps (n, heads, L, L) of the parts of a batch as one tensor (B, heads, T, T); 0 between documents."""
    if passes[0].packed_indices is None:
        return values[0]
    whole = values[0].new_zeros(shape[0], values[0].shape[1], shape[1], shape[1])
    for value, part in zip(values, passes, strict=True):
        assert part.packed_indices is not None
        rows, columns = part.packed_indices
        sizes, start = part.valid.sum(1).tolist(), 0
        for number, size in enumerate(sizes):
            here = columns[start : start + size]
            whole[rows[start], :, here[:, None], here] = value[number, :, :size, :size]
            start += size
    return whole


def pad_right(texts: Sequence[Sequence[int]], device: torch.device) -> PackedBatch:
    """Token sequences as a batch of one document a row."""
    longest = max(map(len, texts))
    documents = torch.tensor([[1] * len(text) + [0] * (longest - len(text)) for text in texts], device=device)
    ids = torch.tensor([[*text, *[0] * (longest - len(text))] for text in texts], device=device)
    return {"input_ids": ids, "document_ids": documents, "position_ids": (documents.cumsum(1) - 1) * documents}


def has_maskable_layer_types(config: Any) -> bool:
    """Whether a config names the kind of every layer, and each kind is attention that a mask describes."""
    kinds = set(getattr(config.get_text_config(), "layer_types", None) or [])
    return bool(kinds) and kinds <= {"full_attention", "sliding_attention", "chunked_attention"}


def has_local_attention(config: Any, length: int) -> bool:
    """Whether some layer of a model with this config looks back on fewer tokens than `length`."""
    text = config.get_text_config()
    names = [n for n in text.to_dict() if re.search(r"window|chunk_size|local_attention", n) and "feed_forward" not in n]
    sizes = [getattr(text, name, None) for name in names if not (name == "sliding_window" and _is_off(text))]
    return any(isinstance(size, int) and not isinstance(size, bool) and 0 < size < length for size in sizes)


def attention_windows(config: Any) -> dict[str, Callable[[Tensor], Tensor]]:
    """{kind of attention: the first position that a token at a position sees}. A config that names no kinds has one."""
    text = config.get_text_config()
    window = 0 if _is_off(text) else getattr(text, "sliding_window", None) or 0
    chunk = getattr(text, "attention_chunk_size", None) or 1
    first: dict[str, Callable[[Tensor], Tensor]] = {
        "full_attention": lambda at: at * 0,
        "sliding_attention": lambda at: at - window + 1 if window else at * 0,
        "chunked_attention": lambda at: at // chunk * chunk,
    }
    kinds = getattr(text, "layer_types", None) or ["sliding_attention" if window else "full_attention"]
    return {kind: first[kind] for kind in dict.fromkeys(kinds)}


def has_length_dependent_rope(config: Any) -> bool:
    """Whether rotary positions depend on the longest text of a batch, so that one of another length beside it is read
    otherwise."""
    rope = getattr(config.get_text_config(), "rope_parameters", None) or {}
    kinds = [rope, *(value for value in rope.values() if isinstance(value, dict))]
    return any(kind.get("rope_type") in ("dynamic", "longrope") for kind in kinds)


def _is_off(config: Any) -> bool:
    return getattr(config, "use_sliding_window", True) is False


def _by_kind(model: Any, mask: Tensor, positions: Tensor) -> dict[str, Tensor]:
    """The mask (B, 1, T, T) of each kind of attention that the model's config names. positions: (B, T) within documents."""
    return {
        kind: mask & (positions[:, None] >= first(positions)[..., None])[:, None]
        for kind, first in attention_windows(model.config).items()
    }


def format_attention_mask(model: Any, mask: Tensor) -> Tensor:
    """A boolean mask as the model's attention takes it: eager attention adds it to the scores."""
    if model.config.get_text_config()._attn_implementation != "eager":
        return mask
    number = next(model.parameters()).dtype
    return torch.zeros(mask.shape, dtype=number, device=mask.device).masked_fill_(~mask, torch.finfo(number).min)


def _part_of(ids: Tensor, spans: list[DocumentSpan]) -> ForwardPass:
    device, longest = ids.device, spans[0].size
    sizes = torch.tensor([span.size for span in spans], device=device)
    valid = torch.arange(longest, device=device) < sizes[:, None]
    rows = torch.tensor([span.row for span in spans], device=device).repeat_interleave(sizes)
    columns = torch.cat([torch.arange(start, start + size, device=device) for _, start, size in spans])
    # what follows a document cannot be seen from it, and a mask or positions would be read otherwise by some models
    padded = torch.zeros(valid.shape, dtype=ids.dtype, device=device)
    padded[valid] = ids[rows, columns]
    return ForwardPass({"input_ids": padded}, valid, (rows, columns))


@contextmanager
def uncompiled_eval_mode(model: nn.Module) -> Iterator[None]:
    """Inside, a model computes what it computes when it is used: no dropout, no gradient, no autocast, nothing compiled."""
    modes = {module: module.training for module in model.modules()}
    compiled = {module: module._compiled_call_impl for module in modes if module._compiled_call_impl is not None}
    device = next(model.parameters()).device
    for module in compiled:
        module._compiled_call_impl = None
    model.eval()
    try:
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for module, call in compiled.items():
            module._compiled_call_impl = call
