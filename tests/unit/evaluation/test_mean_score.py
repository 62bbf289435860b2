"""The one number of a run's line: shares alone are averaged, and no perplexity with them."""

import pytest

from distill_lit.evaluation.task_scores import filtered_scores, mean_score, primary_scores


def meta(**scores: tuple[str, float]) -> dict[str, dict[str, object]]:
    return {
        task: {"metric": metric, "filter": "none", "lm_eval_results": {f"{metric},none": value}}
        for task, (metric, value) in scores.items()
    }


def test_bits_per_byte_and_perplexities_are_in_no_mean_of_shares() -> None:
    tasks = meta(
        sciq=("acc_norm", 0.7), gsm8k=("exact_match", 0.1), books=("bits_per_byte", 1.4), wiki=("word_perplexity", 31.0)
    )
    assert mean_score(tasks) == pytest.approx((0.7 + 0.1) / 2)


def test_the_task_says_which_way_its_metric_is_better() -> None:
    tasks = meta(first=("first_letter", 0.6), crows=("pct_stereotype", 0.9), sciq=("acc", 0.2))
    tasks["first"]["higher_is_better"], tasks["crows"]["higher_is_better"] = True, False
    assert mean_score(tasks) == pytest.approx((0.6 + 0.2) / 2)


def test_a_metric_that_gives_others_has_a_score() -> None:
    """HumanEval names pass_at_k, and lm-eval's results pass@1 and pass@8; of accuracies none stands for another."""
    facts = {"metric": "pass_at_k", "filter": "create_test", "output_type": "generate_until"}
    scores = {"sample_len": 4.0, "pass@1,other": 0.9, "pass@1,create_test": 0.25, "pass@8,create_test": 0.5}
    tasks = {"humaneval": {**facts, "lm_eval_results": scores}} | meta(cola=("mcc", 0.4))
    tasks["cola"] |= {"metric": "acc", "output_type": "multiple_choice"}
    assert primary_scores(tasks) == {"humaneval": 0.25}
    assert filtered_scores(tasks["humaneval"]) == {"pass@1": 0.25, "pass@8": 0.5}


def test_of_probes_alone_there_is_no_score() -> None:
    assert mean_score(meta(books=("bits_per_byte", 1.4))) is None
    assert mean_score({}) is None
