"""The training of a student, built from its config: its rows, loss and callbacks, and the text that it writes itself."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lightning import Callback

from distill_lit import data
from distill_lit.config import ExperimentConfig, StudentConfig, to_dict
from distill_lit.config.generation import VLLM_BACKEND
from distill_lit.config.on_policy import is_on_policy_enabled
from distill_lit.data.datamodule import PackedDataModule
from distill_lit.data.templates import read_template, set_chat_template
from distill_lit.experiment.execution.student_facts import training_fingerprints
from distill_lit.experiment.planning.earlier_stages import earlier_stages
from distill_lit.experiment.planning.planned_run import Run
from distill_lit.generation.sampling import get_eos_token_ids
from distill_lit.generation.vllm_engine import VLLMEngine
from distill_lit.losses import Objective, build_objective, can_compile
from distill_lit.models import CalibrationData, load_model_config, load_tokenizer
from distill_lit.models.loading import torch_dtype
from distill_lit.models.packing_check import use_packed_attention
from distill_lit.teachers import PrefetchingTeacher, Teacher
from distill_lit.training.callbacks.collapse import OnPolicyCollapseWarning
from distill_lit.training.callbacks.evaluation import EvaluationCallback
from distill_lit.training.distiller import Distiller
from distill_lit.training.feature_alignment import build_feature_alignment, use_eager_attention
from distill_lit.training.loss import FusedLossSettings
from distill_lit.training.on_policy import OnPolicyGenerator
from distill_lit.training.tensorboard_summary import CustomScalarsCallback
from distill_lit.training.trainer import TrainingJob, optimizer_settings, prepare_student
from distill_lit.utils import hardware
from distill_lit.utils.distributed.ranks import broadcast_from_rank_zero, get_rank
from distill_lit.utils.progress import ProgressCallback


@dataclass(frozen=True)
class StudentInputs:
    """What a student is built, trained and exported from, in `folder`.

    base: folder of the tokenizer that its rows are made with; vocab_size: tokens without padding of that tokenizer's model.
    """

    run: Run
    folder: Path
    teacher_folder: Path
    base: Path
    prepared: data.PreparedData
    vocab_size: int
    calibration: CalibrationData
    progress_callback: ProgressCallback

    @property
    def config(self) -> ExperimentConfig:
        """That of the run."""
        return self.run.config

    @property
    def shape(self) -> StudentConfig:
        """The student as the config has it."""
        return self.config.students[self.run.student]


def build_training_job(inputs: StudentInputs, student: Any, teacher: Teacher | None) -> TrainingJob:
    """The training of a student with the teacher that it asks."""
    config, prepared = inputs.config, inputs.prepared
    earlier = earlier_stages(inputs.run, inputs.folder)
    rows_before = earlier.rows_read.get(prepared.fingerprint, 0)
    module = PackedDataModule(prepared.train, prepared.validation, config.training, config.seed, rows_before)
    objective = build_objective(config.objective.terms, config.objective.temperature_scaling)
    if isinstance(teacher, PrefetchingTeacher) and objective.needs_teacher and not is_on_policy_enabled(config.on_policy):
        module.look_ahead = teacher.prefetch  # some batches of on-policy training are never read
    distiller = _build_distiller(inputs, student, teacher, objective, module.steps)
    return TrainingJob(
        inputs.folder,
        distiller,
        module,
        config.training,
        config.seed,
        inputs.progress_callback,
        training_fingerprints(inputs.run, inputs.teacher_folder, student, prepared, objective),
        config.launcher.on_mismatch,
        _callbacks(config, inputs.base, module.steps, inputs.progress_callback),
        config.loggers,
        to_dict(config),
        earlier.steps,
        earlier.tokens,
    )


def _build_distiller(
    inputs: StudentInputs, student: Any, teacher: Teacher | None, objective: Objective, steps: int
) -> Distiller:
    config, model = inputs.config, getattr(teacher, "model", None)
    teacher_config = load_model_config(inputs.teacher_folder)
    batches = inputs.calibration.batches
    align = partial(build_feature_alignment, objective, student, teacher_config, model, batches, config.seed)
    # by cka it looks at weights, which only the first rank has of sharded models
    feature_alignment = broadcast_from_rank_zero(align) if config.training.strategy == "fsdp" else align()
    models = [m for m in (student, model) if m is not None]
    use_eager_attention(objective, *models)
    use_packed_attention(config.training.packed_attention, *models)
    prepare_student(student, config.training)
    log_path = inputs.folder / f"vllm-{get_rank()}.log"
    return Distiller(
        student,
        teacher,
        objective,
        vocab_size=inputs.vocab_size,
        fused_loss_settings=_fused_loss_settings(config),
        feature_alignment=feature_alignment,
        on_policy_generator=_build_on_policy_text(config, student, inputs.vocab_size, inputs.base, model, steps, log_path),
        **optimizer_settings(config.training),
    )


def _callbacks(config: ExperimentConfig, base: Path, steps: int, progress_callback: ProgressCallback) -> list[Callback]:
    """What happens beside the training as the experiment asks for it."""
    callbacks: list[Callback] = [CustomScalarsCallback()]
    if is_on_policy_enabled(config.on_policy):
        callbacks.append(OnPolicyCollapseWarning(progress_callback))
    if config.evaluation.interval:
        tokenizer = student_tokenizer(config, base)
        callbacks.append(EvaluationCallback(tokenizer, config.evaluation, config.dataset_source, steps))
    return callbacks


def student_tokenizer(config: ExperimentConfig, base: Path) -> Any:
    """The student's tokenizer, with the chat template that it is trained on."""
    return set_chat_template(load_tokenizer(base), read_template(config.data.chat_template))


def _build_on_policy_text(
    config: ExperimentConfig, student: Any, vocab_size: int, base: Path, teacher: Any, steps: int, log_path: Path
) -> OnPolicyGenerator | None:
    """What makes batches of the student's own text, or None where it writes none. log_path: file for what vLLM prints."""
    if not is_on_policy_enabled(config.on_policy):
        return None
    ends = get_eos_token_ids(student, student_tokenizer(config, base), config.data.has_chats)
    engine = None
    if config.generation.backend == VLLM_BACKEND:
        engine = VLLMEngine(config.generation, torch_dtype(config.training.precision), log_path)
    return OnPolicyGenerator(config.on_policy, ends, vocab_size, teacher, config.seed, steps, engine)


def _fused_loss_settings(config: ExperimentConfig) -> FusedLossSettings:
    objective = config.objective
    device = hardware.device_for(config.training.accelerator)
    compiled = objective.compile == "always" or (objective.compile == "auto" and can_compile(device))
    dtype = torch_dtype(config.training.precision)
    return FusedLossSettings(
        objective.chunk_size or None, compiled, dtype, objective.memory_budget, kernel=objective.compile != "never"
    )
