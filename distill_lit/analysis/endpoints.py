"""Endpoints beside accuracy: graded scores of each document, which move before right-or-wrong answers do.

On questions: the length-normalized margin of the right answer, its probability among the choices, and its bits per byte. On
probes (held-out text): bits per byte, and where the teacher was at hand KL to it, draft acceptance and agreement. Sources:
Magnusson 2504.11393 (margin and probability as proxies), Heineman 2508.13144 (signal and noise; bits per byte), Leviathan
2211.17192 (draft acceptance).
"""

from typing import NamedTuple

import numpy as np
import pandas as pd

from distill_lit.analysis.array_types import FloatArray
from distill_lit.analysis.model_groups import groups_of
from distill_lit.analysis.response_matrix import ResponseMatrices, TaskResponses
from distill_lit.analysis.results import Results
from distill_lit.analysis.score_table import BASELINE_ROLES, MACRO_AVERAGE, score_frame
from distill_lit.analysis.scores import Scores, endpoint_scores

ACCURACY = "accuracy"
PROBE_AVERAGE = "average over probes"
PROBE_PREFIX = "probe_"  # of the endpoints of `analysis.primary_endpoint` that are measured on probes
FACTS = ("task", "n", "model", "role", "student", "variant", "num_seeds", "score", "low", "high", "document_se", "seed_std",
         "minimum_detectable_effect")  # fmt: skip
COMPARED = ("delta", "delta_low", "delta_high", "p", "p_adjusted")


class Endpoint(NamedTuple):
    """A graded score of a document. column: of the records; unit: after its numbers."""

    name: str
    column: str
    title: str
    unit: str
    higher_is_better: bool


MARGIN = Endpoint("margin", "margin_norm", "margin of the right answer", "nats per character", True)
ACCURACY_ENDPOINT = Endpoint(ACCURACY, "", "accuracy", "share", True)
P_GOLD = Endpoint("p_gold", "p_gold", "probability of the right answer", "share", True)
BITS_PER_BYTE = Endpoint("bits_per_byte", "bits_per_byte", "bits per byte", "bits per byte", False)
KL = Endpoint("kl", "kl", "KL to the teacher", "nats per token", False)
DRAFT_ACCEPTANCE = Endpoint("draft_acceptance", "draft_acceptance", "draft acceptance", "share", True)
AGREEMENT = Endpoint("agreement", "agreement", "agreement with the teacher", "share", True)
QUESTION_ENDPOINTS = (MARGIN, P_GOLD, BITS_PER_BYTE)
PROBE_ENDPOINTS = (BITS_PER_BYTE, KL, DRAFT_ACCEPTANCE, AGREEMENT)


def question_scores(scores: Scores, endpoint: Endpoint) -> Scores:
    """The questions by a graded endpoint, for every test and table that takes `Scores`: over the same tasks as `scores`."""
    return endpoint_scores(scores, _values(scores.results, endpoint), endpoint.name)


def probe_scores(scores: Scores, endpoint: Endpoint) -> Scores | None:
    """The probes by an endpoint, each as a task; None where no model has it on any."""
    probes = scores.results.probes
    if probes is None:
        return None
    values, tasks = _values(probes, endpoint), []
    for task in probes.tasks:
        documents = probes.documents.loc[probes.documents.index.get_level_values("task") == task]
        codes = np.unique(documents["cluster"].astype(str).to_numpy(), return_inverse=True)[1]
        none = np.full(values[task].shape, -1)
        chance = np.zeros(len(documents))
        tasks.append(TaskResponses(task, endpoint.name, documents.index, codes, chance, values[task], none))
    groups = groups_of(probes)
    empty = np.empty((0, len(groups)))
    base = Scores(probes, scores.analysis, ResponseMatrices(list(probes.records), tasks), groups, empty, empty, {})
    found = endpoint_scores(base, values, endpoint.name)
    return found if found.tasks else None


def _values(results: Results, endpoint: Endpoint) -> dict[str, FloatArray]:
    """{task: (documents, models)}, NaN where a document has no value under a model."""
    columns = [
        pd.to_numeric(rows[endpoint.column], errors="coerce") if endpoint.column in rows else pd.Series(np.nan, rows.index)
        for rows in results.records.values()
    ]
    stacked = np.stack([column.to_numpy(float) for column in columns], axis=1)
    tasks = results.documents.index.get_level_values("task")
    return {task: stacked[tasks == task] for task in results.tasks}


def endpoint_frame(scores: Scores, accuracy: pd.DataFrame) -> pd.DataFrame:
    """All endpoints of all groups in one long frame, the declared one first; `accuracy`: of `score_frame(scores)`.

    Columns: endpoint, is_primary, title, unit, higher_is_better, is_probe, FACTS and, for each of BASELINE_ROLES,
    <who>_delta, _delta_low, _delta_high, _p, _p_adjusted as in `score_frame`, for each endpoint by itself: what is not
    primary is secondary, whatever its p. `task` is MACRO_AVERAGE, or of probes PROBE_AVERAGE, for averages. Differences are
    in the unit of the endpoint: where lower is better, negative ones are.
    """
    frames = [_facts(accuracy, ACCURACY_ENDPOINT, False)]
    for endpoint in QUESTION_ENDPOINTS:
        found = question_scores(scores, endpoint)
        frames += [_facts(score_frame(found, costs=()), endpoint, False)] if found.tasks else []
    for endpoint in PROBE_ENDPOINTS:
        probed = probe_scores(scores, endpoint)
        if probed is not None:
            frame = score_frame(probed, costs=()).replace({"task": {MACRO_AVERAGE: PROBE_AVERAGE}})
            frames.append(_facts(frame, endpoint, True))
    frame = pd.concat(frames, ignore_index=True)
    names = np.where(frame["is_probe"], PROBE_PREFIX, "") + frame["endpoint"].to_numpy(object)
    frame.insert(1, "is_primary", names == scores.analysis.primary_endpoint)
    return frame.sort_values("is_primary", ascending=False, kind="stable", ignore_index=True)


def _facts(frame: pd.DataFrame, endpoint: Endpoint, is_probe: bool) -> pd.DataFrame:
    """The rows of a score frame that have a score, with what the endpoint is."""
    columns = [*FACTS, *(f"{who}_{column}" for who in BASELINE_ROLES for column in COMPARED)]
    known = frame.loc[frame["score"].notna(), columns]
    facts = {
        "endpoint": endpoint.name,
        "title": endpoint.title,
        "unit": endpoint.unit,
        "higher_is_better": endpoint.higher_is_better,
        "is_probe": is_probe,
    }
    return pd.concat([pd.DataFrame(facts, index=known.index), known], axis=1)
