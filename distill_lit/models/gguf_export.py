"""A model folder as one GGUF file, for llama.cpp and what is built on it: weights, config and tokenizer, opened again by
transformers' own reader. The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from distill_lit.config.fields import GGUFQuantization
from distill_lit.models.gguf_tokenizer import check_gguf_tokenizer, write_gguf_tokenizer
from distill_lit.models.loading import load_gguf, load_model, load_model_config, load_tokenizer
from distill_lit.models.reload_check import logits_on, probe_input_ids
from distill_lit.utils.exceptions import UserError, one_line_message
from distill_lit.utils.files import atomic_write
from distill_lit.utils.progress import ProgressCallback

if TYPE_CHECKING:
    from gguf import GGUFWriter
    from transformers import PreTrainedConfig

FOUR_BITS = ("q4_0", "q4_1")  # of which embeddings and head have 8, as llama.cpp gives them more too
BLOCK = 32  # inputs that share a scale
LOGIT_TOLERANCE = 1e-3  # of the largest logit: float32 sums in another order, of weights that are equal


class RoundingEffect(NamedTuple):
    """How far a file is from the model, on random tokens: the largest difference of a logit, and the mean KL divergence of
    the next token's distribution from the model's, in nats."""

    logits: float
    kl: float


class GGUFArchitecture(NamedTuple):
    """How a file calls it; whether queries and keys are in llama.cpp's order of rotary channels; what is added to norms."""

    name: str
    permutes_rotary: bool = False
    norm_offset: float = 0.0
    activation: str = "silu"


ARCHITECTURES = {  # {model_type of a transformers config: how it is written}
    "llama": GGUFArchitecture("llama", permutes_rotary=True),
    "qwen2": GGUFArchitecture("qwen2"),
    "qwen3": GGUFArchitecture("qwen3"),
    "gemma3_text": GGUFArchitecture("gemma3", norm_offset=1.0, activation="gelu_pytorch_tanh"),
}
GEMMA3_LAYERS_PER_FULL_ATTENTION = 6  # files do not hold it: readers know it


def check_gguf_export(folder: Path) -> None:
    """Raises UserError for a model that no GGUF file can hold as readers know it; no weights are loaded."""
    config = load_model_config(folder)
    if config.model_type not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise UserError(f"{folder}: {config.model_type} has no mapping to GGUF here; these have one: {known}")
    found = [reason for reason, holds in _unreadable(config).items() if holds]
    if found:
        raise UserError(f"{folder}: readers of GGUF do not know a {config.model_type} with {found[0]}")
    check_gguf_tokenizer(folder, config)


def _unreadable(config: PreTrainedConfig) -> dict[str, bool]:
    """{what files have no place for: whether this model has it}."""
    ropes = config.rope_parameters
    per_kind = list(ropes.values()) if all(isinstance(rope, dict) for rope in ropes.values()) else [ropes]
    activation = getattr(config, "hidden_act", None) or getattr(config, "hidden_activation", None)
    facts = {
        "scaled rotary positions": any(rope.get("rope_type", "default") != "default" for rope in per_kind),
        f"the activation {activation}": activation != ARCHITECTURES[config.model_type].activation,
        "biases in its attention": config.model_type != "qwen2" and bool(getattr(config, "attention_bias", False)),
        "biases in its feed-forward parts": bool(getattr(config, "mlp_bias", False)),
    }
    if config.model_type == "gemma3_text":
        every = GEMMA3_LAYERS_PER_FULL_ATTENTION
        order = ["sliding_attention" if (n + 1) % every else "full_attention" for n in range(config.num_hidden_layers)]
        return facts | {
            f"another order of its layers than {every - 1} of sliding attention, one of full": config.layer_types != order,
            "query_pre_attn_scalar other than head_dim": config.query_pre_attn_scalar != config.head_dim,
            "soft caps on logits": bool(config.final_logit_softcapping or config.attn_logit_softcapping),
        }
    return facts | {"sliding attention": "sliding_attention" in (getattr(config, "layer_types", None) or ())}


def export_gguf(
    folder: Path, target: Path, quantization: GGUFQuantization, progress: ProgressCallback = lambda *_: None
) -> RoundingEffect:
    """Writes the model in `folder` to the GGUF file `target`, and has transformers open it again. Returns how far its
    rounding moved it.

    Matrices are rounded as `quantization` says, per 32 inputs; those whose inputs do not divide by 32 have float16, norms
    float32. Of 4-bit files embeddings and head have 8 bits. An int4 model or student has the 16 values of q4_1 already:
    only its scales are rounded there. Raises UserError for what `check_gguf_export` refuses, and where the file says
    something else than the model with its weights rounded.
    """
    from gguf import GGUFWriter

    check_gguf_export(folder)
    model = load_model(folder)
    _widen_int8_weights(model)
    ids = probe_input_ids(model)
    full = logits_on(model, ids)
    with atomic_write(target) as temporary:
        writer = GGUFWriter(temporary, ARCHITECTURES[model.config.model_type].name)
        _write_config(writer, model.config, folder.name, quantization)
        write_gguf_tokenizer(writer, load_tokenizer(folder), model.config)
        _write_weights(writer, model, quantization, progress)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        progress("check", 0, 1)
        found = _logits_of_file(temporary, ids)
        _check_same(found, logits_on(model, ids))
    before, after = full.log_softmax(-1), found.log_softmax(-1)
    kl = float((before.exp() * (before - after)).sum(-1).mean())
    return RoundingEffect(float((found - full).abs().max()), max(kl, 0.0))


def _logits_of_file(file: Path, ids: Tensor) -> Tensor:
    try:
        return logits_on(load_gguf(file), ids)
    except Exception as error:  # whatever its reader makes of the file
        raise UserError(f"export: transformers does not read the GGUF file: {one_line_message(error)}") from error


def _check_same(found: Tensor, expected: Tensor) -> None:
    difference = float((found - expected).abs().max()) if found.shape == expected.shape else float("nan")
    largest = float(expected.abs().max())
    if not difference <= LOGIT_TOLERANCE * max(largest, 1.0):
        raise UserError(
            f"export: opened by transformers, the GGUF file says something else: logits differ by {difference:.2g} "
            f"(the largest is {largest:.2g})"
        )


def _write_config(writer: GGUFWriter, config: PreTrainedConfig, name: str, quantization: GGUFQuantization) -> None:
    from gguf import GGML_QUANT_VERSION, LlamaFileType

    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    ropes = config.rope_parameters
    writer.add_type("model")
    writer.add_name(name)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(ropes.get("full_attention", ropes)["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    if config.model_type == "gemma3_text":
        writer.add_sliding_window(config.sliding_window)
    writer.add_file_type(LlamaFileType["ALL_F32" if quantization == "f32" else f"MOSTLY_{quantization.upper()}"])
    writer.add_quantization_version(GGML_QUANT_VERSION)


@torch.no_grad()
def _write_weights(writer: GGUFWriter, model: Any, quantization: GGUFQuantization, progress: ProgressCallback) -> None:
    """Adds every weight once, rounded, and leaves the model with the rounded weights."""
    from gguf import MODEL_ARCH, GGMLQuantizationType, get_tensor_name_map, quants

    architecture = ARCHITECTURES[model.config.model_type]
    names = get_tensor_name_map(MODEL_ARCH[architecture.name.upper()], model.config.num_hidden_layers)
    ends = {id(model.get_input_embeddings().weight), id(model.get_output_embeddings().weight)}
    weights = dict(model.named_parameters())  # a tied head is not among them
    for number, (name, weight) in enumerate(weights.items()):
        progress("quantize", number, len(weights), "tensors")
        kind = GGMLQuantizationType[_kind(weight, quantization, id(weight) in ends).upper()]
        values = weight.detach().numpy()
        if weight.dim() == 1 and architecture.norm_offset and name.endswith("norm.weight"):
            values = values + np.float32(architecture.norm_offset)
        rounded = quants.quantize(values, kind)
        if weight.dim() > 1:
            weight.copy_(torch.from_numpy(quants.dequantize(rounded, kind).reshape(values.shape).copy()))
        if architecture.permutes_rotary and name.split(".")[-2] in ("q_proj", "k_proj"):
            heads = model.config.num_attention_heads if "q_proj" in name else model.config.num_key_value_heads
            rounded = _interleave_rotary(rounded, heads)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight", ".bias")), rounded, raw_dtype=kind)


def _kind(weight: Tensor, quantization: GGUFQuantization, is_end: bool) -> str:
    """The format of one tensor."""
    if weight.dim() == 1 or quantization == "f32":
        return "f32"
    if quantization in ("f16", "bf16"):
        return quantization
    if weight.shape[-1] % BLOCK:
        return "f16"
    return "q8_0" if is_end and quantization in FOUR_BITS else quantization


def _interleave_rotary(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of queries or keys with the two channels of every rotation side by side, as llama.cpp has them; transformers has
    all first ones of a head before all second ones. Rows are rounded alone, so the order does not matter to that."""
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(rows.shape))


@torch.no_grad()
def _widen_int8_weights(model: Any) -> None:
    """Replaces quantized weights by what they stand for: a GGUF file rounds in its own way."""
    for module in model.modules():
        if isinstance(module, nn.Linear) and type(module.weight.data) is not Tensor:
            module.weight = nn.Parameter(module.weight.data.dequantize())
