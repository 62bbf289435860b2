"""What a run reads: its rows, and what identifies and counts them."""

from dataclasses import dataclass
from typing import Any

from distill_lit.data.packing import PackedDataset
from distill_lit.data.teacher_prompts import TeacherDocuments


@dataclass(frozen=True)
class PreparedData:
    """Rows to train on and rows to validate on, from different documents; `fingerprint` identifies them; `statistics`
    counts documents, duplicates, empty, split, tokens, padding_share and rows; where corpora have weights, what each gave
    to the `mixture`; where `data.validation` is given, documents left out of training for being `in_validation`.
    teacher_documents: what the teacher reads of them, where it has a prompt of its own."""

    train: PackedDataset
    validation: PackedDataset
    fingerprint: str
    statistics: dict[str, Any]
    teacher_documents: TeacherDocuments | None = None
