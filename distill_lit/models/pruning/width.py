"""Width pruning of a teacher, a narrower student: fewer hidden channels, heads, key-value groups, feed-forward neurons.

Heads and neurons are cut out exactly: a head or neuron that writes nothing can go without any change of the logits.
The rotary width of a head never changes. Cutting hidden channels changes what norms divide by, and in Gemma the scale
of the embeddings; both are made good, see `norm_corrections` and `prune_width`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn

from distill_lit.config import WidthConfig
from distill_lit.models.pruning import architecture as anatomy
from distill_lit.models.pruning.architecture import FFN_AXIS, FUSED_QKV_AXIS, HIDDEN_AXIS, KEY_VALUE_AXIS, UNPRUNED_AXIS
from distill_lit.models.pruning.calibration import with_valid_tokens
from distill_lit.models.pruning.importance import measure_importance, norm_corrections
from distill_lit.utils.exceptions import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FIXED_HEAD_DIM_MODEL_TYPES = ("gpt2",)  # architectures whose hidden size must be heads × head width


@dataclass(frozen=True)
class WidthSelection:
    """What stays, all numbers rising: hidden channels, and per layer neurons, key-value groups and query heads; and for
    each norm of the residual stream the (factor, shift) that make good what is gone."""

    hidden: list[int]
    neurons: list[list[int]]
    key_value_heads: list[list[int]]
    heads: list[list[int]]
    norm_corrections: dict[str, tuple[float, float]]

    @property
    def width(self) -> WidthConfig:
        """The sizes that are left."""
        return WidthConfig(len(self.hidden), len(self.neurons[0]), len(self.heads[0]), len(self.key_value_heads[0]))


def target_widths(width: WidthConfig, config: Any) -> dict[str, int]:
    """The four sizes of the student; a field that is 0 keeps the teacher's, and of heads and groups one follows the other.

    config: the teacher's transformers config. Raises UserError where they do not fit it.
    """
    if not isinstance(width, WidthConfig):
        raise UserError(f"width: {width!r} is no WidthConfig, as in WidthConfig(hidden_size=384)")
    heads, groups = anatomy.get_num_attention_heads(config), anatomy.get_num_key_value_heads(config)
    if not heads:
        raise UserError(f"width: {config.model_type} has no attention heads; only its layers can be cut")
    ratio = heads // groups
    old = {
        "hidden_size": config.hidden_size,
        "intermediate_size": anatomy.get_intermediate_size(config),
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
    }
    new = {name: getattr(width, name) or value for name, value in old.items()}
    if width.num_key_value_heads and not width.num_attention_heads:
        new["num_attention_heads"] = ratio * width.num_key_value_heads
    if width.num_attention_heads and not width.num_key_value_heads and ratio == 1:
        new["num_key_value_heads"] = width.num_attention_heads
    for name, value in new.items():
        if value > old[name]:
            raise UserError(f"width.{name}: {value} exceeds the teacher's {old[name]}")
    _check_heads(new, ratio, config)
    return new


def _check_heads(new: dict[str, int], ratio: int, config: Any) -> None:
    heads, groups = new["num_attention_heads"], new["num_key_value_heads"]
    if heads % groups or heads // groups > ratio:
        raise UserError(
            f"width.num_attention_heads: {heads} heads cannot be cut for {groups} key-value heads: each keeps the same "
            f"number, at most the teacher's {ratio}"
        )
    needed = heads * anatomy.get_head_dim(config)
    if config.model_type in FIXED_HEAD_DIM_MODEL_TYPES and new["hidden_size"] != needed:
        raise UserError(
            f"width.hidden_size: {new['hidden_size']} must be heads × head width = {needed} for {config.model_type}"
        )


def narrow_config(config: Any, width: WidthConfig) -> Any:
    """A copy of a transformers config with these widths."""
    config = copy.deepcopy(config)
    text = config.get_text_config()
    new, head_width = target_widths(width, text), anatomy.get_head_dim(text)
    if text.model_type not in FIXED_HEAD_DIM_MODEL_TYPES:
        text.head_dim = head_width  # or it would be derived from the new hidden size
        text.num_key_value_heads = new["num_key_value_heads"]
    text.hidden_size, text.num_attention_heads = new["hidden_size"], new["num_attention_heads"]
    setattr(text, "n_inner" if text.model_type == "gpt2" else "intermediate_size", new["intermediate_size"])
    try:
        text.validate()
    except StrictDataclassError as error:
        raise UserError(f"width: transformers refuses these sizes: {error.__cause__!s}") from error
    return config


def select_width(model: PreTrainedModel, width: WidthConfig, batches: Iterable[Mapping[str, Tensor]]) -> WidthSelection:
    """The most used channels, heads and neurons on calibration text; see `measure_importance`.

    Hidden channels are the same everywhere, because all layers share the residual stream; heads and neurons are chosen
    layer by layer. Key-value groups are judged by the sum of their heads.
    """
    config, batches = model.config.get_text_config(), with_valid_tokens(batches)
    new, used = target_widths(width, config), measure_importance(model, batches)
    ratio = config.num_attention_heads // anatomy.get_num_key_value_heads(config)
    groups = [_largest(scores.view(-1, ratio).sum(-1), new["num_key_value_heads"]) for scores in used.heads]
    share = new["num_attention_heads"] // new["num_key_value_heads"]
    heads = [
        [group * ratio + i for group in kept for i in _largest(scores.view(-1, ratio)[group], share)]
        for scores, kept in zip(used.heads, groups, strict=True)
    ]
    hidden = _largest(used.hidden, new["hidden_size"])
    return WidthSelection(
        hidden,
        [_largest(scores, new["intermediate_size"]) for scores in used.neurons],
        groups,
        heads,
        norm_corrections(model, batches, hidden) if len(hidden) < config.hidden_size else {},
    )


def _largest(scores: Tensor, count: int) -> list[int]:
    # stable, so that equal scores keep the lower number on every machine
    return sorted(torch.sort(scores, descending=True, stable=True).indices[:count].tolist())


@torch.no_grad()
def prune_width(model: PreTrainedModel, selection: WidthSelection) -> PreTrainedModel:
    """A new model with copies of what a selection keeps of `model`. One that keeps everything changes no logit. Raises
    UserError for what is no selection, as the widths alone.

    Example:
        >>> width = WidthConfig(hidden_size=384, intermediate_size=1024)
        >>> student = prune_width(teacher, select_width(teacher, width, calibration_inputs(tokenizer, texts)))
    """
    if not isinstance(selection, WidthSelection):
        raise UserError(
            f"selection: {selection!r} does not say which channels and heads stay; select_width(model, "
            "WidthConfig(…), batches) does"
        )
    teacher, (layers, _) = model.config.get_text_config(), anatomy.get_decoder_layers(model)
    weights: dict[str, Tensor] = {}
    for name, module, axes in anatomy.weighted_modules(model):
        layer = int(name[len(layers) + 1 :].split(".")[0]) if name.startswith(f"{layers}.") else 0
        keep = [_retained_indices(axis, selection, layer, teacher) for axis in axes]
        for key, value in module.named_parameters(recurse=False):
            weights[f"{name}.{key}"] = _slice(value, keep, anatomy.is_transposed(module))
        if name in selection.norm_corrections:
            factor, shift = selection.norm_corrections[name]
            if "bias" in dict(module.named_parameters()):
                weights[f"{name}.bias"] += (weights[f"{name}.weight"] + anatomy.weight_offset(module)) * shift
            weights[f"{name}.weight"] = _times(weights[f"{name}.weight"], factor, module)
    student = anatomy.rebuild(model, narrow_config(model.config, selection.width), weights)
    _keep_embedding_scale(model, student)
    return student


def _retained_indices(axis: str, selection: WidthSelection, layer: int, config: Any) -> Tensor | None:
    """The entries of an axis that stay; None for all."""
    width = anatomy.get_head_dim(config)
    if axis == UNPRUNED_AXIS:
        return None
    if axis == HIDDEN_AXIS:
        return torch.tensor(selection.hidden)
    if axis == FFN_AXIS:
        return torch.tensor(selection.neurons[layer])
    if axis == KEY_VALUE_AXIS:
        return _channels(selection.key_value_heads[layer], width)
    queries = _channels(selection.heads[layer], width)
    size = config.num_attention_heads * width
    return torch.cat([queries, queries + size, queries + 2 * size]) if axis == FUSED_QKV_AXIS else queries


def _channels(heads: list[int], width: int) -> Tensor:
    return (torch.tensor(heads)[:, None] * width + torch.arange(width)).flatten()


def _slice(value: Tensor, keep: list[Tensor | None], is_transposed: bool) -> Tensor:
    """Rows and columns of a weight, or entries of a bias: a bias has the axis of the outputs."""
    axes = keep[:1] if value.ndim == 1 else keep[::-1] if is_transposed else keep
    for dimension, kept in enumerate(axes):
        if kept is not None:
            value = value.index_select(dimension, kept.to(value.device))
    return value.clone()


def _times(weight: Tensor, factor: float, norm: nn.Module) -> Tensor:
    """The weight with which a norm says `factor` times as much. Gemma's norms multiply by 1 + weight."""
    offset = anatomy.weight_offset(norm)
    return (weight + offset) * factor - offset


def _keep_embedding_scale(model: PreTrainedModel, student: PreTrainedModel) -> None:
    """Gemma multiplies embeddings by √(hidden size), which the cut has changed: the table makes up for it, and where it
    is the head as well, the final norm takes it back."""
    ratio = _embedding_scale(model) / _embedding_scale(student)
    if ratio == 1:
        return
    table = student.get_input_embeddings().weight
    table.mul_(ratio)
    if student.get_output_embeddings().weight is table:
        norm = student.get_submodule(anatomy.final_norm(student))
        weight = norm.get_parameter("weight")
        weight.copy_(_times(weight, 1 / ratio, norm))


def _embedding_scale(model: PreTrainedModel) -> float:
    embedding = model.get_input_embeddings()
    ids = torch.arange(min(64, embedding.weight.shape[0]), device=embedding.weight.device)
    return float(embedding(ids).float().norm() / embedding.weight[ids].float().norm())
