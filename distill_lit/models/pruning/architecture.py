"""Where a causal language model keeps its layers, heads, neurons and norms, and along which axes its weights are cut.

Known: Llama, Mistral, Qwen2, Qwen3, Gemma 1 to 3 and GPT-2, that is every model made of the parts in `WEIGHT_AXES`. A model
with any other weight is refused rather than cut wrongly.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from distill_lit.utils.exceptions import UserError, one_line_message

if TYPE_CHECKING:
    from transformers import PreTrainedModel

HIDDEN_AXIS, QUERY_AXIS, KEY_VALUE_AXIS, FFN_AXIS, FUSED_QKV_AXIS, UNPRUNED_AXIS = (
    "hidden",
    "query",
    "key",
    "inner",
    "fused",
    "whole",
)

# end of a module's name: axes of its weight, outputs first (a Conv1D stores inputs first)
WEIGHT_AXES: dict[str, tuple[str, ...]] = {
    "embed_tokens": (UNPRUNED_AXIS, HIDDEN_AXIS),
    "wte": (UNPRUNED_AXIS, HIDDEN_AXIS),
    "wpe": (UNPRUNED_AXIS, HIDDEN_AXIS),
    "lm_head": (UNPRUNED_AXIS, HIDDEN_AXIS),
    "self_attn.q_proj": (QUERY_AXIS, HIDDEN_AXIS),
    "self_attn.k_proj": (KEY_VALUE_AXIS, HIDDEN_AXIS),
    "self_attn.v_proj": (KEY_VALUE_AXIS, HIDDEN_AXIS),
    "self_attn.o_proj": (HIDDEN_AXIS, QUERY_AXIS),
    "attn.c_attn": (FUSED_QKV_AXIS, HIDDEN_AXIS),
    "attn.c_proj": (HIDDEN_AXIS, QUERY_AXIS),
    "mlp.gate_proj": (FFN_AXIS, HIDDEN_AXIS),
    "mlp.up_proj": (FFN_AXIS, HIDDEN_AXIS),
    "mlp.down_proj": (HIDDEN_AXIS, FFN_AXIS),
    "mlp.c_fc": (FFN_AXIS, HIDDEN_AXIS),
    "mlp.c_proj": (HIDDEN_AXIS, FFN_AXIS),
}
ATTENTION_OUTPUTS, FFN_OUTPUTS = ("self_attn.o_proj", "attn.c_proj"), ("mlp.down_proj", "mlp.c_proj")
QK_NORMS = ("q_norm", "k_norm")


def get_decoder_layers(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """(dotted name, list) of a model's decoder layers: the module list as long as the config says."""
    count = model.config.get_text_config().num_hidden_layers
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count and name.rsplit(".")[-1] in ("layers", "h", "blocks"):
            return name, module
    raise UserError(f"{type(model).__name__}: its decoder layers were not found, so it cannot be pruned")


def weighted_modules(model: PreTrainedModel) -> Iterator[tuple[str, nn.Module, tuple[str, ...]]]:
    """(dotted name, module, axes of its weight) of every module that has weights of its own.

    Raises UserError for the first one that is not known.
    """
    config = model.config.get_text_config()
    for name, module in model.named_modules(remove_duplicate=False):
        if not any(True for _ in module.parameters(recurse=False)):
            continue
        parts = next((axes for end, axes in WEIGHT_AXES.items() if name == end or name.endswith(f".{end}")), None)
        weight = getattr(module, "weight", None)
        if parts is None and weight is not None and weight.ndim == 1:
            if name.rsplit(".")[-1] in QK_NORMS and len(weight) == get_head_dim(config):
                parts = (UNPRUNED_AXIS,)
            elif "norm" in type(module).__name__.lower() and len(weight) == config.hidden_size:
                parts = (HIDDEN_AXIS,)
        if parts is None:
            raise UserError(f"width: {type(model).__name__} has a part {name!r} that width pruning does not know")
        yield name, module, parts


def residual_norms(model: PreTrainedModel) -> dict[str, nn.Module]:
    """{dotted name: norm} of all norms as wide as the residual stream."""
    return {name: module for name, module, axes in weighted_modules(model) if axes == (HIDDEN_AXIS,)}


def final_norm(model: PreTrainedModel) -> str:
    """The dotted name of the norm in front of the head."""
    layers, _ = get_decoder_layers(model)
    return next(name for name in residual_norms(model) if not name.startswith(f"{layers}."))


@torch.no_grad()
def subtracts_mean(norm: nn.Module) -> bool:
    """Whether a norm of the residual stream is a LayerNorm, whatever its class: it says the same of a shifted input."""
    x = _standardized_input(norm)
    plain, shifted = norm(x).float(), norm(x + 1).float()
    return bool((shifted - plain).norm() < 0.1 * plain.norm())


@torch.no_grad()
def weight_offset(norm: nn.Module) -> float:
    """What a norm of the residual stream adds to its weight before it multiplies: 1 in Gemma and Nemotron, else 0."""
    x, own = _standardized_input(norm), norm.get_parameter("weight")
    said = (norm(x) - norm(-x)).float() / 2  # without a bias
    return float(((said - own.float() * x.float()) * x.float()).mean().round())


def _standardized_input(norm: nn.Module) -> Tensor:
    """(D,) numbers with mean 0 and mean square 1."""
    weight = norm.get_parameter("weight")
    x = torch.linspace(-1, 1, len(weight), device=weight.device)
    return (x / x.square().mean().sqrt()).to(weight.dtype)


def submodules(model: PreTrainedModel, ends: tuple[str, ...]) -> list[nn.Module]:
    """The module of each layer, in order, whose name below the layer is one of `ends`."""
    found = []
    for layer in get_decoder_layers(model)[1]:
        match = [module for name, module in layer.named_modules() if name in ends]
        if len(match) != 1:
            raise UserError(f"{type(model).__name__}: a layer has {len(match)} modules of {', '.join(ends)}, not one")
        found.append(match[0])
    return found


def get_num_attention_heads(config: Any) -> int:
    """Query heads of a layer; 0 for a model without attention, as Mamba or RWKV."""
    return int(getattr(config, "num_attention_heads", None) or 0)


def get_head_dim(config: Any) -> int:
    """Channels of one attention head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // max(get_num_attention_heads(config), 1))


def get_num_key_value_heads(config: Any) -> int:
    """Key-value heads; as many as query heads where a config does not say."""
    return int(getattr(config, "num_key_value_heads", None) or get_num_attention_heads(config))


def get_intermediate_size(config: Any) -> int:
    """Neurons of a layer's feed-forward part. Raises UserError where a config has no number of them for all layers."""
    if config.model_type == "gpt2":
        return int(config.n_inner or 4 * config.hidden_size)
    size = getattr(config, "intermediate_size", None)
    if not isinstance(size, int):
        raise UserError(f"width: {config.model_type} names no intermediate_size of all layers; only layers can be cut")
    return size


def is_transposed(module: nn.Module) -> bool:
    """Whether its weight is stored with the inputs first."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, Conv1D)


def rebuild(model: PreTrainedModel, config: Any, weights: dict[str, torch.Tensor]) -> PreTrainedModel:
    """A model of `config` with exactly these weights, in the number format and with the generation config of `model`.

    Raises UserError where such a model has other weights, as when the kind of a layer depends on its number.
    """
    from transformers import AutoModelForCausalLM

    try:
        student: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=model.dtype)
    except Exception as error:  # whatever the architecture's own code makes of such a config
        raise UserError(f"{type(model).__name__}: no smaller model can be built: {one_line_message(error)}") from error
    try:
        student.load_state_dict(weights)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise UserError(f"{type(model).__name__}: its parts do not fit a smaller model: {reason}") from error
    student.tie_weights()
    student.generation_config = model.generation_config
    return student.eval()
