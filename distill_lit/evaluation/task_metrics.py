"""Which of a task's metrics judges its documents, and what share of them guessing gets right by it."""

from typing import Any

OF_ALL_DOCUMENTS = ("f1", "mcc", "brier_score", "likelihood")  # of lm-eval among choices: a single document has none
BY_CHOICE = ("acc_norm", "acc")  # follow from the log-likelihoods of the choices


def primary_metric(task: Any) -> str:
    """The metric of an lm-eval task by which answers are right or wrong. Among choices: acc_norm where the task defines it,
    else acc; where it defines neither, what it names first, but acc beside `OF_ALL_DOCUMENTS`. Of a single continuation
    acc, elsewhere what it names first."""
    metrics = list(task._metric_fn_list)
    if task.OUTPUT_TYPE == "loglikelihood":
        return "acc"
    if task.OUTPUT_TYPE != "multiple_choice":
        return next(iter(metrics), "")
    if found := [name for name in BY_CHOICE if name in metrics]:
        return found[0]
    is_own = callable(task.config.process_results)
    return next((name for name in metrics if is_own or name not in OF_ALL_DOCUMENTS), "acc")


def guessed_share(metric: str, num_choices: int, num_right: int) -> float:
    """The probability that a guess is right. Of exact_match it is 0: a model must write a choice, and not prefer it. 0 too
    where no choice is wrong."""
    if metric == "exact_match" or num_right >= num_choices:
        return 0.0
    return max(num_right, 1) / num_choices
