"""How hard a document is to the teacher, before anyone answers it: the surprise of its prompt, and what the prompt tells
about the right answer. One pass over prompt and answer per document, one over the answer alone; stored like records."""

import functools
import math
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from distill_lit.config.evaluation import EvaluationConfig
from distill_lit.evaluation.cache import (
    evaluation_cache_key,
    lock_cached_evaluation,
    model_content_hash,
    read_cached_evaluation,
    write_cached_evaluation,
)
from distill_lit.evaluation.lm_eval_patches import quiet_lm_eval
from distill_lit.evaluation.tasks import TaskSpec, resolve_tasks
from distill_lit.utils.progress import ProgressCallback

if TYPE_CHECKING:
    from distill_lit.evaluation.prefix_tree_lm import PrefixTreeLM

SURPRISAL_COLUMNS = ("task", "key", "prompt_bits_per_byte", "gold_gain")
SURPRISAL_CACHE_KIND = (
    "surprisal 1"  # in the address of what is stored; another number where these columns mean something else
)
NOT_MEASURED = math.nan


def measure_surprisal(
    folder: Path,
    documents: pd.DataFrame,
    settings: EvaluationConfig,
    dataset_source: str,
    *,
    device: str = "cpu",
    progress_callback: ProgressCallback | None = None,
) -> pd.DataFrame:
    """SURPRISAL_COLUMNS for every row of `documents` (records.py) under the model in `folder`; from the store where it is
    there.

    prompt_bits_per_byte: −log2 p(prompt) per byte, of the question alone in few-shot prompts; the first token of all,
    which nothing predicts, is free.
    gold_gain: log p(gold | prompt) − log p(gold) in nats. NaN where there is no right answer, or no prompt, or the
    model cannot be packed.
    """
    from distill_lit.evaluation.prefix_tree_lm import load_prefix_tree_lm

    lm: PrefixTreeLM | None = None
    model, frames = model_content_hash(folder), []
    for spec in resolve_tasks(settings, dataset_source):
        task_documents = documents[documents["task"] == spec.name]
        key = evaluation_cache_key(model, spec, settings, SURPRISAL_CACHE_KIND)
        entry = read_cached_evaluation(key, SURPRISAL_COLUMNS)
        with lock_cached_evaluation(key) if entry is None else nullcontext():
            entry = entry or read_cached_evaluation(key, SURPRISAL_COLUMNS)
            if entry is None:
                with quiet_lm_eval():
                    lm = lm or load_prefix_tree_lm(folder, settings, device)
                    lm.reset_counts(
                        functools.partial(_report_progress, progress_callback, spec.name) if progress_callback else None
                    )
                    rows = _measure(lm, spec, task_documents)
                write_cached_evaluation(key, rows, {"task": spec.name, "fallback": lm.fallback_reason})
                entry = rows, {}
        frames.append(pd.DataFrame(entry[0], columns=list(SURPRISAL_COLUMNS)))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=list(SURPRISAL_COLUMNS))


def _report_progress(progress_callback: ProgressCallback, task: str, done: int, total: int) -> None:
    progress_callback(f"surprisal {task}", done, total, "requests")


def _measure(lm: "PrefixTreeLM", spec: TaskSpec, documents: pd.DataFrame) -> list[dict[str, Any]]:
    texts = [(str(row["prompt"]), gold_text(row)) for row in documents.to_dict("records")]
    usable = [n for n, (prompt, _) in enumerate(texts) if prompt.strip()]
    pairs = [texts[n] for n in usable]
    encoded = [(context, continuation) for _, context, continuation in lm._encode_requests(pairs)]
    unconditional_tokens = [lm._encode_alone(gold) if gold else ([], []) for _, gold in pairs]
    scored = lm.score_token_logprobs([[*a, *b] for a, b in [*encoded, *((a, b) for a, b in unconditional_tokens if b)]])
    rows = [
        {"task": spec.name, "key": key, **dict.fromkeys(SURPRISAL_COLUMNS[2:], NOT_MEASURED)} for key in documents["key"]
    ]
    if scored is None:
        return rows
    unconditional_scores = iter(scored[len(pairs) :])
    for n, pair, (context, continuation), (_, gold), tokens in zip(
        usable, pairs, encoded, unconditional_tokens, scored, strict=False
    ):
        unconditional = sum(next(unconditional_scores)[-len(gold) :]) if gold else NOT_MEASURED
        if len(tokens) < len(context) + len(continuation) - 1:
            continue  # longer than the model's context
        prompt_logprobs = tokens[: len(tokens) - len(continuation)] if continuation else tokens
        question = last_question(pair[0], spec.num_fewshot)
        question_logprobs = prompt_logprobs[-_count_question_tokens(lm, pair[0], question, len(context)) :]
        size = len(question.encode())
        rows[n]["prompt_bits_per_byte"] = (
            -sum(question_logprobs) / math.log(2) / size if question_logprobs and size else NOT_MEASURED
        )
        if gold and continuation:
            rows[n]["gold_gain"] = sum(tokens[-len(continuation) :]) - unconditional
    return rows


def _count_question_tokens(lm: "PrefixTreeLM", prompt: str, question: str, count: int) -> int:
    """How many of the prompt's `count` tokens are its question's."""
    examples = prompt[: len(prompt) - len(question)]
    return max(1, count - len(lm.tok_encode(examples))) if examples else max(1, count)


def last_question(prompt: str, num_fewshot: int) -> str:
    """The last question of a few-shot prompt: what follows the last empty line."""
    return prompt.split("\n\n")[-1] if num_fewshot else prompt


def gold_text(row: dict[str, Any]) -> str:
    """The right answer as it continues the prompt, with a blank between where neither has one; empty without one."""
    choices, gold = list(row["choices"]), int(row["gold"])
    if not 0 <= gold < len(choices):
        return ""
    text, prompt = str(choices[gold]), str(row["prompt"])
    return text if text[:1].isspace() or prompt[-1:].isspace() else f" {text}"
