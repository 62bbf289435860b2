"""Models in fewer bits, by recipes of torchao: the teacher in int8, which every distilled student must beat, and students
after their training. Weight-only recipes leave activations as they are. `quantization_aware` has the same recipes during
training."""

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from distill_lit.config.fields import Quantization
from distill_lit.models.export import export_student
from distill_lit.models.int4_weights import GROUP_SIZE, Int4Linear, pack_int4, widen_int4_weights
from distill_lit.models.int8_products import use_fast_int8_products
from distill_lit.models.loading import build_on_meta, load_model
from distill_lit.utils.exceptions import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# in the identity of a run, so that another recipe is another model
INT8_RECIPE = "torchao: int8 weights per output channel, int8 activations per token, head and embeddings as they were"
QUANTIZATION_RECIPES: dict[Quantization, str] = {
    "int8": INT8_RECIPE,
    "int8_weight_only": "torchao: int8 weights per output channel, head and embeddings as they were",
    "int4": f"torchao: int4 weights per group of {GROUP_SIZE} inputs, scale and offset, head and embeddings as they were",
}


def check_torchao(key: str) -> None:
    """Raises UserError, which names the `key` that asks for it, when torchao is not installed."""
    if importlib.util.find_spec("torchao") is None:
        raise UserError(f"{key} needs torchao; pip install 'torchao>=0.16,<0.19'")


def check_quantizable(config: Any, quantization: Quantization, key: str) -> None:
    """Raises UserError where a model of this transformers config cannot be quantized so; no weights are loaded. key: what
    asks for it."""
    check_torchao(key)
    _check_layers(build_on_meta(config), quantization, key)


def _check_layers(model: Any, quantization: Quantization, key: str) -> None:
    layers = quantized_layers(model)
    if not layers:
        raise UserError(f"{key}: {type(model).__name__} has no linear layers besides its head, so nothing to quantize")
    if quantization == "int4":
        for name, layer in layers.items():
            if layer.in_features % GROUP_SIZE:
                raise UserError(
                    f"{key}: int4 has a scale for every {GROUP_SIZE} inputs, and {name} has {layer.in_features}; "
                    "take int8 or int8_weight_only"
                )


def quantized_layers(model: Any) -> dict[str, nn.Linear]:
    """{name: linear layer} of those that recipes quantize: all but the head, which is often the embeddings' too."""
    head = model.get_output_embeddings()
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head and module.weight is not head.weight
    }


@torch.no_grad()
def quantize_weights(model: "PreTrainedModel", quantization: Quantization) -> "PreTrainedModel":
    """The same model, its linear layers quantized in place; `save_pretrained` then writes them so.

    Rounding is to the nearest, from the weights alone: no text is read. torch's own `quantize_dynamic` is deprecated, and
    scales whole batches by one number, so that an answer depends on its neighbours; torchao scales every token alone.
    Raises UserError where a layer does not divide into groups.
    """
    from torchao.quantization import (
        Int4WeightOnlyConfig,
        Int8DynamicActivationInt8WeightConfig,
        Int8WeightOnlyConfig,
        quantize_,
    )
    from transformers import TorchAoConfig
    from transformers.quantizers.quantizer_torchao import TorchAoHfQuantizer

    _check_layers(model, quantization, f"quantize: {quantization}")
    layers = quantized_layers(model)
    if quantization == "int4":  # torchao's own packing is in `mslk`, for GPUs
        recipe: Any = Int4WeightOnlyConfig(group_size=GROUP_SIZE)
        for layer in layers.values():
            layer.weight = nn.Parameter(pack_int4(layer.weight), requires_grad=False)
    else:
        recipe = Int8DynamicActivationInt8WeightConfig() if quantization == "int8" else Int8WeightOnlyConfig()
        chosen = set(map(id, layers.values()))
        quantize_(model, recipe, filter_fn=lambda module, _: id(module) in chosen)
        use_fast_int8_products()
    model.config.quantization_config = TorchAoConfig(recipe)
    model.hf_quantizer = TorchAoHfQuantizer(model.config.quantization_config, pre_quantized=False)
    return model


def round_weights(model: "PreTrainedModel", quantization: Quantization) -> "PreTrainedModel":
    """The same model with its linear layers in fewer bits, in memory alone: int4 weights stay packed. Raises UserError for
    one that is quantized already."""
    if is_quantized(model):
        raise UserError("teacher.quantize: its weights are quantized already, and rounding twice is another model")
    if quantization != "int4":
        return quantize_weights(model, quantization)
    _check_layers(model, quantization, "teacher.quantize")
    for name, layer in quantized_layers(model).items():
        model.set_submodule(name, Int4Linear(layer))
    return model


def quantize_model(folder: Path, target: Path, quantization: Quantization) -> "PreTrainedModel":
    """Writes the model in `folder` to `target` with its linear layers quantized, and returns it, int4 weights widened.

    The result is a transformers folder (safetensors) like any other. Raises UserError for a model that is quantized
    already, or whose layers do not divide into groups.
    """
    model = load_model(folder)
    if is_quantized(model):
        raise UserError(f"{folder}: is quantized already, and rounding twice is another model; take the one it is from")
    quantize_weights(model, quantization)
    export_student(model, folder, target, f"# {quantization}\n\n{QUANTIZATION_RECIPES[quantization]}\n")
    widen_int4_weights(model)
    return model


def is_quantized(model: torch.nn.Module) -> bool:
    """Whether weights are kept in fewer bits than they are computed with: rounding then jumps, and small differences
    in the order of sums do not stay small."""
    return getattr(getattr(model, "config", None), "quantization_config", None) is not None
