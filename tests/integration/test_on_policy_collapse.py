"""A student that repeats one token, and one that does not, in whole trainings."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.distillation import LENGTH, SETTINGS, TRAINING, VOCABULARY, new_student
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from distill_lit import data
from distill_lit.config import OnPolicyConfig, TermConfig
from distill_lit.data.datamodule import PackedDataModule
from distill_lit.losses import build_objective
from distill_lit.models import load_model
from distill_lit.teachers import OnlineTeacher
from distill_lit.training.callbacks.collapse import OnPolicyCollapseWarning
from distill_lit.training.distiller import Distiller
from distill_lit.training.on_policy import OnPolicyGenerator
from distill_lit.training.trainer import TrainingJob, optimizer_settings, train

STEPS = 18  # of eight texts, and a window has 128


def repeat_one_token(student: Any, token: int = 7) -> None:
    old = student.lm_head.weight.data
    head = torch.nn.Linear(old.shape[1], old.shape[0])
    head.weight.data = old.clone()
    head.bias.data = torch.where(torch.arange(old.shape[0]) == token, 50.0, 0.0)
    student.set_output_embeddings(head)


@pytest.mark.parametrize("is_broken", [True, False], ids=["repeats", "healthy"])
def test_a_student_that_repeats_itself_is_noticed_and_the_run_goes_on(
    tmp_path: Path, tiny_teacher: Path, prepared: data.PreparedData, caplog: pytest.LogCaptureFixture, is_broken: bool
) -> None:
    student, teacher = new_student(tiny_teacher), OnlineTeacher(load_model(tiny_teacher), VOCABULARY)
    if is_broken:
        repeat_one_token(student)
    training = replace(TRAINING, max_tokens=LENGTH * 8 * STEPS, learning_rate=1e-6, val_check_interval=1.0)
    module = PackedDataModule(prepared.train, prepared.validation, training, 0)
    config = OnPolicyConfig(fraction=1.0, max_new_tokens=8)
    distiller = Distiller(
        student,
        teacher,
        build_objective({"kl": TermConfig(kind="reverse_kl")}),
        vocab_size=VOCABULARY,
        fused_loss_settings=SETTINGS,
        **optimizer_settings(training),
        on_policy_generator=OnPolicyGenerator(config, [2], VOCABULARY, None, 0, module.steps),
    )
    events: list[tuple[Any, ...]] = []
    callback = OnPolicyCollapseWarning(lambda *values: events.append(values))
    job = TrainingJob(tmp_path, distiller, module, training, 0, lambda *_: None, callbacks=[callback], first_step=100)
    job.loggers = {"tensorboard": {"axis": "steps"}}
    with caplog.at_level(logging.WARNING):
        final = train(job)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert len([line for line in lines if "on_policy/repetition" in line]) == STEPS
    board = EventAccumulator(str(tmp_path)).Reload()
    texts = [tag for tag in board.Tags()["tensors"] if tag.startswith("on_policy/collapse")]
    if not is_broken:
        assert callback.lines == events == texts == []
        assert final["on_policy/repetition"] < 0.1
        return
    assert final["on_policy/repetition"] == pytest.approx(0.8)
    assert final["on_policy/finished"] == 0
    (line,) = callback.lines
    assert line.startswith("on_policy: the student repeats itself: 80% of the 4-grams")
    assert line.endswith("(step 16); the run goes on")  # not every row has a prompt
    assert [record.message for record in caplog.records].count(line) == 1
    assert events == [("note", 0, 0, line)]
    assert len(texts) == 1
    assert board.Tensors(texts[0])[0].step == 116  # on the curves, which go on from the stage before
