"""Students that round their weights while they train: against rounding by hand, through an experiment, and resumed."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import tiny_tasks, training_processes
from helpers.distillation import TRAINING, VOCABULARY
from helpers.rounding import round_by_hand
from torch import nn

from distill_lit import data
from distill_lit.config import LoraConfig, StudentConfig, load_experiment
from distill_lit.data.datamodule import PackedDataModule
from distill_lit.experiment.execution.run import build_run, with_source_folders
from distill_lit.experiment.plan import plan_runs
from distill_lit.experiment.planning.planned_run import Run
from distill_lit.experiment.state.completion import student_hashes
from distill_lit.losses import ForwardKL
from distill_lit.models import (
    CalibrationData,
    check_student,
    check_student_origin,
    initial_student,
    load_model,
    load_model_config,
    logits_on,
    probe_input_ids,
)
from distill_lit.models.int4_weights import pack_int4, unpack_int4
from distill_lit.models.loading import weight_bytes
from distill_lit.models.quantization_aware import prepare_quantization_aware, quantize_prepared
from distill_lit.training.distiller import Distiller
from distill_lit.utils.exceptions import UserError
from distill_lit.utils.files import read_json

pytest.importorskip("torchao")
KINDS = ("int8_weight_only", "int4")


@pytest.mark.parametrize("quantization", KINDS)
def test_the_forward_pass_has_rounded_weights_and_gradients_pass_through(quantization: str, tiny_teacher: Path) -> None:
    student, rounded = load_model(tiny_teacher), load_model(tiny_teacher)
    names = list(student.state_dict())
    prepare_quantization_aware(student, quantization)
    assert list(student.state_dict()) == names  # checkpoints hold the unrounded weights, and nothing else
    assert type(student.lm_head) is nn.Linear
    assert student.lm_head.weight is student.model.embed_tokens.weight
    linear = [m for name, m in rounded.named_modules() if isinstance(m, nn.Linear) and name != "lm_head"]
    with torch.no_grad():
        for module in linear:
            module.weight.copy_(round_by_hand(module.weight, quantization))
    ids = probe_input_ids(student)
    largest = logits_on(rounded, ids).abs().max()
    assert (logits_on(student, ids) - logits_on(rounded, ids)).abs().max() < 1e-4 * largest
    assert (logits_on(student, ids) - logits_on(load_model(tiny_teacher), ids)).abs().max() > 1e-3 * largest
    for model in (student, rounded):
        model(input_ids=ids, labels=ids).loss.backward()
    # straight through: of a bias-free sum the gradient is that of the rounded weights; the extremes also set the scale
    name = "model.layers.1.mlp.down_proj.weight"
    gradients = [dict(model.named_parameters())[name].grad.flatten() for model in (student, rounded)]
    assert torch.cosine_similarity(*gradients, dim=0) > (0.7 if quantization == "int4" else 0.99)


@pytest.mark.parametrize("quantization", KINDS)
def test_after_training_the_quantized_model_says_what_training_said(
    quantization: str, tiny_teacher: Path, prepared: data.PreparedData, tmp_path: Path
) -> None:
    """With the fused head, which reads the weights of lm_head itself."""
    import lightning as L

    config = StudentConfig(num_layers=1, layers="uniform", quantization_aware=quantization)
    student = initial_student(config, tiny_teacher, CalibrationData([], ""), seed=0)
    before = student.model.layers[0].mlp.up_proj.weight.clone()
    module = Distiller(student, load_model(tiny_teacher), ForwardKL(), lr=1e-2, vocab_size=VOCABULARY)
    loader = PackedDataModule(prepared.train, prepared.validation, TRAINING, 0)
    trainer = L.Trainer(
        max_steps=4, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=1, num_sanity_val_steps=0, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(module, loader)
    assert (student.model.layers[0].mlp.up_proj.weight - before).abs().max() > 1e-3
    ids = probe_input_ids(student)
    said = logits_on(student, ids)
    quantize_prepared(student, quantization).save_pretrained(tmp_path / "q")
    found = logits_on(load_model(tmp_path / "q"), ids)
    assert (found - said).abs().max() <= 1e-5 * said.abs().max()


def test_packing_keeps_every_integer() -> None:
    weight = torch.arange(16.0).repeat(2, 2) * torch.tensor([[0.5], [-0.25]]) + 3
    packed = pack_int4(weight)
    assert packed.qdata.shape == (2, 16)
    torch.testing.assert_close(unpack_int4(packed), weight, rtol=1e-6, atol=1e-6)


ROUNDED = "students.one.quantization_aware=int4"


def distilled(file: Path, *changes: str) -> Run:
    return next(run for run in plan_runs(load_experiment(file, list(changes))) if run.role == "distilled")


def test_a_run_resumes_bit_for_bit_and_exports_quantized_weights(
    tmp_path: Path, tiny_teacher: Path, tiny_corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISTILL_LIT_CACHE", str(tmp_path / "cache"))
    tasks = tiny_tasks.make_tasks(tmp_path / "tasks", "colours")
    file = training_processes.write_experiment(tmp_path, tiny_teacher, tiny_corpus, tasks)
    run = distilled(file, ROUNDED, "training.max_tokens=1536", "training.checkpoint_interval=2")
    build_run(run, tmp_path / "whole", lambda *_: None)

    class Stopped(Exception):
        pass

    def stop(stage: str, done: float, total: float, *_: Any) -> None:
        if stage == "train" and done >= total / 2:
            raise Stopped

    with pytest.raises(Stopped):
        build_run(run, tmp_path / "twice", stop)
    assert list((tmp_path / "twice/checkpoints").glob("*.ckpt"))
    build_run(run, tmp_path / "twice", lambda *_: None)
    assert student_hashes(tmp_path / "twice") == student_hashes(tmp_path / "whole")
    manifest = read_json(tmp_path / "whole/manifest.json")
    assert manifest["format"].startswith("torchao: int4")
    assert manifest["bytes"] == weight_bytes(tmp_path / "whole/student")
    full = load_model(tmp_path / "whole/student")
    full.save_pretrained(tmp_path / "full")
    assert manifest["bytes"] < 0.8 * weight_bytes(tmp_path / "full")


def test_a_student_is_quantized_after_its_training(
    tmp_path: Path, tiny_teacher: Path, tiny_corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISTILL_LIT_CACHE", str(tmp_path / "cache"))
    tasks = tiny_tasks.make_tasks(tmp_path / "tasks", "colours")
    file = training_processes.write_experiment(tmp_path, tiny_teacher, tiny_corpus, tasks)
    config = load_experiment(file, ["students.one.quantize=int4", "training.max_tokens=1536"])
    trained, rounded = plan_runs(config)
    assert (trained.label, rounded.label, rounded.depends_on) == ("one_after_full_precision", "one", (trained.name,))
    for run in (trained, rounded):
        build_run(with_source_folders(run, tmp_path), tmp_path / run.name, lambda *_: None)
    before, after = (load_model(tmp_path / run.name / "student") for run in (trained, rounded))
    weight = before.model.layers[0].mlp.up_proj.weight
    assert torch.equal(after.model.layers[0].mlp.up_proj.weight, unpack_int4(pack_int4(weight)))
    manifest = read_json(tmp_path / rounded.name / "manifest.json")
    assert manifest["format"].startswith("torchao: int4")
    assert (
        manifest["bytes"]
        == weight_bytes(tmp_path / rounded.name / "student")
        < 0.8 * weight_bytes(tmp_path / trained.name / "student")
    )


def test_only_the_last_stage_that_trains_rounds(tmp_path: Path, tiny_teacher: Path, tiny_corpus: Path) -> None:
    file = training_processes.write_experiment(tmp_path, tiny_teacher, tiny_corpus, tmp_path)
    two_stages = "stages={first: {}, second: {}}"
    for changes in (["stages={first: {}, second: {quantization_aware: int4}}"],
                    [ROUNDED, two_stages]):  # fmt: skip
        runs = plan_runs(load_experiment(file, changes))
        assert [run.config.students[run.student].quantization_aware for run in runs] == ["none", "int4"]
    for changes, words in (
        (["stages={first: {quantization_aware: int4}, second: {}}"], "^stages.first: quantization_aware is for the last"),
        (["stages={a: {quantization_aware: int4}, b: {quantize: int8}}"], "^stages.b: .* quantized already when its"),
        (
            [ROUNDED, "students.one.quantize=int8"],
            "quantized already when its training ends",
        ),
    ):
        with pytest.raises(UserError, match=words):
            plan_runs(load_experiment(file, changes))


def test_another_rounding_is_another_run(tmp_path: Path, tiny_teacher: Path, tiny_corpus: Path) -> None:
    file = training_processes.write_experiment(tmp_path, tiny_teacher, tiny_corpus, tmp_path)
    plain, rounded = distilled(file), distilled(file, ROUNDED)
    assert (rounded.label, rounded.fingerprint == plain.fingerprint) == (plain.label, False)


def test_rounding_that_cannot_be_is_refused(teacher: Path) -> None:
    with pytest.raises(UserError, match="^students.s.quantization_aware: not with lora"):
        check_student("students.s", StudentConfig(num_layers=1, quantization_aware="int4", lora=LoraConfig(rank=2)))
    with pytest.raises(UserError, match="^students.s.quantization_aware: int4 has a scale for every 32 inputs"):
        check_student_origin("students.s", StudentConfig(layers=[0], quantization_aware="int4"), load_model_config(teacher))
    with pytest.raises(UserError, match="^students.s.quantize: int4 has a scale for every 32 inputs"):
        check_student_origin("students.s", StudentConfig(quantize="int4"), load_model_config(teacher))
    with pytest.raises(UserError, match="unknown value 'int3'"):
        StudentConfig(num_layers=1, quantization_aware="int3")
