"""Attention within the documents of packed rows without a (T, T) mask: memory grows with T, not with its square.

A packed row is told to a model by a mask of (B, 1, 1, T) whole numbers, the documents' own, in place of the (B, 1, T, T)
booleans. Transformers hands a mask of four dimensions to its attention as it is, and its `sdpa` takes whole numbers as no
mask, so `sdpa` is registered anew with a kernel for these, and does everything else as before.

    segments  scaled_dot_product_attention over documents of like length, anywhere
    flex      FlexAttention by a block mask of the documents (2412.05496), on GPUs
    varlen    FlashAttention by cumulative lengths (2307.08691), on GPUs in 16 bits
"""

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from distill_lit.models.document_spans import document_spans, group_spans, is_document_start

SEGMENTS, FLEX, VARLEN = "segments", "flex", "varlen"
KERNELS = (VARLEN, FLEX, SEGMENTS)  # the fastest first
SEGMENT_PADDING_RATIO = 1.25  # tokens of documents that are read together, their padding included, per real token
FLEX_BLOCK = 128  # tokens: FlexAttention's own
Attention = Callable[..., tuple[Tensor, Tensor | None]]


@dataclass(frozen=True)
class PackedRows:
    """What the kernels need to know of a batch of packed rows, made once for all layers. document_ids: (B, T), 0 in
    padding."""

    document_ids: Tensor
    kernel: str = SEGMENTS
    block_masks: dict[int, Any] = field(default_factory=dict)  # of FlexAttention, {window: mask}

    @functools.cached_property
    def segments(self) -> tuple[Tensor, list[tuple[int, int]], Tensor, Tensor]:
        """(places in the flat batch (N,), group by group; (documents, length) of each group; which of the N are no padding,
        (N,) bool; their places)."""
        length, device = self.document_ids.shape[1], self.document_ids.device
        places, real, shapes = [], [], []
        for group in group_spans(document_spans(self.document_ids), SEGMENT_PADDING_RATIO):
            longest = group[0].size
            at = torch.arange(longest)
            shapes.append((len(group), longest))
            for span in group:
                places.append((span.row * length + span.start + at) * (at < span.size))
                real.append(at < span.size)
        every, kept = torch.cat(places).to(device), torch.cat(real).to(device)
        return every, shapes, kept, every[kept]

    @functools.cached_property
    def cumulative_lengths(self) -> tuple[Tensor, int]:
        """((documents + 1,) int32, the longest): padding counts as documents."""
        starts = is_document_start(self.document_ids).flatten().nonzero()[:, 0]
        ends = torch.cat([starts, starts.new_tensor([self.document_ids.numel()])]).to(torch.int32)
        return ends, int(ends.diff().max())

    def block_mask(self, window: int) -> Any:
        """FlexAttention's mask of causal attention within documents. window: tokens that a query looks back on, itself
        included; 0: all.

        The blocks follow from where documents begin, so nothing of (T, T) is ever made.
        """
        if window not in self.block_masks:
            self.block_masks[window] = _flex_block_mask(self.document_ids, window)
        return self.block_masks[window]


_rows_of_mask: "WeakIdKeyDictionary" = WeakIdKeyDictionary()  # {mask that `document_mask` made: PackedRows}


def document_mask(document_ids: Tensor, kernel: str) -> Tensor:
    """The mask (B, 1, 1, T) int32 that tells a model's attention which document each token is of, and the kernel to take.
    document_ids: (B, T), 0 in padding."""
    _register()
    mask = document_ids.to(torch.int32)[:, None, None]
    _rows_of_mask[mask] = PackedRows(document_ids, kernel)
    return mask


def usable_kernels(model: Any) -> list[str]:
    """The kernels that a model may be read with, the fastest first; whether it is read rightly is for the check to say."""
    text, device = model.config.get_text_config(), next(model.parameters()).device
    if text._attn_implementation != "sdpa":  # eager attention, whose maps somebody wants, or what the user has chosen
        return []
    if device.type != "cuda" or _attention_dropout(text):
        return [SEGMENTS]
    return list(KERNELS)


def _attention_dropout(config: Any) -> bool:
    """Whether a config drops attention, which neither flex nor varlen does."""
    names = [name for name in config.to_dict() if re.search(r"att.*(drop|pdrop)", name)]
    return any(isinstance(value := getattr(config, name, 0), (int, float)) and value > 0 for name in names)


@functools.cache
def _register() -> None:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    plain = ALL_ATTENTION_FUNCTIONS["sdpa"]
    uncompiled: Callable[..., Tensor] = torch.compiler.disable(
        _attend_within_documents
    )  # here, for it imports the compiler
    ALL_ATTENTION_FUNCTIONS.register("sdpa", functools.partial(_attend, plain, uncompiled))


def _attend(
    plain: Attention,
    within_documents: Callable[..., Tensor],
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """As transformers' attention functions: query (B, H, T, D), key and value with H or fewer heads; (B, T, H, D)."""
    if attention_mask is None or attention_mask.dtype != torch.int32:
        return plain(module, query, key, value, attention_mask, **options)
    return within_documents(plain, module, query, key, value, attention_mask, **options), None


def _attend_within_documents(
    plain: Attention,
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **options: Any,
) -> Tensor:
    if options.get("position_bias") is not None or query.shape[2] != key.shape[2]:
        raise ValueError("packed documents are read without a position bias and without a cache")
    rows = _rows_of_mask.get(mask)
    if rows is None:  # some models slice their mask
        rows = PackedRows(mask[:, 0, 0])
    window = sliding_window or 0
    if rows.kernel == SEGMENTS:
        causal = functools.partial(plain, module, scaling=scaling, **{**options, "is_causal": True})
        return _by_segments(causal, rows, (query, key, value), window)
    kernel = _by_varlen if rows.kernel == VARLEN else _by_flex
    return kernel(rows, query, key, value, scaling, window)


def _by_segments(causal: Attention, rows: PackedRows, inputs: tuple[Tensor, ...], window: int) -> Tensor:
    """Padding on the right of a document needs no mask, since nothing before it looks ahead. Returns (B, T, H, D)."""
    places, shapes, kept, kept_places = rows.segments
    flat = [x.transpose(1, 2).flatten(0, 1) for x in inputs]  # (B · T, heads, D)
    sizes = [documents * length for documents, length in shapes]
    parts = zip(*(x.index_select(0, places).split(sizes) for x in flat), strict=True)
    attended = []
    for shape, part in zip(shapes, parts, strict=True):
        query, key, value = (x.unflatten(0, shape).transpose(1, 2) for x in part)
        attended.append(_causal_in_window(causal, query, key, value, window).flatten(0, 1))
    joined = torch.cat(attended)
    whole = joined.new_zeros(len(flat[0]), *joined.shape[1:]).index_copy(0, kept_places, joined[kept])
    return whole.reshape(*rows.document_ids.shape, *whole.shape[1:])


def _causal_in_window(causal: Attention, query: Tensor, key: Tensor, value: Tensor, window: int) -> Tensor:
    """Causal attention (n, L, H, D), a window of queries at a time where texts are longer than it."""
    length = query.shape[2]
    if not window or length <= window:
        return causal(query, key, value, None)[0]
    pieces = []
    for start in range(0, length, window):
        end, first = min(start + window, length), max(0, start - window + 1)
        back = torch.arange(start, end, device=query.device)[:, None] - torch.arange(first, end, device=query.device)
        seen = ((back >= 0) & (back < window))[None, None]
        pieces.append(causal(query[:, :, start:end], key[:, :, first:end], value[:, :, first:end], seen)[0])
    return torch.cat(pieces, dim=1)


def _by_varlen(rows: PackedRows, query: Tensor, key: Tensor, value: Tensor, scaling: float | None, window: int) -> Tensor:
    from torch.nn.attention import varlen

    attend: Any = varlen.varlen_attn  # its declared type is not that of its arguments
    ends, longest = rows.cumulative_lengths
    flat = [x.transpose(1, 2).flatten(0, 1) for x in (query, key, value)]
    look_back = (window - 1 if window else -1, 0)
    is_grouped = query.shape[1] != key.shape[1]
    attended: Tensor = attend(
        *flat, ends, ends, longest, longest, scale=scaling, window_size=look_back, enable_gqa=is_grouped
    )
    return attended.reshape(*rows.document_ids.shape, *attended.shape[1:])


def _by_flex(rows: PackedRows, query: Tensor, key: Tensor, value: Tensor, scaling: float | None, window: int) -> Tensor:
    attend = _compiled_flex_attention() if query.is_cuda else _flex_attention()
    is_grouped = query.shape[1] != key.shape[1]
    attended = attend(query, key, value, block_mask=rows.block_mask(window), scale=scaling, enable_gqa=is_grouped)
    return attended.transpose(1, 2).contiguous()


def _flex_attention() -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    return flex_attention  # type: ignore[return-value]


@functools.cache
def _compiled_flex_attention() -> Callable[..., Tensor]:
    return torch.compile(_flex_attention())


def _flex_block_mask(document_ids: Tensor, window: int) -> Any:
    from torch.nn.attention.flex_attention import BlockMask

    length = document_ids.shape[1]
    blocks, at = -(-length // FLEX_BLOCK), torch.arange(length, device=document_ids.device)
    is_first = is_document_start(document_ids)
    starts = (at * is_first).cummax(dim=1).values  # (B, T): where the document of each token begins
    if window:
        starts = starts.maximum(at - window + 1)
    first = starts[:, ::FLEX_BLOCK] // FLEX_BLOCK  # starts rise, so the first query of a block looks back farthest
    own = torch.arange(blocks, device=document_ids.device)
    counts = own - first + 1  # (B, blocks)
    indices = (first[:, :, None] + own).clamp(max=blocks - 1)  # (B, blocks, blocks), the first `counts` of each row hold

    def seen(row: Tensor, _: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (key >= starts[row, query])

    return BlockMask.from_kv_blocks(
        counts[:, None].to(torch.int32),
        indices[:, None].to(torch.int32),
        BLOCK_SIZE=FLEX_BLOCK,
        mask_mod=seen,
        seq_lengths=(length, length),
    )
