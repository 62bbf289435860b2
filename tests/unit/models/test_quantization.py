"""Quantized models against rounding by hand: on disk, read back, and in another process."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from helpers.rounding import round_by_hand
from safetensors.torch import load_file

from distill_lit.models import (
    QUANTIZATION_RECIPES,
    check_quantizable,
    check_reloads,
    check_torchao,
    is_quantized,
    load_model,
    load_model_config,
    logits_on,
    probe_input_ids,
    quantize_model,
)
from distill_lit.models.int4_weights import GROUP_SIZE
from distill_lit.models.loading import weight_bytes
from distill_lit.utils.exceptions import UserError

pytest.importorskip("torchao")
LAYER = "model.layers.0.mlp.down_proj"
ROUNDED_IN_A_LAYER = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
                      "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")  # fmt: skip


@pytest.mark.parametrize("quantization", QUANTIZATION_RECIPES)
def test_a_quantized_folder_is_smaller_and_says_the_same_in_plain_transformers(
    quantization: str, tiny_teacher: Path, tmp_path: Path
) -> None:
    written = quantize_model(tiny_teacher, tmp_path / "q", quantization)
    ids = probe_input_ids(written)
    said = logits_on(written, ids)
    check_reloads(written, tmp_path / "q", ids, said)
    assert torch.equal(logits_on(load_model(tmp_path / "q"), ids), said)
    with pytest.raises(UserError, match="says something else"):
        check_reloads(written, tmp_path / "q", ids, said.flip(1))


@pytest.mark.parametrize("quantization", ["int8_weight_only", "int4"])
def test_weight_only_recipes_are_the_model_with_rounded_weights(
    quantization: str, tiny_teacher: Path, tmp_path: Path
) -> None:
    quantize_model(tiny_teacher, tmp_path / "q", quantization)
    model, teacher = load_model(tmp_path / "q"), load_model(tiny_teacher)
    expected = load_model(tiny_teacher)
    with torch.no_grad():
        for layer in expected.model.layers:
            for name in ROUNDED_IN_A_LAYER:
                weight = layer.get_submodule(name).weight
                weight.copy_(round_by_hand(weight, quantization))
    ids = probe_input_ids(teacher)
    moved = (logits_on(teacher, ids) - logits_on(expected, ids)).abs().max()
    assert (logits_on(model, ids) - logits_on(expected, ids)).abs().max() < 1e-3 * moved
    assert torch.equal(model.lm_head.weight, teacher.lm_head.weight)


def test_bytes_on_disk_are_those_of_the_recipe(tiny_teacher: Path, tmp_path: Path) -> None:
    full = load_file(tiny_teacher / "model.safetensors")[f"{LAYER}.weight"]
    channels, inputs = full.shape
    expected = {  # integers, then what belongs to a channel or group: scale and offset in float32, zero point of an int8
        "int8": inputs * channels + channels * (4 + 1),
        "int8_weight_only": inputs * channels + channels * (4 + 1),
        "int4": inputs * channels // 2 + channels * inputs // GROUP_SIZE * (4 + 4),
    }
    sizes = {}
    for quantization, size in expected.items():
        quantize_model(tiny_teacher, tmp_path / quantization, quantization)
        tensors = load_file(tmp_path / quantization / "model.safetensors")
        assert sum(x.nbytes for name, x in tensors.items() if name.startswith(f"{LAYER}.")) == size, quantization
        sizes[quantization] = weight_bytes(tmp_path / quantization)
    assert sizes["int4"] < sizes["int8_weight_only"] <= sizes["int8"] < weight_bytes(tiny_teacher)


def test_int4_is_widened_to_the_number_format_that_is_asked_for(tiny_teacher: Path, tmp_path: Path) -> None:
    quantize_model(tiny_teacher, tmp_path / "int4", "int4")
    wide, short = load_model(tmp_path / "int4"), load_model(tmp_path / "int4", torch.bfloat16)
    assert short.get_submodule(LAYER).weight.dtype == torch.bfloat16
    assert torch.equal(short.get_submodule(LAYER).weight, wide.get_submodule(LAYER).weight.bfloat16())
    assert not is_quantized(wide)
    wide.save_pretrained(tmp_path / "again")  # as a student that begins from it is
    assert "quantization_config" not in json.loads((tmp_path / "again/config.json").read_text())
    ids = probe_input_ids(wide)
    assert torch.equal(logits_on(load_model(tmp_path / "again"), ids), logits_on(wide, ids))


def test_equal_weights_of_a_group_stay_what_they_are(tiny_teacher: Path, tmp_path: Path) -> None:
    model = load_model(tiny_teacher)
    with torch.no_grad():
        model.get_submodule(LAYER).weight[0] = 0.25
        model.get_submodule(LAYER).weight[1] = 0.0
    model.save_pretrained(tmp_path / "even")
    quantize_model(tmp_path / "even", tmp_path / "int4", "int4")
    weight = load_model(tmp_path / "int4").get_submodule(LAYER).weight
    assert (weight[0] - 0.25).abs().max() < 1e-6
    assert weight[1].abs().max() < 1e-6


def test_what_cannot_be_quantized_is_refused(teacher: Path, tiny_teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="scale for every 32 inputs, and model.layers.0.self_attn.q_proj has 36; take int8"):
        check_quantizable(load_model_config(teacher), "int4", "models.small.quantize")
    with pytest.raises(UserError, match="scale for every 32 inputs"):
        quantize_model(teacher, tmp_path / "q", "int4")
    assert not (tmp_path / "q").exists()
    check_quantizable(load_model_config(teacher), "int8", "models.small.quantize")
    quantize_model(tiny_teacher, tmp_path / "int8", "int8")
    with pytest.raises(UserError, match="quantized already"):
        quantize_model(tmp_path / "int8", tmp_path / "twice", "int8")


def test_without_torchao_it_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"^models.small.quantize: int4 needs torchao; pip install"):
        check_torchao("models.small.quantize: int4")
