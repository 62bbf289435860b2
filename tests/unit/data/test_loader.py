"""Batches: the mask, the order, what a resumed run and other ranks see, and models on packed rows."""

import contextlib
import itertools

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from helpers.tiny_data import random_rows, tokens_of
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from distill_lit.config.training import TrainingConfig
from distill_lit.data import PackedDataset
from distill_lit.data.datamodule import PackedDataModule
from distill_lit.data.loader import PackedLoader, ValidationLoader, make_batch, optimizer_steps, shuffled_row_indices
from distill_lit.data.packing import pack
from distill_lit.models.packed_forward import block_causal_mask
from distill_lit.models.packing_check import last_hidden_state
from distill_lit.utils.exceptions import UserError


def loader(packed, **options):
    return PackedLoader(
        packed, **{"micro_batch_size": 2, "gradient_accumulation_steps": 3, "steps": 5, "seed": 0, **options}
    )


# ---------------------------------------------------------------- mask


def test_mask_by_hand():
    mask = block_causal_mask(torch.tensor([[1, 1, 2, 0, 0]]))
    assert mask.shape == (1, 1, 5, 5)
    assert mask[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 0, 0, 1, 0],
        [0, 0, 0, 0, 1],
    ]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, 3), min_size=6, max_size=6), min_size=1, max_size=3))
def test_mask_laws(drawn):
    ids = torch.tensor(drawn)
    mask = block_causal_mask(ids)[:, 0]
    for b, t, s in np.ndindex(*mask.shape):
        together = s <= t and ids[b, t] == ids[b, s] and ids[b, t] > 0
        assert bool(mask[b, t, s]) == bool(together or s == t)


MODELS = {
    "llama": LlamaConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    ),
    "gpt2": GPT2Config(
        vocab_size=97, n_embd=32, n_layer=2, n_head=4, n_positions=64, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0
    ),
}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", MODELS)
def test_packed_documents_are_read_as_if_alone(name, attention):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(MODELS[name], attn_implementation=attention).eval()
    rng = np.random.default_rng(0)
    documents = [rng.integers(1, 97, size).tolist() for size in (7, 11, 5, 9, 3, 17)]
    packed, _ = pack(tokens_of(*documents), 20)
    batch = make_batch(packed, np.arange(len(packed)), 1)
    with torch.no_grad():
        logits = model.get_output_embeddings()(last_hidden_state(model, batch))
        assert logits.isfinite().all()
        compared = 0
        for row, numbers in enumerate(batch["document_ids"]):
            for number in range(1, int(numbers.max()) + 1):
                here = numbers == number
                alone = model(batch["input_ids"][row, here][None]).logits[0]
                torch.testing.assert_close(logits[row, here], alone, atol=2e-6, rtol=1e-4)
                compared += 1
    assert compared == 6
    assert len(packed) < 6


# ---------------------------------------------------------------- order


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 13), st.integers(0, 5), st.integers(0, 40), st.integers(0, 40))
def test_order_reads_the_pool_pass_by_pass(rows, seed, start, count):
    order = shuffled_row_indices(rows, seed, 100)
    for i in range(100 // rows):
        assert sorted(order[i * rows : (i + 1) * rows].tolist()) == list(range(rows))
    assert np.array_equal(shuffled_row_indices(rows, seed, count, start), order[start : start + count])


def test_another_seed_or_pass_is_another_order():
    assert not np.array_equal(shuffled_row_indices(50, 0, 50), shuffled_row_indices(50, 1, 50))
    assert not np.array_equal(shuffled_row_indices(50, 0, 50), shuffled_row_indices(50, 0, 50, start=50))


def test_a_later_stage_reads_the_rows_after_those_of_the_stages_before():
    packed = random_rows(20, 8)
    both = loader(packed, steps=3)
    later = PackedDataModule(packed, packed, TrainingConfig(micro_batch_size=2, gradient_accumulation_steps=3), 0, 6)
    read = [batch["rows"].tolist() for batch in itertools.islice(later.train_dataloader(), 6)]
    assert read == [both.batch_at(place)["rows"].tolist() for place in range(3, 9)]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.integers(1, 30))
def test_ranks_share_out_the_same_step(batch, accumulate, world_size, rows):
    packed = random_rows(rows, 8)
    ranks = [
        loader(
            packed,
            micro_batch_size=batch,
            gradient_accumulation_steps=accumulate,
            world_size=world_size,
            rank=r,
            steps=3,
        )
        for r in range(world_size)
    ]
    size = batch * accumulate * world_size
    for step in range(3):
        here = [one.batch_at(step * accumulate + i) for one in ranks for i in range(accumulate)]
        read = torch.cat([b["rows"] for b in here]).tolist()
        assert sorted(read) == sorted(shuffled_row_indices(rows, 0, size, start=step * size).tolist())
        targets = sum(int((b["labels"] >= 0).sum()) for b in here)
        assert {int(b["step_tokens"]) for b in here} == {targets}


def test_batch_by_hand():
    packed, _ = pack(tokens_of([5, 6, 7], [8, 9]), 6)
    batch = make_batch(packed, np.array([0]), packed.targets_per_row.sum())
    assert {name: value.tolist() for name, value in batch.items()} == {
        "input_ids": [[5, 6, 7, 8, 9, 0]],
        "labels": [[-100, 6, 7, -100, 9, -100]],
        "position_ids": [[0, 1, 2, 0, 1, 0]],
        "document_ids": [[1, 1, 1, 2, 2, 0]],
        "rows": [0],
        "step_tokens": 3,
    }
    assert {value.dtype for value in batch.values()} == {torch.int64}


def test_the_denominator_is_never_zero():
    silent, _ = pack(tokens_of([5, 6], supervised=[[False, False]]), 4)
    assert int(make_batch(silent, np.array([0]), 0)["step_tokens"]) == 1


@pytest.mark.parametrize("kind", ["empty", "masked"])
def test_nothing_to_learn_is_refused(kind):
    full = random_rows(2, 8)
    useless = (
        full.take(np.arange(0))
        if kind == "empty"
        else PackedDataset(full.input_ids, full.document_ids, np.zeros_like(full.loss_mask))
    )
    with pytest.raises(UserError, match="supervised token"):
        loader(useless)
    with pytest.raises(UserError, match="supervised token"):
        ValidationLoader(useless, micro_batch_size=2)


@pytest.mark.parametrize(("rows", "batch", "world_size"), [(10, 4, 1), (10, 4, 2), (9, 2, 4), (3, 2, 5)])
def test_validation_reads_every_row_once(rows, batch, world_size):
    packed = random_rows(rows, 8)
    ranks = [
        list(ValidationLoader(packed, micro_batch_size=batch, rank=r, world_size=world_size)) for r in range(world_size)
    ]
    length = len(ValidationLoader(packed, micro_batch_size=batch, world_size=world_size))
    assert {len(batches) for batches in ranks} == {length}
    read = [
        int(row)
        for batches in ranks
        for b in batches
        for row, labels in zip(b["rows"], b["labels"], strict=True)
        if (labels >= 0).any()
    ]
    assert sorted(read) == np.flatnonzero(packed.targets_per_row).tolist()
    for i in range(length):
        targets = sum(int((batches[i]["labels"] >= 0).sum()) for batches in ranks)
        assert {int(batches[i]["step_tokens"]) for batches in ranks} == {targets}


def test_steps_read_at_least_the_tokens():
    training = TrainingConfig(max_tokens=1000, micro_batch_size=2, gradient_accumulation_steps=3)
    assert optimizer_steps(training, 16) == 11  # 1000 / 96, rounded up
    assert (
        optimizer_steps(TrainingConfig(max_tokens=1000, micro_batch_size=2, gradient_accumulation_steps=3, devices=2), 16)
        == 6
    )
    assert optimizer_steps(TrainingConfig(max_tokens=1), 256) == 1


# ---------------------------------------------------------------- resume


def test_a_loader_goes_on_where_it_was():
    packed = random_rows(7, 8)
    every = [b["rows"].tolist() for b in loader(packed)]
    assert len(every) == len(loader(packed)) == 15
    for stop in range(16):
        first = loader(packed)
        seen = [b["rows"].tolist() for b, _ in zip(first, range(stop), strict=False)] if stop else []
        state = loader(packed).state_dict() if not stop else {**first.state_dict(), "position": stop}
        second = loader(packed)
        second.load_state_dict(state)
        if stop < 15:
            assert seen + [b["rows"].tolist() for b in second] == every
    again = loader(packed)
    assert [b["rows"].tolist() for b in again] == [b["rows"].tolist() for b in again] == every


def test_who_looks_ahead_sees_the_very_batches_that_come_next_each_made_once():
    packed, told, made = random_rows(7, 8), [], []
    whole = list(loader(packed))
    ahead = loader(packed)
    make, ahead.look_ahead = ahead.batch_at, told.append
    ahead.batch_at = lambda position: (made.append(position), make(position))[1]
    read = list(ahead)
    assert made == list(range(len(whole)))
    assert all(one is other for one, other in zip(read[1:], told, strict=True))
    assert all(torch.equal(one["rows"], other["rows"]) for one, other in zip(read, whole, strict=True))
    batches = iter(ahead)
    next(batches)
    ahead.load_state_dict({**ahead.state_dict(), "position": 9})  # what was made ahead is not what comes next
    assert torch.equal(next(batches)["rows"], whole[9]["rows"])


def test_the_state_counts_the_batches_handed_out():
    one = loader(random_rows(7, 8))
    iterator = iter(one)
    assert one.state_dict()["position"] == 0
    next(iterator)
    assert one.state_dict()["position"] == 1
    assert all(type(value) is int for value in one.state_dict().values())


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"micro_batch_size": 3}, {"gradient_accumulation_steps": 1}, {"world_size": 2}]
)
def test_resuming_in_another_order_is_refused(change):
    state = loader(random_rows(7, 8)).state_dict()
    with pytest.raises(UserError, match=f"read with {next(iter(change))} = "):
        loader(random_rows(7, 8), **change).load_state_dict(state)


class Reader(pl.LightningModule):
    """Notes the rows of every batch, in training and validation."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.trained, self.validated = [], []

    def training_step(self, batch, number):
        self.trained.append(batch["rows"].tolist())
        return self.weight * batch["input_ids"].float().mean() / batch["step_tokens"]

    def validation_step(self, batch, number):
        self.validated.append(batch["rows"].tolist())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Stop(Exception):
    pass


class StopAfter(Callback):
    def __init__(self, batches):
        self.batches = batches

    def on_train_batch_end(self, trainer, module, outputs, batch, number):
        if len(module.trained) == self.batches:
            raise Stop


def fit(folder, rows, resume=None, stop=None):
    module = Reader()
    data = PackedDataModule(
        rows.take(np.arange(7)),
        rows.take(np.arange(7, 10)),
        TrainingConfig(max_tokens=12 * 2 * 8, micro_batch_size=2, gradient_accumulation_steps=2),
        seed=3,
    )
    saving = ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1, save_on_train_epoch_end=False)
    trainer = pl.Trainer(
        max_steps=data.steps,
        max_epochs=1,
        accumulate_grad_batches=2,
        val_check_interval=4,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[saving, *([StopAfter(stop)] if stop else [])],
    )
    with contextlib.suppress(Stop):
        trainer.fit(module, data, ckpt_path=resume, weights_only=True)
    return module, trainer


@pytest.mark.parametrize("saved", [1, 2, 3, 5])
def test_a_resumed_trainer_sees_each_batch_once(tmp_path, saved):
    rows = random_rows(10, 8)
    whole, trainer = fit(tmp_path / "whole", rows)
    assert trainer.global_step == 6
    assert len(whole.trained) == 12
    assert sorted([row for rows in whole.trained for row in rows][:7]) == list(range(7))
    # stopped in the middle of the next accumulation window, whose first half is read again
    first, _ = fit(tmp_path / "cut", rows, stop=2 * saved + 1)
    second, trainer = fit(tmp_path / "cut", rows, resume=tmp_path / "cut" / f"step={saved}.ckpt")
    assert first.trained[: 2 * saved] + second.trained == whole.trained
    assert trainer.global_step == 6
    assert second.weight.item() == whole.weight.item()
    # validation after steps 2, 4 and 6, and a first look; its rows are numbered after the seven training rows
    assert [v for v in whole.validated if v[0] == 7] == [[7, 8]] * 4
