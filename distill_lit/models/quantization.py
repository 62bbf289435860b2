"""The teacher in 8-bit integers: the cheapest way to a smaller model, which every distilled student must beat."""

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from distill_lit.models.export import export_student
from distill_lit.models.loading import check_model_folder, config_for_loading
from distill_lit.utils.exceptions import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# in the identity of a run, so that another recipe is another model
INT8_RECIPE = "torchao: int8 weights per output channel, int8 activations per token, head and embeddings as they were"


def check_int8() -> None:
    """Raises UserError when torchao is not installed."""
    if importlib.util.find_spec("torchao") is None:
        raise UserError("baselines: teacher_int8 needs torchao; pip install 'distill-lit[int8]'")


def quantize_int8(folder: Path, target: Path) -> "PreTrainedModel":
    """Writes the model in `folder` to `target` with the linear layers in int8, scaled per token while it runs, and returns
    it.

    The result is a transformers folder (safetensors) like any other. torch's own `quantize_dynamic` is deprecated, and
    scales whole batches by one number, so that an answer depends on its neighbours; torchao scales every token alone.
    """
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig
    from transformers import AutoModelForCausalLM, TorchAoConfig

    check_model_folder(folder)
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        config=config_for_loading(folder),
        dtype=torch.float32,
        quantization_config=TorchAoConfig(Int8DynamicActivationInt8WeightConfig()),
        use_safetensors=True,
        trust_remote_code=False,
        local_files_only=True,
    )
    export_student(model, folder, target, f"# int8\n\n{INT8_RECIPE}\n")
    quantized: PreTrainedModel = model.eval()
    return quantized


def is_quantized(model: torch.nn.Module) -> bool:
    """Whether weights are kept in fewer bits than they are computed with: rounding then jumps, and small differences
    in the order of sums do not stay small."""
    return getattr(getattr(model, "config", None), "quantization_config", None) is not None
