"""The student as its own teacher: its start, and an average of its weights, against arithmetic."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from helpers.distillation import TRAINING, VOCABULARY, new_student, run, weights

from distill_lit import data
from distill_lit.config import TermConfig, TrainingConfig
from distill_lit.teachers import EMATeacher, MixtureTeacher, OnlineTeacher, StudentFollowingTeacher
from distill_lit.training.trainer import TrainingJob, train
from distill_lit.utils.distributed.ranks import all_gather_object
from distill_lit.utils.distributed.spawn import spawn_ranks
from distill_lit.utils.exceptions import UserError

TERMS = {"ce": TermConfig(weight=0.5), "kl": TermConfig(kind="forward_kl")}


def test_an_average_follows_by_its_decay(tiny_teacher: Path) -> None:
    student = new_student(tiny_teacher)
    teacher = EMATeacher(student, decay=0.75, vocab_size=VOCABULARY)
    assert isinstance(teacher, StudentFollowingTeacher)
    assert not isinstance(OnlineTeacher(student), StudentFollowingTeacher)
    start = {name: weight.detach().clone() for name, weight in student.named_parameters()}
    student.requires_grad_(True)
    student.model.norm.weight.requires_grad_(False)
    with torch.no_grad():
        for weight in student.parameters():
            weight += 1.0
    teacher.follow(student)
    teacher.follow(student)
    for name, weight in teacher.model.named_parameters():
        moved = 0.0 if name == "model.norm.weight" else 1 - 0.75**2  # what is not trained stays
        torch.testing.assert_close(weight, start[name] + moved)
    teacher.check_frozen()


def test_the_average_of_bfloat16_weights_loses_no_step(tiny_teacher: Path) -> None:
    """Steps of a thousandth of the way, which bfloat16 would round away; a resumed average takes the same ones."""
    student = new_student(tiny_teacher).bfloat16().requires_grad_(True)
    teacher, resumed = (EMATeacher(student, decay=0.999, vocab_size=VOCABULARY) for _ in range(2))
    start = {name: weight.detach().float() for name, weight in student.named_parameters()}
    with torch.no_grad():
        for weight in student.parameters():
            weight += 1.0
    for step in range(300):
        if step == 200:
            resumed.load_state_dict(teacher.state_dict())
        for one in (teacher, resumed) if step >= 200 else (teacher,):
            one.follow(student)
    weights = dict(student.named_parameters())
    for name, average in teacher.state_dict().items():
        expected = start[name] + (1 - 0.999**300) * (weights[name].float() - start[name])
        torch.testing.assert_close(average, expected, rtol=1e-4, atol=1e-5)
        assert torch.equal(dict(teacher.model.named_parameters())[name], average.bfloat16())
        assert torch.equal(resumed.state_dict()[name], average)
    assert {weight.dtype for weight in teacher.model.parameters()} == {torch.bfloat16}


class Notes(L.Callback):
    """The student's weights after each optimizer step."""

    def __init__(self) -> None:
        self.norms: list[torch.Tensor] = []

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, *_: Any) -> None:
        if not trainer.fit_loop.epoch_loop._should_accumulate():
            self.norms.append(module.student.model.norm.weight.detach().clone())


def test_a_training_averages_its_optimizer_steps_and_saves_the_average(
    tmp_path: Path, tiny_teacher: Path, prepared: data.PreparedData
) -> None:
    """Six steps of two micro-batches each: the average by hand from the weights after each step, and in the checkpoint."""
    notes, start = Notes(), new_student(tiny_teacher)
    teacher = MixtureTeacher(  # which passes on what its members need
        {"average": EMATeacher(start, 0.5, VOCABULARY), "start": OnlineTeacher(new_student(tiny_teacher), VOCABULARY)},
        {"average": 0.5, "start": 0.5},
    )
    training = replace(TRAINING, micro_batch_size=4, gradient_accumulation_steps=2, keep_checkpoints=True)

    def with_notes(job: TrainingJob) -> dict[str, float]:
        job.callbacks.append(notes)
        return train(job)

    _, metrics = run(tmp_path, tiny_teacher, prepared, training, TERMS, teacher, how=with_notes)
    expected = start.model.norm.weight.detach().clone()
    for weight in notes.norms:
        expected = 0.5 * expected + 0.5 * weight
    assert len(notes.norms) == 6
    average = teacher.teachers["average"]
    found = average.model.model.norm.weight
    torch.testing.assert_close(found, expected)
    assert not torch.equal(found, notes.norms[-1])
    saved = torch.load(tmp_path / "checkpoints/step=6.ckpt", weights_only=True)["callbacks"]["teacher"]["average"]
    assert torch.equal(saved["model.norm.weight"], found)
    assert metrics["validation/teacher_kl/average"] < metrics["validation/teacher_kl/start"]
    assert metrics["validation/teacher_share/average"] + metrics["validation/teacher_share/start"] == pytest.approx(1.0)


def test_a_resumed_training_has_the_same_average_to_the_bit(
    tmp_path: Path, tiny_teacher: Path, prepared: data.PreparedData
) -> None:
    """Six steps at once, and again from the checkpoint after three: student and average are equal."""
    training = replace(TRAINING, checkpoint_interval=3, keep_checkpoints=True, val_check_interval=1.0)
    found = []
    for _ in range(2):
        teacher = EMATeacher(new_student(tiny_teacher), 0.8, VOCABULARY)
        student, _ = run(tmp_path, tiny_teacher, prepared, training, TERMS, teacher)
        found.append((weights(student), weights(teacher.model)))
        for name in ("step=6.ckpt", "step=6.sha256.json"):
            (tmp_path / "checkpoints" / name).unlink()
    assert (tmp_path / "checkpoints/step=3.ckpt").is_file()
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def train_on_rank(folder: Path, student_of: Path, prepared: data.PreparedData, training: TrainingConfig, _: Any) -> Any:
    """(weights of the average on every rank, metrics)."""
    teacher = EMATeacher(new_student(student_of), 0.8, VOCABULARY)
    _, metrics = run(folder, student_of, prepared, training, TERMS, teacher)
    return all_gather_object(weights(teacher.model)), metrics


@pytest.mark.slow
def test_ranks_have_the_average_of_one_process(tmp_path: Path, tiny_teacher: Path, prepared: data.PreparedData) -> None:
    (alone,), first = train_on_rank(tmp_path / "one", tiny_teacher, prepared, TRAINING, None)
    shared = replace(TRAINING, micro_batch_size=2, gradient_accumulation_steps=2, devices=2)
    (one, other), second = spawn_ranks(2, train_on_rank, tmp_path / "two", tiny_teacher, prepared, shared)
    assert torch.equal(one, other)
    torch.testing.assert_close(one, alone, rtol=1e-4, atol=1e-5)
    assert first["validation/teacher_kl"] == pytest.approx(second["validation/teacher_kl"], rel=1e-3)


def test_plain_lightning_averages_too(tiny_teacher: Path) -> None:
    """Without this suite's own Trainer, and before its checkpoint callback."""
    from distill_lit import Distiller, losses

    student = new_student(tiny_teacher)
    teacher = EMATeacher(student, decay=0.0)  # at a decay of 0 the average is the student itself
    module = Distiller(student, teacher, losses.CrossEntropy() + losses.ForwardKL(), lr=1e-2)
    ids = torch.randint(3, 300, (4, 12))
    loader = torch.utils.data.DataLoader([{"input_ids": row, "labels": row} for row in ids], batch_size=2)
    L.Trainer(
        max_steps=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(module, loader)  # fmt: skip
    for ours, theirs in zip(student.parameters(), teacher.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("decay", [-0.1, 1.0, 1.5, float("nan")])
def test_a_decay_that_is_no_share_is_refused(decay: float) -> None:
    with pytest.raises(UserError, match=rf"EMATeacher\(decay\): {decay} is not at least 0 and below 1"):
        EMATeacher(torch.nn.Linear(1, 1), decay)
