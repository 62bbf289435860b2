"""Whether a model reads packed documents as it reads them alone: found out by comparing, once per model and row length.

Rows of random tokens, one of them filled by a single document, are read in each layout under the attention that will be
used, and every document is read alone by the plain model. The last hidden states must agree. The tokens depend on the
model's vocabulary only, so a run that goes on decides as it did before.
"""

import logging
import threading
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn

from distill_lit.losses.hidden_states import HIDDEN_STATES
from distill_lit.losses.lm_head import get_lm_head
from distill_lit.models.activations import Activations, capture_activations
from distill_lit.models.backbone import get_backbone
from distill_lit.models.dummy_inputs import (
    dummy_documents,
    pack_dummy_documents,
    replace_every_token,
    split_by_document,
    text_token_ids,
)
from distill_lit.models.packed_attention import KERNELS, usable_kernels
from distill_lit.models.packed_forward import (
    MASK_PER_LAYER_TYPE,
    ONE_MASK,
    PADDED,
    POSITION_RESETS,
    UNPADDED,
    ForwardPass,
    PackedBatch,
    has_length_dependent_rope,
    has_local_attention,
    has_maskable_layer_types,
    pad_right,
    plan_forward_passes,
    run_backbone,
    scatter_attention_maps,
    scatter_to_packed,
    uncompiled_eval_mode,
)
from distill_lit.models.pruning.architecture import get_decoder_layers
from distill_lit.models.quantization import is_quantized
from distill_lit.utils.distributed.ranks import is_sharded
from distill_lit.utils.exceptions import UserError, one_line_message

log = logging.getLogger(__name__)
# whatever a model raises that cannot read what it is given
FORWARD_ERRORS = (RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError, AssertionError)
# relative error of a hidden state from which two are not the same; of sums in another order it is a hundredth
HIDDEN_STATE_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3}
# bfloat16, float16 and int8, of the mean over a document's tokens: one may choose other experts
LOW_PRECISION_HIDDEN_STATE_TOLERANCE = 0.15
# times what the length of a row alone changes; at least this share of the tolerance
ROUNDING_NOISE_MULTIPLE, MIN_TOLERANCE_FRACTION = 20, 0.2
PLAIN_INPUTS = ("input_ids", "attention_mask", "position_ids")  # what is read of a batch that is not packed
MIN_CHECKED_TOKENS = 16  # tokens of a row that is checked
MIN_KERNEL_TOKENS = 2048  # of a row, from which a kernel is faster than a mask; benchmarks/packed_attention.md
CHECK_LOCK = threading.RLock()  # threads may share a model, and its hooks


class LayoutChoice(NamedTuple):
    """How a model reads packed rows. fallback_reason: what kept it from a faster layout, empty for the first."""

    layout: str
    fallback_reason: str = ""


_readings: "WeakKeyDictionary[nn.Module, dict[tuple[int, str, str, bool], LayoutChoice]]" = WeakKeyDictionary()
_packed_attention: "WeakKeyDictionary[nn.Module, str]" = WeakKeyDictionary()
_checked_lm_heads: "WeakSet[nn.Module]" = WeakSet()


def use_packed_attention(choice: str, *models: Any) -> None:
    """How models attend within the documents of packed rows from now on: `training.packed_attention`."""
    for model in models:
        _packed_attention[model] = choice


def last_hidden_state(model: Any, batch: PackedBatch, activations: Activations | None = None) -> Tensor:
    """Hidden states (B, T, D) after the final norm, each document as if it were alone.

    batch: packed rows, `input_ids`, `position_ids`, `document_ids`, each (B, T); or, without document_ids, any batch of
    transformers, `input_ids` and perhaps `attention_mask` and `position_ids`, read as the model itself reads it.
    activations: what hooks note during a forward pass, brought into the shape of the batch. Raises UserError for a model
    that cannot read documents side by side.
    """
    if "document_ids" not in batch:
        return _read_plain_batch(model, batch)
    return _forward_in_layout(model, batch, choose_layout(model, batch["input_ids"].shape[1]).layout, activations)


def _read_plain_batch(model: Any, batch: PackedBatch) -> Tensor:
    """As the model's own forward reads it, once it is known that the lm_head makes its logits of these hidden states."""
    with CHECK_LOCK:
        if model not in _checked_lm_heads:
            with uncompiled_eval_mode(model):
                text = dummy_documents(model, MIN_CHECKED_TOKENS)[0]
                hidden = _plain_last_hidden_state(model, text)
                _check_lm_head(model, text, hidden)
                _check_backbone(model, text, hidden)
            _checked_lm_heads.add(model)
    inputs: dict[str, Any] = {name: batch[name] for name in PLAIN_INPUTS if name in batch}
    return run_backbone(model, ForwardPass(inputs, torch.ones(0)))


def unpacked_model_inputs(model: Any, batches: list[PackedBatch]) -> list[PackedBatch]:
    """Packed batches as a model's own inputs, each with `valid` (n, L) bool: not padding."""
    return [
        {**part.inputs, "valid": part.valid}
        for batch in batches
        for part in plan_forward_passes(model, batch, choose_layout(model, batch["input_ids"].shape[1]).layout)
    ]


def hidden_states_of_texts(model: Any, texts: list[list[int]]) -> list[Tensor]:
    """Last hidden states (tokens, D) of token sequences that are read side by side, one a row."""
    batch = pad_right(texts, next(model.parameters()).device)
    hidden = _forward_in_layout(model, batch, choose_layout(model, batch["input_ids"].shape[1], is_packed=False).layout)
    return [row[: len(text)] for row, text in zip(hidden, texts, strict=True)]


def forget_checks(model: Any) -> None:
    """Has the model compared again when it is next read: of a sharded one, all ranks must do so together."""
    with CHECK_LOCK:
        _readings.pop(model, None)
        _checked_lm_heads.discard(model)


def choose_layout(model: Any, length: int, is_packed: bool = True) -> LayoutChoice:
    """How a model reads rows of `length` tokens; is_packed: of several documents. Remembered for this model.

    Raises UserError where no layout gives what the plain model gives, naming the first layer that differs.
    """
    size, attention = checked_size(model.config, length), _packed_attention.get(model, "auto")
    key = size, str(model.config.get_text_config()._attn_implementation), attention, is_packed
    with CHECK_LOCK:
        known = _readings.setdefault(model, {})
        if key not in known:
            with uncompiled_eval_mode(model):
                known[key] = _compare_layouts(model, size, attention, is_packed)
            if known[key].layout in (PADDED, UNPADDED) and any(map(is_sharded, model.parameters())):
                raise UserError(
                    f"training.strategy: fsdp cannot be with {type(model).__name__}, whose documents are read one by one, "
                    f"so that ranks would read in different numbers of passes ({known.pop(key).fallback_reason}); take ddp"
                )
            if is_packed and known[key].layout in (PADDED, UNPADDED):
                log.warning(
                    "%s; every document is read in a row of its own, which takes longer", known[key].fallback_reason
                )
        return known[key]


def checked_size(config: Any, length: int) -> int:
    """The next power of two, so that rows of any length ask for few checks; at most the model's positions."""
    size = max(MIN_CHECKED_TOKENS, 1 << (length - 1).bit_length())
    most = getattr(config.get_text_config(), "max_position_embeddings", None) or size
    return min(size, max(int(most), length))


def _compare_layouts(model: Any, size: int, attention: str, is_packed: bool) -> LayoutChoice:
    name, fallback_reason = type(model).__name__, ""
    documents = dummy_documents(model, size)
    reference = [_plain_last_hidden_state(model, text) for text in documents]
    _check_lm_head(model, documents[0], reference[0])
    tolerance = _tolerance(model, documents[1], reference[1])
    alone_or_padded = [UNPADDED] if has_length_dependent_rope(model.config) else [PADDED, UNPADDED]
    layouts = [*(_packing(model, size, attention) if is_packed else []), *alone_or_padded]
    if is_packed and attention in KERNELS:
        layouts = [attention]
    for layout in layouts:
        problem = _layout_problem(model, documents, reference, layout, tolerance)
        if not problem and layout not in alone_or_padded and _leaks(model, documents, layout):
            problem = "in one row, documents change those after them"
        if not problem:
            return LayoutChoice(layout, fallback_reason)
        if layout not in KERNELS or attention == layout:
            fallback_reason = fallback_reason or f"{name}: {problem}"
    if layouts == [attention]:
        raise UserError(f"training.packed_attention: {attention}: {fallback_reason}; auto takes one that suits the model")
    raise UserError(f"{fallback_reason}; it cannot be distilled here")


def _packing(model: Any, size: int, attention: str) -> list[str]:
    """The layouts with several documents in a row that may suit a model. One mask would hide a window that the check's
    tokens hardly use."""
    config = model.config
    return [
        *(usable_kernels(model) if attention == "auto" and size >= MIN_KERNEL_TOKENS else []),
        *([] if has_local_attention(config, size) else [ONE_MASK]),
        *([MASK_PER_LAYER_TYPE] if has_maskable_layer_types(config) else []),
        POSITION_RESETS,
    ]


def _layout_problem(model: Any, documents: list[list[int]], alone: list[Tensor], layout: str, tolerance: float) -> str:
    """How a layout fails to give the hidden states of documents alone, or nothing."""
    batch = pack_dummy_documents(documents, next(model.parameters()).device)
    try:
        actual = split_by_document(batch, _forward_in_layout(model, batch, layout))
    except FORWARD_ERRORS as error:
        return f"it cannot be read so ({type(error).__name__}: {one_line_message(error)[:200]})"
    deviation = max(relative_error(model, *pair) for pair in zip(actual, alone, strict=True))
    if deviation <= tolerance:  # NaN is no agreement
        return ""
    layer = _first_layer_apart(model, documents, batch, layout, tolerance)
    return f"documents in one row are not read as alone, from {layer} on (relative difference {deviation:.2g})"


def _leaks(model: Any, documents: list[list[int]], layout: str) -> bool:
    """Whether a document in a row changes those after it, in number formats whose rounding would hide a little of it.

    With the same shapes nothing else may change them, but what two texts of a batch do to each other: experts round
    otherwise with other company.
    """
    device = next(model.parameters()).device
    if not _is_rounded(model):
        return False
    first, second = documents[0], documents[1]
    others = [replace_every_token(model, text) for text in (first, second)]
    read = [
        split_by_document(b, _forward_in_layout(model, b, layout))
        for b in (pack_dummy_documents([t, *documents[1:]], device) for t in (first, others[0]))
    ]
    company = [
        run_backbone(model, ForwardPass({"input_ids": torch.tensor([second, beside], device=device)}, torch.ones(0)))[0]
        for beside in (second[::-1], others[1])
    ]
    deviation = max(relative_error(model, *pair) for pair in zip(read[0][1:], read[1][1:], strict=True))
    return not deviation <= 2 * relative_error(model, *company)


def _forward_in_layout(model: Any, batch: PackedBatch, layout: str, states: Activations | None = None) -> Tensor:
    """As `last_hidden_state`, in a layout."""
    parts, hidden, captured = plan_forward_passes(model, batch, layout), [], []
    for part in parts:
        hidden.append(run_backbone(model, part))
        captured.append(dict(states or {}))
    if states is not None:
        for name, value in captured[0].items():
            join = scatter_attention_maps if value.ndim == 4 else scatter_to_packed
            states[name] = join([values[name] for values in captured], parts, batch["input_ids"].shape)
    return scatter_to_packed(hidden, parts, batch["input_ids"].shape)


def _plain_last_hidden_state(model: Any, text: list[int]) -> Tensor:
    """The last hidden states (T, D) of a document that the plain model reads. Raises UserError where it cannot."""
    name, found = type(model).__name__, []
    hook = get_backbone(model).register_forward_hook(lambda _, __, output: found.append(output.last_hidden_state))
    try:
        _plain_forward(model, torch.tensor([text], device=next(model.parameters()).device))
    except FORWARD_ERRORS as error:
        reason = f"{type(error).__name__}: {one_line_message(error)[:200]}"
        raise UserError(f"{name} cannot read {len(text)} tokens ({reason})") from error
    finally:
        hook.remove()
    if len(found) != 1 or found[0].shape[:2] != (1, len(text)):
        raise UserError(f"{name}: its backbone does not read a text once and whole, so it cannot be distilled here")
    if not bool(torch.isfinite(found[0]).all()):
        raise UserError(f"{name}: its hidden states are not finite: damaged weights, or too large for their number format")
    hidden: Tensor = found[0][0]
    return hidden.to(model.get_output_embeddings().weight.dtype)


def _check_lm_head(model: Any, text: list[int], hidden: Tensor) -> None:
    """Raises UserError unless the lm_head alone makes the model's own logits of these hidden states (T, D)."""
    head = get_lm_head(model, model.get_output_embeddings().weight.shape[0])
    theirs = _plain_forward(model, torch.tensor([text], device=hidden.device)).logits[0]
    usual, width = text_token_ids(model), head.weight.shape[1]
    ours = head.scale_and_cap(head.project(hidden)) if width == hidden.shape[1] else hidden
    is_same = ours.shape == theirs.shape and relative_error(
        model, ours[:, usual], theirs[:, usual]
    ) <= MIN_TOLERANCE_FRACTION * max_relative_error(model)
    if not is_same:
        name = type(model).__name__
        raise UserError(f"{name}: its logits are not lm_head and last hidden states alone, so it cannot be distilled here")


def _check_backbone(model: Any, text: list[int], hidden: Tensor) -> None:
    """Raises UserError unless the backbone alone makes these hidden states (T, D), as it does not where what stands around
    it gives it more than a text: prefixes that are trained."""
    alone = run_backbone(model, ForwardPass({"input_ids": torch.tensor([text], device=hidden.device)}, torch.ones(0)))[0]
    if not relative_error(model, alone, hidden) <= max_relative_error(model):
        name = type(model).__name__
        raise UserError(
            f"{name}: its backbone alone does not read a text as the whole does, so it cannot be distilled here"
        )


def _tolerance(model: Any, text: list[int], alone: Tensor) -> float:
    """The difference from which hidden states are not the same: some times the difference that rows of another length make
    by rounding. Raises UserError for a model in which later tokens change earlier ones."""
    half = len(text) // 2
    most = max_relative_error(model)
    noise = relative_error(model, _plain_last_hidden_state(model, text[:half]), alone[:half])
    if not noise <= most:
        raise UserError(
            f"{type(model).__name__}: later tokens change what it makes of earlier ones (relative difference {noise:.2g}), "
            "so it is no causal language model as it is configured"
        )
    return min(most, max(most * MIN_TOLERANCE_FRACTION, ROUNDING_NOISE_MULTIPLE * noise))


def _is_rounded(model: Any) -> bool:
    """Whether it computes in a short number format, or with quantized weights: single tokens may jump."""
    return is_quantized(model) or next(model.parameters()).dtype not in HIDDEN_STATE_TOLERANCE


def max_relative_error(model: Any) -> float:
    """From which on two hidden states are not the same, as `relative_error` measures."""
    if _is_rounded(model):
        return LOW_PRECISION_HIDDEN_STATE_TOLERANCE
    return HIDDEN_STATE_TOLERANCE[next(model.parameters()).dtype]


def relative_error(model: Any, actual: Tensor, expected: Tensor) -> float:
    """Relative error of hidden states or logits (T, D) of a model: of the worst token, or where it rounds of the mean."""
    wide = actual.dtype if actual.dtype == torch.float64 else torch.float32
    error = (actual.to(wide) - expected.to(wide)).norm(dim=-1) / expected.to(wide).norm(dim=-1).clamp(min=1e-30)
    return float(error.mean() if _is_rounded(model) else error.max())


def _first_layer_apart(model: Any, documents: list[list[int]], batch: PackedBatch, layout: str, tolerance: float) -> str:
    """The first layer whose outputs differ: its number and its class."""
    try:
        layers = get_decoder_layers(model)[1]
        layers_by_kind, plain = {HIDDEN_STATES: set(range(len(layers)))}, []
        with capture_activations(model, layers_by_kind) as packed:
            _forward_in_layout(model, batch, layout, packed)
        for text in documents:
            with capture_activations(model, layers_by_kind) as states:
                _plain_forward(model, torch.tensor([text], device=batch["input_ids"].device))
            plain.append(states)
        for number, layer in enumerate(layers):
            alone = [states[HIDDEN_STATES, number][0] for states in plain]
            pairs = zip(split_by_document(batch, packed[HIDDEN_STATES, number]), alone, strict=True)
            if not max(relative_error(model, *pair) for pair in pairs) <= tolerance:
                return f"layer {number} ({type(layer).__name__})"
    except (UserError, *FORWARD_ERRORS):
        return "a layer that cannot be told"
    return "what follows the last layer"


def _plain_forward(model: Any, ids: Tensor) -> Any:
    return model(input_ids=ids, use_cache=False)
