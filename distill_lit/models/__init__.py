"""Teachers and students: loading, vocabulary agreement, pruning, size, export."""

from distill_lit.models.export import MODEL_CARD_FILENAME, add_results, export_student, model_card
from distill_lit.models.flops import ModelSize, size_from_config, size_of
from distill_lit.models.loading import load_model, load_model_config, load_tokenizer, model_fingerprint, model_folder
from distill_lit.models.lora import merge_adapters, trainable_fraction
from distill_lit.models.quantization import (
    INT8_RECIPE,
    QUANTIZATION_RECIPES,
    check_quantizable,
    check_torchao,
    is_quantized,
    quantize_model,
)
from distill_lit.models.reload_check import RELOAD_PROCESS, check_exports, check_reloads, logits_on, probe_input_ids
from distill_lit.models.student import (
    CalibrationData,
    check_student,
    check_student_origin,
    check_student_vocabulary,
    initial_student,
    student_config,
)
from distill_lit.models.vocabulary import check_same_vocabulary

__all__ = [
    "INT8_RECIPE",
    "MODEL_CARD_FILENAME",
    "QUANTIZATION_RECIPES",
    "RELOAD_PROCESS",
    "CalibrationData",
    "ModelSize",
    "add_results",
    "check_exports",
    "check_quantizable",
    "check_reloads",
    "check_same_vocabulary",
    "check_student",
    "check_student_origin",
    "check_student_vocabulary",
    "check_torchao",
    "export_student",
    "initial_student",
    "is_quantized",
    "load_model",
    "load_model_config",
    "load_tokenizer",
    "logits_on",
    "merge_adapters",
    "model_card",
    "model_fingerprint",
    "model_folder",
    "probe_input_ids",
    "quantize_model",
    "size_from_config",
    "size_of",
    "student_config",
    "trainable_fraction",
]
