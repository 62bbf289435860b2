"""Models that are larger than a device: spread over several and the disk, or in fewer bits."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import tiny_models

from distill_lit.losses.lm_head import get_lm_head
from distill_lit.models import load_model
from distill_lit.models.device_map import load_over_devices, spread_layers
from distill_lit.models.flops import _cached_channels, _feed_forward_size, _num_cached_layers
from distill_lit.models.int4_weights import Int4Linear, pack_int4, unpack_int4
from distill_lit.models.quantization import round_weights
from distill_lit.models.sharding import meta_copy

LAYER_BYTES = 4 * (32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 64 + 2 * 32)


def test_layers_go_where_there_is_room_and_the_ends_stay_first(tmp_path: Path) -> None:
    folder = tiny_models.make_model(tmp_path, num_layers=4)
    room = [("cuda:0", LAYER_BYTES * 1.5), ("cuda:1", LAYER_BYTES * 2.0)]
    spread = spread_layers(folder, torch.float32, room)
    layers = {name: device for name, device in spread.items() if "layers" in name}
    assert layers == {
        "model.layers.0": "cuda:0",
        "model.layers.1": "cuda:1",
        "model.layers.2": "cuda:1",
        "model.layers.3": "disk",
    }
    assert {device for name, device in spread.items() if "layers" not in name} == {"cuda:0"}
    assert {"model.embed_tokens", "model.norm", "lm_head"} <= spread.keys()


def test_a_model_that_lies_on_disk_in_part_says_the_same(tmp_path: Path) -> None:
    folder = tiny_models.make_model(tmp_path, num_layers=3)
    whole, spread = load_model(folder), load_over_devices(folder, torch.float32, [("cpu", LAYER_BYTES)])
    ids = torch.arange(20)[None]
    with torch.inference_mode():
        torch.testing.assert_close(spread(input_ids=ids).logits, whole(input_ids=ids).logits)
    assert spread.model.layers[2].mlp.up_proj.weight.device.type == "meta"
    assert torch.equal(get_lm_head(spread, 300).weight, get_lm_head(whole, 300).weight)


def test_four_bits_stay_packed_and_say_what_the_rounded_weights_say(tmp_path: Path) -> None:
    folder = tiny_models.make_model(tmp_path)
    packed, rounded = round_weights(load_model(folder), "int4"), load_model(folder)
    for layer in rounded.model.layers:
        for part in (*layer.self_attn.children(), *layer.mlp.children()):
            if isinstance(part, torch.nn.Linear):
                part.weight.data = unpack_int4(pack_int4(part.weight.data))
    ids = torch.arange(20)[None]
    with torch.inference_mode():
        torch.testing.assert_close(packed(input_ids=ids).logits, rounded(input_ids=ids).logits)
    up = packed.model.layers[0].mlp.up_proj
    assert isinstance(up, Int4Linear)
    assert sum(buffer.numel() * buffer.element_size() for buffer in up.buffers()) == 64 * 32 // 2 + 64 * 2 * 4
    assert not [name for name, _ in packed.named_parameters() if "proj" in name]


def test_a_copy_without_weights_keeps_what_is_tied(tmp_path: Path) -> None:
    model = load_model(tiny_models.make_model(tmp_path))
    copy = meta_copy(model)
    assert {tensor.device.type for tensor in (*copy.parameters(), *copy.buffers())} == {"meta"}
    assert copy.lm_head.weight is copy.model.embed_tokens.weight
    assert [name for name, _ in copy.named_parameters()] == [name for name, _ in model.named_parameters()]
    assert model.lm_head.weight.device.type == "cpu"


@pytest.mark.parametrize(
    ("config", "channels"),
    [
        ({"intermediate_size": 24}, 24),
        ({"intermediate_size": None, "n_inner": 40}, 40),  # GPT-2, cut in width
        ({"n_inner": None}, 32),
        ({"ffn_dim": 20}, 20),  # OPT
        ({"intermediate_size": [16, 48, 16]}, 48),  # Gemma 3n has one for each layer
    ],
)
def test_channels_inside_the_feed_forward_part(config: dict[str, Any], channels: int) -> None:
    assert _feed_forward_size(SimpleNamespace(hidden_size=8, **config)) == channels


@pytest.mark.parametrize(
    ("config", "values"),
    [
        ({}, 3 * 2 * 2 * 8),
        ({"layer_types": ["linear_attention", "full_attention", "sliding_attention"]}, 2 * 2 * 2 * 8),  # Qwen3-Next
        ({"layers_block_type": ["mamba", "attention", "mamba"]}, 1 * 2 * 2 * 8),  # Jamba
        ({"num_kv_shared_layers": 2}, 1 * 2 * 2 * 8),  # Gemma 3n
        # DeepSeek, whose head_dim is that of the rotary part
        ({"kv_lora_rank": 5, "qk_nope_head_dim": 6, "qk_rope_head_dim": 8, "v_head_dim": 6}, 3 * 4 * (6 + 8 + 6)),
    ],
)
def test_keys_and_values_that_are_kept_of_a_token(config: dict[str, Any], values: int) -> None:
    shape = {"num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "hidden_size": 32}
    text = SimpleNamespace(**shape, **config)
    assert _num_cached_layers(text) * _cached_channels(text) == values
