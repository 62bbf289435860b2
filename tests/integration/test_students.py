"""Students as a config asks for them: cut, pretrained, from scratch, with adapters; and what is remembered of them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import tiny_models
from helpers.distillation import SETTINGS, TRAINING, VOCABULARY
from helpers.tiny_architectures import FAMILIES, make_family
from transformers import AutoModelForCausalLM, LlamaConfig

from distill_lit import data, losses
from distill_lit.config import LoraConfig, StudentConfig, TermConfig, WidthConfig
from distill_lit.data.datamodule import PackedDataModule
from distill_lit.data.loader import calibration_batches
from distill_lit.losses import build_objective, fused_linear_loss
from distill_lit.losses.lm_head import LMHead
from distill_lit.models import (
    CalibrationData,
    check_student,
    check_student_origin,
    export_student,
    initial_student,
    load_model,
    load_model_config,
    merge_adapters,
    size_from_config,
    size_of,
    student_config,
    trainable_fraction,
)
from distill_lit.models import student as students
from distill_lit.models.lora import add_adapters
from distill_lit.models.student import retained_layers
from distill_lit.teachers import OnlineTeacher
from distill_lit.training.distiller import Distiller
from distill_lit.training.trainer import TrainingJob, optimizer_settings, train
from distill_lit.utils.exceptions import UserError

LORA = LoraConfig(rank=2, alpha=8, dropout=0.5)
IDS = torch.arange(3, 15)[None]


@pytest.fixture
def calibration(prepared: data.PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CalibrationData:
    monkeypatch.setenv("DISTILL_LIT_CACHE", str(tmp_path / "cache"))
    return CalibrationData(calibration_batches(prepared.train, rows=8), "text")


@pytest.mark.parametrize(
    ("student", "words"),
    [
        (StudentConfig(from_="file:x", config={"hidden_size": 8}), "got from and config"),
        (
            StudentConfig(layers="uniform"),
            "students.s.layers: uniform chooses layers, and num_layers does not say",
        ),
        (StudentConfig(width=WidthConfig(hidden_size=8), config={"hidden_size": 8}), "got num_layers and config"),
    ],
)
def test_students_that_make_no_sense_are_refused(student: StudentConfig, words: str) -> None:
    with pytest.raises(UserError, match=words):
        check_student("students.s", student)


@pytest.mark.parametrize(
    "student",
    [
        StudentConfig(),
        StudentConfig(num_layers=2),
        StudentConfig(num_layers=2, from_="file:x"),
        StudentConfig(layers=[0, 3]),
        StudentConfig(width=WidthConfig(intermediate_size=32)),
        StudentConfig(num_layers=2, width=WidthConfig(hidden_size=24)),
        StudentConfig(lora=LORA),
        StudentConfig(num_layers=2, lora=LORA),
    ],
)
def test_students_that_make_sense_are_taken(student: StudentConfig, teacher: Path) -> None:
    check_student("students.s", student)
    check_student_origin("students.s", student, load_model_config(teacher))


def test_a_student_of_whom_nothing_is_said_is_the_whole_teacher(teacher: Path, calibration: CalibrationData) -> None:
    whole = load_model(teacher)
    model = initial_student(StudentConfig(), teacher, calibration, seed=0)
    assert model.state_dict().keys() == whole.state_dict().keys()
    assert all(torch.equal(weight, whole.state_dict()[name]) for name, weight in model.state_dict().items())


@pytest.mark.parametrize(
    ("student", "words"),
    [
        (StudentConfig(num_layers=5), "students.s.num_layers: 5 exceeds the teacher's 4 layers"),
        (StudentConfig(layers=[0, 4]), "students.s.layers: 4 is beyond the teacher's last layer 3"),
        (StudentConfig(width=WidthConfig(hidden_size=64)), "students.s.width.hidden_size: 64 exceeds the teacher's 36"),
        (
            StudentConfig(config={"hiden_size": 8}),
            "students.s.config: unknown key 'hiden_size'; did you mean 'hidden_size'",
        ),
    ],
)
def test_students_that_the_teacher_cannot_give_are_refused_without_its_weights(
    student: StudentConfig, words: str, teacher: Path, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text((teacher / "config.json").read_text())
    with pytest.raises(UserError, match=words):
        check_student_origin("students.s", student, load_model_config(tmp_path))


@pytest.mark.parametrize(
    "student",
    [
        StudentConfig(num_layers=2, layers="block_influence"),
        StudentConfig(width=WidthConfig(hidden_size=24, intermediate_size=32, num_attention_heads=4)),
        StudentConfig(num_layers=3, width=WidthConfig(num_key_value_heads=1)),
        StudentConfig(config={"num_hidden_layers": 1, "intermediate_size": 16}),
    ],
)
def test_a_student_has_the_shape_that_its_config_foretells(
    student: StudentConfig, teacher: Path, calibration: CalibrationData
) -> None:
    built = initial_student(student, teacher, calibration, seed=0)
    foretold = student_config(student, load_model_config(teacher))
    assert size_of(built) == size_from_config(foretold)
    assert built.dtype == torch.float32


def test_new_weights_are_not_quantized_as_the_teachers_are() -> None:
    origin = LlamaConfig(num_hidden_layers=2, quantization_config={"quant_method": "torchao", "quant_type": "int8"})
    config = student_config(StudentConfig(config={"num_hidden_layers": 1}), origin)
    assert config.num_hidden_layers == 1 and not hasattr(config, "quantization_config")
    assert origin.quantization_config["quant_method"] == "torchao"


def test_a_measured_choice_is_made_once(
    teacher: Path, calibration: CalibrationData, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = StudentConfig(num_layers=2, layers="block_influence", width=WidthConfig(intermediate_size=20))
    first = initial_student(student, teacher, calibration, seed=0)

    def refuse(*_: Any) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(students, "choose_layers", refuse)
    monkeypatch.setattr(students, "select_width", refuse)
    again = initial_student(student, teacher, calibration, seed=0)
    assert torch.equal(first(IDS).logits, again(IDS).logits)
    with pytest.raises(AssertionError, match="measured again"):  # other text, another choice
        initial_student(student, teacher, calibration._replace(data_fingerprint="other"), seed=0)


def test_adapters_begin_the_same_whether_a_choice_is_remembered_or_not(teacher: Path, calibration: CalibrationData) -> None:
    student = StudentConfig(num_layers=2, layers="uniform", width=WidthConfig(intermediate_size=20), lora=LORA)
    first, again = (initial_student(student, teacher, calibration, seed=0).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_one_greedy_order_serves_every_depth(
    teacher: Path, calibration: CalibrationData, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = []
    calibration = calibration._replace(progress=lambda stage, done, total, unit: trials.append(total))
    three = retained_layers(StudentConfig(num_layers=3), teacher, calibration)
    assert trials == [4] * 4
    one = retained_layers(StudentConfig(num_layers=1), teacher, calibration)
    assert trials[4:] == [5] * 5  # three layers tried, then two: not the first four again
    two = retained_layers(StudentConfig(num_layers=2), teacher, calibration)
    assert len(trials) == 9
    assert set(one) < set(two) < set(three) < set(range(4))


def test_a_pretrained_student_needs_the_teachers_tokenizer(teacher: Path, tmp_path: Path) -> None:
    other = tiny_models.make_model(tmp_path / "same", num_layers=1, seed=3)
    built = initial_student(StudentConfig(from_=f"file:{other}"), teacher, CalibrationData([], ""), seed=0)
    assert torch.equal(built(IDS).logits, load_model(other)(IDS).logits)
    tiny_models.make_tokenizer(other, size=280)
    with pytest.raises(UserError, match="tokenizers differ"):
        initial_student(StudentConfig(from_=f"file:{other}"), teacher, CalibrationData([], ""), seed=0)


# ---------------------------------------------------------------- adapters


def adapted(teacher: Path, lora: LoraConfig = LORA, **student: Any) -> Any:
    return initial_student(
        StudentConfig(**{"num_layers": 2, "layers": "uniform", **student}, lora=lora),
        teacher,
        CalibrationData([], ""),
        seed=0,
    )


def test_adapters_start_at_nothing_and_are_all_that_trains(teacher: Path) -> None:
    student = adapted(teacher)
    plain = initial_student(StudentConfig(num_layers=2, layers="uniform"), teacher, CalibrationData([], ""), seed=0)
    assert torch.equal(student(IDS).logits, plain(IDS).logits)
    trained = [name for name, parameter in student.named_parameters() if parameter.requires_grad]
    assert len(trained) == 2 * 2 * 7  # two layers of seven linear maps, A and B each
    assert all("lora_" in name for name in trained)
    assert trainable_fraction(student) < 0.2
    assert trainable_fraction(plain) == 1.0


def test_merging_changes_no_logit_and_leaves_no_trace(teacher: Path) -> None:
    student = adapted(teacher)
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    before = student(IDS).logits
    names = [name for name, _ in initial_names(teacher)]
    merged = merge_adapters(student)
    torch.testing.assert_close(merged(IDS).logits, before, rtol=0, atol=1e-4)
    assert [name for name, _ in merged.named_parameters()] == names
    assert trainable_fraction(merged) == 1.0


def initial_names(teacher: Path) -> list[tuple[str, torch.Tensor]]:
    plain = initial_student(StudentConfig(num_layers=2, layers="uniform"), teacher, CalibrationData([], ""), seed=0)
    return list(plain.named_parameters())


def test_targets_can_be_named(teacher: Path) -> None:
    student = adapted(teacher, LoraConfig(rank=2, target_modules=["q_proj", "v_proj"]))
    assert sum(parameter.requires_grad for parameter in student.parameters()) == 2 * 2 * 2


@pytest.mark.parametrize(("target", "words"), [("lm_head", "lm_head cannot have an adapter"), ("qproj", "qproj")])
def test_wrong_targets_are_refused(teacher: Path, target: str, words: str) -> None:
    with pytest.raises(UserError, match=f"lora.target_modules: .*{words}"):
        adapted(teacher, LoraConfig(rank=2, target_modules=[target]))


def lora_run(folder: Path, teacher: Path, prepared: data.PreparedData, student: Any, signal: OnlineTeacher) -> TrainingJob:
    training = replace(TRAINING, checkpoint_interval=2)
    module = PackedDataModule(prepared.train, prepared.validation, training, 0)
    settings = {"vocab_size": VOCABULARY, "fused_loss_settings": SETTINGS, **optimizer_settings(training)}
    distiller = Distiller(student, signal, losses.ForwardKL(name="kl"), **settings)
    return TrainingJob(folder, distiller, module, training, 0, lambda *_: None)


def test_training_adapters(tmp_path: Path, teacher: Path, prepared: data.PreparedData) -> None:
    """Only adapters are optimised and saved; the student learns; its folder opens with plain transformers."""
    student = adapted(teacher, replace(LORA, dropout=0.0))
    frozen = {name: value.clone() for name, value in student.state_dict().items() if "lora_" not in name}
    signal = OnlineTeacher(load_model(teacher), VOCABULARY)
    run = lora_run(tmp_path, teacher, prepared, student, signal)
    final = train(run)
    start = __import__("json").loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    assert final["validation/kl"] < start["validation/kl"]
    for name, value in student.state_dict().items():
        assert "lora_" in name or torch.equal(value, frozen[name]), name
    path = next((tmp_path / "checkpoints").glob("*.ckpt"))
    checkpoint = torch.load(path, weights_only=True)
    assert all("lora_" in name for name in checkpoint["state_dict"])
    optimised = sum(len(group["params"]) for group in checkpoint["optimizer_states"][0]["param_groups"])
    assert optimised == len(checkpoint["state_dict"]) == 2 * 2 * 7
    export_student(merge_adapters(student), teacher, tmp_path / "student", "")
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "student")
    torch.testing.assert_close(opened(IDS).logits, student(IDS).logits)


def test_adapters_resume_exactly(tmp_path: Path, teacher: Path, prepared: data.PreparedData) -> None:
    """Dropout on: a run cut off after a checkpoint ends with the same adapters as one that was not."""

    def weights(student: Any) -> torch.Tensor:
        return torch.cat([p.detach().flatten() for p in student.parameters() if p.requires_grad])

    signal = OnlineTeacher(load_model(teacher), VOCABULARY)
    whole = adapted(teacher)
    train(lora_run(tmp_path / "a", teacher, prepared, whole, signal))
    torch.manual_seed(123)
    again = adapted(teacher)
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / "checkpoints").rename(tmp_path / "b" / "checkpoints")
    (tmp_path / "a" / "metrics.jsonl").rename(tmp_path / "b" / "metrics.jsonl")
    train(lora_run(tmp_path / "b", teacher, prepared, again, signal))
    assert torch.equal(weights(whole), weights(again))


def test_eval_of_the_teacher_leaves_the_dropout_of_adapters_on(
    tmp_path: Path, teacher: Path, prepared: data.PreparedData
) -> None:
    """trl #5862: a teacher that is the student without its adapters, put into eval mode, takes the student along."""
    student, dropping = adapted(teacher, num_layers=0), []
    for name, module in student.named_modules():
        if name.endswith("q_proj.lora_dropout.default"):
            module.register_forward_hook(lambda module, inputs, output: dropping.append(bool((output == 0).any())))
    run = lora_run(tmp_path, teacher, prepared, student, OnlineTeacher(load_model(teacher), VOCABULARY))
    modes = []
    step = run.distiller.training_step

    def watched(batch: Any, batch_idx: int = 0) -> torch.Tensor:
        dropping.clear()
        loss = step(batch, batch_idx)
        modes.append(student.training and len(dropping) == 4 and all(dropping))
        return loss

    run.distiller.training_step = watched
    train(run)
    assert modes
    assert all(modes)


@pytest.mark.parametrize("name", FAMILIES)
def test_adapters_on_every_shape_of_model(name: str) -> None:
    """All linear layers but the head, Conv1D as well; merged, they say what they said."""
    model = add_adapters(make_family(name), replace(LORA, dropout=0.0))
    adapted_to = {name.split(".lora_A")[0].rsplit(".")[-1] for name, _ in model.named_parameters() if "lora_A" in name}
    linear = {"c_attn", "c_proj", "c_fc"} if name == "gpt2" else {*"qkvo", "gate", "up", "down"}
    assert {part.removesuffix("_proj") if name != "gpt2" else part for part in adapted_to} == linear
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "lora_B" in key:
                parameter.normal_(std=0.1)
    before = model(IDS).logits
    assert (before - make_family(name)(IDS).logits).abs().max() > 0.01
    torch.testing.assert_close(merge_adapters(model)(IDS).logits, before, rtol=0, atol=1e-4)


def test_a_frozen_head_gets_no_gradient_and_changes_no_other() -> None:
    weight, hidden = torch.randn(50, 8), torch.randn(6, 8)
    labels, objective = torch.randint(50, (6,)), build_objective({"ce": TermConfig()})
    grads = []
    for is_frozen in (False, True):
        head = LMHead(weight.clone().requires_grad_(not is_frozen), None, 1.0, 0.0, 50)
        inputs = hidden.clone().requires_grad_()
        fused_linear_loss(objective, inputs, head, None, labels, denominator=torch.tensor(6), chunk_size=4).total.backward()
        assert (head.weight.grad is None) == is_frozen
        grads.append(inputs.grad)
    assert torch.equal(*grads)
