"""Teachers and students: loading, vocabulary agreement, surgery, size, export."""

from distill_lit.models.export import CARD, add_results, export_student, model_card
from distill_lit.models.flops import Size, size_from_config, size_of
from distill_lit.models.loading import load_config, load_model, load_tokenizer, model_fingerprint, model_folder
from distill_lit.models.lora import merge_adapters, trained_share
from distill_lit.models.quantization import INT8, check_int8, is_quantised, quantise
from distill_lit.models.reload_check import READER_PROCESS, check_exports, check_reloads, logits_on, probe
from distill_lit.models.student import (
    Calibration,
    check_student,
    check_student_fits,
    check_student_reads,
    initial_student,
    student_config,
)
from distill_lit.models.vocabulary import check_same_vocabulary

__all__ = [
    "CARD",
    "INT8",
    "READER_PROCESS",
    "Calibration",
    "Size",
    "add_results",
    "check_exports",
    "check_int8",
    "check_reloads",
    "check_same_vocabulary",
    "check_student",
    "check_student_fits",
    "check_student_reads",
    "export_student",
    "initial_student",
    "is_quantised",
    "load_config",
    "load_model",
    "load_tokenizer",
    "logits_on",
    "merge_adapters",
    "model_card",
    "model_fingerprint",
    "model_folder",
    "probe",
    "quantise",
    "size_from_config",
    "size_of",
    "student_config",
    "trained_share",
]
