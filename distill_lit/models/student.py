"""A student before training: cut out of the teacher, another pretrained model, or random weights; adapters on top."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from distill_lit.config import StudentConfig, WidthConfig, to_dict
from distill_lit.models.flops import size_from_config
from distill_lit.models.initializers import find_initializer
from distill_lit.models.loading import load_model, load_model_config, load_tokenizer, model_fingerprint, model_folder
from distill_lit.models.lora import add_adapters, check_lora
from distill_lit.models.packing_check import unpacked_model_inputs
from distill_lit.models.pruning import (
    WidthSelection,
    check_layers,
    check_num_layers,
    check_pruned_logits,
    choose_layers,
    narrow_config,
    prune_depth,
    prune_width,
    removal_order,
    select_width,
    shallow_config,
)
from distill_lit.models.pruning.architecture import get_num_attention_heads
from distill_lit.models.quantization import check_quantizable
from distill_lit.models.quantization_aware import check_quantization_aware, prepare_quantization_aware
from distill_lit.models.vocabulary import check_same_vocabulary
from distill_lit.utils.exceptions import UserError, one_line_message, suggest
from distill_lit.utils.files import cache_root, fingerprint, read_json, try_write_json
from distill_lit.utils.progress import ProgressCallback

if TYPE_CHECKING:
    from transformers import PreTrainedModel

KL_GREEDY = "kl_greedy"
MAX_STUDENT_LAYERS = 1000


class CalibrationData(NamedTuple):
    """Text on which importance is measured: packed batches, the fingerprint of the data they are from, the number format
    to measure in, and where. kl_greedy tries hundreds of removals: it reads the first batch."""

    batches: list[dict[str, torch.Tensor]]
    data_fingerprint: str
    dtype: torch.dtype = torch.float32
    progress: ProgressCallback | None = None
    device: torch.device = torch.device("cpu")

    def load(self, teacher: Path) -> PreTrainedModel:
        """The teacher as it is measured."""
        model: PreTrainedModel = load_model(teacher, self.dtype).to(self.device)
        return model

    def inputs(self, model: PreTrainedModel, max_batches: int | None = None) -> list[dict[str, Any]]:
        """The first batches as this model reads them, documents apart."""
        batches = [{name: value.to(self.device) for name, value in batch.items()} for batch in self.batches[:max_batches]]
        return unpacked_model_inputs(model, batches)


def is_pruned(student: StudentConfig) -> bool:
    """Whether layers or width are taken from what the student begins as."""
    return bool(student.num_layers or isinstance(student.layers, list) or student.width != WidthConfig())


def check_student(key: str, student: StudentConfig) -> None:
    """Raises UserError for a student that cannot be, as far as the config alone shows. key: the student's in the config."""
    others = [name for name, given in (("num_layers", is_pruned(student)), ("from", student.from_)) if given]
    if student.config and others:
        raise UserError(f"{key}: a student from random weights has config alone; got {others[0]} and config")
    if not others and not student.config and not student.lora.rank and student.layers != KL_GREEDY:
        raise UserError(f"{key}.layers: {student.layers} chooses layers, and num_layers does not say how many")
    with _student_key_errors(key):
        check_layers(student.layers, student.num_layers)
        check_lora(student.lora)
        check_quantization_aware(student)
        if student.initializer:
            find_initializer(student.initializer)


def check_student_origin(key: str, student: StudentConfig, origin: Any) -> Any:
    """The student's transformers config, see `student_config`. Raises UserError where its origin cannot give it. No weights
    are loaded."""
    with _student_key_errors(key):
        config = student_config(student, origin)
        if student.config:
            _check_built(config)
        elif is_pruned(student):
            _check_pruned_config_builds(config)
        if student.quantization_aware != "none":
            check_quantizable(config, student.quantization_aware, "quantization_aware")
        if student.quantize != "none":
            check_quantizable(config, student.quantize, "quantize")
        return config


def check_student_vocabulary(key: str, tokenizer_folder: Path, teacher: Path) -> None:
    """Raises UserError unless the model that the student begins as numbers its tokens as the teacher."""
    try:
        check_same_vocabulary(load_tokenizer(teacher), load_tokenizer(tokenizer_folder))
    except UserError as error:
        raise UserError(f"{key}.from: {error}") from None


def student_config(student: StudentConfig, origin: Any) -> Any:
    """The transformers config of a student. Which layers a method will keep is not known yet; their number is.

    origin: the config of what the student begins as: the model of `from`, or the teacher.
    """
    if student.config:
        return config_with_overrides(origin, student.config)
    if not is_pruned(student):
        return origin
    total = origin.get_text_config().num_hidden_layers
    check_num_layers(student.layers, student.num_layers, total)
    layers = student.layers if isinstance(student.layers, list) else list(range(student.num_layers or total))
    config = shallow_config(origin, layers)
    return config if student.width == WidthConfig() else narrow_config(config, student.width)


def initial_student(student: StudentConfig, teacher: Path, calibration: CalibrationData, seed: int) -> PreTrainedModel:
    """The untrained student in float32. teacher: folder whose tokenizer it reads with, and what it begins as or is pruned
    from without `from`; seed: for new weights."""
    torch.manual_seed(seed)
    origin = model_folder(student.from_) if student.from_ else teacher
    if student.from_:
        check_same_vocabulary(load_tokenizer(teacher), load_tokenizer(origin))
    if student.config:
        from transformers import AutoModelForCausalLM

        model = (
            AutoModelForCausalLM.from_config(config_with_overrides(load_model_config(teacher), student.config))
            .float()
            .eval()
        )
    elif is_pruned(student):
        model = _prune(student, origin, calibration)
    else:
        model = load_model(origin)
    if student.initializer:
        find_initializer(student.initializer)(model, load_model(teacher))
    if student.lora.rank:
        return add_adapters(model, student.lora)
    return prepare_quantization_aware(model, student.quantization_aware)


def _prune(student: StudentConfig, teacher: Path, calibration: CalibrationData) -> PreTrainedModel:
    try:
        layers = retained_layers(student, teacher, calibration)
    except (TypeError, ValueError, LookupError, AttributeError) as error:  # whatever the architecture makes of fewer layers
        raise UserError(f"layers: {student.layers} cannot choose from this teacher's: {one_line_message(error)}") from error
    whole = load_model(teacher)
    model = prune_depth(whole, layers)
    if len(layers) < load_model_config(teacher).get_text_config().num_hidden_layers:
        check_pruned_logits(whole, model, layers)
    if student.width == WidthConfig():
        return model
    return prune_width(model, _width_selection(student, layers, teacher, calibration))


def retained_layers(student: StudentConfig, teacher: Path, calibration: CalibrationData) -> list[int]:
    """The teacher's layers that a student cut out of it keeps, rising. Measured choices are remembered in the cache; the
    order in which kl_greedy drops layers serves every depth."""
    total = load_model_config(teacher).get_text_config().num_hidden_layers
    if isinstance(student.layers, list):
        return list(student.layers)
    if not student.num_layers:
        return list(range(total))
    method = student.layers
    if method != KL_GREEDY:

        def choose() -> list[int]:
            model = calibration.load(teacher)
            return choose_layers(model, student.num_layers, method, calibration.inputs(model))

        return list(_load_or_compute_choice("layers", [method, student.num_layers], teacher, calibration, choose))
    return _greedy_retained_layers(student.num_layers, total, teacher, calibration)


def _greedy_retained_layers(num_layers: int, total: int, teacher: Path, calibration: CalibrationData) -> list[int]:
    # 2: choices made before counted a part of the calibration text as much as another that had more tokens
    memory = _choice_cache_path("layers", [KL_GREEDY, 2], teacher, calibration)
    order: list[int] = read_json(memory) if memory.is_file() else []
    if len(order) < total - num_layers:
        model = calibration.load(teacher)
        order = removal_order(model, num_layers, calibration.inputs(model, 1), order, calibration.progress)
        try_write_json(memory, order)
    return sorted(set(range(total)) - set(order[: total - num_layers]))


def _width_selection(
    student: StudentConfig, layers: list[int], teacher: Path, calibration: CalibrationData
) -> WidthSelection:
    """The cut of a student's width, measured on the layers that it keeps."""

    def choose() -> dict[str, Any]:
        model = prune_depth(calibration.load(teacher), layers).to(calibration.device)
        return vars(select_width(model, student.width, calibration.inputs(model)))

    return WidthSelection(**_load_or_compute_choice("cuts", [layers, to_dict(student.width)], teacher, calibration, choose))


def _load_or_compute_choice(
    kind: str, choice_settings: list[Any], teacher: Path, calibration: CalibrationData, make: Callable[[], Any]
) -> Any:
    memory = _choice_cache_path(kind, choice_settings, teacher, calibration)
    if memory.is_file():
        return read_json(memory)
    with torch.random.fork_rng([]):  # or weights drawn afterwards would depend on whether the choice is remembered
        made = json.loads(json.dumps(make()))  # as it will be read
    try_write_json(memory, made)
    return made


def _choice_cache_path(kind: str, what: list[Any], teacher: Path, calibration: CalibrationData) -> Path:
    # 2: choices made before were measured under whatever mask a model took
    key = fingerprint([3, model_fingerprint(teacher), what, calibration.data_fingerprint, str(calibration.dtype)])
    return cache_root() / kind / f"{key}.json"


@contextmanager
def _student_key_errors(key: str) -> Iterator[None]:
    """Inside, a UserError is told with the key of the student it is about."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{key}.{error}") from None


def _check_change(key: str, value: Any, was: Any) -> None:
    """Raises UserError for what no model can be built from, or none that reads the teacher's tokens."""
    if key in ("model_type", "dtype", "torch_dtype"):
        raise UserError(f"config.{key}: is the teacher's; for another architecture name a model with `from:`")
    if isinstance(was, bool) and not isinstance(value, bool):
        raise UserError(f"config.{key}: {value!r} is neither true nor false")
    if isinstance(was, int) and not isinstance(was, bool):
        least = was if key == "vocab_size" else min(was, 1)
        most = MAX_STUDENT_LAYERS if key in ("num_hidden_layers", "n_layer") else 1 << 20
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise UserError(f"config.{key}: {value!r} is not a whole number from {least:,} to {most:,}")


def _check_built(config: Any) -> None:
    """Raises UserError unless a model of this config can be built, with heads that share its channels."""
    text = config.get_text_config()
    heads = get_num_attention_heads(text)
    groups = getattr(text, "num_key_value_heads", None) or heads
    if heads and heads % groups:
        raise UserError(f"config: {heads} attention heads cannot share {groups} key-value heads")
    if heads and not getattr(text, "head_dim", None) and text.hidden_size % heads:
        raise UserError(f"config: {heads} attention heads cannot share a hidden size of {text.hidden_size}")
    try:
        size_from_config(config)
    except Exception as error:  # whatever the architecture's own code makes of it
        raise UserError(
            f"config: no model can be built from it: {type(error).__name__}: {one_line_message(error)}"
        ) from error


def _check_pruned_config_builds(config: Any) -> None:
    """Raises UserError unless a model of a cut teacher's config can be built."""
    try:
        size_from_config(config)
    except Exception as error:  # whatever the architecture's own code makes of it
        raise UserError(f"layers: no model can be built of these: {one_line_message(error)}") from error


def config_with_overrides(config: Any, overrides: dict[str, Any]) -> Any:
    """The teacher's transformers config with changes, for a student from scratch. Raises UserError for unknown keys."""
    known = config.to_dict()
    for key, value in overrides.items():
        if key not in known:
            raise UserError(f"config: unknown key {key!r}{suggest(key, known)}")
        _check_change(key, value, known[key])
    if (
        {"head_dim", "num_attention_heads"} <= set(known)
        and "head_dim" not in overrides
        and {"hidden_size", "num_attention_heads"} & set(overrides)
    ):
        heads = overrides.get("num_attention_heads", known["num_attention_heads"])
        overrides = {**overrides, "head_dim": overrides.get("hidden_size", known["hidden_size"]) // heads}
    changed = copy.deepcopy(config)
    if hasattr(changed, "quantization_config"):
        del changed.quantization_config  # of the teacher's weights: new ones are whole
    for key, value in overrides.items():
        try:
            setattr(changed, key, value)
        except Exception as error:  # transformers checks types of its own
            raise UserError(f"config.{key}: {one_line_message(error)}") from error
    if (
        "layer_types" in known
        and "num_hidden_layers" in overrides
        and "layer_types" not in overrides
        and known["layer_types"]
    ):
        changed.layer_types = (known["layer_types"] * changed.num_hidden_layers)[: changed.num_hidden_layers]
    return changed
