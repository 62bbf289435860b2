"""Corpora → tokens → packed rows: what students read. Batches of them: `distill_lit.data.loader`."""

from distill_lit.data.corpus_counts import count_bytes, read_word_counts, word_counts
from distill_lit.data.packing import PackedDataset
from distill_lit.data.pipeline import (
    cached_statistics,
    check_data_config,
    check_first_rows,
    prepare_datasets,
)
from distill_lit.data.prepared import PreparedData
from distill_lit.data.teacher_prompts import TeacherDocuments, check_teacher_prompt

__all__ = [
    "PackedDataset",
    "PreparedData",
    "TeacherDocuments",
    "cached_statistics",
    "check_data_config",
    "check_first_rows",
    "check_teacher_prompt",
    "count_bytes",
    "prepare_datasets",
    "read_word_counts",
    "word_counts",
]
