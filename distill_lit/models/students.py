"""A student before training: layers of the teacher, another pretrained model, or random weights."""

import copy
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from distill_lit import assets
from distill_lit.config import StudentConfig
from distill_lit.errors import UserError, suggest
from distill_lit.files import cache_root, fingerprint, read_json, write_json
from distill_lit.models.loading import load_config, load_model, load_tokenizer, model_fingerprint, model_folder
from distill_lit.models.surgery import Progress, check_layers, choose_layers, keep_layers
from distill_lit.models.vocabulary import check_same_vocabulary


def check_student(name: str, student: StudentConfig) -> None:
    """Raises UserError unless exactly one of depth, from and config says what the student is."""
    given = [
        key
        for key, value in (
            ("depth", student.depth or isinstance(student.layers, list)),
            ("from", student.from_),
            ("config", student.config),
        )
        if value
    ]
    if len(given) != 1:
        said = " and ".join(given) or "none"
        raise UserError(f"students.{name}: give exactly one of depth (or a list of layers), from, config; got {said}")
    try:
        check_layers(student.layers, student.depth)
    except UserError as error:
        raise UserError(f"students.{name}.{error}") from None
    if student.from_:
        assets.check(student.from_)


def initial_student(
    student: StudentConfig,
    teacher: Path,
    calibration: list[dict[str, torch.Tensor]],
    calibration_id: str,
    seed: int,
    dtype: torch.dtype = torch.float32,
    progress: Progress | None = None,
) -> PreTrainedModel:
    """The untrained student in float32.

    teacher: its folder; calibration: batches for measured layer importance, and their fingerprint; seed: for new weights;
    dtype: number format in which importance is measured.
    """
    if student.from_:
        folder = model_folder(student.from_)
        check_same_vocabulary(load_tokenizer(teacher), load_tokenizer(folder))
        return load_model(folder)
    if student.config:
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(changed_config(load_config(teacher), student.config)).float().eval()
    return keep_layers(load_model(teacher), kept_layers(student, teacher, calibration, calibration_id, dtype, progress))


def kept_layers(
    student: StudentConfig,
    teacher: Path,
    calibration: list[dict[str, torch.Tensor]],
    calibration_id: str,
    dtype: torch.dtype = torch.float32,
    progress: Progress | None = None,
) -> list[int]:
    """The teacher's layers that a depth-pruned student keeps, rising. Measured choices are remembered in the cache."""
    if isinstance(student.layers, list):
        return list(student.layers)
    key = fingerprint([model_fingerprint(teacher), student.layers, student.depth, calibration_id, str(dtype)])
    memory = cache_root() / "layers" / f"{key}.json"
    if memory.is_file():
        layers: list[int] = read_json(memory)
        return layers
    layers = choose_layers(load_model(teacher, dtype), student.depth, student.layers, calibration, progress)
    write_json(memory, layers)
    return layers


def changed_config(config: Any, changes: dict[str, Any]) -> Any:
    """The teacher's transformers config with changes, for a student from scratch. Raises UserError for unknown keys."""
    known = config.to_dict()
    for key in changes:
        if key not in known:
            raise UserError(f"students.*.config: unknown key {key!r}{suggest(key, known)}")
    if "head_dim" in known and "head_dim" not in changes and {"hidden_size", "num_attention_heads"} & set(changes):
        heads = changes.get("num_attention_heads", known["num_attention_heads"])
        changes = {**changes, "head_dim": changes.get("hidden_size", known["hidden_size"]) // heads}
    changed = copy.deepcopy(config)
    for key, value in changes.items():
        setattr(changed, key, value)
    if "layer_types" in known and "num_hidden_layers" in changes and "layer_types" not in changes and known["layer_types"]:
        changed.layer_types = (known["layer_types"] * changed.num_hidden_layers)[: changed.num_hidden_layers]
    return changed
