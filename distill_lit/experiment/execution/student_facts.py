"""What the manifest of a student says of it: its size, its costs, its layers, and the contents that it was trained from."""

import json
from pathlib import Path
from typing import Any

from distill_lit import data
from distill_lit.config import StudentConfig, to_dict
from distill_lit.experiment.planning.asked_teachers import teacher_flops_per_token, teacher_references, teacher_weights
from distill_lit.experiment.planning.fingerprint import training_fingerprint_fields
from distill_lit.experiment.planning.planned_run import Run
from distill_lit.losses import Objective
from distill_lit.models import CalibrationData, ModelSize, model_fingerprint, model_folder
from distill_lit.models.student import is_pruned, retained_layers
from distill_lit.training.feature_alignment import FeatureAlignment
from distill_lit.training.trainer import TrainingJob
from distill_lit.utils.files import fingerprint

KV_BYTES_PER_ELEMENT = 2  # of cached keys and values: bfloat16 or float16


def size_facts(size: ModelSize) -> dict[str, Any]:
    """Parameters, and what a token costs: FLOPs of a forward pass, bytes of keys and values."""
    return {
        "parameters": size.parameters,
        "non_embedding_parameters": size.non_embedding,
        "num_layers": size.layers,
        "flops_per_token": size.flops_per_token(),
        "kv_cache_bytes_per_token": KV_BYTES_PER_ELEMENT * size.kv_cache_values_per_token,
    }


def cost_facts(
    run: Run, setup: TrainingJob, size: ModelSize, trainable_fraction: float, teacher_tokens_per_token: float
) -> dict[str, Any]:
    """Tokens read and arithmetic spent. A backward pass costs a forward pass for the activations and another for the
    share of the weights that is trained; an offline teacher ran once, for all runs, and is charged to each; with a prompt
    of its own it reads more tokens than the student."""
    tokens = 0 if not run.is_trained else setup.datamodule.steps * setup.datamodule.tokens_per_step
    asks_teacher = setup.distiller.loss.objective.needs_teacher
    teacher_flops = teacher_flops_per_token(run.config, setup.datamodule.train, size) if asks_teacher else 0.0
    return {
        "training_tokens": tokens,
        "first_step": setup.first_step,
        **({"first_tokens": setup.first_tokens} if setup.first_tokens else {}),
        **({"steps": setup.datamodule.steps} if tokens else {}),
        "student_training_flops": (2 + trainable_fraction) * size.flops_per_token() * tokens,
        "teacher_training_flops": teacher_flops * teacher_tokens_per_token * tokens,
    }


def layer_choices(
    student: StudentConfig, teacher_folder: Path, calibration: CalibrationData, feature_alignment: FeatureAlignment | None
) -> dict[str, Any]:
    """Which of the teacher's layers the student kept, and which layers were compared with which."""
    origin = model_folder(student.from_) if student.from_ else teacher_folder
    is_cut = is_pruned(student) or not (student.from_ or student.config)
    kept = {"kept_layers": retained_layers(student, origin, calibration)} if is_cut else {}
    return kept | (
        {"layer_maps": {term.name: pairs for term, pairs in feature_alignment.term_layer_pairs}}
        if feature_alignment
        else {}
    )


def training_fingerprints(
    run: Run, teacher_folder: Path, student: Any, prepared: data.PreparedData, objective: Objective
) -> dict[str, str]:
    """What a checkpoint belongs to. A run's identity holds references; this holds the contents behind them."""
    config = run.config.students[run.student]
    # `student.from` holds what is in the folder that it begins as, whose path changes with the runs' place and labels
    shape = config.with_origin("") if config.from_.startswith("file:") else config
    shapes = {name: list(parameter.shape) for name, parameter in student.named_parameters()}
    fingerprints = {
        "teacher": fingerprint(model_fingerprint(teacher_folder)),
        "student": fingerprint([to_dict(shape), shapes]),
        "data": prepared.fingerprint,
        "objective": json.dumps(objective.facts(), sort_keys=True),
        "training": json.dumps(training_fingerprint_fields(run.config), sort_keys=True),
        "seed": str(run.config.seed),
    }
    if run.config.teacher.mixture.teachers:
        folders = {name: model_folder(reference) for name, reference in teacher_references(run.config).items()}
        fingerprints["teachers"] = fingerprint({name: model_fingerprint(folder) for name, folder in folders.items()})
        fingerprints["teacher_weights"] = json.dumps([run.config.teacher.mixture.kind, teacher_weights(run.config)])
    if prepared.teacher_documents is not None:
        fingerprints["teacher.prompt"] = prepared.teacher_documents.fingerprint
    return fingerprints | (
        {"student.from": fingerprint(model_fingerprint(model_folder(config.from_)))} if config.from_ else {}
    )
