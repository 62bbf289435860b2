"""How hard a document is to the teacher, before anyone answers it: the surprise of its prompt, and what the prompt tells
about the right answer. One pass over prompt and answer per document, one over the answer alone; stored like records."""

import functools
import math
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from distill_lit.config.schema import EvaluationConfig
from distill_lit.evaluation.cache import fingerprint_model, locked, read_entry, store_key, write_entry
from distill_lit.evaluation.lm_eval_patches import quiet_lm_eval
from distill_lit.evaluation.tasks import TaskSpec, resolve_tasks

if TYPE_CHECKING:
    from distill_lit.evaluation.evaluator import Progress
    from distill_lit.evaluation.prefix_tree_lm import PrefixTreeLM

COLUMNS = ("task", "key", "prompt_bits_per_byte", "gold_gain")
KIND = "surprisal 1"  # in the address of what is stored; another number where these columns mean something else
NOTHING = math.nan


def measure_surprisal(
    folder: Path,
    documents: pd.DataFrame,
    settings: EvaluationConfig,
    benchmarks: str,
    *,
    device: str = "cpu",
    progress: "Progress | None" = None,
) -> pd.DataFrame:
    """COLUMNS for every row of `documents` (records.py) under the model in `folder`; from the store where it is there.

    prompt_bits_per_byte: −log2 p(prompt) per byte, of the question alone in few-shot prompts; the first token of all,
    which nothing predicts, is free.
    gold_gain: log p(gold | prompt) − log p(gold) in nats. NaN where there is no right answer, or no prompt, or the
    model cannot be packed.
    """
    from distill_lit.evaluation.prefix_tree_lm import load_harness

    lm: PrefixTreeLM | None = None
    model, found = fingerprint_model(folder), []
    for spec in resolve_tasks(settings, benchmarks):
        mine = documents[documents["task"] == spec.name]
        key = store_key(model, spec, settings, KIND)
        entry = read_entry(key, COLUMNS)
        with locked(key) if entry is None else nullcontext():
            entry = entry or read_entry(key, COLUMNS)
            if entry is None:
                with quiet_lm_eval():
                    lm = lm or load_harness(folder, settings, device)
                    lm.start(functools.partial(_tell, progress, spec.name) if progress else None)
                    rows = _measure(lm, spec, mine)
                write_entry(key, rows, {"task": spec.name, "fallback": lm.fallback})
                entry = rows, {}
        found.append(pd.DataFrame(entry[0], columns=list(COLUMNS)))
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=list(COLUMNS))


def _tell(progress: "Progress", task: str, done: int, total: int) -> None:
    progress(done, total, task)


def _measure(lm: "PrefixTreeLM", spec: TaskSpec, documents: pd.DataFrame) -> list[dict[str, Any]]:
    texts = [(str(row["prompt"]), gold_text(row)) for row in documents.to_dict("records")]
    usable = [n for n, (prompt, _) in enumerate(texts) if prompt.strip()]
    pairs = [texts[n] for n in usable]
    encoded = [(context, continuation) for _, context, continuation in lm._encode_requests(pairs)]
    alone = [lm._encode_alone(gold) if gold else ([], []) for _, gold in pairs]
    scored = lm.score_tokens([[*a, *b] for a, b in [*encoded, *((a, b) for a, b in alone if b)]])
    rows = [{"task": spec.name, "key": key, **dict.fromkeys(COLUMNS[2:], NOTHING)} for key in documents["key"]]
    if scored is None:
        return rows
    lonely = iter(scored[len(pairs) :])
    for n, pair, (context, continuation), (_, gold), tokens in zip(usable, pairs, encoded, alone, scored, strict=False):
        unconditional = sum(next(lonely)[-len(gold) :]) if gold else NOTHING
        if len(tokens) < len(context) + len(continuation) - 1:
            continue  # longer than the model's context
        given = tokens[: len(tokens) - len(continuation)] if continuation else tokens
        question = question_of(pair[0], spec.fewshot)
        share = given[-_tokens_of(lm, pair[0], question, len(context)) :]
        size = len(question.encode())
        rows[n]["prompt_bits_per_byte"] = -sum(share) / math.log(2) / size if share and size else NOTHING
        if gold and continuation:
            rows[n]["gold_gain"] = sum(tokens[-len(continuation) :]) - unconditional
    return rows


def _tokens_of(lm: "PrefixTreeLM", prompt: str, question: str, count: int) -> int:
    """How many of the prompt's `count` tokens are its question's."""
    examples = prompt[: len(prompt) - len(question)]
    return max(1, count - len(lm.tok_encode(examples))) if examples else max(1, count)


def question_of(prompt: str, fewshot: int) -> str:
    """The last question of a few-shot prompt: what follows the last empty line."""
    return prompt.split("\n\n")[-1] if fewshot else prompt


def gold_text(row: dict[str, Any]) -> str:
    """The right answer as it continues the prompt, with a blank between where neither has one; empty without one."""
    choices, gold = list(row["choices"]), int(row["gold"])
    if not 0 <= gold < len(choices):
        return ""
    text, prompt = str(choices[gold]), str(row["prompt"])
    return text if text[:1].isspace() or prompt[-1:].isspace() else f" {text}"
