"""Scores of a model from the facts that are stored of its tasks. Light: states of runs are told with it."""

from typing import Any

# metrics of lm-eval itself, for records from before they said which way is better
LOWER_IS_BETTER = ("perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte", "ter", "brier_score")


def primary_scores(meta: dict[str, dict[str, Any]]) -> dict[str, float]:
    """{task: lm-eval's own score in the task's main metric}, where it has one; of several filters the first one's."""
    found = {}
    for task, facts in meta.items():
        scores = filtered_scores(facts)
        metric = facts["metric"]
        if metric not in scores and facts.get("output_type") == "generate_until":
            metric = next(iter(scores), "")  # pass_at_k gives pass@1, pass@8
        if metric in scores:
            found[task] = scores[metric]
    return found


def filtered_scores(facts: dict[str, Any]) -> dict[str, float]:
    """{metric: lm-eval's own score by the first filter} of a task."""
    parts = {key: key.partition(",") for key in facts["lm_eval_results"]}
    return {metric: facts["lm_eval_results"][key] for key, (metric, _, name) in parts.items() if name == facts["filter"]}


def mean_score(meta: dict[str, dict[str, Any]]) -> float | None:
    """Mean over tasks of the main metric, of those metrics of which more is better; None where there is none."""
    scores = [score for task, score in primary_scores(meta).items() if _is_higher_better(meta[task])]
    return sum(scores) / len(scores) if scores else None


def _is_higher_better(facts: dict[str, Any]) -> bool:
    return bool(facts.get("higher_is_better", facts["metric"] not in LOWER_IS_BETTER))


def mean_above_chance(meta: dict[str, dict[str, Any]]) -> float | None:
    """Mean over tasks of (accuracy − chance) / (1 − chance): 0 is chance, 1 is all right; None without an accuracy."""
    scores = primary_scores(meta)
    above = [
        (scores[task] - facts["chance"]) / (1 - facts["chance"])
        for task, facts in meta.items()
        if task in scores and facts["metric"].startswith("acc")
    ]
    return sum(above) / len(above) if above else None
