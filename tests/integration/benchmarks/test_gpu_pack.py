"""What is packed for a GPU is unpacked again: a model that answers alike, rows that are equal, the libraries."""

from pathlib import Path

import numpy as np
import torch
from helpers import tiny_models

from benchmarks import gpu_pack
from distill_lit.models import load_model


def test_weights_come_back_as_near_as_the_rounding_says(tmp_path: Path) -> None:
    model = load_model(tiny_models.make_model(tmp_path, tie_word_embeddings=False))
    weights = dict(model.state_dict())
    files = gpu_pack.encode_weights(weights)
    found = gpu_pack.decode_weights(files)
    assert found.keys() == weights.keys()
    for name, wanted in weights.items():
        if wanted.ndim == 2:
            scale = wanted.std(1, keepdim=True).clamp(min=1e-4)  # a row of padding is all zeros
            steps = ((found[name] - wanted).abs() / (gpu_pack.STEP * scale)).max()
            assert steps < 0.51, name
        else:
            assert torch.equal(found[name], wanted), name
    bits = 8 * len(files["symbols.zlib"]) / sum(tensor.numel() for tensor in weights.values() if tensor.ndim == 2)
    assert bits < 4


def test_rows_are_stored_in_as_few_bytes_as_hold_them() -> None:
    for array, dtype in (([255], np.uint8), ([256], np.uint16), ([70000], np.uint32), ([True], bool)):
        narrow = gpu_pack._narrow(np.array(array))
        assert narrow.dtype == dtype and narrow.tolist() == array
