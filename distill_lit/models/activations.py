"""Inner states of a model while it runs: outputs of layers, attention maps, queries, keys and values."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn

from distill_lit.models.pruning.architecture import attention_heads, head_width, key_value_heads, layer_list
from distill_lit.utils.exceptions import UserError

HIDDEN, ATTENTION, QUERIES, KEYS, VALUES = "hidden", "attention", "queries", "keys", "values"
PROJECTIONS = {QUERIES: "q_proj", KEYS: "k_proj", VALUES: "v_proj"}
FUSED = "c_attn"  # GPT-2's queries, keys and values, side by side
Wanted = Mapping[str, set[int]]  # {what: numbers of layers}
States = dict[tuple[str, int], Tensor]


class Shape(NamedTuple):
    """What a model's inner states look like: layers; channels of a hidden state; heads; channels of all queries, of all
    keys or values."""

    layers: int
    hidden: int
    heads: int
    queries: int
    keys: int
    key_value_heads: int


def shape_of(config: Any) -> Shape:
    """The shape of a model with this transformers config."""
    text = config.get_text_config()
    heads, groups, width = attention_heads(text), key_value_heads(text), head_width(text)
    return Shape(text.num_hidden_layers, text.hidden_size, heads, heads * width, groups * width, groups)


@contextmanager
def watching(model: Any, wanted: Wanted) -> Iterator[States]:
    """Yields a dict that forward passes inside fill: {(what, layer): state}.

    hidden: (B, T, D), behind a layer, before the final norm; attention: (B, heads, T, T), eager attention only; queries,
    keys, values: (B, T, channels) before any norm or rotation. The states are part of the graph; nothing is copied.
    """
    states: States = {}
    layers = layer_list(model)[1] if any(wanted.values()) else nn.ModuleList()
    handles = [
        module.register_forward_hook(_keep(states, what, number, module_name))
        for what, numbers in wanted.items()
        for number in sorted(numbers)
        for module_name, module in [_module(layers[number], what)]
    ]
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()


def _keep(states: States, what: str, layer: int, module_name: str) -> Any:
    def hook(_: Any, inputs: Any, output: Any) -> None:
        if what == ATTENTION:
            output = output[1]
        elif isinstance(output, tuple):
            output = output[0]
        if module_name == FUSED:
            output = output.chunk(3, -1)[(QUERIES, KEYS, VALUES).index(what)]
        states[what, layer] = output

    return hook


def _module(layer: nn.Module, what: str) -> tuple[str, nn.Module]:
    """(last part of its name, module of a layer) whose output is, or holds, a state."""
    if what == HIDDEN:
        return "", layer
    ends = ("self_attn", "attn") if what == ATTENTION else (PROJECTIONS[what], FUSED)
    for name, module in layer.named_modules():
        last = name.rsplit(".")[-1]
        if last in ends:
            return last, module
    raise UserError(f"{type(layer).__name__}: no {' or '.join(ends)} was found in it, so its {what} cannot be compared")
