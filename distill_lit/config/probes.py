"""Held-out text that every model is scored on beside its tasks."""

from pydantic import Field

from distill_lit.config.fields import Count, Text, config_section
from distill_lit.config.generation import DatasetConfig


@config_section
class ProbeConfig(DatasetConfig):
    """Text to score, rows of a dataset repository or of a file, one passage each. It should be neither training text nor in
    its format: there a teacher helps first (2605.23857)."""

    split: Text = Field(default="test", description="split of the dataset")
    text: Text = Field(default="{{ text }}", description="Jinja template of a passage over the columns of a row")
    max_documents: Count = Field(
        default=500, ge=0, description="passages, drawn at random; 0: all; evaluation.limit, where it is set, is the most"
    )
