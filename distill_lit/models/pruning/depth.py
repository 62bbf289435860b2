"""Depth pruning (layer dropping) of a teacher: which layers to keep, and a model that has only these."""

from __future__ import annotations

import copy
import functools
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from numbers import Integral
from typing import TYPE_CHECKING, Any, assert_never, get_args

import torch
from torch import Tensor, nn

from distill_lit.config.fields import LayerSelectionMethod
from distill_lit.models.pruning.architecture import get_decoder_layers, rebuild
from distill_lit.models.pruning.calibration import ModelInputs, with_valid_tokens
from distill_lit.models.pruning.layer_settings import apply_settings, layer_settings
from distill_lit.utils.exceptions import UserError, suggest
from distill_lit.utils.progress import ProgressCallback

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LAYER_SELECTION_METHODS: tuple[LayerSelectionMethod, ...] = get_args(LayerSelectionMethod)


def check_layers(layers: Any, num_layers: int) -> None:
    """Raises UserError unless `layers` is a method or `num_layers` distinct layer numbers."""
    if isinstance(layers, str):
        if layers not in LAYER_SELECTION_METHODS:
            raise UserError(f"layers: unknown method {layers!r}{suggest(layers, LAYER_SELECTION_METHODS)}")
        return
    if not isinstance(layers, list) or not all(isinstance(i, int) and i >= 0 for i in layers):
        raise UserError(
            f"layers: {layers!r} is neither a method ({', '.join(LAYER_SELECTION_METHODS)}) nor a list of layer numbers"
        )
    _check_rising(layers, num_layers)


def _check_rising(layers: list[int], num_layers: int = 0) -> None:
    if not layers or layers != sorted(set(layers)) or (num_layers and len(layers) != num_layers):
        count = f" and as many as num_layers ({num_layers})" if num_layers else ", at least one of them"
        raise UserError(f"layers: {layers} must be rising, distinct{count}")


def check_num_layers(layers: Any, num_layers: int, total: int) -> None:
    """Raises UserError when a teacher of `total` layers cannot give these."""
    if num_layers > total:
        raise UserError(f"num_layers: {num_layers} exceeds the teacher's {total} layers")
    if isinstance(layers, list) and layers[-1] >= total:
        raise UserError(f"layers: {layers[-1]} is beyond the teacher's last layer {total - 1}")


def choose_layers(
    model: PreTrainedModel,
    num_layers: int,
    method: LayerSelectionMethod,
    batches: Iterable[Mapping[str, Tensor]],
    progress: ProgressCallback | None = None,
) -> list[int]:
    """The numbers of the `num_layers` layers to keep, rising. Raises UserError for another method, for fewer than one layer
    or more than the model has, and where a method measures and no token of the batches counts.

    batches: as `calibration_inputs` makes them: a model's own inputs, and `valid` (B, T), without which the tokens of the
    attention mask count. uniform and first_last measure nothing.
    uniform: evenly spaced, first and last included; first_last: the ends, nothing of the middle;
    block_influence: 1 − cosine of each layer's input and output, ShortGPT, 2403.03853;
    kl_greedy: drops one layer after the other, each time the one whose loss costs least KL to the whole model.
    """
    if not isinstance(method, str):
        raise UserError(f"layers: {method!r} is no method; choose from {', '.join(sorted(LAYER_SELECTION_METHODS))}")
    check_layers(method, num_layers)
    total = len(get_decoder_layers(model)[1])
    _check_num_kept(num_layers, total)
    match method:
        case "uniform":
            return [round(i * (total - 1) / max(1, num_layers - 1)) for i in range(num_layers)]
        case "first_last":
            return [*range(num_layers - num_layers // 2), *range(total - num_layers // 2, total)]
        case "block_influence":
            scores = block_influence(model, batches)
            return sorted(sorted(range(total), key=lambda i: -scores[i])[:num_layers])
        case "kl_greedy":
            removed = removal_order(model, num_layers, batches, progress=progress)
            return sorted(set(range(total)) - set(removed))
        case _:
            assert_never(method)


def _check_num_kept(num_layers: Any, total: int) -> None:
    if not isinstance(num_layers, Integral) or isinstance(num_layers, bool) or num_layers < 1:
        raise UserError(f"num_layers: {num_layers!r} is not a whole number from 1 to {total}")
    check_num_layers(None, int(num_layers), total)


@torch.inference_mode()
def block_influence(model: PreTrainedModel, batches: Iterable[Mapping[str, Tensor]]) -> list[float]:
    """Per layer, mean over valid tokens of 1 − cos(input, output). ShortGPT, 2403.03853 eq. 1."""
    batches, layers = with_valid_tokens(batches), get_decoder_layers(model)[1]
    sums = torch.zeros(len(layers), dtype=torch.float64)

    def note(number: int, valid: Tensor, before: Tensor, after: Any) -> None:
        after = after[0] if isinstance(after, tuple) else after
        change = 1 - torch.cosine_similarity(before[valid].float(), after[valid].float(), dim=-1)
        sums[number] += change.double().sum().cpu()

    # hooks, because the last of `output_hidden_states` has passed the final norm
    count = run_with_hooks(model, batches, [(layer, functools.partial(note, i)) for i, layer in enumerate(layers)])
    return (sums / count).tolist()


def run_with_hooks(
    model: PreTrainedModel,
    batches: list[ModelInputs],
    hooked_modules: list[tuple[nn.Module, Callable[[Tensor, Tensor, Any], None]]],
) -> int:
    """Runs the batches; each module tells its function (valid (B, T), its first input, its output). The valid tokens."""
    now: ModelInputs = {}
    handles = [
        module.register_forward_hook(
            lambda _, arguments, named, output, callback=callback: callback(
                now["valid"], [*arguments, *named.values()][0], output
            ),
            with_kwargs=True,
        )
        for module, callback in hooked_modules
    ]
    try:
        for batch in batches:
            now["valid"] = batch["valid"]
            model(**model_inputs(batch), use_cache=False, logits_to_keep=1)
    finally:
        for handle in handles:
            handle.remove()
    return sum(int(batch["valid"].sum()) for batch in batches)


@torch.inference_mode()
def removal_order(
    model: PreTrainedModel,
    num_layers: int,
    batches: Iterable[Mapping[str, Tensor]],
    removed: list[int] | None = None,
    progress: ProgressCallback | None = None,
) -> list[int]:
    """Layers in the order in which they are dropped until `num_layers` are left, each time the layer whose absence raises
    KL(whole ‖ rest) least. `removed`: the beginning of this order, where it is known. Every shorter order begins a
    longer one. What comes before a layer is computed once per round, not again for every layer that is tried."""
    order, total = list(removed or []), len(get_decoder_layers(model)[1])
    _check_num_kept(num_layers, total)
    batches = with_valid_tokens(batches)
    teacher_logprobs = [_logprobs(model, batch) for batch in batches]
    remaining = [i for i in range(total) if i not in order]
    completed, trials = 0, sum(range(num_layers + 1, len(remaining) + 1))
    while len(remaining) > num_layers:
        costs = {}
        replays = [_layer_inputs(model, remaining, batch) for batch in batches]
        for position, layer in enumerate(remaining):
            costs[layer] = 0.0
            for batch, replay, p in zip(batches, replays, teacher_logprobs, strict=True):
                with only_layers(model, remaining[position:], first=replay[position]):
                    costs[layer] += len(p) * mean_kl_to_teacher(model, batch, p)  # each token counts once
            completed += 1
            if progress:
                progress("choose layers", completed, trials, "trials")
        order.append(min(costs, key=lambda layer: costs[layer]))
        remaining.remove(order[-1])
    return order


class Replay(nn.Module):
    """Stands for a layer and all before it: what comes out is what once came out there."""

    def __init__(self, output: Any) -> None:
        """`output`: of a decoder layer."""
        super().__init__()
        self.output = output

    def forward(self, *_: Any, **__: Any) -> Any:
        """The same, whatever comes in."""
        return self.output


def _layer_inputs(model: PreTrainedModel, layers: list[int], batch: ModelInputs) -> list[Replay]:
    """For each of these layers what it is given when only these run, in the form in which a layer returns it."""
    recorded: list[Replay] = []

    def hook(_: Any, arguments: Any, named: Any, output: Any) -> None:
        state = [*arguments, *named.values()][0]
        recorded.append(Replay((state, *output[1:]) if isinstance(output, tuple) else state))

    handles = [layer.register_forward_hook(hook, with_kwargs=True) for layer in get_decoder_layers(model)[1]]
    try:
        with only_layers(model, layers):
            model(**model_inputs(batch), use_cache=False, logits_to_keep=1)
    finally:
        for handle in handles:
            handle.remove()
    return recorded


@contextmanager
def only_layers(model: PreTrainedModel, layers: list[int], first: nn.Module | None = None) -> Iterator[None]:
    """Inside, `model` runs through these of its layers alone, and through `first` in place of the first of them. A
    key-value cache would count wrongly: use_cache=False."""
    name, everything = get_decoder_layers(model)
    parent = model.get_submodule(name.rpartition(".")[0])
    config = model.config.get_text_config()
    before = layer_settings(config, list(range(len(everything))))
    try:
        modules = [everything[i] for i in layers]
        setattr(parent, name.rsplit(".")[-1], nn.ModuleList(modules if first is None else [first, *modules[1:]]))
        apply_settings(config, layer_settings(config, layers))
        yield
    finally:
        setattr(parent, name.rsplit(".")[-1], everything)
        apply_settings(config, before)


def _layer_numbers(layers: Any) -> list[int]:
    """As a list, from any sequence of integers, those of numpy and torch included."""
    if isinstance(layers, str):
        raise UserError(f"layers: {layers!r} is no list of layer numbers; choose_layers gives one")
    try:
        numbers = [-1 if isinstance(number, bool) else operator.index(number) for number in layers]
    except TypeError:
        numbers = [-1]
    if min(numbers, default=0) < 0:
        raise UserError(f"layers: {layers!r} is no list of layer numbers, which begin at 0")
    return numbers


def prune_depth(model: PreTrainedModel, layers: Iterable[int]) -> PreTrainedModel:
    """A new model with copies of these layers of `model`; embeddings, norms and head are copied whole. Raises UserError
    unless they are the numbers of layers that are there, rising, in any sequence: a list, range or array.

    Example:
        >>> batches = calibration_inputs(tokenizer, texts)
        >>> student = prune_depth(teacher, choose_layers(teacher, 12, "block_influence", batches))
    """
    name, everything = get_decoder_layers(model)
    layers = _layer_numbers(layers)
    _check_rising(layers)
    check_num_layers(layers, len(layers), len(everything))
    new_index = {old: new for new, old in enumerate(layers)}
    pattern = re.compile(rf"{re.escape(name)}\.(\d+)\.")
    weights = {}
    for key, value in model.state_dict().items():
        match = pattern.match(key)
        if match is None:
            weights[key] = value
        elif int(match[1]) in new_index:
            weights[f"{name}.{new_index[int(match[1])]}.{key[match.end() :]}"] = value
    return rebuild(model, shallow_config(model.config, layers), weights)


def shallow_config(config: Any, layers: list[int]) -> Any:
    """A copy of a transformers config with these of its layers."""
    config = copy.deepcopy(config)
    apply_settings(config.get_text_config(), layer_settings(config.get_text_config(), layers))
    return config


def model_inputs(batch: ModelInputs) -> dict[str, Tensor]:
    """What a model's forward takes of a calibration batch."""
    return {key: batch[key] for key in ("input_ids", "attention_mask", "position_ids") if key in batch}


def _logprobs(model: PreTrainedModel, batch: ModelInputs) -> Tensor:
    logits = model(**model_inputs(batch), use_cache=False).logits[batch["valid"]]
    return torch.log_softmax(logits.float(), -1)


def mean_kl_to_teacher(model: PreTrainedModel, batch: ModelInputs, teacher_logprobs: Tensor) -> float:
    """KL(whole ‖ model), mean over the N tokens of the batch's `valid`, nats. teacher_logprobs: (N, V)."""
    rest = _logprobs(model, batch)
    return float((teacher_logprobs.exp() * (teacher_logprobs - rest)).sum(-1).mean())
