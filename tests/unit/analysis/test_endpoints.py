"""Endpoints beside accuracy and the teacher's own loss: by hand, and on committed records that accuracy leaves open."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers import ROOT
from helpers.synthetic_results import build

from distill_lit.analysis.derived_columns import count_ties
from distill_lit.analysis.endpoints import (
    BITS_PER_BYTE,
    MARGIN,
    QUESTION_ENDPOINTS,
    endpoint_frame,
    question_scores,
)
from distill_lit.analysis.results import load_results
from distill_lit.analysis.score_table import MACRO_AVERAGE, score_frame
from distill_lit.analysis.scores import Scores, compute_scores
from distill_lit.analysis.teacher_ceiling import teacher_ceiling_frame
from distill_lit.config.evaluation import AnalysisConfig

ANALYSIS = AnalysisConfig(n_resamples=100)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("endpoints"), seeds=(0, 1), students={"deep": 0.8}, documents=60)


@pytest.fixture(scope="module")
def scores(folder: Path) -> Scores:
    return compute_scores(load_results(folder), ANALYSIS)


@pytest.fixture(scope="module")
def divergences() -> Scores:
    return compute_scores(load_results(ROOT / "results/divergences"), ANALYSIS)


def by_task(scores: Scores, model: str, column: str) -> pd.Series:
    return scores.results.records[model][column].astype(float).groupby(level="task").mean()


def test_endpoints_are_means_over_documents_and_paired_differences(scores: Scores) -> None:
    frame = endpoint_frame(scores, score_frame(scores))
    for endpoint in QUESTION_ENDPOINTS:
        rows = frame[(frame["endpoint"] == endpoint.name) & (frame["model"] == "deep distilled")].set_index("task")
        own = sum(by_task(scores, f"deep-distilled-{s}", endpoint.column) for s in (0, 1)) / 2
        alone = sum(by_task(scores, f"deep-ce_only-{s}", endpoint.column) for s in (0, 1)) / 2
        for task in scores.tasks:
            assert rows.loc[task, "score"] == pytest.approx(own[task])
            assert rows.loc[task, "ce_only_delta"] == pytest.approx(own[task] - alone[task])
        averaged = [scores.tasks[t] for t in scores.averaged]
        assert rows.loc[MACRO_AVERAGE, "score"] == pytest.approx(own[averaged].mean())
        assert rows.loc[MACRO_AVERAGE, "ce_only_delta_low"] < rows.loc[MACRO_AVERAGE, "ce_only_delta"]
    accuracy = frame[frame["endpoint"] == "accuracy"].set_index(["model", "task"])["score"]
    assert accuracy["deep distilled", MACRO_AVERAGE] == pytest.approx(scores.macro(scores.group_index("deep distilled")))


def test_accuracy_is_primary_unless_another_is_declared(scores: Scores, folder: Path) -> None:
    frame = endpoint_frame(scores, score_frame(scores))
    assert set(frame.loc[frame["is_primary"], "endpoint"]) == {"accuracy"}
    declared = compute_scores(load_results(folder), AnalysisConfig(n_resamples=100, primary_endpoint="bits_per_byte"))
    assert set(endpoint_frame(declared, score_frame(declared)).iloc[:5]["endpoint"]) == {"bits_per_byte"}


def test_graded_endpoints_tell_kinds_apart_that_accuracy_does_not(divergences: Scores) -> None:
    """Spread between the eight kinds over spread between seeds, with the seeds of kinds."""

    def signal_to_noise(scores: Scores) -> float:
        kinds = [g for g, group in enumerate(scores.groups) if group.role == "distilled"]
        seeds = np.array([scores.seed_averages(g) for g in kinds])
        return float(seeds.mean(axis=1).std(ddof=1) / np.sqrt(seeds.var(axis=1, ddof=1).mean()))

    accuracy, margin, bits = (
        signal_to_noise(one)
        for one in (divergences, *(question_scores(divergences, endpoint) for endpoint in (MARGIN, BITS_PER_BYTE)))
    )
    assert accuracy < 1 < margin < bits
    assert bits > 2


def test_ties_of_committed_answers(divergences: Scores) -> None:
    """63 answers tie as sums, 10 by the tasks' own metric (acc_norm)."""
    metrics = {task.task: task.metric for task in divergences.responses.tasks}
    counts = [count_ties(rows, metrics) for rows in divergences.results.records.values()]
    assert sum(ties for ties, _ in counts) == 10
    assert sum(answers for _, answers in counts) == 1200 * len(counts)
    assert sum(int(rows["tie"].sum()) for rows in divergences.results.records.values()) == 63


def test_whether_the_teacher_predicts_the_text_better_than_the_student_without_it(folder: Path) -> None:
    """Teacher 3.80; without it 3.27 at two seeds."""
    results = load_results(folder)
    runs = results.runs.set_index("model")
    runs["val_teacher_nll"] = np.where(runs["role"].isin(["distilled", "ce_only"]), 3.80, np.nan)
    runs["validation_data_fingerprint"] = np.where(runs["student"] == "", "", "text")
    runs.loc[["deep-ce_only-0", "deep-ce_only-1"], "val_ce"] = [3.26, 3.28]
    runs.loc[["deep-distilled-0", "deep-distilled-1"], "val_ce"] = [3.38, 3.38]
    results.runs = runs.reset_index()
    row = teacher_ceiling_frame(compute_scores(results, ANALYSIS)).iloc[0]
    assert row[["teacher_nll", "ce_only_nll", "student_nll"]].tolist() == pytest.approx([3.80, 3.27, 3.38])
    assert row["ce_only_nll_std"] == pytest.approx(np.std([3.26, 3.28], ddof=1))
    assert not row["fits_better"]
    results.runs["val_teacher_nll"] -= 1
    assert teacher_ceiling_frame(compute_scores(results, ANALYSIS)).iloc[0]["fits_better"]
    # on other text, or without that number, nothing is said
    results.runs.loc[results.runs["role"] == "ce_only", "validation_data_fingerprint"] = "other"
    assert teacher_ceiling_frame(compute_scores(results, ANALYSIS)).empty
    results.runs = results.runs.drop(columns="val_teacher_nll")
    assert teacher_ceiling_frame(compute_scores(results, ANALYSIS)).empty
