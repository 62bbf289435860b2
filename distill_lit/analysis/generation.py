"""What models wrote to generative tasks: how often one of k answers is right, how long and how varied they are."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from distill_lit.analysis.array_types import FloatArray
from distill_lit.analysis.pass_at_k import VarianceSplit, answers_interval, pass_at_k, split_variance
from distill_lit.analysis.response_matrix import TaskResponses
from distill_lit.analysis.scores import Scores
from distill_lit.analysis.significance import Interval, wilson
from distill_lit.utils.text_statistics import sum_texts

ANSWERS, ANSWER_SCORES, ANSWER_TOKENS, ANSWER_FINISHED = "answers", "answer_scores", "answer_tokens", "answer_finished"


@dataclass(frozen=True)
class WrittenAnswers:
    """What a group of models wrote to one task, D documents × S models × R answers.

    `scores`, `num_tokens`: (D, S, R); `is_finished`: (D, S, R), NaN where it is not known; `texts`: by model, then
    document."""

    group: int
    task: TaskResponses
    scores: FloatArray
    num_tokens: FloatArray
    is_finished: FloatArray
    texts: list[list[list[str]]]

    @property
    def repeats(self) -> int:
        """Answers to a document."""
        return int(self.scores.shape[2])

    @property
    def is_binary(self) -> bool:
        """Whether every answer is right or wrong, without which there is no pass@k."""
        return self.task.higher_is_better and bool(np.isin(self.scores, (0.0, 1.0)).all())

    def pass_at_k(self, k: int) -> FloatArray:
        """(D, S) unbiased estimates per document and model."""
        return pass_at_k(self.repeats, self.scores.sum(axis=2), k)

    def variance(self) -> VarianceSplit | None:
        """The split of the scores' variance; None with a single document or scores that are no numbers."""
        return split_variance(self.scores) if len(self.scores) > 1 and np.isfinite(self.scores).all() else None

    @cached_property
    def text_statistics(self) -> dict[str, float]:
        """{distinct_1, distinct_2, repetition} over the words of all answers of a model, mean over models. Words and not
        tokens: models may have other tokenizers."""
        found = []
        for documents in self.texts:
            words = [text.lower().split() for answers in documents for text in answers]
            found.append(sum_texts(words, 0).means())
        return {name: float(np.mean([each[name] for each in found])) for name in ("distinct_1", "distinct_2", "repetition")}


def written_answers(scores: Scores) -> list[WrittenAnswers]:
    """Of every task and group with answers in its records; older records have only what lm-eval made of the first one."""
    found = []
    for task in scores.responses.tasks:
        for number, group in enumerate(scores.groups):
            frames = [scores.results.records[model] for model in group.models]
            if not frames or not all(ANSWER_SCORES in frame for frame in frames):
                continue
            rows = [frame.loc[task.index] for frame in frames]
            if all(_has_answers(each) for each in rows):
                found.append(_stack(number, task, rows))
    return found


def groups_without_answers(scores: Scores) -> dict[str, list[str]]:
    """{generative task: labels of groups whose records are too old to hold the answers}."""
    known = {(written.task.task, written.group) for written in written_answers(scores)}
    found: dict[str, list[str]] = {}
    for task in scores.tasks:
        if scores.results.settings(task).get("output_type") == "generate_until":
            labels = [g.label for n, g in enumerate(scores.groups) if g.models and (task, n) not in known]
            found |= {task: labels} if labels else {}
    return found


def _has_answers(rows: pd.DataFrame) -> bool:
    sizes = [len(value) if isinstance(value, (list, tuple, np.ndarray)) else 0 for value in rows[ANSWER_SCORES]]
    return bool(sizes) and min(sizes) == max(sizes) > 0


def _stack(group: int, task: TaskResponses, rows: Sequence[pd.DataFrame]) -> WrittenAnswers:
    def numbers(name: str) -> FloatArray:
        return np.stack([[np.asarray(list(value), float) for value in each[name]] for each in rows], axis=1)

    return WrittenAnswers(
        group,
        task,
        numbers(ANSWER_SCORES),
        numbers(ANSWER_TOKENS),
        numbers(ANSWER_FINISHED),
        [[[str(text) for text in value] for value in each[ANSWERS]] for each in rows],
    )


def shown_ks(repeats: int) -> list[int]:
    """The k of pass@k that `repeats` answers allow: powers of two, and all of them."""
    powers = [2**power for power in range(repeats.bit_length()) if 2**power <= repeats]
    return powers if powers[-1] == repeats else [*powers, repeats]


def pass_at_k_interval(written: WrittenAnswers, k: int, confidence: float) -> Interval:
    """pass@k of a group, for other documents and training seeds; Wilson's interval where one model gave one answer to each
    of documents that share no passage."""
    if written.scores.shape[1:] == (1, 1) and not written.task.has_clusters:
        return wilson(float(written.scores.sum()), written.task.n, confidence)
    found = answers_interval(written.pass_at_k(k), written.task.clusters, confidence)
    return _within(found, 0.0)


def pass_at_k_difference(first: WrittenAnswers, second: WrittenAnswers, k: int, confidence: float) -> Interval:
    """pass@k of `first` less `second`, paired by document. Models are paired in their order where both have as many, else
    each of `first` is compared with the mean of `second`."""
    one, two = first.pass_at_k(k), second.pass_at_k(k)
    two = two if one.shape == two.shape else two.mean(axis=1, keepdims=True)
    return _within(answers_interval(one - two, first.task.clusters, confidence), -1.0)


def _within(interval: Interval, least: float) -> Interval:
    """Bounds within [least, 1]."""
    return Interval(interval.value, float(np.maximum(interval.low, least)), float(np.minimum(interval.high, 1.0)))


def generation_frame(scores: Scores, written: Sequence[WrittenAnswers]) -> pd.DataFrame:
    """A row for each of `written`: task, model, n, repeats, score (mean of all answers), pass@k with
    bounds and the difference to the teacher, tokens, finished, repetition, distinct_1, distinct_2, and the shares of the
    variance of `score` (`share_documents`, …)."""
    teachers = {each.task.task: each for each in written if each.group == scores.teacher}
    confidence = scores.analysis.confidence_level
    rows = []
    for each in written:
        row = {
            "task": each.task.task,
            "model": scores.groups[each.group].label,
            "n": each.task.n,
            "models": each.scores.shape[1],
            "repeats": each.repeats,
            "score": float(each.scores.mean()),
            "tokens": float(each.num_tokens.mean()),
            "finished": float(each.is_finished.mean()),
            **each.text_statistics,
        }
        for k in shown_ks(each.repeats) if each.is_binary else ():
            name = f"pass@{k}"
            row[name], row[f"{name}_low"], row[f"{name}_high"] = pass_at_k_interval(each, k, confidence)
            teacher = teachers.get(each.task.task)
            if teacher is not None and teacher is not each and teacher.repeats == each.repeats:
                difference = pass_at_k_difference(each, teacher, k, confidence)
                row[f"{name}_delta"], row[f"{name}_delta_low"], row[f"{name}_delta_high"] = difference
        rows.append(row | _variance_shares(each))
    return pd.DataFrame(rows)


def _variance_shares(written: WrittenAnswers) -> dict[str, float]:
    split = written.variance()
    if split is None:
        return {}
    parts, total = split.mean_variances(), split.standard_error**2
    shares = {f"share_{name}": part / total if total else float("nan") for name, part in parts.items()}
    return {"standard_error": split.standard_error, **shares}
