"""The model of a run: taken as it is, quantized, or a student that is trained and exported."""

from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from lightning import Callback

from distill_lit import data
from distill_lit.config import ExperimentConfig, to_dict, to_yaml
from distill_lit.config.generation import VLLM_BACKEND
from distill_lit.config.on_policy import is_on_policy_enabled
from distill_lit.config.roles import Role
from distill_lit.data.chat_agreement import learned_turn_end
from distill_lit.data.datamodule import PackedDataModule
from distill_lit.data.loader import calibration_batches
from distill_lit.data.templates import read_template, set_chat_template
from distill_lit.experiment.completion import student_hashes
from distill_lit.experiment.earlier_stages import earlier_stages, rows_read
from distill_lit.experiment.planned_run import Run
from distill_lit.experiment.requirements import student_base_folder
from distill_lit.experiment.run_data import prepare_run_data
from distill_lit.experiment.student_facts import cost_facts, layer_choices, size_facts, training_fingerprints
from distill_lit.experiment.teacher import build_teacher
from distill_lit.generation.sampling import get_eos_token_ids
from distill_lit.generation.vllm_engine import VLLMEngine
from distill_lit.losses import build_objective, can_compile
from distill_lit.models import (
    INT8_RECIPE,
    QUANTIZATION_RECIPES,
    RELOAD_PROCESS,
    CalibrationData,
    ModelSize,
    check_exports,
    check_reloads,
    export_student,
    initial_student,
    load_model,
    load_model_config,
    load_tokenizer,
    logits_on,
    merge_adapters,
    model_card,
    model_folder,
    probe_input_ids,
    quantize_model,
    size_of,
    trainable_fraction,
)
from distill_lit.models.loading import is_remote_code_allowed, torch_dtype
from distill_lit.models.packing_check import use_packed_attention
from distill_lit.models.quantization_aware import quantize_prepared
from distill_lit.models.sharding import build_on_rank_zero, gather_model, meta_copy
from distill_lit.models.vocabulary import load_unpadded_vocab_size
from distill_lit.teachers import PrefetchingTeacher, Teacher
from distill_lit.training.callbacks.collapse import OnPolicyCollapseWarning
from distill_lit.training.callbacks.evaluation import EvaluationCallback
from distill_lit.training.checkpoint import load_best_weights
from distill_lit.training.distiller import Distiller
from distill_lit.training.feature_alignment import build_feature_alignment, use_eager_attention
from distill_lit.training.loss import FusedLossSettings
from distill_lit.training.on_policy import OnPolicyGenerator
from distill_lit.training.tensorboard_summary import CustomScalarsCallback
from distill_lit.training.trainer import TrainingJob, final_metrics, optimizer_settings, prepare_student, train, validate
from distill_lit.utils import hardware
from distill_lit.utils.distributed.ranks import broadcast_from_rank_zero, get_rank, get_world_size, rank_zero_first
from distill_lit.utils.progress import ProgressCallback


def build_reference_model(run: Run, folder: Path) -> dict[str, Any]:
    """A model as it is, or the teacher in int8."""
    source_folder = model_folder(run.model_reference)
    if run.role != Role.QUANTIZED:
        return {"model": str(source_folder), **size_facts(size_of(load_model(source_folder)))}
    quantized = quantize_model(source_folder, folder / "student", "int8")
    ids = probe_input_ids(quantized)
    check_reloads(quantized, folder / "student", ids, logits_on(quantized, ids))
    size = size_of(load_model(folder / "student"))
    return {"files": student_hashes(folder), "format": INT8_RECIPE, **size_facts(size)}


def train_and_export_student(
    run: Run, folder: Path, teacher_folder: Path, progress_callback: ProgressCallback
) -> dict[str, Any]:
    """Trains (or only validates) a student and exports it; what its manifest says of it. Only the first rank exports."""
    config, shape = run.config, run.config.students[run.student]
    quantization = shape.quantize if shape.quantize != "none" else shape.quantization_aware
    base = student_base_folder(config, teacher_folder)
    is_sharded = config.training.strategy == "fsdp" and get_world_size() > 1
    with rank_zero_first():
        prepared = prepare_run_data(config, base)
        vocab_size = load_unpadded_vocab_size(base)
        calibration = CalibrationData(
            calibration_batches(prepared.train),
            prepared.fingerprint,
            torch_dtype(config.teacher.dtype),
            progress_callback,
            hardware.device_for(config.training.accelerator),
        )
    # one rank builds and the others follow; of sharded models they get the shapes, and must listen meanwhile
    in_turn = nullcontext if is_sharded else rank_zero_first
    with in_turn():
        build = partial(_initial_student, run, folder, base, calibration)
        student = build_on_rank_zero(build) if is_sharded else build()
        trained_fraction = trainable_fraction(student)
    teacher = build_teacher(config, teacher_folder, prepared, student)  # by all: they may have a cache to write together
    with in_turn():
        setup = _build_training_setup(
            run, folder, student, vocab_size, prepared, teacher, progress_callback, teacher_folder, calibration
        )
    whole = meta_copy(student) if is_sharded else None
    metrics = _train_or_validate(run, setup)
    student = gather_model(whole, student) if is_sharded else student
    if get_rank():
        return {}
    progress_callback("export", 0, 1)
    metrics, exported = _choose_weights(run, setup, student, metrics)
    size = _export(run, folder, student, base, exported)
    notes = [line for one in setup.callbacks if isinstance(one, OnPolicyCollapseWarning) for line in one.lines]
    return {
        **({"notes": notes} if notes else {}),
        **({"compiled": True} if config.training.compile == "always" else {}),
        "files": student_hashes(folder),
        "origin": setup.fingerprints,
        "metrics": metrics,
        **({"exported": exported} if exported else {}),
        **rows_read(run, folder, prepared.fingerprint, setup.datamodule),
        "data": prepared.statistics,
        **({"format": QUANTIZATION_RECIPES[quantization]} if quantization != "none" else {}),
        **size_facts(size),
        **cost_facts(run, setup, size, trained_fraction, prepared.statistics.get("teacher_tokens_per_token", 1.0)),
        **layer_choices(config.students[run.student], teacher_folder, calibration, setup.distiller.loss.feature_alignment),
    }


def _train_or_validate(run: Run, setup: TrainingJob) -> dict[str, float]:
    try:
        return (train if run.is_trained else validate)(setup)
    finally:
        if setup.distiller.on_policy_generator is not None:
            setup.distiller.on_policy_generator.close()


def _choose_weights(
    run: Run, setup: TrainingJob, student: Any, metrics: dict[str, float]
) -> tuple[dict[str, float], dict[str, Any]]:
    """Gives the student its best weights where `training.export` asks for them. Returns (the metrics of what is exported,
    its {step, loss} where these are not simply the last weights)."""
    if run.is_trained and run.config.training.export == "best":
        best = load_best_weights(setup.checkpoint_folder, student)
        return final_metrics(setup.folder / "metrics.jsonl", best["step"]), best
    return metrics, {}


def _initial_student(run: Run, folder: Path, base: Path, calibration: CalibrationData) -> Any:
    """The student before training; one that is only quantized is written at once."""
    shape = run.config.students[run.student]
    if shape.quantize != "none":
        return quantize_model(model_folder(shape.from_), folder / "student", shape.quantize)
    student = initial_student(shape, base, calibration, run.config.seed)
    if not get_rank():
        check_exports(student, base, folder / "export", to_dict(shape), shape.quantization_aware)
    return student


def _export(run: Run, folder: Path, student: Any, base: Path, exported: dict[str, Any]) -> ModelSize:
    """Writes the finished student, adapters merged, weights quantized that were rounded in training, and has it read in
    another process. Raises UserError, its weights kept, where it says something else there than it said in training."""
    RELOAD_PROCESS.start()
    ids = probe_input_ids(student)
    expected_logits = logits_on(student, ids)
    if run.config.students[run.student].quantize != "none":
        check_reloads(student, folder / "student", ids, expected_logits)
        return size_of(load_model(folder / "student"))
    size = size_of(merge_adapters(student))
    details = {"parameters": f"{size.parameters:,}"}
    details |= {"exported step": f"{exported['step']:,}, of the lowest validation loss"} if exported else {}
    card = model_card(run.label, run.config.teacher.model, _recipe(run), details)
    quantize_prepared(student, run.config.students[run.student].quantization_aware)
    end = learned_turn_end(_tokenizer(run.config, base)) if run.config.data.has_chats else None
    export_student(student, base, folder / "student", card, read_template(run.config.data.chat_template), end)
    check_reloads(student, folder / "student", ids, expected_logits, is_remote_code_allowed(folder / "student"))
    return size


def _build_training_setup(
    run: Run,
    folder: Path,
    student: Any,
    vocab_size: int,
    prepared: data.PreparedData,
    teacher: Teacher | None,
    progress_callback: ProgressCallback,
    teacher_folder: Path,
    calibration: CalibrationData,
) -> TrainingJob:
    config = run.config
    base = student_base_folder(config, teacher_folder)
    earlier = earlier_stages(run, folder)
    rows_before = earlier.rows_read.get(prepared.fingerprint, 0)
    module = PackedDataModule(prepared.train, prepared.validation, config.training, config.seed, rows_before)
    objective = build_objective(config.objective.terms, config.objective.temperature_scaling)
    if isinstance(teacher, PrefetchingTeacher) and objective.needs_teacher and not is_on_policy_enabled(config.on_policy):
        module.look_ahead = teacher.prefetch  # some batches of on-policy training are never read
    model = getattr(teacher, "model", None)
    teacher_config = load_model_config(teacher_folder)
    align = partial(build_feature_alignment, objective, student, teacher_config, model, calibration.batches, config.seed)
    # by cka it looks at weights, which only the first rank has of sharded models
    feature_alignment = broadcast_from_rank_zero(align) if config.training.strategy == "fsdp" else align()
    models = [m for m in (student, model) if m is not None]
    use_eager_attention(objective, *models)
    use_packed_attention(config.training.packed_attention, *models)
    prepare_student(student, config.training)
    distiller = Distiller(
        student,
        teacher,
        objective,
        vocab_size=vocab_size,
        fused_loss_settings=_fused_loss_settings(config),
        feature_alignment=feature_alignment,
        on_policy_generator=_build_on_policy_text(
            config, student, vocab_size, base, model, module.steps, folder / f"vllm-{get_rank()}.log"
        ),
        **optimizer_settings(config.training),
    )
    fingerprints = training_fingerprints(run, teacher_folder, student, prepared, objective)
    return TrainingJob(
        folder,
        distiller,
        module,
        config.training,
        config.seed,
        progress_callback,
        fingerprints,
        config.launcher.on_mismatch,
        _callbacks(config, base, module.steps, progress_callback),
        config.loggers,
        to_dict(config),
        earlier.steps,
        earlier.tokens,
    )


def _callbacks(config: ExperimentConfig, base: Path, steps: int, progress_callback: ProgressCallback) -> list[Callback]:
    """What happens beside the training as the experiment asks for it."""
    callbacks: list[Callback] = [CustomScalarsCallback()]
    if is_on_policy_enabled(config.on_policy):
        callbacks.append(OnPolicyCollapseWarning(progress_callback))
    if config.evaluation.interval:
        tokenizer = _tokenizer(config, base)
        callbacks.append(EvaluationCallback(tokenizer, config.evaluation, config.dataset_source, steps))
    return callbacks


def _tokenizer(config: ExperimentConfig, base: Path) -> Any:
    """The student's tokenizer, with the chat template that it is trained on."""
    return set_chat_template(load_tokenizer(base), read_template(config.data.chat_template))


def _build_on_policy_text(
    config: ExperimentConfig, student: Any, vocab_size: int, base: Path, teacher: Any, steps: int, log_path: Path
) -> OnPolicyGenerator | None:
    """What makes batches of the student's own text, or None where it writes none. log_path: file for what vLLM prints."""
    if not is_on_policy_enabled(config.on_policy):
        return None
    ends = get_eos_token_ids(student, _tokenizer(config, base), config.data.has_chats)
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


def _recipe(run: Run) -> str:
    config = run.config
    head = f"student: {run.student}\nseed: {config.seed}\n"
    if not run.is_trained:
        return head + "training: none\n"
    prompt = config.teacher.prompt
    if run.role == Role.DISTILLED and prompt.is_set:
        head += "teacher_prompt:\n" + _indented(to_yaml(prompt))
    return (
        head + "objective:\n" + _indented(to_yaml(config.objective)) + "training:\n" + _indented(to_yaml(config.training))
    )


def _indented(text: str) -> str:
    return "".join(f"  {line}\n" for line in text.splitlines())
