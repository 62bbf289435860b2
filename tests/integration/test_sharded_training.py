"""Trainings over several ranks and nodes, whole (DDP) and sharded (FSDP2 on gloo), against one process."""

import socket
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import tiny_models
from helpers.distillation import TRAINING, run, weights
from helpers.rank_trainings import EVERY_NODE, Leg, logged, prepare, run_legs, run_legs_of_adapters, run_several, start_node

from distill_lit.config.models import LoraConfig
from distill_lit.utils.distributed.spawn import spawn_ranks
from distill_lit.utils.files import TEMPORARY_PREFIX

SHARED = replace(TRAINING, micro_batch_size=2, gradient_accumulation_steps=2, devices=2)
# each reads what the one before has written, and is stopped by a signal to one rank; the last one ends
LEGS = [
    Leg("ddp", "whole", stop=1, rank=1),
    Leg("fsdp", "sharded", stop=2, rank=0),
    Leg("fsdp", "whole", stop=3, rank=1),
    Leg("ddp", "whole", stop=4, rank=0),
    Leg("fsdp", "sharded", stop=5, rank=0),
    Leg("ddp", "whole"),
]


def assert_same_training(one: Path, other: Path) -> None:
    """Losses and tokens of all steps and validations."""
    first, second = logged(one), logged(other)
    assert first.keys() == second.keys() == set(range(7))
    for step, line in first.items():
        assert second[step] == pytest.approx(line, abs=1e-6), step


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("tied", "legs"), [(True, LEGS), (False, [Leg("fsdp", teacher_shards=1)])])
def test_two_ranks_are_one_process_and_go_on_from_any_kind_of_checkpoint(
    tmp_path: Path, tiny_corpus: Path, tied: bool, legs: list[Leg]
) -> None:
    teacher = tiny_models.make_model(tmp_path / "teacher", tie_word_embeddings=tied)
    prepared = prepare(teacher, tiny_corpus)
    whole, _ = run(tmp_path / "one", teacher, prepared)
    found, files, was_sharded = spawn_ranks(2, run_legs, tmp_path / "two", teacher, prepared, SHARED, legs)
    assert was_sharded
    torch.testing.assert_close(found, weights(whole), rtol=0, atol=1e-5)
    assert_same_training(tmp_path / "one", tmp_path / "two")
    assert not any(TEMPORARY_PREFIX in name for leg in files for name in leg)
    if tied:
        assert files[0] == ["step=1.ckpt", "step=1.sha256.json"]
        shards = ["manifest.json", "rank_00000.safetensors", "rank_00001.safetensors", "shared.pt"]
        folder = ["step=2.ckpt", *(f"step=2.ckpt/{name}" for name in shards)]
        assert [name for name in files[1] if name.startswith("step=2")] == folder
        assert {"step=3.ckpt", "step=3.sha256.json"} <= set(files[2])


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_adapters_are_trained_in_shards_and_go_on_from_either_checkpoint(tmp_path: Path, tiny_corpus: Path) -> None:
    teacher, lora = tiny_models.make_model(tmp_path / "teacher"), LoraConfig(rank=4)
    prepared = prepare(teacher, tiny_corpus)
    whole, _ = run(tmp_path / "one", teacher, prepared, lora=lora)
    legs = [Leg("fsdp", "sharded", stop=2), Leg("ddp", stop=4), Leg("fsdp")]
    found, _, was_sharded = spawn_ranks(2, run_legs_of_adapters, tmp_path / "two", teacher, prepared, SHARED, legs, lora)
    assert was_sharded
    torch.testing.assert_close(found, weights(whole), rtol=0, atol=1e-5)
    assert_same_training(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_recomputed_activations_and_bfloat16_are_as_without_shards(tmp_path: Path, tiny_corpus: Path) -> None:
    teacher = tiny_models.make_model(tmp_path / "teacher")
    prepared = prepare(teacher, tiny_corpus)
    whole, _ = run(tmp_path / "one", teacher, prepared)
    short = replace(SHARED, precision="bfloat16")
    trainings = {
        "recomputed": replace(SHARED, strategy="fsdp", gradient_checkpointing=True),
        "bfloat16": replace(short, strategy="fsdp"),
        "bfloat16_ddp": replace(short, strategy="ddp"),
    }
    found = spawn_ranks(2, run_several, tmp_path / "two", teacher, prepared, trainings)
    torch.testing.assert_close(found["recomputed"], weights(whole), rtol=0, atol=1e-5)
    assert_same_training(tmp_path / "one", tmp_path / "two/recomputed")
    sharded, ddp, exact = (logged(tmp_path / name) for name in ("two/bfloat16", "two/bfloat16_ddp", "one"))
    for step, line in exact.items():
        assert sharded[step] == pytest.approx(ddp[step], rel=2e-3), step
        assert sharded[step] == pytest.approx(line, rel=1e-2), step
    assert sharded[5]["train/loss"] != exact[5]["train/loss"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_nodes_of_two_ranks_are_one_process_and_are_preempted_together(tmp_path: Path, tiny_corpus: Path) -> None:
    teacher = tiny_models.make_model(tmp_path / "teacher")
    whole, _ = run(tmp_path / "one", teacher, prepare(teacher, tiny_corpus))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    legs = [
        Leg("ddp", stop=2, rank=EVERY_NODE),
        Leg("fsdp", "sharded", stop=4, rank=EVERY_NODE, teacher_shards=2),
        Leg("ddp"),
    ]
    nodes = [start_node(tmp_path / "two", teacher, tiny_corpus, 2, 2, rank, port, legs) for rank in (0, 1)]
    assert [node.wait(800) for node in nodes] == [0, 0]
    torch.testing.assert_close(torch.load(tmp_path / "two/weights.pt"), weights(whole), rtol=0, atol=1e-5)
    assert_same_training(tmp_path / "one", tmp_path / "two")
