"""Low-rank adapters on a student: trained alone, and merged into its weights at the end. Hu et al. 2021, 2106.09685.

They are put into the student itself, so it keeps its class, and body and head are found as before. peft is optional:
`pip install distill-lit[lora]`.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch

from distill_lit.config import LoraConfig
from distill_lit.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ALL_LINEAR = "all-linear"


def check_lora(lora: LoraConfig) -> None:
    """Raises UserError for targets that make no sense, or without peft."""
    if not lora.rank:
        return
    is_list = isinstance(lora.targets, list) and lora.targets and all(isinstance(name, str) for name in lora.targets)
    if lora.targets != ALL_LINEAR and not is_list:
        raise UserError(f"lora.targets: {lora.targets!r} is neither {ALL_LINEAR} nor a list of names such as q_proj")
    if find_spec("peft") is None:
        raise UserError("lora: adapters need peft, which is not installed: pip install 'distill-lit[lora]'")


def add_adapters(model: PreTrainedModel, lora: LoraConfig) -> PreTrainedModel:
    """The same model with adapters inside, everything else frozen. Adapters start at zero: no logit changes."""
    import peft

    config = peft.LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=lora.targets, task_type="CAUSAL_LM"
    )
    ends = {id(model.get_input_embeddings()), id(model.get_output_embeddings())}
    for name, module in model.named_modules():
        if id(module) in ends and isinstance(lora.targets, list) and name.rsplit(".")[-1] in lora.targets:
            raise UserError(f"lora.targets: {name} cannot have an adapter; the fused head reads its weights")
    try:
        peft.inject_adapter_in_model(config, model)
    except ValueError as error:
        raise UserError(f"lora.targets: {str(error).splitlines()[0]}") from error
    return model.eval()


@torch.no_grad()
def merge_adapters(model: PreTrainedModel) -> PreTrainedModel:
    """The same model with adapters merged into its weights and gone; a model without adapters is returned as it is."""
    for name, module in list(model.named_modules()):
        if hasattr(module, "lora_A") and hasattr(module, "get_base_layer"):
            module.merge()
            base: Any = module.get_base_layer()
            model.set_submodule(name, base)
    if hasattr(model, "peft_config"):
        del model.peft_config
    return model.requires_grad_(True)


def trained_share(model: PreTrainedModel) -> float:
    """Share of a model's parameters that training changes."""
    sizes = [(int(parameter.numel()), parameter.requires_grad) for parameter in model.parameters()]
    return float(sum(size for size, trained in sizes if trained) / sum(size for size, _ in sizes))
