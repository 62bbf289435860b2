"""Inner states of a model while it runs: outputs of layers, attention maps, queries, keys and values."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from distill_lit.losses.hidden_states import ATTENTION, HIDDEN_STATES, ActivationDims
from distill_lit.models.pruning.architecture import (
    get_decoder_layers,
    get_head_dim,
    get_num_attention_heads,
    get_num_key_value_heads,
    is_transposed,
)
from distill_lit.utils.exceptions import UserError

QUERIES, KEYS, VALUES = "queries", "keys", "values"
PROJECTIONS = {QUERIES: "q_proj", KEYS: "k_proj", VALUES: "v_proj"}
FUSED_QKV_MODULE = "c_attn"  # GPT-2's queries, keys and values, side by side
LayersByKind = Mapping[str, set[int]]  # {what: numbers of layers}
Activations = dict[tuple[str, int], Tensor]


def activation_dims(config: Any) -> ActivationDims:
    """The shape of a model with this transformers config."""
    text = config.get_text_config()
    heads, groups, width = get_num_attention_heads(text), get_num_key_value_heads(text), get_head_dim(text)
    return ActivationDims(text.num_hidden_layers, text.hidden_size, heads, heads * width, groups * width, groups)


@contextmanager
def capture_activations(model: Any, layers_by_kind: LayersByKind) -> Iterator[Activations]:
    """Yields a dict that forward passes inside fill: {(what, layer): state}.

    hidden: (B, T, D), behind a layer, before the final norm; attention: (B, heads, T, T), eager attention only; queries,
    keys, values: (B, T, channels) before any norm or rotation. The states are part of the graph; nothing is copied.
    """
    states: Activations = {}
    layers = get_decoder_layers(model)[1] if any(layers_by_kind.values()) else nn.ModuleList()
    handles = [
        module.register_forward_hook(_capture_hook(states, what, number, module_name))
        for what, numbers in layers_by_kind.items()
        for number in sorted(numbers)
        for module_name, module in [_module(layers[number], what)]
    ]
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()


def _capture_hook(states: Activations, kind: str, layer: int, module_name: str) -> Any:
    def hook(_: Any, inputs: Any, output: Any) -> None:
        if kind == ATTENTION:
            output = output[1]
        elif isinstance(output, tuple):
            output = output[0]
        if module_name == FUSED_QKV_MODULE:
            output = output.chunk(3, -1)[(QUERIES, KEYS, VALUES).index(kind)]
        states[kind, layer] = output

    return hook


def _module(layer: nn.Module, kind: str) -> tuple[str, nn.Module]:
    """(last part of its name, module of a layer) whose output is, or holds, a state."""
    if kind == HIDDEN_STATES:
        return "", layer
    ends = ("self_attn", "attn") if kind == ATTENTION else (PROJECTIONS[kind], FUSED_QKV_MODULE)
    for name, module in layer.named_modules():
        last = name.rsplit(".")[-1]
        if last in ends:
            _check_layout(layer, kind, last, module)
            return last, module
    raise UserError(f"{type(layer).__name__}: no {' or '.join(ends)} was found in it, so its {kind} cannot be compared")


def _check_layout(layer: nn.Module, kind: str, name: str, module: nn.Module) -> None:
    """Raises UserError for a projection whose output is laid out otherwise than it is read: GPT-BigCode's
    c_attn, which interleaves heads or has one key for all, and queries with a gate beside each (Qwen3-Next)."""
    problem = ""
    if name == FUSED_QKV_MODULE and not is_transposed(getattr(module, "base_layer", module)):  # of peft
        problem = f"its {name} is not GPT-2's, queries, keys and values side by side"
    outputs = next((part for end, part in layer.named_modules() if end.rsplit(".")[-1] == "o_proj"), None)
    if name == PROJECTIONS[QUERIES] and getattr(module, "out_features", None) == 2 * getattr(outputs, "in_features", 0):
        problem = f"its {name} makes a gate beside each query"
    if problem:
        raise UserError(f"{type(layer).__name__}: {problem}, so its {kind} cannot be compared")
