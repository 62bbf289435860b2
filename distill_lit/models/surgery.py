"""A shallower student from a teacher: which layers to keep, and a model that has only these."""

import copy
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from distill_lit.errors import UserError, suggest

Progress = Callable[[int, int], None]
METHODS = ("uniform", "first_last", "block_influence", "kl_greedy")


def check_layers(layers: Any, depth: int) -> None:
    """Raises UserError unless `layers` is a method or `depth` distinct layer numbers."""
    if isinstance(layers, str):
        if layers not in METHODS:
            raise UserError(f"layers: unknown method {layers!r}{suggest(layers, METHODS)}")
        return
    if not isinstance(layers, list) or not all(isinstance(i, int) and i >= 0 for i in layers):
        raise UserError(f"layers: {layers!r} is neither a method ({', '.join(METHODS)}) nor a list of layer numbers")
    if layers != sorted(set(layers)) or (depth and len(layers) != depth):
        raise UserError(f"layers: {layers} must be rising, distinct and as many as depth ({depth})")


def layer_list(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """(dotted name, list) of a model's decoder layers: the module list as long as the config says."""
    count = model.config.get_text_config().num_hidden_layers
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count and name.rsplit(".")[-1] in ("layers", "h", "blocks"):
            return name, module
    raise UserError(f"{type(model).__name__}: its decoder layers were not found, so depth surgery cannot be done")


def choose_layers(
    model: PreTrainedModel, depth: int, method: str, batches: list[dict[str, Tensor]], progress: Progress | None = None
) -> list[int]:
    """The numbers of the `depth` layers to keep, rising.

    batches: calibration inputs, each with `input_ids` (B, T), `attention_mask` and `position_ids`, and `valid` (B, T).
    uniform: evenly spaced, first and last included; first_last: the ends, nothing of the middle;
    block_influence: 1 − cosine of each layer's input and output, ShortGPT, 2403.03853;
    kl_greedy: drops one layer after the other, each time the one whose loss costs least KL to the whole model.
    """
    total = len(layer_list(model)[1])
    if depth > total:
        raise UserError(f"depth: {depth} exceeds the teacher's {total} layers")
    if method == "uniform":
        return [round(i * (total - 1) / max(1, depth - 1)) for i in range(depth)]
    if method == "first_last":
        return [*range(depth - depth // 2), *range(total - depth // 2, total)]
    with torch.inference_mode():
        if method == "block_influence":
            scores = block_influence(model, batches)
            return sorted(sorted(range(total), key=lambda i: -scores[i])[:depth])
        return kl_greedy(model, depth, batches, progress)


def block_influence(model: PreTrainedModel, batches: list[dict[str, Tensor]]) -> list[float]:
    """Per layer, mean over valid tokens of 1 − cos(input, output). ShortGPT, 2403.03853 eq. 1."""
    sums: Tensor | None = None
    for batch in batches:
        valid = batch["valid"]
        hidden = model(**_inputs(batch), output_hidden_states=True, use_cache=False, logits_to_keep=1).hidden_states
        # the last entry of hidden_states has passed the final norm; a cosine is taken before it where it can be had
        change = torch.stack(
            [
                1 - torch.cosine_similarity(a[valid].float(), b[valid].float(), dim=-1).mean()
                for a, b in zip(hidden, hidden[1:], strict=False)
            ]
        )
        sums = change if sums is None else sums + change
    assert sums is not None
    return [float(value) / len(batches) for value in sums]


def kl_greedy(
    model: PreTrainedModel, depth: int, batches: list[dict[str, Tensor]], progress: Progress | None = None
) -> list[int]:
    """Layers that remain after removing, one at a time, the layer whose absence raises KL(whole ‖ rest) least."""
    whole = [_log_probabilities(model, batch) for batch in batches]
    kept = list(range(len(layer_list(model)[1])))
    done, rounds = 0, sum(range(depth + 1, len(kept) + 1))
    while len(kept) > depth:
        costs = {}
        for layer in kept:
            with only_layers(model, [i for i in kept if i != layer]):
                costs[layer] = sum(_divergence(model, batch, p) for batch, p in zip(batches, whole, strict=True))
            done += 1
            if progress:
                progress(done, rounds)
        kept.remove(min(costs, key=lambda layer: costs[layer]))
    return kept


@contextmanager
def only_layers(model: PreTrainedModel, layers: list[int]) -> Iterator[None]:
    """Inside, `model` runs through these of its layers alone."""
    name, everything = layer_list(model)
    parent = model.get_submodule(name.rpartition(".")[0])
    config = model.config.get_text_config()
    try:
        setattr(parent, name.rsplit(".")[-1], nn.ModuleList([everything[i] for i in layers]))
        config.num_hidden_layers = len(layers)
        yield
    finally:
        setattr(parent, name.rsplit(".")[-1], everything)
        config.num_hidden_layers = len(everything)


def keep_layers(model: PreTrainedModel, layers: list[int]) -> PreTrainedModel:
    """A new model with copies of these layers of `model`; embeddings, norms and head are copied whole."""
    name, everything = layer_list(model)
    if layers and layers[-1] >= len(everything):
        raise UserError(f"layers: {layers[-1]} is beyond the teacher's last layer {len(everything) - 1}")
    config = copy.deepcopy(model.config)
    text = config.get_text_config()
    text.num_hidden_layers = len(layers)
    for per_layer in ("layer_types", "no_rope_layers", "mlp_only_layers"):
        values = getattr(text, per_layer, None)
        if isinstance(values, list) and len(values) == len(everything):
            setattr(text, per_layer, [values[i] for i in layers])
    place = {old: new for new, old in enumerate(layers)}
    pattern = re.compile(rf"{re.escape(name)}\.(\d+)\.")
    weights = {}
    for key, value in model.state_dict().items():
        match = pattern.match(key)
        if match is None:
            weights[key] = value
        elif int(match[1]) in place:
            weights[f"{name}.{place[int(match[1])]}.{key[match.end() :]}"] = value
    student: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=model.dtype)
    student.load_state_dict(weights)
    student.tie_weights()
    student.generation_config = copy.deepcopy(model.generation_config)
    return student.eval()


def _inputs(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: batch[key] for key in ("input_ids", "attention_mask", "position_ids") if key in batch}


def _log_probabilities(model: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
    logits = model(**_inputs(batch), use_cache=False).logits[batch["valid"]]
    return torch.log_softmax(logits.float(), -1)


def _divergence(model: PreTrainedModel, batch: dict[str, Tensor], whole: Tensor) -> float:
    rest = _log_probabilities(model, batch)
    return float((whole.exp() * (whole - rest)).sum(-1).mean())
