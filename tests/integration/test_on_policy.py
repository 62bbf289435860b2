"""Text that the student writes while it trains: what becomes of a batch, the mixture with the teacher, replay, resuming."""

import functools
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import ROOT, tiny_models
from helpers.distillation import LENGTH, SETTINGS, TRAINING, VOCABULARY, new_student, weights
from helpers.rounding import bfloat16_default
from helpers.tiny_data import byte_tokenizer

from distill_lit import data
from distill_lit.config import OnPolicyConfig, TermConfig, load_experiment
from distill_lit.data.datamodule import PackedDataModule
from distill_lit.data.loader import make_batch
from distill_lit.experiment.checks.validation import check_experiment
from distill_lit.experiment.execution.training_job import _build_on_policy_text
from distill_lit.experiment.plan import plan_runs
from distill_lit.generation.sampling import SamplingParams, generate_batch
from distill_lit.losses import build_objective
from distill_lit.models import load_model
from distill_lit.teachers import OnlineTeacher
from distill_lit.training import on_policy
from distill_lit.training.distiller import Distiller
from distill_lit.training.on_policy import OnPolicyGenerator, _TeacherMix
from distill_lit.training.trainer import TrainingJob, optimizer_settings, train
from distill_lit.utils.distributed.ranks import get_rank
from distill_lit.utils.distributed.spawn import spawn_ranks
from distill_lit.utils.exceptions import UserError

QUICK = ROOT / "experiments/quickstart.yaml"
ALWAYS = OnPolicyConfig(fraction=1.0, max_new_tokens=10)


def writer(config: OnPolicyConfig, teacher: object = None, seed: int = 0) -> OnPolicyGenerator:
    return OnPolicyGenerator(config, [2], VOCABULARY, teacher, seed, max_steps=10)


def test_only_what_the_student_wrote_is_supervised(tiny_teacher: Path, prepared: data.PreparedData) -> None:
    batch = make_batch(prepared.train, np.arange(6), 1)
    student = load_model(tiny_teacher).train()
    made, facts = writer(ALWAYS).maybe_generate(batch, student, 4, 0)
    assert student.training  # as it was
    lengths = []
    for row in range(6):
        own = made["on_policy_mask"][row]
        first, last = int(own.nonzero()[0]), int(own.nonzero()[-1])
        prompt = made["input_ids"][row, :first].tolist()
        source = batch["input_ids"][row].tolist()
        starts = [i for i in range(LENGTH) if source[i : i + first] == prompt]
        assert starts, "the prompt is the beginning of a document of the row"
        assert any(i == 0 or batch["document_ids"][row, i] != batch["document_ids"][row, i - 1] for i in starts)
        assert torch.equal(made["labels"][row] != -100, own)
        assert torch.equal(made["labels"][row][own], made["input_ids"][row][own])
        assert made["document_ids"][row].tolist() == [1] * (last + 1) + [0] * (LENGTH - last - 1)
        assert made["position_ids"][row, : last + 1].tolist() == list(range(last + 1))
        lengths.append(int(own.sum()))
    assert int(made["step_tokens"]) == sum(lengths)
    assert facts["length"] == pytest.approx(sum(lengths) / 6)
    assert max(lengths) <= 10


def test_a_chat_is_continued_where_its_response_begins(prepared: data.PreparedData, tiny_teacher: Path) -> None:
    batch = make_batch(prepared.train, np.arange(1), 1)
    size = int((batch["document_ids"][0] == 1).sum())
    batch["document_ids"] = torch.where(batch["document_ids"] == 1, 1, 0)
    batch["labels"][0, :5] = -100  # five tokens are the prompt
    made, _ = writer(ALWAYS).maybe_generate(batch, load_model(tiny_teacher), 0, 0)
    assert size > 6
    assert int(made["on_policy_mask"][0].nonzero()[0]) == 5
    assert made["input_ids"][0, :5].tolist() == batch["input_ids"][0, :5].tolist()


def test_a_question_that_leaves_no_room_for_a_text_is_read_as_it_is(
    prepared: data.PreparedData, tiny_teacher: Path
) -> None:
    """Cut at its end, it would have the student go on with the question."""
    batch, student = make_batch(prepared.train, np.arange(2), 1), load_model(tiny_teacher)
    batch["document_ids"][:] = 1
    batch["position_ids"][:] = torch.arange(LENGTH)
    batch["labels"][0, : LENGTH - 4] = -100
    batch["labels"][1, :6] = -100
    made, facts = writer(ALWAYS).maybe_generate(batch, student, 0, 0)
    for name in ("input_ids", "labels", "document_ids", "position_ids", "rows"):
        assert torch.equal(made[name][0], batch[name][0]), name
    assert not made["on_policy_mask"][0].any()
    assert made["rows"].tolist() == [0, -1]
    own = int(made["on_policy_mask"][1].sum())
    assert made["input_ids"][1, :6].tolist() == batch["input_ids"][1, :6].tolist()
    assert torch.equal(made["labels"][1] != -100, made["on_policy_mask"][1])
    assert facts["length"] == own
    assert int(made["step_tokens"]) == 4 + own
    assert (
        writer(ALWAYS).maybe_generate({name: value[:1] for name, value in batch.items() if value.ndim}, student, 0, 0)
        is None
    )


def test_a_text_in_a_chat_ends_with_its_turn(tmp_path: Path, tiny_teacher: Path) -> None:
    """A base model's tokenizer may end a text with another token than a turn."""
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = "<|endoftext|>"
    tokenizer.save_pretrained(tmp_path)
    turn, end = (tokenizer.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<|endoftext|>"))
    for corpus, ends in (([], {end, 2}), (["data.corpora.piqa.messages=m"], {end, turn, 2})):
        config = load_experiment(QUICK, ["teacher.source=online", "on_policy.fraction=1", *corpus])
        made = _build_on_policy_text(config, load_model(tiny_teacher), VOCABULARY, tmp_path, None, 1, tmp_path / "log")
        assert set(made.eos_token_ids) == ends


def test_what_is_logged_and_kept_of_texts_is_float32_whatever_the_default_format_is(
    tiny_teacher: Path, prepared: data.PreparedData
) -> None:
    batch, student = make_batch(prepared.train, np.arange(2), 1), load_model(tiny_teacher)
    plain = writer(ALWAYS).next_batch(batch, student, 4, 0, 1)["engine_logprobs"]
    text = writer(ALWAYS)
    with bfloat16_default():
        found = text.next_batch(batch, student, 4, 0, 1)["engine_logprobs"]
        for _ in range(600):
            text.update_metrics({"replayed": 1.0}, torch.device("cpu"))
    torch.testing.assert_close(found, plain, rtol=0, atol=0, equal_nan=True)
    assert text.pop_metrics(1.0)["replayed"] == pytest.approx(600 / 601)


def test_seed_and_step_alone_decide(tiny_teacher: Path, prepared: data.PreparedData) -> None:
    batch, student = make_batch(prepared.train, np.arange(3), 1), load_model(tiny_teacher)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, _ = writer(ALWAYS).maybe_generate(batch, student, 4, 1)
    assert torch.equal(torch.get_rng_state(), state)  # dropout goes on as if nothing had been drawn
    again, _ = writer(ALWAYS).maybe_generate(batch, student, 4, 1)
    assert torch.equal(first["input_ids"], again["input_ids"])
    for other in ((5, 1), (4, 2)):
        assert not torch.equal(writer(ALWAYS).maybe_generate(batch, student, *other)[0]["input_ids"], first["input_ids"])


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_share_is_kept(tiny_teacher: Path, prepared: data.PreparedData, share: float) -> None:
    batch, student = make_batch(prepared.train, np.arange(1), 1), load_model(tiny_teacher)
    text = writer(OnPolicyConfig(fraction=share, max_new_tokens=1))
    wrote = sum(text.maybe_generate(batch, student, step, 0) is not None for step in range(100))
    assert abs(wrote - 100 * share) <= 12 if 0 < share < 1 else wrote == 100 * share


def test_the_mixture_is_drawn_from_and_the_teacher_sees_what_the_student_sees(tiny_teacher: Path) -> None:
    """Greedy choices from α p + (1 − α) q, token by token, against whole forward passes of both without a cache."""
    student, teacher = new_student(tiny_teacher).eval(), load_model(tiny_teacher)
    prompts = [[5, 9, 40, 7], [61, 33]]
    mix = _TeacherMix(teacher, 0.4, VOCABULARY)
    written = generate_batch(student, prompts, [2], SamplingParams(0.0, 1.0, 6), 0, [mix])
    for prompt, text in zip(prompts, written, strict=True):
        for i, token in enumerate(text.token_ids):
            ids = torch.tensor([[*prompt, *text.token_ids[:i]]])
            with torch.no_grad():
                p, q = (model(ids).logits[0, -1].softmax(-1) for model in (teacher, student))
            mixed = 0.4 * p + 0.6 * q
            assert token == int(mixed.argmax())
            assert text.logprobs[i] == pytest.approx(float(q[token].log()), abs=1e-3)  # the student's own


def test_a_teacher_that_writes_otherwise_with_a_cache_is_mixed_in_without(
    tiny_teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student, teacher = new_student(tiny_teacher).eval(), load_model(tiny_teacher)
    cached = teacher.forward

    @functools.wraps(cached)
    def forward(*args: Any, use_cache: bool = False, **inputs: Any) -> Any:
        output = cached(*args, use_cache=use_cache, **inputs)
        output.logits = output.logits * (-1 if use_cache else 1)
        return output

    monkeypatch.setattr(teacher, "forward", forward)
    (text,) = generate_batch(
        student, [[5, 9, 40]], [2], SamplingParams(0.0, 1.0, 4), 0, [_TeacherMix(teacher, 0.9, VOCABULARY)]
    )
    for i, token in enumerate(text.token_ids):
        ids = torch.tensor([[5, 9, 40, *text.token_ids[:i]]])
        with torch.no_grad():
            p, q = (model(ids, use_cache=False).logits[0, -1].softmax(-1) for model in (teacher, student))
        assert token == int((0.9 * p + 0.1 * q).argmax())


@pytest.mark.parametrize("mix", [0.0, 0.4])
def test_the_padded_rows_of_a_head_are_never_drawn(tiny_teacher: Path, prepared: data.PreparedData, mix: float) -> None:
    """Heads longer than the tokenizer, whose padding both models prefer to every token."""
    student, teacher = load_model(tiny_teacher), load_model(tiny_teacher)
    tiny_models.pad_head(student, 310)
    tiny_models.pad_head(teacher, 320)
    text = writer(OnPolicyConfig(fraction=1.0, max_new_tokens=10, teacher_mix_fraction=mix), teacher)
    made, _ = text.maybe_generate(make_batch(prepared.train, np.arange(4), 1), student, 0, 0)
    assert int(made["labels"].max()) < VOCABULARY
    assert len(made["labels"][made["on_policy_mask"]].unique()) > 4


def test_a_mixture_is_one_of_two_distributions_over_the_same_tokens(tiny_teacher: Path) -> None:
    """A teacher whose padding is nearly certain still has its whole share, on the real tokens."""
    teacher = load_model(tiny_teacher)
    ids, scores = torch.tensor([[5, 9, 40, 7]]), torch.randn(1, VOCABULARY)
    with torch.no_grad():
        right = (0.4 * teacher(ids).logits[0, -1].softmax(-1) + 0.6 * scores[0].softmax(-1)).log()
        tiny_models.pad_head(teacher, 310)
        mix = _TeacherMix(teacher, 0.4, VOCABULARY)
        mix.start(torch.ones_like(ids))
        padded = torch.cat([scores, torch.full((1, 6), -torch.inf)], 1)
        found = mix(ids, padded)[0]
    torch.testing.assert_close(found[:VOCABULARY], right, rtol=1e-4, atol=1e-5)
    assert (found[VOCABULARY:] == -torch.inf).all()


def test_texts_are_replayed_ever_more_often(tiny_teacher: Path, prepared: data.PreparedData) -> None:
    batch, student = make_batch(prepared.train, np.arange(1), 1), load_model(tiny_teacher)
    text = OnPolicyGenerator(
        OnPolicyConfig(fraction=1.0, max_new_tokens=2, replay_buffer_size=3), [2], VOCABULARY, None, 0, max_steps=200
    )
    replayed = [text.maybe_generate(batch, student, step, 0)[1]["replayed"] for step in range(200)]
    assert sum(replayed[:3]) == 0  # nothing to replay yet
    assert sum(replayed[140:]) > 2 * sum(replayed[:60])  # a share of t / T: 51 and 9 on average
    assert replayed[199] == 1
    (kept,) = text.state_dict()["replay_buffer"]
    assert len(kept) == 3


def test_an_adaptive_share_grows_when_validation_gets_worse() -> None:
    text = writer(OnPolicyConfig(fraction="adaptive"))
    shares = []
    for loss in (2.0, 1.5, 1.6, 1.4, 1.5, 1.5):
        text.update_adaptive_fraction(loss)
        shares.append(round(text.fraction, 3))
    assert shares == [0, 0, 0.1, 0.1, 0.2, 0.3]
    fixed = writer(OnPolicyConfig(fraction=0.5))
    fixed.update_adaptive_fraction(1.0)
    fixed.update_adaptive_fraction(9.0)
    assert fixed.fraction == 0.5


def test_state_goes_through_a_checkpoint(tmp_path: Path, tiny_teacher: Path, prepared: data.PreparedData) -> None:
    batch, student = make_batch(prepared.train, np.arange(2), 1), load_model(tiny_teacher)
    config = OnPolicyConfig(fraction="adaptive", max_new_tokens=3, replay_buffer_size=2)
    one = writer(config)
    for loss in (1.0, 2.0, 3.0, 2.5, 2.0, 1.5, 1.2, 1.1, 1.05, 1.01, 1.5):
        one.update_adaptive_fraction(loss)
    one.maybe_generate(batch, student, 0, 0)
    torch.save(one.state_dict(), tmp_path / "state")
    other = writer(config)
    other.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    assert other.fraction == one.fraction == 1.0
    for step in range(1, 8):
        a, b = one.maybe_generate(batch, student, step, 0), other.maybe_generate(batch, student, step, 0)
        assert torch.equal(a[0]["input_ids"], b[0]["input_ids"])
        assert a[1]["replayed"] == b[1]["replayed"]


# ---------------------------------------------------------------- training


def run(
    folder: Path, teacher: Path, prepared: data.PreparedData, terms: dict, config: OnPolicyConfig, **changes: object
) -> tuple[torch.nn.Module, dict]:
    student, training = new_student(teacher), replace(TRAINING, **changes)
    module = PackedDataModule(prepared.train, prepared.validation, training, 0)
    live = OnlineTeacher(load_model(teacher), VOCABULARY)
    distiller = Distiller(
        student,
        live,
        build_objective(terms),
        vocab_size=VOCABULARY,
        fused_loss_settings=SETTINGS,
        **optimizer_settings(training),
        on_policy_generator=OnPolicyGenerator(config, [2], VOCABULARY, live.model, 0, module.steps),
    )
    return student, train(TrainingJob(folder, distiller, module, training, 0, lambda *_: None))


@pytest.mark.parametrize("kind", ["reverse_kl", "jensen_shannon", "policy_gradient_reverse_kl", "contrastive_skew_kl"])
def test_a_student_learns_from_its_own_text(
    tmp_path: Path, tiny_teacher: Path, prepared: data.PreparedData, kind: str
) -> None:
    config = OnPolicyConfig(fraction=0.7, max_new_tokens=12, teacher_mix_fraction=0.2)
    changes = {"max_tokens": LENGTH * 8 * 30}
    if kind == "policy_gradient_reverse_kl":  # a noisier gradient, and one that only own text gives
        config, changes = (
            OnPolicyConfig(fraction=1.0, max_new_tokens=24, prompt_fraction=0.1),
            {**changes, "learning_rate": 1e-3},
        )
    _, final = run(tmp_path, tiny_teacher, prepared, {"term": TermConfig(kind=kind)}, config, **changes)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    kl = [line["validation/teacher_kl"] for line in lines if "validation/teacher_kl" in line]
    assert kl[-1] < (1.02 if kind == "policy_gradient_reverse_kl" else 0.9) * kl[0]
    assert kl[-1] != kl[0]  # as it would be without a gradient
    logged = {name for line in lines for name in line if name.startswith("on_policy/")}
    names = (
        "length",
        "finished",
        "distinct_1",
        "distinct_2",
        "repetition",
        "reverse_kl",
        "time_share",
        "fraction",
        "replayed",
        "engine_gap",
        "importance_ratio",
    )
    assert logged == {f"on_policy/{name}" for name in names}
    assert 0 < final["on_policy/time_share"] <= 1


def run_ranks(count: int, patch: Callable[[pytest.MonkeyPatch], None], *arguments: Any, **changes: Any) -> Any:
    """`run` with something patched, here or on so many ranks."""
    changes |= {"devices": count, "micro_batch_size": 8 // count}
    if count == 1:
        return patched_run(patch, arguments, changes, None)
    return spawn_ranks(count, patched_run, patch, arguments, changes)


def patched_run(patch: Callable[[pytest.MonkeyPatch], None], arguments: tuple, changes: dict, _: Any) -> Any:
    with pytest.MonkeyPatch.context() as monkeypatch:
        patch(monkeypatch)
        return run(*arguments, **changes)


def nothing(_: pytest.MonkeyPatch) -> None:
    pass


def power_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the fourth batch."""
    real, calls = OnPolicyGenerator.maybe_generate, []

    def dying(self: OnPolicyGenerator, *arguments: object) -> object:
        calls.append(1)
        if len(calls) == 4:
            raise RuntimeError("power cut")
        return real(self, *arguments)

    monkeypatch.setattr(OnPolicyGenerator, "maybe_generate", dying)


def same_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ranks read what one of two reads."""
    monkeypatch.setattr(
        "distill_lit.data.datamodule.PackedDataModule._rank_and_world_size", lambda self: {"rank": 0, "world_size": 2}
    )


def slow_writing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two ranks the second finds no prompt."""
    real, find = on_policy.generate_batch, on_policy.sample_prompts

    def slowly(*arguments: object) -> object:
        time.sleep(0.4)
        return real(*arguments)

    monkeypatch.setattr(on_policy, "generate_batch", slowly)
    monkeypatch.setattr(on_policy, "sample_prompts", lambda *arguments: {} if get_rank() else find(*arguments))


@pytest.mark.parametrize("devices", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_run_that_was_cut_goes_on_with_the_same_text(
    tmp_path: Path, tiny_teacher: Path, prepared: data.PreparedData, devices: int
) -> None:
    """Bitwise, with replay and an adaptive share: six steps at once, and two, a crash, four."""
    config = OnPolicyConfig(fraction=0.8, max_new_tokens=6, replay_buffer_size=1)
    known = tiny_teacher, prepared, {"kl": TermConfig(kind="reverse_kl")}, config
    whole, _ = run_ranks(devices, nothing, tmp_path / "a", *known, checkpoint_interval=2)
    with pytest.raises(RuntimeError, match="power cut"):
        run_ranks(devices, power_cut, tmp_path / "b", *known, checkpoint_interval=2)
    parts, _ = run_ranks(devices, nothing, tmp_path / "b", *known, checkpoint_interval=2)
    assert torch.equal(weights(whole), weights(parts))
    states = [
        torch.load(tmp_path / name / "checkpoints/step=6.ckpt", weights_only=True)["callbacks"]["on_policy_collapse"]
        for name in "ab"
    ]
    assert states[0] == states[1]
    assert sum(texts for texts, *_ in states[0]["recent"]) >= 8


def test_every_rank_draws_and_keeps_text_of_its_own(
    tmp_path: Path, tiny_teacher: Path, prepared: data.PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where both ranks read the same rows, the seed alone makes their texts differ."""
    config, terms = (
        OnPolicyConfig(fraction=1.0, max_new_tokens=8, replay_buffer_size=3),
        {"kl": TermConfig(kind="reverse_kl")},
    )
    run_ranks(2, same_rows, tmp_path, tiny_teacher, prepared, terms, config)
    (path,) = (tmp_path / "checkpoints").glob("*.ckpt")
    one, other = torch.load(path, weights_only=True)["on_policy"]["replay_buffer"]
    assert len(one) == len(other) == 3
    assert not any(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(one, other, strict=True))
    texts = [OnPolicyGenerator(config, [2], VOCABULARY, None, 0, max_steps=10) for _ in range(2)]
    monkeypatch.setattr("distill_lit.training.on_policy.get_world_size", lambda: 2)
    for rank, text in enumerate(texts):
        monkeypatch.setattr("distill_lit.training.on_policy.get_rank", lambda rank=rank: rank)
        text.load_state_dict(torch.load(path, weights_only=True)["on_policy"])
    replayed = [text.maybe_generate(make_batch(prepared.train, np.arange(1), 1), None, 10, 0) for text in texts]
    assert any(torch.equal(replayed[0][0]["input_ids"], batch["input_ids"]) for batch in one)
    assert any(torch.equal(replayed[1][0]["input_ids"], batch["input_ids"]) for batch in other)


def test_text_is_replayed_where_the_batch_is(tiny_teacher: Path, prepared: data.PreparedData) -> None:
    """A checkpoint holds text on the CPU; a device without memory stands for the GPU."""
    batch, student = make_batch(prepared.train, np.arange(1), 1), load_model(tiny_teacher)
    text = writer(OnPolicyConfig(fraction=1.0, max_new_tokens=2, replay_buffer_size=1))
    text.maybe_generate(batch, student, 0, 0)
    text.load_state_dict(text.state_dict())
    replayed, facts = text.maybe_generate({name: value.to("meta") for name, value in batch.items()}, student, 10, 1)
    assert facts["replayed"] == 1
    assert {value.device.type for value in replayed.values()} == {"meta"}


def test_the_reverse_kl_is_that_of_whole_distributions(
    tmp_path: Path, tiny_teacher: Path, prepared: data.PreparedData
) -> None:
    """On text drawn at temperature 3, where the mean of log q - log p of the drawn tokens would be another number."""
    config = OnPolicyConfig(fraction=1.0, max_new_tokens=12, temperature=3.0)
    run(tmp_path, tiny_teacher, prepared, {"reverse_kl": TermConfig(weight=0.5)}, config, log_every_n_steps=6)
    found = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[1])["on_policy/reverse_kl"]
    student, teacher = new_student(tiny_teacher).train(), load_model(tiny_teacher)
    batch = PackedDataModule(prepared.train, prepared.validation, TRAINING, 0).train_dataloader().batch_at(0)
    made, _ = writer(config).maybe_generate(batch, student, 0, 0)
    total = drawn = 0.0
    for row in range(8):
        own = made["on_policy_mask"][row].nonzero()[:, 0]
        ids = made["input_ids"][row, : int(own[-1]) + 1][None]
        with torch.no_grad():
            q, p = (model(ids).logits[0, own - 1].log_softmax(-1) for model in (student, teacher))
        total += float((q.exp() * (q - p)).sum())
        drawn += float((q - p).gather(-1, ids[0, own, None]).sum())
    count = int(made["on_policy_mask"].sum())
    assert found == pytest.approx(total / count, rel=1e-3)
    assert abs(drawn - total) / count > 0.05
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert not any("own_reverse_kl" in name for line in lines for name in line)


@pytest.mark.parametrize("devices", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_time_of_writing_is_a_share_of_the_time_of_training(
    tmp_path: Path, tiny_teacher: Path, prepared: data.PreparedData, devices: int
) -> None:
    """Where nearly all is writing, with a validation between two logged steps."""
    changes = {"log_every_n_steps": 3, "val_check_interval": 0.34}
    terms = {"kl": TermConfig(kind="reverse_kl")}
    config = OnPolicyConfig(fraction=1.0, max_new_tokens=2)
    run_ranks(devices, slow_writing, tmp_path, tiny_teacher, prepared, terms, config, **changes)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    shares = [line["on_policy/time_share"] for line in lines if "on_policy/time_share" in line]
    assert len(shares) == 2
    assert 0.5 < shares[1] <= 1
    assert all("on_policy/length" in line for line in lines if "on_policy/time_share" in line)


def test_accumulated_batches_of_student_text_count_alike(
    tmp_path: Path, tiny_teacher: Path, prepared: data.PreparedData
) -> None:
    terms = {"kl": TermConfig(kind="reverse_kl")}
    _, final = run(tmp_path, tiny_teacher, prepared, terms, ALWAYS, micro_batch_size=2, gradient_accumulation_steps=4)
    assert np.isfinite(final["train/gradient_norm"])


# ---------------------------------------------------------------- the plan


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["on_policy.fraction=1.5", "teacher.source=online"], "on_policy.fraction: 1.5"),
        (["on_policy.fraction=often", "teacher.source=online"], "adaptive"),
        (["on_policy.fraction=0.5"], "teacher.source offline with cache_format hidden_states cannot score text"),
        (["on_policy.fraction=0.5", "teacher.source=online", "training.compile=always"], "training.compile"),
        (["teacher.source=online", "objective.terms.kl.kind=contrastive_skew_kl"], "does not tell them apart"),
        (
            ["teacher.source=online", "on_policy={fraction: 1, teacher_mix_fraction: 0.2}", "launcher.teacher_device=cpu"],
            "teacher_mix",
        ),
        (["teacher.source=online", "launcher.teacher_device=cpu", "training.devices=2"], "training.devices"),
        (
            ["teacher.source=online", "launcher.teacher_device=cpu", "objective.terms.hidden_states={}"],
            "compares inner states",
        ),
        (
            ["teacher.source=cross_tokenizer", "launcher.teacher_device=cpu", "objective.terms.kl.kind=uld"],
            "teacher.source cross_tokenizer runs beside the student; only online can run elsewhere",
        ),
        (["teacher.source=online", "objective.terms.kl.kind=policy_gradient_reverse_kl"], "set on_policy.fraction to 1"),
        *(
            (
                [
                    "teacher.source=online",
                    "objective.terms.kl.kind=policy_gradient_reverse_kl",
                    "on_policy.fraction=1",
                    change,
                ],
                "objective.terms.kl: policy_gradient_reverse_kl is for .* leave temperature and top_p at 1",
            )
            for change in ("on_policy.temperature=0.7", "on_policy.top_p=0.9", "on_policy.replay_buffer_size=2")
        ),
        (
            [
                "teacher.source=online",
                "objective.terms.kl={kind: policy_gradient_reverse_kl, temperature: 2.0}",
                "on_policy.fraction=1",
            ],
            "objective.terms.kl.temperature: policy_gradient_reverse_kl compares .* leave it at 1",
        ),
    ],
)
def test_bad_input_is_refused(changes: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        check_experiment(load_experiment(QUICK, changes))


def test_only_distilled_runs_are_on_policy() -> None:
    names = [
        [(c.role, c.name) for c in plan_runs(load_experiment(QUICK, ["teacher.source=online", *changes]))]
        for changes in ([], ["on_policy.fraction=0.5"], ["on_policy.temperature=0.7"])
    ]
    differ = [role for (role, one), (_, other) in zip(names[0], names[1], strict=True) if one != other]
    assert differ == ["distilled", "distilled"]
    assert names[0] == names[2]
