"""Slices in which a student loses more than elsewhere: found by SliceLine on one half, confirmed on the other.

Sagadeeva & Boehm, SIGMOD 2021. The halves are split by a hash of the cluster, so no passage is in both.
"""

import zlib
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from distill_lit.analysis.document_axes import MISSING_STRATUM, DocumentAxis
from distill_lit.analysis.significance import benjamini_hochberg, fisher_greater

MAX_CANDIDATE_SLICES = 10  # slices taken from the discovery half
MAX_SLICE_PREDICATES = 2  # axes that may define a slice together
MIN_SLICE_SUPPORT = (100, 0.01)  # documents in the discovery half: at least this many and this share
SLICELINE_ALPHA = 0.9  # SliceLine's weight of the error against the size of a slice
SLICE_COLUMNS = [
    "slice",
    "n",
    "lost",
    "gained",
    "inside_loss_rate",
    "outside_loss_rate",
    "p",
    "p_adjusted",
    "confirmed",
    "rule",
]


def discovery_mask(clusters: pd.Series) -> NDArray[np.bool_]:
    """Whether each document belongs to the half on which slices are searched."""
    return np.array([zlib.crc32(f"slices:{name}".encode()) % 2 == 0 for name in clusters])


def find_slices(
    axes: list[DocumentAxis],
    stratum_codes: pd.DataFrame,
    flips: pd.DataFrame,
    clusters: pd.Series,
    num_strata: int,
    false_discovery_rate: float = 0.05,
) -> pd.DataFrame:
    """Slices in which the teacher's right answers are lost more often than outside, with the verdict of the other half.

    All arguments are indexed by the same documents. Confirmed: Fisher's exact test among documents the teacher answers
    correctly, after Benjamini–Hochberg, is at most `false_discovery_rate`, and the slice loses more than it gains. Columns:
    SLICE_COLUMNS, counts of the confirming half; `rule` is {axis: stratum}.
    """
    names = [axis.name for axis in axes]
    half = discovery_mask(clusters)
    if not names or not len(flips) or half.all() or not half.any():
        return pd.DataFrame(columns=SLICE_COLUMNS)
    lost = (flips["flip"] == "lost").to_numpy()
    rules = _search(stratum_codes[names].to_numpy()[half], lost[half], names)
    words = {axis.name: axis for axis in axes}
    rows = []
    for rule in rules:
        inside = np.logical_and.reduce([(stratum_codes[name] == s).to_numpy() for name, s in rule.items()])
        label = " and ".join(f"{words[name].title}: {words[name].stratum_label(s, num_strata)}" for name, s in rule.items())
        rows.append({"slice": label, "rule": rule, **_confirm(flips[~half], inside[~half])})
    frame = pd.DataFrame(rows, columns=SLICE_COLUMNS)
    frame["p_adjusted"] = benjamini_hochberg(frame["p"].astype(float).tolist())
    frame["confirmed"] = (frame["p_adjusted"] <= false_discovery_rate) & (frame["gained"] < frame["lost"])
    return frame.sort_values("p_adjusted", kind="stable", ignore_index=True)


def _search(codes: NDArray[np.integer], lost: NDArray[np.bool_], names: list[str]) -> list[dict[str, int]]:
    """The MAX_CANDIDATE_SLICES highest-scoring slices as {axis: stratum}; none when nothing was lost."""
    from sliceline.slicefinder import Slicefinder

    support = int(max(MIN_SLICE_SUPPORT[0], np.ceil(MIN_SLICE_SUPPORT[1] * len(codes))))
    if not lost.any() or len(codes) < 2 * support:
        return []
    finder = Slicefinder(
        alpha=SLICELINE_ALPHA, k=MAX_CANDIDATE_SLICES, max_l=MAX_SLICE_PREDICATES, min_sup=support, verbose=False
    )
    finder.fit(codes, lost.astype(float))
    rules = []
    for row in finder.top_slices_:
        rule = {name: int(value) for name, value in zip(names, row, strict=True) if value is not None}
        if rule and MISSING_STRATUM not in rule.values():
            rules.append(rule)
    return rules


def _confirm(flips: pd.DataFrame, inside: NDArray[np.bool_]) -> dict[str, Any]:
    """Counts in the confirming half and Fisher's p that teacher-right documents are lost more often inside."""
    right = flips["teacher_correct"].to_numpy(bool)
    lost, gained = (flips["flip"] == "lost").to_numpy(), (flips["flip"] == "gained").to_numpy()
    tables = [(int((lost & part).sum()), int((right & ~lost & part).sum())) for part in (inside, ~inside)]
    rates = [a / (a + b) if a + b else float("nan") for a, b in tables]
    return {"n": int(inside.sum()), "lost": tables[0][0], "gained": int((gained & inside).sum()),
            "inside_loss_rate": rates[0], "outside_loss_rate": rates[1], "p": fisher_greater(*tables)}  # fmt: skip
