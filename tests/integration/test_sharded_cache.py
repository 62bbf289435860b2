"""The cache of a teacher that is sharded over two ranks is the cache of one process."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.distillation import VOCABULARY
from safetensors.torch import load_file

from distill_lit import data
from distill_lit.models import load_model
from distill_lit.models.sharding import build_on_rank_zero, shard_frozen, world_mesh
from distill_lit.teachers import write_teacher_cache
from distill_lit.teachers.compression import CACHE_SAMPLED, TeacherCacheFormat
from distill_lit.teachers.teacher_cache import is_teacher_cache_complete
from distill_lit.utils.distributed.ranks import is_sharded
from distill_lit.utils.distributed.spawn import spawn_ranks

STATES, SAMPLED = TeacherCacheFormat(hidden_layers=(0,)), TeacherCacheFormat(CACHE_SAMPLED, 7)


def write_on_rank(folder: Path, teacher: Path, prepared: data.PreparedData, _: Any) -> bool:
    """Writes both caches; whether the teacher was sharded."""
    model = build_on_rank_zero(lambda: load_model(teacher).requires_grad_(False))
    shard_frozen(model, world_mesh(torch.device("cpu")), torch.device("cpu"))
    for name, form in (("states", STATES), ("sampled", SAMPLED)):
        write_teacher_cache(folder / name, model, prepared.train, prepared.validation, 3, form, VOCABULARY)
    weight = model.model.layers[1].mlp.up_proj.weight
    return is_sharded(weight) and len(weight.to_local()) < len(weight)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_ranks_share_out_the_rows_and_the_cache_is_the_same(
    tmp_path: Path, tiny_teacher: Path, prepared: data.PreparedData
) -> None:
    assert spawn_ranks(2, write_on_rank, tmp_path / "two", tiny_teacher, prepared)
    for name, form in (("states", STATES), ("sampled", SAMPLED)):
        model = load_model(tiny_teacher)
        write_teacher_cache(tmp_path / "one" / name, model, prepared.train, prepared.validation, 3, form, VOCABULARY)
        rows = len(prepared.train) + len(prepared.validation)
        assert is_teacher_cache_complete(tmp_path / "two" / name, rows)
        files = sorted(path.name for path in (tmp_path / "one" / name).glob("*.safetensors"))
        assert files == sorted(path.name for path in (tmp_path / "two" / name).glob("*.safetensors"))
        for file in files:
            one, two = (load_file(tmp_path / folder / name / file) for folder in ("one", "two"))
            for key, value in one.items():
                if name == "states":
                    torch.testing.assert_close(two[key], value, rtol=1e-5, atol=1e-5)
                else:  # a draw may change where rounding moves a probability over it
                    assert (two[key].float() - value.float()).abs().gt(1e-2).float().mean() < 0.02
