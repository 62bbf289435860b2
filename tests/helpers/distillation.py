"""A student of one layer that learns from a tiny random teacher, in seconds."""

from collections.abc import Callable
from pathlib import Path

import torch

from distill_lit import data
from distill_lit.config import StudentConfig, TermConfig, TrainingConfig
from distill_lit.config.models import LoraConfig
from distill_lit.data.datamodule import PackedDataModule
from distill_lit.losses import build_objective
from distill_lit.models import CalibrationData, initial_student, load_model
from distill_lit.models.lora import add_adapters
from distill_lit.teachers import OnlineTeacher
from distill_lit.training.distiller import Distiller
from distill_lit.training.loss import FusedLossSettings
from distill_lit.training.trainer import TrainingJob, optimizer_settings, prepare_student, train

VOCABULARY, LENGTH, STEPS = 300, 32, 6
SETTINGS = FusedLossSettings(64, False, torch.float32)
TERMS = {"ce": TermConfig(weight=0.5), "kl": TermConfig(kind="forward_kl", temperature=2.0)}
TRAINING = TrainingConfig(
    max_tokens=LENGTH * 8 * STEPS,
    micro_batch_size=8,
    gradient_accumulation_steps=1,
    precision="float32",
    accelerator="cpu",
    learning_rate=1e-2,
    weight_decay=0.0,
    checkpoint_interval=1000,
)


def new_student(teacher: Path, dropout: float = 0.0) -> torch.nn.Module:
    student = initial_student(StudentConfig(num_layers=1, layers="uniform"), teacher, CalibrationData([], ""), seed=0)
    for layer in student.model.layers:
        layer.self_attn.attention_dropout = dropout
    return student


def run(
    folder: Path,
    teacher: Path,
    prepared: data.PreparedData,
    training: TrainingConfig = TRAINING,
    terms: dict = TERMS,
    signal: object = None,
    dropout: float = 0.0,
    how: Callable[[TrainingJob], dict] = train,
    lora: LoraConfig | None = None,
) -> tuple[torch.nn.Module, dict]:
    student = new_student(teacher, dropout)
    if lora is not None:
        student = add_adapters(student, lora)
    module = PackedDataModule(prepared.train, prepared.validation, training, 0)
    signal = signal or OnlineTeacher(load_model(teacher), VOCABULARY)
    prepare_student(student, training)
    distiller = Distiller(
        student,
        signal,
        build_objective(terms),
        vocab_size=VOCABULARY,
        fused_loss_settings=SETTINGS,
        **optimizer_settings(training),
    )
    return student, how(TrainingJob(folder, distiller, module, training, 0, lambda *_: None))


def weights(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])
