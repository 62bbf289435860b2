"""Answers as matrices: per task, documents × models."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from distill_lit.analysis.array_types import FloatArray
from distill_lit.analysis.results import Results


@dataclass(frozen=True)
class TaskResponses:
    """One task. Columns of the matrices follow `ResponseMatrices.models`; a model without this task is NaN (−1 in
    `choice`)."""

    task: str
    metric: str  # acc or acc_norm
    index: pd.MultiIndex  # (task, key) of its documents, in the order of Results.documents
    clusters: NDArray[np.integer]  # (D,) codes; documents sharing a passage share one
    chance: FloatArray  # (D,) share of right answers by guessing: right choices / choices, 0 without choices
    correct: FloatArray  # (D, M) 0 or 1 by the task's metric; a number where `is_binary` is false
    choice: NDArray[np.integer]  # (D, M) number of the chosen answer by the same metric
    has_choices: bool = True  # False where only right and wrong are known: 0 is right, 1 any wrong answer
    higher_is_better: bool = True  # False of a metric such as the share of stereotypes that a model prefers

    @property
    def n(self) -> int:
        """Documents."""
        return len(self.chance)

    @cached_property
    def has_clusters(self) -> bool:
        """Whether documents share passages."""
        return bool(len(np.unique(self.clusters)) < self.n)

    @cached_property
    def is_binary(self) -> bool:
        """Whether every answer is right (1) or wrong (0), and not graded by a number such as BLEU."""
        known = self.correct[np.isfinite(self.correct)]
        return self.higher_is_better and bool(((known == 0.0) | (known == 1.0)).all())

    @cached_property
    def centered(self) -> FloatArray:
        """(D, M) score above chance g = (x − c) / (1 − c): 0 for guessing, 1 for always right."""
        chance = self.chance[:, None]
        return np.asarray((self.correct - chance) / (1 - chance))


@dataclass(frozen=True)
class ResponseMatrices:
    """All tasks of an experiment."""

    models: list[str]
    tasks: list[TaskResponses]

    def model_columns(self, models: tuple[str, ...]) -> list[int]:
        """Column numbers of these models."""
        return [self.models.index(model) for model in models]


def build_response_matrices(results: Results) -> ResponseMatrices:
    """The matrices of every task in `results`, tasks without documents left out."""
    models = list(results.records)
    panels = [_task_panel(results, task, models) for task in results.tasks]
    return ResponseMatrices(models, [panel for panel in panels if panel.n])


def other_metric_matrices(results: Results, responses: ResponseMatrices) -> dict[str, FloatArray]:
    """{task: (D, M) right or wrong by acc where the task's metric is acc_norm, and the reverse}, of tasks that have
    both."""
    found = {}
    for task in responses.tasks:
        column = {"acc": "correct_norm", "acc_norm": "correct"}.get(task.metric)
        frames = [results.records[model] for model in responses.models]
        if column and task.is_binary and all(column in frame for frame in frames):
            values = [pd.to_numeric(frame.loc[task.index, column], errors="coerce").to_numpy(float) for frame in frames]
            matrix = np.where(np.isfinite(task.correct), np.column_stack(values), np.nan)
            if (np.isfinite(matrix) == np.isfinite(task.correct)).all():
                found[task.task] = matrix
    return found


def _task_panel(results: Results, task: str, models: list[str]) -> TaskResponses:
    is_inside = results.documents.index.get_level_values("task") == task
    documents = results.documents[is_inside]
    metric = str(results.settings(task).get("metric", "acc"))
    suffix = "_norm" if metric == "acc_norm" else ""
    correct = np.full((len(documents), len(models)), np.nan)
    chosen = np.full((len(documents), len(models)), -1, np.int64)
    for column, model in enumerate(models):
        if task not in results.settings_by_model[model]:
            continue
        rows = results.records[model]  # in the order of the documents
        right = pd.to_numeric(rows.get(f"correct{suffix}", rows["correct"])[is_inside], errors="coerce").to_numpy(float)
        correct[:, column] = right
        chosen[:, column] = _choice(rows, suffix, right, is_inside)
    single = _num_choices(documents) <= 1
    chosen[single] = np.where(np.isnan(correct[single]), -1, 1 - correct[single]).astype(np.int64)
    clusters = documents["cluster"].astype(str).to_numpy()
    return TaskResponses(
        task=task,
        metric=metric,
        index=documents.index,
        clusters=np.unique(clusters, return_inverse=True)[1],
        chance=_chance(documents),
        correct=correct,
        choice=chosen,
        has_choices=all("pred" in results.records[model] for model in models),
        higher_is_better=results.settings(task).get("higher_is_better") is not False,  # older records do not say
    )


def _choice(rows: pd.DataFrame, suffix: str, right: FloatArray, is_inside: NDArray[np.bool_]) -> NDArray[np.integer]:
    """(D,) the chosen answer; where it is not known, 0 for a right and 1 for a wrong one."""
    pick = np.full(len(right), np.nan)
    if "pred" in rows:
        pick = pd.to_numeric(rows.get(f"pred{suffix}", rows["pred"])[is_inside], errors="coerce").to_numpy(float)
    return np.where(np.isfinite(pick), pick, np.where(right == 1, 0, 1)).astype(np.int64)


def _num_choices(documents: pd.DataFrame) -> FloatArray:
    """(D,) choices; infinitely many where scores of one's own say nothing of them."""
    if "n_choices" not in documents:
        return np.full(len(documents), np.inf)
    return np.asarray(pd.to_numeric(documents["n_choices"], errors="coerce").fillna(1), float)


def _chance(documents: pd.DataFrame) -> FloatArray:
    """(D,) share that guessing gets right: given, or 1 / choices."""
    choices = _num_choices(documents)
    by_choices = np.where(choices <= 1, 0.0, 1 / np.maximum(choices, 1))
    if "chance" not in documents:
        return by_choices
    given = pd.to_numeric(documents["chance"], errors="coerce").to_numpy(float)
    return np.where(np.isfinite(given), given, by_choices)
