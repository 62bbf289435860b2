"""Graded endpoints as columns of the score frame, where a table asks for them: each costs an analysis of its own."""

from collections.abc import Collection

import pandas as pd

from distill_lit.analysis.endpoints import (
    PROBE_ENDPOINTS,
    PROBE_PREFIX,
    QUESTION_ENDPOINTS,
    probe_scores,
    question_scores,
)
from distill_lit.analysis.score_table import MACRO_AVERAGE, score_frame
from distill_lit.analysis.scores import Scores

COLUMNS = {"score": "", "low": "_low", "high": "_high", "seed_std": "_std"}


def with_endpoints(scores: Scores, frame: pd.DataFrame, names: Collection[str]) -> pd.DataFrame:
    """The score frame with <name>, _low, _high and _std of those of the names that are endpoints. Those of probes stand at
    the macro average."""
    for endpoint in QUESTION_ENDPOINTS:
        if endpoint.name in names:
            frame = _joined(frame, question_scores(scores, endpoint), endpoint.name)
    for endpoint in PROBE_ENDPOINTS:
        found = probe_scores(scores, endpoint) if PROBE_PREFIX + endpoint.name in names else None
        if found is not None:
            frame = _joined(frame, found, PROBE_PREFIX + endpoint.name)
    return frame


def _joined(frame: pd.DataFrame, found: Scores, name: str) -> pd.DataFrame:
    if not found.tasks:
        return frame
    columns = score_frame(found).set_index(["model", "task"])[list(COLUMNS)]
    named = columns.rename(columns={column: name + ending for column, ending in COLUMNS.items()})
    if name.startswith(PROBE_PREFIX):
        named = named[named.index.get_level_values("task") == MACRO_AVERAGE]
    return frame.join(named, on=["model", "task"])
