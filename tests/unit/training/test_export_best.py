"""Which checkpoint is the best, what is taken from it, and where no validation loss says which is."""

from pathlib import Path

import pytest
import torch
from helpers import ROOT
from torch import nn

from distill_lit.config import TrainingConfig, load_experiment
from distill_lit.experiment.checks.validation import check_experiment
from distill_lit.experiment.collect import _row
from distill_lit.experiment.plan import plan_runs
from distill_lit.training.checkpoint import (
    SafeCheckpointIO,
    list_checkpoints,
    load_best_weights,
    read_best,
    remove_checkpoints,
    rotate_checkpoints,
    update_best_checkpoint,
)
from distill_lit.training.trainer import final_metrics
from distill_lit.utils.exceptions import UserError
from distill_lit.utils.files import write_json

QUICKSTART = ROOT / "experiments" / "quickstart.yaml"
BEST = ("training.export=best", "grid={student: [deep]}")


def save(folder: Path, step: int, loss: float, weight: float) -> None:
    state = {"student.0.weight": torch.full((1, 1), weight), "loss.projector": torch.ones(3)}
    SafeCheckpointIO().save_checkpoint({"state_dict": state}, folder / f"step={step}.ckpt")
    update_best_checkpoint(folder, step, loss)


def test_a_student_gets_its_weights_of_the_best_step_and_keeps_what_is_frozen(tmp_path: Path) -> None:
    for step, loss in ((2, 3.0), (4, 1.0), (6, float("nan")), (8, 2.0)):
        save(tmp_path, step, loss, weight=float(step))
    student = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False).requires_grad_(False))
    frozen = student[1].weight.clone()
    assert load_best_weights(tmp_path, student) == {"step": 4, "loss": 1.0}
    assert student[0].weight.item() == 4.0
    assert torch.equal(student[1].weight, frozen)
    with pytest.raises(RuntimeError, match="not a checkpoint of this student"):
        load_best_weights(tmp_path, nn.Linear(1, 1))


def test_the_best_one_stays_without_room_where_it_is_needed(tmp_path: Path) -> None:
    for step, loss in ((1, 3.0), (2, 1.0), (3, 2.0), (4, 2.0)):
        save(tmp_path, step, loss, weight=1.0)
    rotate_checkpoints(tmp_path, 1e-9, needs_best=True)
    assert [path.stem for path in list_checkpoints(tmp_path)] == ["step=4", "step=2"]
    rotate_checkpoints(tmp_path, 1e-9)
    assert [path.stem for path in list_checkpoints(tmp_path)] == ["step=4"]


def test_without_a_finite_loss_or_an_intact_checkpoint_nothing_is_exported(tmp_path: Path) -> None:
    save(tmp_path, 1, float("nan"), weight=1.0)
    with pytest.raises(UserError, match="no intact checkpoint with a finite validation/loss"):
        load_best_weights(tmp_path, nn.Linear(1, 1))
    save(tmp_path, 2, 1.0, weight=1.0)
    (tmp_path / "step=2.ckpt").write_bytes(b"damaged")
    with pytest.raises(UserError, match="no intact checkpoint"):
        load_best_weights(tmp_path, nn.Linear(1, 1))


def test_a_training_that_begins_anew_forgets_the_best_step_of_the_old_one(tmp_path: Path) -> None:
    save(tmp_path, 2, 0.5, weight=1.0)
    remove_checkpoints(tmp_path)
    save(tmp_path, 2, 0.9, weight=1.0)
    assert read_best(tmp_path) == {"step": 2, "loss": 0.9}


def test_metrics_of_a_step_are_those_that_were_known_by_then(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "a": 1, "b": 1}\n{"step": 2, "a": 2}\n{"step": 3, "a": 3, "c": 3}\n')
    assert final_metrics(path, 2) == {"a": 2, "b": 1}
    assert final_metrics(path) == {"a": 3, "b": 1, "c": 3}


def test_steps_between_validations() -> None:
    assert TrainingConfig().steps_between_validations(10) == 2
    assert TrainingConfig(val_check_interval=0.01).steps_between_validations(10) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("training.val_check_interval=1.0",), "the last alone is validated; lower training.val_check_interval"),
        (("training.max_tokens=1",), "of 1 steps the last alone is validated"),
        (
            ("objective.terms.kl.weight={shape: linear, start: 1, end: 0.5}",),
            "a schedule in objective.terms makes each another loss",
        ),
        (("teacher.source=ema",), "the teacher of teacher.source ema changes"),
        (
            ("teacher.source=online", "on_policy.fraction=1", "objective.terms.pg={kind: policy_gradient_reverse_kl}"),
            r"objective.terms.pg \(policy_gradient_reverse_kl\) is 0 on held-out text",
        ),
    ],
)
def test_where_validation_losses_do_not_say_which_weights_are_best(changes: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_experiment(load_experiment(QUICKSTART, [*BEST, *changes]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("objective.terms.kl.temperature={shape: linear, start: 1, end: 2}",), "a schedule in objective.terms makes each"),
        (("teacher.source=ema",), "the teacher of teacher.source ema changes from one to the next; give a number"),
    ],
)
def test_a_share_does_not_grow_by_validation_losses_that_do_not_compare(changes: tuple[str, ...], message: str) -> None:
    own_text = ("grid={student: [deep]}", "teacher.source=online", "on_policy.max_new_tokens=8")
    check_experiment(load_experiment(QUICKSTART, [*own_text, "on_policy.fraction=adaptive"]))
    check_experiment(load_experiment(QUICKSTART, [*own_text, "on_policy.fraction=0.5", *changes]))
    with pytest.raises(UserError, match=f"on_policy.fraction: adaptive compares the validation losses.*{message}"):
        check_experiment(load_experiment(QUICKSTART, [*own_text, "on_policy.fraction=adaptive", *changes]))


def test_a_quantized_stage_takes_what_the_stage_before_exports() -> None:
    """It trains nothing, so that the setting is none of its own; stages that train each export their best."""
    stages = "stages={first: {training.max_tokens: 20000}, second: {training.val_check_interval: 0.5}}"
    check_experiment(load_experiment(QUICKSTART, [*BEST, stages, "students.deep.quantize=int8"]))


def test_the_table_of_runs_has_the_step_where_it_was_chosen(tmp_path: Path) -> None:
    run = next(run for run in plan_runs(load_experiment(QUICKSTART, [*BEST])) if run.role == "distilled")
    manifest = {"steps": 24, "metrics": {"validation/teacher_kl": 0.5}}
    write_json(tmp_path / "manifest.json", manifest)
    assert "exported_step" not in _row(run, tmp_path, True, {}, "")
    write_json(tmp_path / "manifest.json", manifest | {"exported": {"step": 18, "loss": 1.5}})
    row = _row(run, tmp_path, True, {}, "")
    assert (row["exported_step"], row["training_steps"], row["val_kl"]) == (18, 24, 0.5)


def test_the_choice_identifies_a_run_where_it_is_not_the_default() -> None:
    def identities(*changes: str) -> list[str]:
        runs = plan_runs(load_experiment(QUICKSTART, ["grid={student: [deep]}", "baselines=[untrained]", *changes]))
        return [run.fingerprint for run in runs if run.student]

    untrained, plain = identities()
    assert identities("training.export=last") == [untrained, plain]
    assert identities("training.export=best")[0] == untrained
    assert identities("training.export=best")[1] != plain
