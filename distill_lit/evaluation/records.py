"""lm-eval's samples to one row per document: what was asked, and what one model made of it.

`documents` are the same for every model and `records` belong to one; both are keyed by (task, key), where the key is a
hash of what the model was given, so that any two models can be paired and a different prompt cannot.
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Sequence
from numbers import Integral
from typing import Any, TypeAlias

from jinja2 import TemplateError

from distill_lit.evaluation.task_metrics import BY_CHOICE, guessed_share, primary_metric
from distill_lit.utils.files import fingerprint

TokenCounts: TypeAlias = dict[tuple[str, str], int]
TokenLogprobs: TypeAlias = dict[tuple[str, str], list[float]]
RECORDS_FORMAT_VERSION = 1  # raise it when rows mean something else: every stored evaluation is then done again
DOCUMENT_COLUMNS = (
    "task",
    "key",
    "doc_id",
    "cluster",
    "prompt",
    "choices",
    "gold",
    "n_choices",
    "prompt_chars",
    "prompt_hash",
    "target_hash",
    "metadata",
)
RECORD_COLUMNS = (
    "task",
    "key",
    "ll",
    "tokens",
    "greedy",
    "len_chars",
    "len_bytes",
    "pred",
    "pred_norm",
    "correct",
    "correct_norm",
    "margin",
    "margin_norm",
    "p_gold",
    "tie",
    "response",
    "metrics",
)
PROBE_COLUMNS = (
    "kl",
    "draft_acceptance",
    "agreement",
    "band_nats",
    "band_bytes",
)  # of passages of a probe, beside the others
PROBE_OUTPUT_TYPE = "probe"  # beside the output types of lm-eval's tasks
TOKEN_LOGPROBS = "token_logprobs"  # a column of records where evaluation.token_logprobs asks for it
# of generative tasks, a list with an element for each answer: texts; tokens; whether it ended by itself; its own score
ANSWER_COLUMNS = ("answers", "answer_tokens", "answer_finished", "answer_scores")
TARGET = "target"  # a column of documents, of generative tasks: the right answer, or several, one a line
CHANCE = "chance"  # a column of documents: what guessing gets right, there where it is not 1 / n_choices
OPTIONAL_DOCUMENT_COLUMNS = (TARGET, CHANCE)  # there where any row has them
OPTIONAL_COLUMNS = (TOKEN_LOGPROBS, *ANSWER_COLUMNS)  # of records, there where any row has them
CLUSTER_FIELDS = ("passage", "article", "support", "story", "context", "source_id")  # documents may share one of these
METADATA_FIELDS = (
    "subject",
    "category",
    "level",
    "topic",
    "difficulty",
    "activity_label",
    "split_type",
    "question_concept",
)
NOT_APPLICABLE = math.nan
# what a null or a missing column does to a template or a function of a task
TASK_FUNCTION_ERRORS = (TypeError, ValueError, LookupError, AttributeError, SyntaxError, TemplateError)


def make_rows(
    task: Any, samples: list[dict[str, Any]], token_counts: TokenCounts, token_logprobs: TokenLogprobs | None = None
) -> list[dict[str, Any]]:
    """One row per document, with DOCUMENT_COLUMNS and RECORD_COLUMNS. `samples`: as lm-eval logs them, before anything
    saves them (which turns numbers into text); of several filters the first one counts. `token_logprobs`: unless None,
    the rows have TOKEN_LOGPROBS too, a list of nats for each choice; it is empty where HFLM scored it, which keeps sums."""
    name = task.config.task
    seen: Counter[str] = Counter()
    rows = []
    for sample in of_first_filter(samples):
        arguments = [list(argument) for argument in sample["arguments"]]
        key = fingerprint([name, arguments])
        row = {**_empty_row(), "task": name, "key": f"{key}.{seen[key]}", "doc_id": int(sample["doc_id"])}
        row |= _describe(name, sample, row["key"]) | _outcome(task, sample, token_counts)
        if token_logprobs is not None:
            row[TOKEN_LOGPROBS] = [token_logprobs.get((a[0], str(a[1])), []) for a in arguments[: len(row["ll"])] if a[1:]]
        seen[key] += 1
        rows.append(row)
    return rows


def of_first_filter(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those of the filter that counts, one for each document."""
    return [sample for sample in samples if sample["filter"] == samples[0]["filter"]]


def probe_row(
    name: str,
    number: int,
    text: str,
    scores: Sequence[Sequence[float]],
    bands: tuple[list[float], list[int]],
    keep_token_logprobs: bool = False,
) -> dict[str, Any]:
    """The row of a passage of a probe, with PROBE_COLUMNS too: means over its tokens of KL(teacher ‖ model) in nats, draft
    acceptance and agreement, and nats and bytes by frequency band. scores: of each token its log-probability and these
    three."""
    columns = list(zip(*scores, strict=True)) or [()] * 4
    means = [math.fsum(values) / len(values) if values else NOT_APPLICABLE for values in columns[1:]]
    key = fingerprint([name, text])
    logprobs = {TOKEN_LOGPROBS: [list(columns[0])]} if keep_token_logprobs else {}
    return {
        **_empty_row(),
        "task": name,
        "key": f"{key}.0",
        "doc_id": number,
        "cluster": f"{key}.0",
        "prompt": text,
        "prompt_chars": len(text),
        "prompt_hash": _digest(text),
        "target_hash": _digest(text),
        "metadata": "{}",
        "metrics": "{}",
        "ll": [math.fsum(columns[0])],
        "tokens": [len(scores)],
        "len_chars": [len(text)],
        "len_bytes": [len(text.encode())],
        **dict(zip(PROBE_COLUMNS, (*means, *bands), strict=True)),
        **logprobs,
    }


def _empty_row() -> dict[str, Any]:
    lists: dict[str, Any] = {k: [] for k in ("choices", "ll", "tokens", "greedy", "len_chars", "len_bytes")}
    numbers = dict.fromkeys(("correct", "correct_norm", "margin", "margin_norm", "p_gold"), NOT_APPLICABLE)
    return {**lists, **numbers, "gold": -1, "n_choices": 0, "pred": -1, "pred_norm": -1, "tie": False, "response": ""}


def _describe(name: str, sample: dict[str, Any], key: str) -> dict[str, Any]:
    """What is known of a document besides its choices."""
    document, contexts = sample["doc"], [argument[0] for argument in sample["arguments"]]
    fields = document if isinstance(document, dict) else {}
    shared = next((str(fields[c]) for c in CLUSTER_FIELDS if isinstance(fields.get(c), str) and fields[c].strip()), "")
    found = {c: fields[c] for c in METADATA_FIELDS if isinstance(fields.get(c), (str, int)) and fields[c] != ""}
    prompt = _shared_start([c for c in contexts if c])  # the empty ones are acc_mutual_info's
    return {
        "cluster": fingerprint([name, " ".join(shared.split()).lower()]) if shared else key,
        "prompt": prompt,
        "prompt_chars": len(prompt),
        "prompt_hash": _digest("\x1f".join(contexts)),
        "target_hash": str(sample["target_hash"])[:16],
        "metadata": json.dumps(found, ensure_ascii=False, sort_keys=True),
    }


def _outcome(task: Any, sample: dict[str, Any], token_counts: TokenCounts) -> dict[str, Any]:
    scores = {name: _to_json_value(sample[name]) for name in sample["metrics"]}
    found = {
        "metrics": json.dumps(scores, sort_keys=True),
        "correct": to_number(scores.get("acc")),
        "correct_norm": to_number(scores.get("acc_norm")),
    }
    if task.OUTPUT_TYPE == "generate_until":
        response = sample["filtered_resps"][0]
        found["response"] = response if isinstance(response, str) else json.dumps(response, default=str)
        return {**found, "correct": primary_value(task, scores)}
    if task.OUTPUT_TYPE == "loglikelihood_rolling":
        text = sample["arguments"][0][0]
        return {
            **found,
            "ll": [float(sample["filtered_resps"][0])],
            "len_chars": [len(text)],
            "len_bytes": [len(text.encode())],
            "correct": NOT_APPLICABLE,
        }
    if task.OUTPUT_TYPE == "loglikelihood":
        return found | _continuation(sample, token_counts)
    return found | _choice(task, sample, token_counts, found)


def _continuation(sample: dict[str, Any], token_counts: TokenCounts) -> dict[str, Any]:
    """A single continuation, as in LAMBADA: right if greedy decoding writes it."""
    pair = tuple(sample["arguments"][0][:2])
    ll, greedy = sample["filtered_resps"][0]
    text = pair[1]
    return {
        "choices": [text],
        "gold": 0,
        "ll": [float(ll)],
        "tokens": [token_counts.get(pair, 0)],
        "greedy": [bool(greedy)],
        "len_chars": [len(text)],
        "len_bytes": [len(text.encode())],
        "pred": 0,
        "correct": float(bool(greedy)),
        "correct_norm": NOT_APPLICABLE,
        "p_gold": math.exp(ll),
    }


def _choice(task: Any, sample: dict[str, Any], token_counts: TokenCounts, scores: dict[str, Any]) -> dict[str, Any]:
    """One of several choices. Lengths are those that lm-eval's acc_norm divides by: without the delimiter."""
    texts = task.doc_to_choice(sample["doc"])
    count = len(texts)  # acc_mutual_info appends as many unconditional requests, which are not choices
    pairs = [tuple(argument[:2]) for argument in sample["arguments"]][:count]
    answers = sample["filtered_resps"][:count]
    ll = [float(answer[0]) for answer in answers]
    # the choices of WinoGrande stand in the context; what is scored, and has a length, is what follows them
    measured = [pair[1] for pair in pairs] if task.multiple_input and "acc_norm" not in sample["metrics"] else texts
    lengths = [len(text) for text in measured]
    golds = _golds(task, sample, texts)
    per_char = _per_char(ll, lengths)
    pred, pred_norm = chosen(ll, lengths)
    gold = golds[0] if golds else -1
    right, right_norm = scores["correct"], scores["correct_norm"]
    metric = primary_metric(task)
    judged = float(pred in golds) if math.isnan(right) else right
    chance = guessed_share(metric, count, len(set(golds)))
    return {
        "choices": _shown_choices(task, pairs, texts), "gold": gold, "n_choices": count, "ll": ll,
        "tokens": [token_counts.get(pair, 0) for pair in pairs], "greedy": [bool(answer[1]) for answer in answers],
        "len_chars": lengths, "len_bytes": [len(text.encode()) for text in measured],
        "pred": pred, "pred_norm": pred_norm,
        "correct": judged if metric in BY_CHOICE else to_number(_to_json_value(sample.get(metric))),
        "correct_norm": float(pred_norm in golds) if math.isnan(right_norm) else right_norm,
        "margin": _margin(ll, gold), "margin_norm": _margin(per_char, gold), "p_gold": _softmax_at(ll, gold),
        "tie": ll.count(max(ll)) > 1, **({CHANCE: chance} if count > 1 and chance != 1 / count else {}),
    }  # fmt: skip


def _golds(task: Any, sample: dict[str, Any], texts: list[str]) -> list[int]:
    """The right choices: usually one; none where the label is not among them, which lm-eval counts as wrong."""
    return gold_indices(task.doc_to_text(sample["doc"]) if task.multiple_input else sample["target"], texts)


def gold_indices(gold: Any, texts: list[str]) -> list[int]:
    """The indices of what a label, or a list of them, names among the choices of a document: by number or by text."""
    golds = gold if isinstance(gold, list) else [gold]
    indices = [texts.index(g) if isinstance(g, str) and g in texts else g for g in golds]
    return [int(i) for i in indices if isinstance(i, Integral) and 0 <= int(i) < len(texts)]  # numpy's too


def gold_label(task: Any, document: Any) -> Any:
    """What a document of a task says is right: an index among its choices, or a text. Raises what the task's templates and
    functions raise."""
    return task.doc_to_text(document) if task.multiple_input else task.doc_to_target(document)


def has_gold(task: Any, document: Any) -> bool:
    """Whether the right answer to a document is known; splits for a leaderboard have -1, null or nothing. True where the
    task needs none, or judges by a function of its own."""
    if task.OUTPUT_TYPE == "loglikelihood_rolling" or callable(task.config.process_results):
        return True
    try:
        gold = gold_label(task, document)
        if task.OUTPUT_TYPE == "multiple_choice":
            return bool(gold_indices(gold, task.doc_to_choice(document)))
    except TASK_FUNCTION_ERRORS:
        return False
    answers = gold if isinstance(gold, (list, tuple)) else [gold]
    return any(answer is not None and str(answer).strip() not in ("", "None") for answer in answers)


def _shown_choices(task: Any, pairs: list[tuple[Any, ...]], texts: list[str]) -> list[str]:
    """The choices as a reader sees them: where they stand in the context, what follows the shared part of it."""
    if not task.multiple_input:
        return [str(text) for text in texts]
    shared = len(_shared_start([pair[0] for pair in pairs]))
    return [pair[0][shared:] + pair[1] for pair in pairs]


def _shared_start(contexts: list[str]) -> str:
    """What all contexts begin with, in whole words: WinoGrande asks with one context per choice."""
    first, last = min(contexts, default=""), max(contexts, default="")
    if first == last:
        return first
    length = next((n for n, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return first[: first.rfind(" ", 0, length) + 1]


def chosen(ll: list[float], lengths: list[int]) -> tuple[int, int]:
    """The choices that are best by log-probability, and by log-probability per character."""
    return _argmax(ll), _argmax(_per_char(ll, lengths))


def _per_char(ll: list[float], lengths: list[int]) -> list[float]:
    return [score / max(1, length) for score, length in zip(ll, lengths, strict=True)]


def _argmax(values: list[float]) -> int:
    return max(range(len(values)), key=values.__getitem__)  # the first of equals, as numpy has it


def _margin(values: list[float], gold: int) -> float:
    others = values[:gold] + values[gold + 1 :]
    return values[gold] - max(others) if gold >= 0 and others else NOT_APPLICABLE


def _softmax_at(ll: list[float], gold: int) -> float:
    top = max(ll)
    return math.exp(ll[gold] - top) / sum(math.exp(value - top) for value in ll) if gold >= 0 else NOT_APPLICABLE


def primary_value(task: Any, scores: dict[str, Any]) -> float:
    """The metric of one document that the task's file names first; where it gives others, as pass@1, the first of them."""
    name = next(iter(task._metric_fn_list), "")
    return to_number(_to_json_value(scores[name] if name in scores else next(iter(scores.values()), None)))


def to_number(value: Any) -> float:
    """A metric of one document as a number; NaN where it is none, as a list of counts is."""
    return float(value) if isinstance(value, (bool, int, float)) else NOT_APPLICABLE


def _to_json_value(value: Any) -> Any:
    """A metric as JSON has it: numpy numbers as numbers, arrays and tuples as lists."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return [_to_json_value(item) for item in value] if isinstance(value, (list, tuple)) else value


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
