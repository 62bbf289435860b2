"""The floor of a step counts the products that it must, by hand arithmetic."""

from pathlib import Path

import torch
from helpers import tiny_models

from benchmarks.step_floor import body_shapes, run_products
from distill_lit.models import load_model


def test_products_of_a_small_llama(tmp_path: Path) -> None:
    model = load_model(tiny_models.make_model(tmp_path))
    config = model.config
    rows, length, layers = 3, 8, config.num_hidden_layers
    width, inner, heads = config.hidden_size, config.intermediate_size, config.num_attention_heads
    key_width = width * config.num_key_value_heads // heads
    weights = layers * (2 * width * width + 2 * width * key_width + 3 * width * inner)
    attention = layers * 2 * 2 * rows * length * (length // 2) * width  # scores and values over half of the keys
    forward = 2 * rows * length * weights + attention
    assert sum(shape.flops for shape in body_shapes(model, rows, length, is_trained=False)) == forward
    assert sum(shape.flops for shape in body_shapes(model, rows, length, is_trained=True)) == 3 * forward
    run_products(list(body_shapes(model, rows, length, is_trained=True)), torch.float32, torch.device("cpu"))()
