"""Whether a model reads packed documents as it reads them alone: found out by comparing, once per model and row length.

Rows of random tokens, one of them filled by a single document, are read in each layout under the attention that will be
used, and every document is read alone by the plain model. The last hidden states must agree. The tokens depend on the
model's vocabulary only, so a run that goes on decides as it did before.
"""

import logging
import threading
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from distill_lit.losses.lm_head import head_of
from distill_lit.models.activations import HIDDEN, States, watching
from distill_lit.models.backbone import body_of
from distill_lit.models.dummy_inputs import by_document, check_documents, other_tokens, rows_of, usual_tokens
from distill_lit.models.packed_forward import (
    ALONE,
    MASK_PER_KIND,
    ONE_MASK,
    PADDED,
    POSITIONS,
    Batch,
    Part,
    as_evaluated,
    gather,
    gather_maps,
    local_window,
    masks_are_known,
    pad_right,
    run_backbone,
    scales_with_length,
    split_batch,
)
from distill_lit.models.pruning.architecture import layer_list
from distill_lit.utils.exceptions import UserError, in_one_line

log = logging.getLogger(__name__)
# whatever a model raises that cannot read what it is given
CANNOT = (RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError, AssertionError)
# relative error of a hidden state from which two are not the same; of sums in another order it is a hundredth
TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3}
LOOSE_TOLERANCE = 0.15  # bfloat16, float16 and int8, of the mean over a document's tokens: one may choose other experts
NOISE, FLOOR = 20, 0.2  # times what the length of a row alone changes; at least this share of the tolerance
SHORTEST = 16  # tokens of a row that is checked
CHECKING = threading.RLock()  # threads may share a model, and its hooks


class Reading(NamedTuple):
    """How a model reads packed rows. why: what kept it from a faster layout, empty for the first."""

    layout: str
    why: str = ""


_readings: "WeakKeyDictionary[nn.Module, dict[tuple[int, str, bool], Reading]]" = WeakKeyDictionary()


def last_hidden(model: Any, batch: Batch, states: States | None = None) -> Tensor:
    """Hidden states (B, T, D) after the final norm, each document as if it were alone.

    batch: `input_ids`, `position_ids`, `document_ids`, each (B, T). states: what hooks note during a forward pass, brought
    into the shape of the batch. Raises UserError for a model that cannot read documents side by side.
    """
    return _read(model, batch, self_check(model, batch["input_ids"].shape[1]).layout, states)


def model_batches(model: Any, batches: list[Batch]) -> list[Batch]:
    """Packed batches as a model's own inputs, each with `valid` (n, L) bool: not padding."""
    return [
        {**part.inputs, "valid": part.valid}
        for batch in batches
        for part in split_batch(model, batch, self_check(model, batch["input_ids"].shape[1]).layout)
    ]


def read_texts(model: Any, texts: list[list[int]]) -> list[Tensor]:
    """Last hidden states (tokens, D) of token sequences that are read side by side, one a row."""
    batch = pad_right(texts, next(model.parameters()).device)
    hidden = _read(model, batch, self_check(model, batch["input_ids"].shape[1], is_packed=False).layout)
    return [row[: len(text)] for row, text in zip(hidden, texts, strict=True)]


def self_check(model: Any, length: int, is_packed: bool = True) -> Reading:
    """How a model reads rows of `length` tokens; is_packed: of several documents. Remembered for this model.

    Raises UserError where no layout gives what the plain model gives, naming the first layer that differs.
    """
    size = checked_size(model.config, length)
    key = size, str(model.config.get_text_config()._attn_implementation), is_packed
    with CHECKING:
        known = _readings.setdefault(model, {})
        if key not in known:
            with as_evaluated(model):
                known[key] = _choose(model, size, is_packed)
            if is_packed and known[key].layout in (PADDED, ALONE):
                log.warning("%s; every document is read in a row of its own, which takes longer", known[key].why)
        return known[key]


def checked_size(config: Any, length: int) -> int:
    """The next power of two, so that rows of any length ask for few checks; at most the model's positions."""
    size = max(SHORTEST, 1 << (length - 1).bit_length())
    most = getattr(config.get_text_config(), "max_position_embeddings", None) or size
    return min(size, max(int(most), length))


def _choose(model: Any, size: int, is_packed: bool) -> Reading:
    name, why = type(model).__name__, ""
    documents = check_documents(model, size)
    alone = [_plainly(model, text) for text in documents]
    _check_lm_head(model, documents[0], alone[0])
    tolerance = _tolerance(model, documents[1], alone[1])
    alone_or_padded = [ALONE] if scales_with_length(model.config) else [PADDED, ALONE]
    for layout in [*(_packing(model.config, size) if is_packed else []), *alone_or_padded]:
        problem = _problem(model, documents, alone, layout, tolerance)
        if not problem and layout not in alone_or_padded and _leaks(model, documents, layout):
            problem = "in one row, documents change those after them"
        if not problem:
            return Reading(layout, why)
        why = why or f"{name}: {problem}"
    raise UserError(f"{why}; it cannot be distilled here")


def _packing(config: Any, size: int) -> list[str]:
    """The layouts with several documents in a row that may suit a model. One mask would hide a window that the check's
    tokens hardly use."""
    return [
        *([] if local_window(config, size) else [ONE_MASK]),
        *([MASK_PER_KIND] if masks_are_known(config) else []),
        POSITIONS,
    ]


def _problem(model: Any, documents: list[list[int]], alone: list[Tensor], layout: str, tolerance: float) -> str:
    """How a layout fails to give the hidden states of documents alone, or nothing."""
    batch = rows_of(documents, next(model.parameters()).device)
    try:
        found = by_document(batch, _read(model, batch, layout))
    except CANNOT as error:
        return f"it cannot be read so ({type(error).__name__}: {in_one_line(error)[:200]})"
    apart = max(distance(mine, other) for mine, other in zip(found, alone, strict=True))
    if apart <= tolerance:  # NaN is no agreement
        return ""
    layer = _first_layer_apart(model, documents, batch, layout, tolerance)
    return f"documents in one row are not read as alone, from {layer} on (relative difference {apart:.2g})"


def _leaks(model: Any, documents: list[list[int]], layout: str) -> bool:
    """Whether a document in a row changes those after it, in number formats whose rounding would hide a little of it.

    With the same shapes nothing else may change them, but what two texts of a batch do to each other: experts round
    otherwise with other company.
    """
    dtype, device = next(model.parameters()).dtype, next(model.parameters()).device
    if most_allowed(model) == TOLERANCE.get(dtype):
        return False
    first, second = documents[0], documents[1]
    others = [other_tokens(model, text) for text in (first, second)]
    read = [
        by_document(b, _read(model, b, layout)) for b in (rows_of([t, *documents[1:]], device) for t in (first, others[0]))
    ]
    company = [
        run_backbone(model, Part({"input_ids": torch.tensor([second, beside], device=device)}, torch.ones(0)))[0]
        for beside in (second[::-1], others[1])
    ]
    apart = max(distance(mine, other) for mine, other in zip(read[0][1:], read[1][1:], strict=True))
    return not apart <= 2 * distance(*company)


def _read(model: Any, batch: Batch, layout: str, states: States | None = None) -> Tensor:
    """As `last_hidden`, in a layout."""
    parts, hidden, noted = split_batch(model, batch, layout), [], []
    for part in parts:
        hidden.append(run_backbone(model, part))
        noted.append(dict(states or {}))
    if states is not None:
        for name, value in noted[0].items():
            join = gather_maps if value.ndim == 4 else gather
            states[name] = join([values[name] for values in noted], parts, batch["input_ids"].shape)
    return gather(hidden, parts, batch["input_ids"].shape)


def _plainly(model: Any, text: list[int]) -> Tensor:
    """The last hidden states (T, D) of a document that the plain model reads. Raises UserError where it cannot."""
    name, found = type(model).__name__, []
    hook = body_of(model).register_forward_hook(lambda _, __, output: found.append(output.last_hidden_state))
    try:
        _read_plainly(model, torch.tensor([text], device=next(model.parameters()).device))
    except CANNOT as error:
        reason = f"{type(error).__name__}: {in_one_line(error)[:200]}"
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
    head = head_of(model, model.get_output_embeddings().weight.shape[0])
    theirs = _read_plainly(model, torch.tensor([text], device=hidden.device)).logits[0]
    usual, width = usual_tokens(model), head.weight.shape[1]
    ours = head.finish(head.project(hidden)) if width == hidden.shape[1] else hidden
    is_same = ours.shape == theirs.shape and distance(ours[:, usual], theirs[:, usual]) <= FLOOR * most_allowed(model)
    if not is_same:
        name = type(model).__name__
        raise UserError(f"{name}: its logits are not lm_head and last hidden states alone, so it cannot be distilled here")


def _tolerance(model: Any, text: list[int], alone: Tensor) -> float:
    """The difference from which hidden states are not the same: some times the difference that rows of another length make
    by rounding. Raises UserError for a model in which later tokens change earlier ones."""
    half = len(text) // 2
    most = most_allowed(model)
    noise = distance(_plainly(model, text[:half]), alone[:half])
    if not noise <= most:
        raise UserError(
            f"{type(model).__name__}: later tokens change what it makes of earlier ones (relative difference {noise:.2g}), "
            "so it is no causal language model as it is configured"
        )
    return min(most, max(most * FLOOR, NOISE * noise))


def most_allowed(model: Any) -> float:
    if getattr(model.config, "quantization_config", None) is not None:
        return LOOSE_TOLERANCE
    return TOLERANCE.get(next(model.parameters()).dtype, LOOSE_TOLERANCE)


def distance(found: Tensor, expected: Tensor) -> float:
    """Relative error of hidden states (T, D): of the worst token, or of the mean in short number formats."""
    wide = found.dtype if found.dtype == torch.float64 else torch.float32
    error = (found.to(wide) - expected.to(wide)).norm(dim=-1) / expected.to(wide).norm(dim=-1).clamp(min=1e-30)
    return float(error.max() if found.dtype in TOLERANCE else error.mean())


def _first_layer_apart(model: Any, documents: list[list[int]], batch: Batch, layout: str, tolerance: float) -> str:
    """The first layer whose outputs differ: its number and its class."""
    try:
        layers = layer_list(model)[1]
        wanted, plain = {HIDDEN: set(range(len(layers)))}, []
        with watching(model, wanted) as packed:
            _read(model, batch, layout, packed)
        for text in documents:
            with watching(model, wanted) as states:
                _read_plainly(model, torch.tensor([text], device=batch["input_ids"].device))
            plain.append(states)
        for number, layer in enumerate(layers):
            pairs = zip(by_document(batch, packed[HIDDEN, number]), plain, strict=True)
            if not max(distance(mine, states[HIDDEN, number][0]) for mine, states in pairs) <= tolerance:
                return f"layer {number} ({type(layer).__name__})"
    except (UserError, *CANNOT):
        return "a layer that cannot be told"
    return "what follows the last layer"


def _read_plainly(model: Any, ids: Tensor) -> Any:
    return model(input_ids=ids, use_cache=False)
