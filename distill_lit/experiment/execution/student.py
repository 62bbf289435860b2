"""The model of a run: taken as it is, quantized, or a student that is trained and exported."""

from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from distill_lit.config import to_dict, to_yaml
from distill_lit.config.roles import Role
from distill_lit.data.chat_agreement import learned_turn_end
from distill_lit.data.loader import calibration_batches
from distill_lit.data.templates import read_template
from distill_lit.experiment.execution.run_data import prepare_run_data
from distill_lit.experiment.execution.student_facts import cost_facts, layer_choices, size_facts
from distill_lit.experiment.execution.teacher import build_teacher
from distill_lit.experiment.execution.training_job import StudentInputs, build_training_job, student_tokenizer
from distill_lit.experiment.planning.earlier_stages import rows_read
from distill_lit.experiment.planning.planned_run import Run
from distill_lit.experiment.planning.requirements import student_base_folder
from distill_lit.experiment.state.completion import student_hashes
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
from distill_lit.models.quantization_aware import quantize_prepared
from distill_lit.models.sharding import build_on_rank_zero, gather_model, meta_copy
from distill_lit.models.vocabulary import load_unpadded_vocab_size
from distill_lit.training.callbacks.collapse import OnPolicyCollapseWarning
from distill_lit.training.checkpoint import load_best_weights
from distill_lit.training.trainer import TrainingJob, final_metrics, train, validate
from distill_lit.utils import hardware
from distill_lit.utils.distributed.ranks import get_rank, get_world_size, rank_zero_first
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
    is_sharded = run.config.training.strategy == "fsdp" and get_world_size() > 1
    inputs = _read_inputs(run, folder, teacher_folder, progress_callback)
    # one rank builds and the others follow; of sharded models they get the shapes, and must listen meanwhile
    in_turn = nullcontext if is_sharded else rank_zero_first
    with in_turn():
        build = partial(_initial_student, inputs)
        student = build_on_rank_zero(build) if is_sharded else build()
        trained_fraction = trainable_fraction(student)
    # by all: they may have a cache to write together
    teacher = build_teacher(run.config, teacher_folder, inputs.prepared, student)
    with in_turn():
        setup = build_training_job(inputs, student, teacher)
    whole = meta_copy(student) if is_sharded else None
    metrics = _train_or_validate(run, setup)
    student = gather_model(whole, student) if is_sharded else student
    if get_rank():
        return {}
    progress_callback("export", 0, 1)
    metrics, exported = _choose_weights(run, setup, student, metrics)
    size = _export(inputs, student, exported)
    return _manifest(inputs, setup, metrics, exported, size, trained_fraction)


def _read_inputs(run: Run, folder: Path, teacher_folder: Path, progress_callback: ProgressCallback) -> StudentInputs:
    config, base = run.config, student_base_folder(run.config, teacher_folder)
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
    return StudentInputs(run, folder, teacher_folder, base, prepared, vocab_size, calibration, progress_callback)


def _manifest(
    inputs: StudentInputs,
    setup: TrainingJob,
    metrics: dict[str, float],
    exported: dict[str, Any],
    size: ModelSize,
    trained_fraction: float,
) -> dict[str, Any]:
    """What the manifest says of a student. exported: as of `_choose_weights`; trained_fraction: of its weights."""
    shape, prepared = inputs.shape, inputs.prepared
    quantization = shape.quantize if shape.quantize != "none" else shape.quantization_aware
    notes = [line for one in setup.callbacks if isinstance(one, OnPolicyCollapseWarning) for line in one.lines]
    return {
        **({"notes": notes} if notes else {}),
        **({"compiled": True} if inputs.config.training.compile == "always" else {}),
        "files": student_hashes(inputs.folder),
        "origin": setup.fingerprints,
        "metrics": metrics,
        **({"exported": exported} if exported else {}),
        **rows_read(inputs.run, inputs.folder, prepared.fingerprint, setup.datamodule),
        "data": prepared.statistics,
        **({"format": QUANTIZATION_RECIPES[quantization]} if quantization != "none" else {}),
        **size_facts(size),
        **cost_facts(inputs.run, setup, size, trained_fraction, prepared.statistics.get("teacher_tokens_per_token", 1.0)),
        **layer_choices(shape, inputs.teacher_folder, inputs.calibration, setup.distiller.loss.feature_alignment),
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


def _initial_student(inputs: StudentInputs) -> Any:
    """The student before training; one that is only quantized is written at once."""
    shape = inputs.shape
    if shape.quantize != "none":
        return quantize_model(model_folder(shape.from_), inputs.folder / "student", shape.quantize)
    student = initial_student(shape, inputs.base, inputs.calibration, inputs.config.seed)
    if not get_rank():
        check_exports(student, inputs.base, inputs.folder / "export", to_dict(shape), shape.quantization_aware)
    return student


def _export(inputs: StudentInputs, student: Any, exported: dict[str, Any]) -> ModelSize:
    """Writes the finished student, adapters merged, weights quantized that were rounded in training, and has it read in
    another process. Raises UserError, its weights kept, where it says something else there than it said in training."""
    run, folder, base = inputs.run, inputs.folder, inputs.base
    RELOAD_PROCESS.start()
    ids = probe_input_ids(student)
    expected_logits = logits_on(student, ids)
    if inputs.shape.quantize != "none":
        check_reloads(student, folder / "student", ids, expected_logits)
        return size_of(load_model(folder / "student"))
    size = size_of(merge_adapters(student))
    details = {"parameters": f"{size.parameters:,}"}
    details |= {"exported step": f"{exported['step']:,}, of the lowest validation loss"} if exported else {}
    card = model_card(run.label, run.config.teacher.model, _recipe(run), details)
    quantize_prepared(student, inputs.shape.quantization_aware)
    end = learned_turn_end(student_tokenizer(run.config, base)) if run.config.data.has_chats else None
    export_student(student, base, folder / "student", card, read_template(run.config.data.chat_template), end)
    check_reloads(student, folder / "student", ids, expected_logits, is_remote_code_allowed(folder / "student"))
    return size


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
