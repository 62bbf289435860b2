"""Students and teachers sharded over two ranks (FSDP2 on gloo) against one process, and resumed between all strategies."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import tiny_models
from helpers.distillation import TRAINING, run, weights
from helpers.rank_trainings import Leg, logged, run_legs

from distill_lit import data
from distill_lit.config.schema import CorpusConfig, DataConfig
from distill_lit.utils.distributed.spawn import spawn_ranks

SHARED = replace(TRAINING, micro_batch_size=2, gradient_accumulation_steps=2, devices=2, checkpoint_interval=1000)
# each reads what the one before has written, and is stopped by a signal to one rank; the last one ends
LEGS = [
    Leg("ddp", "whole", stop=1, rank=1),
    Leg("fsdp", "sharded", stop=2, rank=0),
    Leg("fsdp", "whole", stop=3, rank=1),
    Leg("ddp", "whole", stop=4, rank=0),
    Leg("fsdp", "sharded", stop=5, rank=0),
    Leg("ddp", "whole"),
]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("tied", [True, False])
def test_fsdp_is_one_process_and_resumes_from_any_kind_of_checkpoint(
    tmp_path: Path, tiny_corpus: Path, tied: bool
) -> None:
    teacher = tiny_models.make_model(tmp_path / "teacher", tie_word_embeddings=tied)
    corpora = {"text": CorpusConfig(path=f"file:{tiny_corpus}")}
    prepared = data.prepare_datasets(
        DataConfig(corpora=corpora, sequence_length=32, validation_sequences=4), teacher, "pypi"
    )
    whole, _ = run(tmp_path / "one", teacher, prepared)
    legs = [Leg("fsdp")] if not tied else LEGS
    found, files, was_sharded = spawn_ranks(2, run_legs, tmp_path / "two", teacher, prepared, SHARED, legs)
    assert was_sharded
    torch.testing.assert_close(found, weights(whole), rtol=0, atol=1e-5)
    one, two = logged(tmp_path / "one"), logged(tmp_path / "two")
    assert one.keys() == two.keys() == set(range(7))
    for step, line in one.items():
        assert two[step] == pytest.approx(line, abs=2e-6), step
    if tied:
        assert files[0] == ["step=1.ckpt", "step=1.sha256.json"]
        shards = [f"step=2.ckpt/{name}" for name in ("manifest.json", "rank_00000.safetensors", "rank_00001.safetensors")]
        assert [name for name in files[1] if name.startswith("step=2")] == ["step=2.ckpt", *shards, "step=2.ckpt/shared.pt"]
        assert "step=3.ckpt" in files[2]
        assert not any(".tmp" in name for leg in files for name in leg)
