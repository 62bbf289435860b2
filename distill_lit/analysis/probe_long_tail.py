"""The long tail of the probes: bits per byte by how rare the words are, of passages and of the words themselves.

A passage is as rare as its rare words; a word is in a band of frequency by `wordfreq`, whatever the passage. Bits per byte
are not answers: fit to the domain of the training text counts too.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from distill_lit.analysis.array_types import FloatArray
from distill_lit.analysis.crossed_variance import CrossedEstimate
from distill_lit.analysis.document_axes import MISSING_STRATUM, DocumentAxis, axis_values, stratify
from distill_lit.analysis.endpoints import BITS_PER_BYTE, probe_scores
from distill_lit.analysis.long_tail import INSUFFICIENT, MIN_INTERVAL_DOCUMENTS
from distill_lit.analysis.response_matrix import TaskResponses
from distill_lit.analysis.score_table import BASELINE_ROLES, find_baselines
from distill_lit.analysis.scores import Scores, endpoint_scores
from distill_lit.analysis.strata import (
    AxisStrata,
    against_baseline,
    axis_strata,
    tail_less_head,
    trend_weights,
    with_bounds,
)

PASSAGE_AXES = {
    "rarity_question": ("words of the passage", "rarity of the passage's content words, as of questions"),
    "unread_words": ("words never read in training", "share of the passage's content words that students never read"),
    "prompt_length": ("passage length", "characters of the passage"),
}


@dataclass(frozen=True)
class ProbeLongTail:
    """Frames with a column `model`, empty without probes.

    strata: of distilled groups by axis and stratum: n, teacher, student, ce_only (bits per byte), <who>_delta of
    BASELINE_ROLES with _low, _high, _p. contrasts: by axis what tail and head differ by: tail_loss, ce_only_tail_loss,
    excess, trend, ce_only_trend, trend_excess as in `LongTail.tail_contrasts`; positive: the tail lost more. bands: of
    every group by band of word frequency, rarest first: band, label, bytes, score, low, high and <who>_delta as above; the
    last band, `contrast`, is the rarest less the most common.
    """

    axes: list[DocumentAxis] = field(default_factory=list)
    strata: pd.DataFrame = field(default_factory=pd.DataFrame)
    contrasts: pd.DataFrame = field(default_factory=pd.DataFrame)
    bands: pd.DataFrame = field(default_factory=pd.DataFrame)


def probe_long_tail(scores: Scores) -> ProbeLongTail:
    """Of the probes of an experiment."""
    probed = probe_scores(scores, BITS_PER_BYTE)
    if probed is None:
        return ProbeLongTail()
    axes, codes = _passage_axes(probed)
    strata, contrasts = [], []
    for g, group in enumerate(probed.groups):
        if group.role == "distilled" and group.models:
            for axis in axes:
                of_axis = axis_strata(probed, axis, codes[axis.name])
                strata += list(_stratum_rows(probed, axis, of_axis, g))
                contrasts.append(_contrast(probed, axis, of_axis, g))
    return ProbeLongTail(axes, pd.DataFrame(strata), pd.DataFrame(contrasts), pd.DataFrame(_band_rows(probed)))


def probe_long_tail_frame(found: ProbeLongTail) -> pd.DataFrame:
    """Everything as one long frame; `table` is stratum, contrast or band."""
    parts = {"stratum": found.strata, "contrast": found.contrasts, "band": found.bands}
    known = [frame.assign(table=name) for name, frame in parts.items() if not frame.empty]
    if not known:
        return pd.DataFrame(columns=["table", "model"])
    joined = pd.concat(known, ignore_index=True)
    return joined[["table", "model", *(c for c in joined if c not in ("table", "model"))]]


def _passage_axes(probed: Scores) -> tuple[list[DocumentAxis], pd.DataFrame]:
    """The axes that passages have, with the stratum of each."""
    found, codes = stratify(probed.results, axis_values(probed.results), probed.analysis.num_strata)
    axes = []
    for axis in found:
        if axis.name in PASSAGE_AXES:
            title, description = PASSAGE_AXES[axis.name]
            axes.append(replace(axis, title=title, description=description))
    return axes, codes


def _stratum_rows(probed: Scores, axis: DocumentAxis, strata: AxisStrata, g: int) -> Iterator[dict[str, Any]]:
    others = find_baselines(probed, g)
    for s in strata.numbers:
        if s == MISSING_STRATUM:
            continue
        row: dict[str, Any] = {
            "model": probed.groups[g].label,
            "axis": axis.name,
            "stratum": s,
            "label": axis.stratum_label(s, probed.analysis.num_strata),
            "n": strata.n_documents([s]),
            "student": strata.estimate({s: 1.0}, g).value,
        }
        row |= {who: strata.estimate({s: 1.0}, other).value for who, other in others.items()}
        deltas = {f"{who}_delta": strata.estimate({s: 1.0}, g, other) for who, other in others.items()}
        yield row | with_bounds(deltas, probed.analysis.confidence_level)


def _contrast(probed: Scores, axis: DocumentAxis, strata: AxisStrata, g: int) -> dict[str, Any]:
    ends, trend = tail_less_head(strata.last), trend_weights(strata.last)
    row: dict[str, Any] = {"model": probed.groups[g].label, "axis": axis.name, "n": strata.n_documents(ends)}
    if row["n"] < MIN_INTERVAL_DOCUMENTS:
        return row | {"note": INSUFFICIENT}
    ce_only, teacher = find_baselines(probed, g).get("ce_only"), probed.teacher
    found = against_baseline(("tail_loss", "excess"), ends, strata.estimate, g, ce_only, teacher)
    found |= against_baseline(("trend", "trend_excess"), trend, strata.estimate, g, ce_only, teacher)
    return row | with_bounds(found, probed.analysis.confidence_level) | {"note": ""}


def _band_rows(probed: Scores) -> list[dict[str, Any]]:
    by_task = {task.task: _band_values(probed, task) for task in probed.responses.tasks}
    counts = {values.shape[0] for values, _ in by_task.values() if len(values)}
    if len(counts) != 1:
        return []
    count, labels = counts.pop(), _band_labels(probed)
    sizes = [sum(float(sums[band]) for values, sums in by_task.values() if len(values)) for band in range(count)]
    used = [band for band in range(count) if sizes[band] > 0]
    known = {task: values for task, (values, _) in by_task.items() if len(values)}
    rows: list[dict[str, Any]] = []
    for band in used:
        facts = {"band": band, "label": labels[band], "bytes": sizes[band]}
        in_band = endpoint_scores(probed, {task: values[band] for task, values in known.items()}, "bits_per_byte")
        rows += [facts | row for row in _group_rows(in_band)]
    contrast = {task: values[used[0]] - values[used[-1]] for task, values in known.items()}
    facts = {"band": "contrast", "label": "rarest less most common", "bytes": np.nan}
    return rows + [facts | row for row in _group_rows(endpoint_scores(probed, contrast, "bits_per_byte"))]


def _group_rows(scores: Scores) -> Iterator[dict[str, Any]]:
    level = scores.analysis.confidence_level
    for g, group in enumerate(scores.groups):
        estimate = scores.macro_estimate(g) if group.models else None
        if estimate is None or not np.isfinite(estimate.value):
            continue
        score, low, high = estimate.interval(level)
        row = {"model": group.label, "role": group.role, "student": group.student, "variant": group.variant}
        others = find_baselines(scores, g)
        deltas: dict[str, CrossedEstimate] = {
            f"{who}_delta": scores.macro_estimate(g, others[who]) for who in BASELINE_ROLES if who in others
        }
        yield {**row, "score": score, "low": low, "high": high, **with_bounds(deltas, level)}


def _band_values(probed: Scores, task: TaskResponses) -> tuple[FloatArray, FloatArray]:
    """((bands, documents, models) whose means over documents are the bits per byte of each band, (bands,) bytes in all).

    Bits per byte are a ratio of sums over documents: it varies as (nats − R·bytes) / mean bytes does (Cochran 1977, ch. 6).
    Empty where a document has no bands under a model that has the probe.
    """
    models = list(probed.results.records)
    nats = [_lists(probed.results.records[model], "band_nats", task) for model in models]
    sizes = [_lists(probed.results.records[model], "band_bytes", task) for model in models]
    count = max((len(row) for rows in nats for row in rows), default=0)
    known = [m for m in range(len(models)) if all(len(row) == count for row in nats[m])]
    if not count or not known:
        return np.empty((0, 0, 0)), np.empty(0)
    size = np.array(sizes[known[0]], float).T  # (bands, documents)
    found = np.full((count, task.n, len(models)), np.nan)
    mean = size.mean(axis=1)
    for m in known:
        bits = np.array(nats[m], float).T / np.log(2)
        with np.errstate(invalid="ignore", divide="ignore"):
            share = bits.sum(axis=1) / size.sum(axis=1)
            found[:, :, m] = (bits - share[:, None] * size) / mean[:, None] + share[:, None]
    return found, size.sum(axis=1)


def _lists(rows: pd.DataFrame, column: str, task: TaskResponses) -> list[list[float]]:
    if column not in rows:
        return [[] for _ in range(task.n)]
    return [list(cell) if isinstance(cell, (list, tuple, np.ndarray)) else [] for cell in rows.loc[task.index, column]]


def _band_labels(probed: Scores) -> list[str]:
    """In words: occurrences per billion words, log10."""
    edges = [f"{edge:g}" for edge in probed.results.settings(probed.tasks[0]).get("zipf_edges", [])]
    return [f"below {edges[0]}", *(f"{low} to {high}" for low, high in pairwise(edges)), f"{edges[-1]} and more"]
