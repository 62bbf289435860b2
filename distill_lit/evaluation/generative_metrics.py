"""Every answer to a document by itself: lm-eval's filters and metrics see all of them, and keep the first or the
majority."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from distill_lit.evaluation.records import ANSWER_COLUMNS, TARGET, primary_value

if TYPE_CHECKING:  # importing HFLM takes seconds
    from distill_lit.evaluation.generation_lm import GeneratedAnswer


def answer_columns(task: Any, answers: Sequence["GeneratedAnswer"]) -> list[dict[str, Any]]:
    """ANSWER_COLUMNS and TARGET for each document of an evaluated task, in the order of its requests.

    answers: of all requests, the repeats of one beside each other, as lm-eval asks for them.
    """
    scores = score_answers(task)
    rows = []
    start = 0
    for instance, own_scores in zip(task.instances, scores, strict=True):
        own = answers[start : start + len(instance.resps)]
        start += len(own)
        values = (
            [answer.text for answer in own],
            [len(answer.token_ids) for answer in own],
            [answer.is_finished for answer in own],
            own_scores,
        )
        rows.append({**dict(zip(ANSWER_COLUMNS, values, strict=True)), TARGET: _target_text(task, instance.doc)})
    return rows


def score_answers(task: Any) -> list[list[float]]:
    """The task's first metric of every answer to every document, each as if it were the only one, by the first filter. NaN
    where the metric is no number, or the filter takes several answers at once."""
    instances = task.instances
    first_filter = task._filters[0]
    if _min_answers(first_filter) > 1:
        return [[math.nan] * len(instance.resps) for instance in instances]
    responses = [instance.resps for instance in instances]
    filtered = [dict(instance.filtered_resps) for instance in instances]
    scores: list[list[float]] = [[] for _ in instances]
    try:
        for repeat in range(max(len(each) for each in responses)):
            for instance, own in zip(instances, responses, strict=True):
                instance.resps = [own[repeat]]
            first_filter.apply(instances)
            for own_scores, instance in zip(scores, instances, strict=True):
                metrics = task.process_results(instance.doc, [instance.filtered_resps[first_filter.name]])
                own_scores.append(primary_value(task, metrics))
    finally:
        for instance, own, known in zip(instances, responses, filtered, strict=True):
            instance.resps, instance.filtered_resps = own, known
    return scores


def _min_answers(ensemble: Any) -> int:
    """Answers to a document without which a filter fails."""
    from lm_eval.filters.selection import TakeKFilter

    return max((step.k for make in ensemble.filters if isinstance(step := make(), TakeKFilter)), default=1)


def _target_text(task: Any, document: Any) -> str:
    target = task.doc_to_target(document)
    known = target if isinstance(target, (list, tuple)) else [] if target is None else [target]
    return "\n".join(map(str, known))
