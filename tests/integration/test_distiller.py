"""Training invariants on a tiny random teacher: what may not change a gradient does not; the teacher stays frozen."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.distillation import LENGTH, SETTINGS, STEPS, TERMS, TRAINING, VOCABULARY, new_student, run, weights

from distill_lit import data
from distill_lit.config import TermConfig, TrainingConfig
from distill_lit.data.loader import make_batch
from distill_lit.losses import build_objective, can_compile
from distill_lit.losses.lm_head import get_lm_head
from distill_lit.models import load_model
from distill_lit.teachers import OfflineTeacher, OnlineTeacher, write_teacher_cache
from distill_lit.teachers.teacher_cache import teacher_cache_folder, teacher_cache_metadata
from distill_lit.training.checkpoint import SafeCheckpointIO, checkpoint_step, list_checkpoints
from distill_lit.training.distiller import Distiller
from distill_lit.training.loss import DistillationLoss, FusedLossSettings
from distill_lit.training.trainer import train, validate
from distill_lit.utils.distributed.spawn import spawn_ranks
from distill_lit.utils.exceptions import UserError
from distill_lit.utils.files import hashes_of


def run_rank(folder: Path, teacher: Path, prepared: data.PreparedData, training: TrainingConfig, _: Any) -> tuple:
    """`run` as one of several ranks."""
    return run(folder, teacher, prepared, training)


def test_accumulation_does_not_change_the_training(tmp_path: Path, tiny_teacher: Path, prepared: data.PreparedData) -> None:
    whole, first = run(tmp_path / "a", tiny_teacher, prepared)
    parts, second = run(
        tmp_path / "b", tiny_teacher, prepared, replace(TRAINING, micro_batch_size=2, gradient_accumulation_steps=4)
    )
    torch.testing.assert_close(weights(whole), weights(parts), rtol=1e-4, atol=1e-5)
    assert first["train/loss"] == pytest.approx(second["train/loss"], rel=1e-4)


def test_ranks_do_not_change_the_training(tmp_path: Path, tiny_teacher: Path, prepared: data.PreparedData) -> None:
    whole, first = run(tmp_path / "a", tiny_teacher, prepared)
    shared = replace(TRAINING, micro_batch_size=2, gradient_accumulation_steps=2, devices=2)
    parts, second = spawn_ranks(2, run_rank, tmp_path / "b", tiny_teacher, prepared, shared)
    torch.testing.assert_close(weights(whole), weights(parts), rtol=1e-4, atol=1e-5)
    assert first["train/loss"] == pytest.approx(second["train/loss"], rel=1e-4)
    assert first["validation/teacher_kl"] == pytest.approx(second["validation/teacher_kl"], rel=1e-4)
    assert first["train/tokens"] == second["train/tokens"]


def test_gradient_checkpointing_does_not_change_the_training(
    tmp_path: Path, tiny_teacher: Path, prepared: data.PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.modeling_layers import GradientCheckpointingLayer

    recomputed, call = [], GradientCheckpointingLayer.__call__

    def counted(layer: Any, *args: Any, **options: Any) -> Any:
        recomputed.append(layer.gradient_checkpointing)
        return call(layer, *args, **options)

    monkeypatch.setattr(GradientCheckpointingLayer, "__call__", counted)
    plain, _ = run(tmp_path / "a", tiny_teacher, prepared, dropout=0.1)
    assert not any(recomputed)
    other, _ = run(tmp_path / "b", tiny_teacher, prepared, replace(TRAINING, gradient_checkpointing=True), dropout=0.1)
    assert any(recomputed)
    torch.testing.assert_close(weights(plain), weights(other), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.skipif(not can_compile(torch.device("cpu")), reason="no C++ compiler here")
def test_compiling_the_body_does_not_change_the_training(
    tmp_path: Path, tiny_teacher: Path, prepared: data.PreparedData
) -> None:
    plain, _ = run(tmp_path / "a", tiny_teacher, prepared)
    other, _ = run(tmp_path / "b", tiny_teacher, prepared, replace(TRAINING, compile="always"))
    torch.testing.assert_close(weights(plain), weights(other), rtol=1e-4, atol=1e-5)
    assert set(other.state_dict()) == set(plain.state_dict())


@pytest.mark.slow
@pytest.mark.skipif(not can_compile(torch.device("cpu")), reason="no C++ compiler here")
def test_a_compiled_training_resumes_bit_for_bit(tmp_path: Path, tiny_teacher: Path, prepared: data.PreparedData) -> None:
    """Dropout on, cut off after one of the first steps; the others are made by another student, compiled anew."""
    training = replace(TRAINING, compile="always", checkpoint_interval=2)
    whole, _ = run(tmp_path / "a", tiny_teacher, prepared, training, dropout=0.1)
    (tmp_path / "a").rename(tmp_path / "b")
    first, *later = sorted(list_checkpoints(tmp_path / "b" / "checkpoints"), key=checkpoint_step)
    assert 0 < checkpoint_step(first) < STEPS
    for path in later:
        SafeCheckpointIO().remove_checkpoint(path)
    torch._dynamo.reset()
    again, _ = run(tmp_path / "b", tiny_teacher, prepared, training, dropout=0.1)
    assert torch.equal(weights(whole), weights(again))


def test_padding_does_not_change_the_loss(tiny_teacher: Path, prepared: data.PreparedData) -> None:
    student = new_student(tiny_teacher)
    loss = DistillationLoss(build_objective(TERMS), load_model(tiny_teacher), VOCABULARY, settings=SETTINGS)
    batch = make_batch(prepared.train, torch.arange(3).numpy(), 1)
    padded = {
        name: torch.nn.functional.pad(value, (0, 9), value=-100 if name == "labels" else 0)
        for name, value in batch.items()
        if value.ndim == 2
    }
    plain, other = (loss(student, rows, denominator=torch.tensor(5)) for rows in (batch, padded))
    assert plain.num_tokens == other.num_tokens == int((batch["labels"][:, 1:] != -100).sum())
    torch.testing.assert_close(plain.total, other.total, rtol=1e-5, atol=1e-5)


def test_loss_equals_a_loop_over_documents(tiny_teacher: Path, prepared: data.PreparedData) -> None:
    """Shift, mask and packing against the plainest computation: each document alone through both models."""
    student, teacher = new_student(tiny_teacher), load_model(tiny_teacher)
    objective = build_objective({"kl": TermConfig(kind="forward_kl"), "ce": TermConfig()})
    loss = DistillationLoss(objective, teacher, VOCABULARY, settings=FusedLossSettings(chunk_size=5))
    batch = make_batch(prepared.train, torch.arange(3).numpy(), 1)
    kl = ce = count = 0
    for ids, documents in zip(batch["input_ids"], batch["document_ids"], strict=True):
        for number in range(1, int(documents.max()) + 1):
            text = ids[documents == number].unsqueeze(0)
            with torch.no_grad():
                q, p = (m(text).logits[0, :-1].log_softmax(-1) for m in (student, teacher))
            kl += float((p.exp() * (p - q)).sum())
            ce -= float(q.gather(-1, text[0, 1:, None]).sum())
            count += len(text[0]) - 1
    losses = loss(student, batch, denominator=torch.tensor(1))
    assert losses.num_tokens == count
    assert losses.term_sums.tolist() == pytest.approx([kl, ce], rel=1e-4)


def test_training_brings_the_student_nearer(tmp_path: Path, tiny_teacher: Path, prepared: data.PreparedData) -> None:
    longer = replace(TRAINING, max_tokens=LENGTH * 8 * 40)
    _, final = run(tmp_path, tiny_teacher, prepared, longer, {"kl": TermConfig(kind="forward_kl")})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    start = __import__("json").loads(lines[0])["validation/teacher_kl"]
    assert final["validation/teacher_kl"] < 0.7 * start


def test_held_out_rows_are_asked_once_and_metrics_stay_equal_to_the_bit(
    tmp_path: Path, tiny_teacher: Path, prepared: data.PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six steps with validations before the first and after the third and sixth; its rows are few batches of eight."""
    held_out = -(-len(prepared.validation) // 8)

    def metrics_and_questions(name: str) -> tuple[str, int]:
        teacher, asked = OnlineTeacher(load_model(tiny_teacher), VOCABULARY), []
        target = teacher.target
        teacher.target = lambda *args: (asked.append(1), target(*args))[1]  # type: ignore[method-assign]
        run(tmp_path / name, tiny_teacher, prepared, replace(TRAINING, val_check_interval=0.5), signal=teacher)
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        return "\n".join(line for line in lines if "validation/" in line), len(asked)

    kept, few = metrics_and_questions("kept")
    monkeypatch.setattr("distill_lit.training.distiller.is_frozen", lambda _: False)
    asked_anew, many = metrics_and_questions("asked")
    assert kept == asked_anew
    assert kept.count("validation/teacher_kl") == 3
    assert (few, many) == (6 + held_out, 6 + 3 * held_out)


def test_teacher_is_untouched(tmp_path: Path, tiny_teacher: Path, prepared: data.PreparedData) -> None:
    before, teacher = hashes_of(tiny_teacher), load_model(tiny_teacher)
    start = weights(teacher).clone()
    student, _ = run(
        tmp_path,
        tiny_teacher,
        prepared,
        replace(TRAINING, checkpoint_interval=2),
        signal=OnlineTeacher(teacher, VOCABULARY),
    )
    assert hashes_of(tiny_teacher) == before
    assert torch.equal(weights(teacher), start)
    checkpoint = torch.load(next((tmp_path / "checkpoints").glob("*.ckpt")), weights_only=True)
    own = {name for name, _ in student.named_parameters(prefix="student")} | {"student.lm_head.weight"}
    assert set(checkpoint["state_dict"]) == own
    optimised = sum(len(group["params"]) for group in checkpoint["optimizer_states"][0]["param_groups"])
    assert optimised == len(list(student.parameters()))


def test_a_teacher_in_train_mode_is_refused(tiny_teacher: Path) -> None:
    teacher = OnlineTeacher(load_model(tiny_teacher), VOCABULARY)
    teacher.model.train()
    with pytest.raises(UserError, match="frozen"):
        teacher.hidden_states({})


def test_a_teacher_on_a_device_of_its_own_sends_its_hidden_states_and_its_head(
    tiny_teacher: Path, prepared: data.PreparedData
) -> None:
    """The student's device is `meta`, where nothing can be computed: what arrives there has been sent."""
    teacher = OnlineTeacher(load_model(tiny_teacher), VOCABULARY, device=torch.device("cpu"))
    teacher.to(torch.device("meta"))
    batch = make_batch(prepared.train, torch.arange(2).numpy(), 1)
    chosen = batch["labels"][:, 1:] >= 0
    target = teacher.target(batch, chosen)
    assert {parameter.device.type for parameter in teacher.model.parameters()} == {"cpu"}
    assert target.hidden_states.device.type == target.lm_head.weight.device.type == "meta"
    assert target.hidden_states.shape == (int(chosen.sum()), teacher.model.config.hidden_size)


@pytest.mark.parametrize("training", [True, False], ids=["train", "validate"])
def test_the_teacher_is_beside_the_student_before_it_is_asked(
    tmp_path: Path, tiny_teacher: Path, prepared: data.PreparedData, training: bool
) -> None:
    """A training validates before it fits, and an untrained student never fits."""
    done = []

    class Watched(OnlineTeacher):
        def to(self, device: torch.device) -> None:
            done.append(f"moved to {device}")

        def target(self, *arguments: Any) -> Any:
            done.append("asked")
            return super().target(*arguments)

    watched = Watched(load_model(tiny_teacher), VOCABULARY)
    run(tmp_path, tiny_teacher, prepared, signal=watched, how=train if training else validate)
    assert done[:2] == ["moved to cpu", "asked"]


def test_a_head_that_does_not_give_the_students_logits_is_refused_before_the_first_validation(
    tmp_path: Path, tiny_teacher: Path, prepared: data.PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = lambda model, vocabulary: get_lm_head(model, vocabulary)._replace(scale=3.0)  # noqa: E731
    monkeypatch.setattr("distill_lit.models.packing_check.get_lm_head", head)
    with pytest.raises(UserError, match="its logits are not lm_head and last hidden states alone"):
        run(tmp_path, tiny_teacher, prepared, how=validate)
    assert not (tmp_path / "metrics.jsonl").read_text()


def test_cached_teacher_trains_the_same_student(
    tmp_path: Path, tiny_teacher: Path, prepared: data.PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISTILL_LIT_CACHE", str(tmp_path / "cache"))
    model = load_model(tiny_teacher)
    folder = teacher_cache_folder(teacher_cache_metadata({"model": "x"}, prepared.fingerprint, torch.float32))
    write_teacher_cache(folder, model, prepared.train, prepared.validation, batch_size=8)
    lm_head = get_lm_head(model.requires_grad_(False), VOCABULARY)
    cached = OfflineTeacher(folder, prepared.train, lm_head, len(prepared.validation))
    live_student, live = run(tmp_path / "online", tiny_teacher, prepared)
    cached_student, other = run(tmp_path / "offline", tiny_teacher, prepared, signal=cached)
    torch.testing.assert_close(weights(live_student), weights(cached_student), rtol=1e-4, atol=1e-5)
    assert other["validation/teacher_kl"] == pytest.approx(live["validation/teacher_kl"], rel=1e-4)


def test_corrupt_shard_is_rebuilt_and_only_it(tmp_path: Path, tiny_teacher: Path, prepared: data.PreparedData) -> None:
    model, rows = load_model(tiny_teacher), prepared.train
    total = len(rows) + len(prepared.validation)
    write_teacher_cache(tmp_path, model, rows, prepared.validation, batch_size=8)
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) == -(-total // 64)
    before = hashes_of(tmp_path)
    times = {path: path.stat().st_mtime_ns for path in shards}
    content = bytearray(shards[1].read_bytes())
    content[-1] ^= 1
    shards[1].write_bytes(content)
    with pytest.raises(UserError, match="corrupt"):
        OfflineTeacher(tmp_path, rows, get_lm_head(model, VOCABULARY), len(prepared.validation))
    write_teacher_cache(tmp_path, model, rows, prepared.validation, batch_size=8)
    assert hashes_of(tmp_path) == before
    assert shards[0].stat().st_mtime_ns == times[shards[0]]


def test_a_step_that_is_not_finite_is_not_taken(tmp_path: Path, tiny_teacher: Path, prepared: data.PreparedData) -> None:
    class Broken(OnlineTeacher):
        def hidden_states(self, batch: dict) -> torch.Tensor:
            return super().hidden_states(batch) * float("nan")

    with pytest.raises(FloatingPointError, match="step 0"):
        run(tmp_path, tiny_teacher, prepared, signal=Broken(load_model(tiny_teacher), VOCABULARY))


def test_objective_with_a_teacher_term_needs_a_teacher(tiny_teacher: Path) -> None:
    with pytest.raises(UserError, match=r"objective\.terms\.kl: it compares with a teacher, and there is none"):
        Distiller(new_student(tiny_teacher), None, build_objective(TERMS))
