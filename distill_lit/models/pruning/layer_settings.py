"""What a config says of layers by their number, cut along with them, whatever the architecture; and whether that was all.

A config speaks of its layers in lists with an entry for each (`layer_types`), in lists of numbers (`mlp_only_layers`), in
counts of the first or last of them (`first_k_dense_replace`), and in periods (`attn_layer_period`). What it says otherwise,
or what code makes of a layer's number, shows where the logits of a cut are compared with those of the skipped teacher.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from distill_lit.models.dummy_inputs import random_tokens
from distill_lit.models.pruning.architecture import get_decoder_layers
from distill_lit.utils.exceptions import UserError, one_line_message

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NON_LAYER_LIST_SUFFIXES = ("_id", "_ids", "architectures")  # ends of the names of lists that are as long by chance
MOE_LAYER_INDEX_KEYS = ("mlp_only_layers", "moe_layers")
LAYER_INDEX_KEYS = (
    "attn_layer_indices",
    "hybrid_layer_ids",
    "full_attn_idxs",
    "cross_attention_layers",
    *MOE_LAYER_INDEX_KEYS,
)
LEADING_LAYER_COUNT_KEYS = (
    "first_k_dense_replace",
    "num_dense_layers",
    "moe_layer_start_index",
    "moe_num_first_dense_layers",
)
TRAILING_LAYER_COUNT_KEYS = ("num_kv_shared_layers",)
LAYER_PERIOD_PREFIXES = ("attn_layer", "expert_layer")  # …_period and …_offset
PRUNING_LOGIT_TOLERANCE = 1e-4  # of the largest logit, in float32
PRUNING_CHECK_TOKENS = 16  # tokens on which a cut is compared


def layer_settings(config: Any, layers: list[int]) -> dict[str, Any]:
    """What a config says about layers, for these of its layers: {attribute: value}."""
    total = int(config.num_hidden_layers)
    settings: dict[str, Any] = {"num_hidden_layers": len(layers)}
    for name, value in vars(config).items():
        if name in LAYER_INDEX_KEYS:
            if isinstance(value, (list, tuple)):
                settings[name] = [layers.index(i) for i in value if i in layers]
        elif isinstance(value, (list, tuple)) and len(value) == total and _is_per_layer(name, value):
            settings[name] = type(value)(value[i] for i in layers)
        elif name in LEADING_LAYER_COUNT_KEYS and isinstance(value, int):
            settings[name] = sum(i < value for i in layers)
        elif name in TRAILING_LAYER_COUNT_KEYS and isinstance(value, int):
            settings[name] = sum(i >= total - value for i in layers)
    if "attention_layers" in settings and hasattr(config, "attention_types"):  # GPT-Neo's, from which it is read again
        settings["attention_types"] = [[list(settings["attention_layers"]), 1]]
    for name in LAYER_PERIOD_PREFIXES:
        if hasattr(config, f"{name}_period") and hasattr(config, f"{name}_offset"):
            settings |= _period(config, name, layers)
    return settings


def _is_per_layer(name: str, values: Any) -> bool:
    """Whether a list that is as long as there are layers has an entry for each; a pair of limits may be as long."""
    has_name = any(word in name for word in ("layer", "pattern", "type"))
    return not name.endswith(NON_LAYER_LIST_SUFFIXES) and (
        has_name or not any(isinstance(value, float) for value in values)
    )


def _period(config: Any, name: str, layers: list[int]) -> dict[str, int]:
    """A period and an offset that give each of these layers the kind that it had. Raises UserError where there is none."""
    period, offset = getattr(config, f"{name}_period"), getattr(config, f"{name}_offset")
    has_kind = [i % period == offset for i in layers]
    candidates = [(period, offset), *((p, o) for p in range(1, len(layers) + 2) for o in range(p))]
    for p, o in candidates:
        if [i % p == o for i in range(len(layers))] == has_kind:
            return {f"{name}_period": p, f"{name}_offset": o}
    raise UserError(
        f"layers: {name}_period: {period} and {name}_offset: {offset} decide the kind of a layer by its number, and no "
        f"other period gives {layers} the kinds that they have; leave out whole periods"
    )


def apply_settings(config: Any, settings: dict[str, Any]) -> None:
    """Sets them; a validation that looks at several at a time sees all of them."""
    for name, value in settings.items():
        object.__setattr__(config, config.attribute_map.get(name, name), value)


@contextmanager
def skipped_layers(model: PreTrainedModel, layers: list[int]) -> Iterator[None]:
    """Inside, all layers but these hand on what they are given. Each keeps its number, and whatever depends on it."""

    def hand_on(_: Any, arguments: Any, named: Any, output: Any) -> Any:
        state = [*arguments, *named.values()][0]
        return (state, *output[1:]) if isinstance(output, tuple) else state

    everything = get_decoder_layers(model)[1]
    left_out = [module for number, module in enumerate(everything) if number not in layers]
    handles = [module.register_forward_hook(hand_on, with_kwargs=True) for module in left_out]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def check_pruned_logits(model: PreTrainedModel, student: PreTrainedModel, layers: list[int]) -> None:
    """Raises UserError unless a student that keeps these layers of a model, both in float32, says what the model says when
    it skips the others."""
    ids = random_tokens(model, PRUNING_CHECK_TOKENS)[None]
    try:
        with skipped_layers(model, layers):
            expected = _logits(model, ids)
        student_logits = _logits(student, ids)
    except Exception as error:
        raise UserError(
            f"layers: {type(model).__name__} does not run without some of its layers: {one_line_message(error)}"
        ) from error
    deviation = float((student_logits - expected).abs().max()) if student_logits.shape == expected.shape else float("nan")
    largest = float(expected.abs().max())
    if not deviation <= PRUNING_LOGIT_TOLERANCE * max(largest, 1.0):
        raise UserError(
            f"layers: with {layers} {type(model).__name__} does not say what it says when it skips the others (logits "
            f"differ by {deviation:.2g}, the largest is {largest:.2g}): {_reason(model.config.get_text_config(), layers)}"
        )


def _logits(model: Any, ids: Tensor) -> Tensor:
    logits: Tensor = model(input_ids=ids.to(model.device), use_cache=False).logits.float()
    return logits


def _reason(config: Any, layers: list[int]) -> str:
    """What in a config may make a layer depend on its number."""
    words = ("layer_idx", "layer_freq", "_step", "_period", "_pattern", "_interval", "shared_layers", "every_n")
    keys = [name for name, value in config.to_dict().items() if value and any(word in name for word in words)]
    moved = next((number for place, number in enumerate(layers) if place != number), layers[-1])
    if keys:
        return f"{keys[0]}: {config.to_dict()[keys[0]]} makes a layer depend on its number or on another layer"
    return f"layer {moved} would be another layer under its new number, or needs one that is left out"
