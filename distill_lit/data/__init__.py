"""Corpora → tokens → packed rows: what students read. Batches of them: `distill_lit.data.loader`."""

from distill_lit.data.packing import Packed
from distill_lit.data.preparation import PreparedData, check, prepare, word_counts

__all__ = ["Packed", "PreparedData", "check", "prepare", "word_counts"]
