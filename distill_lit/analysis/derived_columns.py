"""What follows from the log-likelihoods of a document's choices: the answer, whether it is right, margins, probabilities.

The definitions are those of lm-eval: `acc` takes the likeliest choice, `acc_norm` the likeliest per character.
"""

import json
import math
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from distill_lit.analysis.array_types import FloatArray

NO_CHOICE = -1
DERIVED_COLUMNS = ("pred", "pred_norm", "correct", "correct_norm", "margin", "margin_norm", "p_gold", "bits_per_byte",
                   "tie", "tie_norm", "response", "metrics")  # fmt: skip
DERIVED_TOLERANCE = 1e-3  # nats or probability; log-likelihoods of −1000 nats have steps of 6e-5 in single precision


def derive_columns(
    documents: pd.DataFrame, records: pd.DataFrame, settings: Mapping[str, Mapping[str, Any]]
) -> pd.DataFrame:
    """DERIVED_COLUMNS for each row of one model.

    Args:
        documents: gold and n_choices, indexed by (task, key).
        records: of the same documents, ll (nats), len_chars, len_bytes, and greedy where there is a single continuation.
        settings: {task: its settings}, of which `metrics` names what lm-eval computes.

    `tie` and `tie_norm`: whether several choices share the highest log-likelihood, or the highest per character.
    `bits_per_byte`: −log2 p(right answer | prompt) per byte of it; of a document without choices, of its whole text.
    """
    ll, lengths = padded(records["ll"], -np.inf), padded(records["len_chars"], 1)
    gold = pd.to_numeric(documents["gold"], errors="coerce").fillna(NO_CHOICE).to_numpy(int)
    per_char = ll / np.maximum(lengths[:, : ll.shape[1]], 1)
    is_choice = pd.to_numeric(documents["n_choices"], errors="coerce").fillna(0).to_numpy(int) > 0
    counts = np.array([len(values) for values in records["ll"]])
    is_choice &= counts > 0
    is_continuation = ~is_choice & (counts == 1) & (gold == 0)
    right = np.where(is_continuation, _greedy(records), np.nan)
    frame: dict[str, Any] = {}
    for suffix, values in (("", ll), ("_norm", per_char)):
        answer = values.argmax(axis=1) if values.shape[1] else np.zeros(len(values), int)
        frame[f"pred{suffix}"] = np.where(is_choice, answer, NO_CHOICE)
        frame[f"correct{suffix}"] = np.where(is_choice, (answer == gold).astype(float), np.nan if suffix else right)
        frame[f"margin{suffix}"] = np.where(is_choice, _margin(values, gold), np.nan)
        ties = (values == values.max(axis=1, initial=-np.inf, keepdims=True)).sum(axis=1) > 1
        frame[f"tie{suffix}"] = is_choice & ties
    frame["pred"] = np.where(is_continuation, 0, frame["pred"])
    frame["p_gold"] = np.where(is_choice | is_continuation, _gold_probability(ll, gold, is_continuation), np.nan)
    is_text = ~is_choice & (counts == 1)
    frame["bits_per_byte"] = _bits_per_byte(ll, records, np.where(is_text, 0, gold))
    frame["response"] = ""
    names = {task: tuple(facts.get("metrics", ())) for task, facts in settings.items()}
    pairs = zip(frame["correct"].tolist(), frame["correct_norm"].tolist(), strict=True)
    answers = list(zip(records.index.get_level_values("task"), pairs, strict=True))
    metrics = {(task, repr(pair)): _metrics(names.get(task, ()), *pair) for task, pair in dict.fromkeys(answers)}
    frame["metrics"] = [metrics[task, repr(pair)] for task, pair in answers]  # repr: NaN is no key
    return pd.DataFrame(frame, index=records.index)[list(DERIVED_COLUMNS)]


def is_derivable(stored: pd.Series, derived: pd.Series) -> bool:
    """Whether a column need not be stored: numbers of margins and probabilities to DERIVED_TOLERANCE, all else exactly."""
    if derived.name in ("margin", "margin_norm", "p_gold"):
        pair = stored.to_numpy(float), derived.to_numpy(float)
        return bool(np.allclose(*pair, rtol=0.0, atol=DERIVED_TOLERANCE, equal_nan=True))
    return bool(((stored == derived) | (stored.isna() & derived.isna())).all())


def padded(lists: Sequence[Sequence[float]] | pd.Series, filler: float) -> FloatArray:
    """Lists as rows of a matrix, as wide as the longest."""
    lengths = np.array([len(values) for values in lists], int)
    rows = np.full((len(lists), lengths.max(initial=0)), float(filler))
    rows[np.arange(rows.shape[1]) < lengths[:, None]] = np.array(list(chain.from_iterable(lists)), float)
    return rows


def _greedy(records: pd.DataFrame) -> FloatArray:
    """Whether greedy decoding writes the first choice; NaN where that is unknown."""
    if "greedy" not in records:
        return np.full(len(records), np.nan)
    return np.array([float(values[0]) if len(values) else np.nan for values in records["greedy"]])


def _margin(values: FloatArray, gold: NDArray[np.integer]) -> FloatArray:
    """The right choice's value less the best other one's; NaN without a right choice or another one."""
    if values.shape[1] < 2:
        return np.full(len(values), np.nan)
    rows, column = np.arange(len(values)), np.clip(gold, 0, values.shape[1] - 1)
    others = values.copy()
    others[rows, column] = -np.inf
    best = others.max(axis=1)
    known = (gold >= 0) & np.isfinite(best)
    return np.where(known, values[rows, column] - np.where(known, best, 0), np.nan)


def _gold_probability(ll: FloatArray, gold: NDArray[np.integer], is_continuation: NDArray[np.bool_]) -> FloatArray:
    """Softmax over the choices at the right one; of a single continuation the probability of its text."""
    if not ll.shape[1]:
        return np.full(len(ll), np.nan)
    column = np.clip(gold, 0, ll.shape[1] - 1)
    at_gold = ll[np.arange(len(ll)), column]
    top = ll.max(axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):
        softmax = np.exp(at_gold - top[:, 0]) / np.exp(ll - top).sum(axis=1)
    return np.where(is_continuation, np.exp(at_gold), np.where(gold >= 0, softmax, np.nan))


def _bits_per_byte(ll: FloatArray, records: pd.DataFrame, column: NDArray[np.integer]) -> FloatArray:
    """−log2 of the probability of one text per byte of it; column: its number, negative where there is none."""
    if not ll.shape[1] or "len_bytes" not in records:
        return np.full(len(ll), np.nan)
    rows, place = np.arange(len(ll)), np.clip(column, 0, ll.shape[1] - 1)
    lengths = padded(records["len_bytes"], np.nan)
    lengths = lengths if lengths.shape[1] else np.full((len(ll), 1), np.nan)
    size = lengths[rows, np.minimum(place, lengths.shape[1] - 1)]
    with np.errstate(invalid="ignore", divide="ignore"):
        bits = -ll[rows, place] / math.log(2) / size
    return np.where((column >= 0) & np.isfinite(bits), bits, np.nan)


def count_ties(records: pd.DataFrame, metrics: Mapping[str, str]) -> tuple[int, int]:
    """(answers of one model with several equally good best choices by its task's own metric, all its answers among
    choices). metrics: {task: acc or acc_norm}."""
    is_answer = records["pred"].fillna(NO_CHOICE).ge(0) & records["margin"].notna()
    by_char = records.index.isin([task for task, metric in metrics.items() if metric == "acc_norm"], level="task")
    tied = np.where(by_char, records["tie_norm"].eq(True), records["tie"].eq(True))
    return int((is_answer & tied).sum()), int(is_answer.sum())


def _metrics(names: tuple[str, ...], correct: float, correct_norm: float) -> str:
    values = {"acc": correct, "acc_norm": correct_norm}
    return json.dumps({name: values[name] for name in names if name in values}, sort_keys=True)
