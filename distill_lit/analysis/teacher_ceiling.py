"""Does the teacher predict the training text better than the student without it? Where it does not, little is to be learnt
from it there: what it adds beside the labels is no better a guide to that text, though it may regularize."""

from typing import Any

import numpy as np
import pandas as pd

from distill_lit.analysis.model_groups import ModelGroup, group_cost
from distill_lit.analysis.results import Results
from distill_lit.analysis.score_table import find_baselines
from distill_lit.analysis.scores import Scores

NLL_COLUMNS = {"teacher_nll": "val_teacher_nll", "nll": "val_ce"}  # of runs.csv, nats per token


def teacher_ceiling_frame(scores: Scores) -> pd.DataFrame:
    """One row for each distilled group and the same student without teacher, validated on the same text.

    Columns: model, student, variant, num_seeds; teacher_nll, student_nll, ce_only_nll: cross-entropy on the held-out rows,
    nats per token, means over seeds; ce_only_nll_std over seeds, NaN for one; fits_better: whether the teacher predicts
    this text better than the student without it. Empty where none of it was logged, as in experiments without such a
    student, or where the two have different vocabularies (no KL): losses per token do not compare then.
    """
    rows: list[dict[str, Any]] = []
    for g, group in enumerate(scores.groups):
        other = find_baselines(scores, g).get("ce_only") if group.role == "distilled" else None
        if other is None or not np.isfinite(group_cost(group, scores.results, "val_kl")):
            continue
        if _text_of(scores.results, group) != _text_of(scores.results, scores.groups[other]):
            continue
        own = _values(scores.results, group)
        alone = _values(scores.results, scores.groups[other])
        if own is None or alone is None:
            continue
        rows.append({
            "model": group.label, "student": group.student, "variant": group.variant, "num_seeds": len(group.models),
            "teacher_nll": float(own["teacher_nll"].mean()), "student_nll": float(own["nll"].mean()),
            "ce_only_nll": float(alone["nll"].mean()),
            "ce_only_nll_std": float(alone["nll"].std(ddof=1)) if len(alone) > 1 else np.nan,
            "fits_better": bool(own["teacher_nll"].mean() < alone["nll"].mean()),
        })  # fmt: skip
    return pd.DataFrame(rows)


def _text_of(results: Results, group: ModelGroup) -> set[str]:
    """What identifies the text that a group is validated on."""
    return set(results.runs.loc[results.runs["model"].isin(group.models), "validation_data_fingerprint"])


def _values(results: Results, group: ModelGroup) -> pd.DataFrame | None:
    """NLL_COLUMNS of a group's runs that have both; None without any."""
    if not set(NLL_COLUMNS.values()) <= set(results.runs):
        return None
    runs = results.runs[results.runs["model"].isin(group.models)]
    found = pd.DataFrame({name: runs[column] for name, column in NLL_COLUMNS.items()}).dropna()
    return found if len(found) else None
