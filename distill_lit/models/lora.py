"""Low-rank adapters on a student: trained alone, and merged into its weights at the end. Hu et al. 2021, 2106.09685.

They are put into the student itself, so it keeps its class, and body and head are found as before. peft is optional
(extra `lora`).
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch

from distill_lit.config import LoraConfig
from distill_lit.utils.exceptions import UserError, one_line_message

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ALL_LINEAR = "all-linear"


def check_lora(lora: LoraConfig) -> None:
    """Raises UserError where adapters are asked for and peft is not there."""
    if lora.rank and find_spec("peft") is None:
        raise UserError("lora: adapters need peft, which is not installed; pip install peft")


def add_adapters(model: PreTrainedModel, lora: LoraConfig) -> PreTrainedModel:
    """The same model with adapters inside, everything else frozen. Adapters start at zero: no logit changes."""
    import peft

    config = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        task_type="CAUSAL_LM",
    )
    ends = {id(model.get_input_embeddings()), id(model.get_output_embeddings())}
    for name, module in model.named_modules():
        if (
            id(module) in ends
            and isinstance(lora.target_modules, list)
            and any(_ends(name, target) for target in lora.target_modules)
        ):
            raise UserError(f"lora.target_modules: {name} cannot have an adapter; the fused head reads its weights")
    try:
        peft.inject_adapter_in_model(config, model)
    except ValueError as error:
        if lora.dropout and "ParamWrapper" in str(error):
            raise UserError("lora.dropout: must be 0 where the experts of a layer share one weight, as here") from error
        raise UserError(f"lora.target_modules: {one_line_message(error)}") from error
    return model.eval()


def _ends(name: str, target: str) -> bool:
    """Whether peft takes a module of this name for a target."""
    return name == target or name.endswith(f".{target}")


def is_adapted(model: PreTrainedModel) -> bool:
    """Whether a model has adapters inside."""
    return hasattr(model, "peft_config")


@torch.no_grad()
def merge_adapters(model: PreTrainedModel) -> PreTrainedModel:
    """The same model with adapters merged into its weights and gone; a model without adapters is returned as it is.

    Adapters on several weights of one module stand around each other (the experts of a layer), and a module that is shared
    has several names: the outermost is put aside, wherever it is, after all of them are merged.
    """
    while adapted := _adapters(model):
        merged: dict[int, Any] = {}
        for name, module in adapted.items():
            if any(name.startswith(f"{other}.") for other in adapted):
                continue  # inside another one, which is put aside first
            if id(module) not in merged:
                merged[id(module)] = _merged(module)
            model.set_submodule(name, merged[id(module)])
    if is_adapted(model):
        del model.peft_config
    return model.requires_grad_(True)


def _adapters(model: PreTrainedModel) -> dict[str, Any]:
    """{dotted name: module that stands around another one and adapts it}, a shared one under all its names."""
    if not is_adapted(model):
        return {}
    from peft.tuners.tuners_utils import BaseTunerLayer

    named = model.named_modules(remove_duplicate=False)
    return {name: module for name, module in named if isinstance(module, BaseTunerLayer)}


def _merged(module: Any) -> Any:
    """What an adapter, or adapters around each other, stand around, with all of them merged into it."""
    if hasattr(module, "unload_and_optionally_merge_module"):
        return module.unload_and_optionally_merge_module(merge=True, safe_merge=False, adapter_names=None)
    module.merge()
    return module.get_base_layer()


def trainable_fraction(model: PreTrainedModel) -> float:
    """Share of a model's parameters that training changes."""
    sizes = [(int(parameter.numel()), parameter.requires_grad) for parameter in model.parameters()]
    return float(sum(size for size, trained in sizes if trained) / sum(size for size, _ in sizes))
