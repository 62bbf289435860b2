"""Corpora → tokens → packed rows: what students read. Batches of them: `distill_lit.data.loader`."""

from distill_lit.data.packing import Packed
from distill_lit.data.pipeline import PreparedData, check, count_bytes, known_statistics, prepare, word_counts

__all__ = ["Packed", "PreparedData", "check", "count_bytes", "known_statistics", "prepare", "word_counts"]
