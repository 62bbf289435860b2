"""What makes a document common or rare, easy or hard, plain or complex: axes, and their strata within a task.

No axis looks at whether a student was right. Every value grows towards the tail: rarer, harder, longer.
"""

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain

import numpy as np
import pandas as pd

from distill_lit.analysis.array_types import FloatArray
from distill_lit.analysis.results import Results, require_columns

FUNCTION_WORDS = frozenset(
    """a about after all also an and any are as at be been before but by can could did do does
for from had has have he her him his how i if in into is it its just may me might more most must my no nor not of off on
one only or other our out over own she should so some such than that the their them then there these they this those
through to too under until up upon very was we were what when where which while who whom whose why will with would you
your question answer""".split()
)
NEGATION = re.compile(r"\b(?:not|no|never|none|neither|nor|nobody|nothing|nowhere|cannot|without|except|\w+n['’]t)\b", re.I)
APOSTROPHE = re.compile(r"['’]")
POSSESSIVE = re.compile(r"['’]s$")
CONTENT_WORD_PATTERN = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?")
MISSING_STRATUM = 0  # stratum of documents without a value
RARITY_PERCENTILE = 10  # of the log frequencies of a text's content words
MAX_CATEGORIES = 100
# axes whose noise is the teacher's own errors': shown, but no slice and no worst group is of them. A teacher that happens
# to find the right answer likely is right there, and any other model regresses to the mean
SECONDARY_AXES = ("difficulty", "gold_gain")
MAX_TIED_SHARE = 0.75  # share of documents with a value in one stratum, above which its quantiles tell nothing apart


@dataclass(frozen=True)
class DocumentAxis:
    """One axis. kind: quantile (strata 1 … k), binary (1 without, 2 with) or category (numbered labels)."""

    name: str
    family: str
    kind: str
    title: str  # its name in words
    description: str  # what is measured, with its unit, after "by"
    head_label: str  # words for its first stratum
    tail_label: str  # and for its last
    category_labels: tuple[str, ...] = ()  # of a category, stratum i + 1 each

    def stratum_label(self, stratum: int, strata: int) -> str:
        """A stratum in words."""
        if stratum == MISSING_STRATUM:
            return "missing"
        if self.kind == "category":
            return self.category_labels[stratum - 1]
        last = 2 if self.kind == "binary" else strata
        return self.head_label if stratum == 1 else self.tail_label if stratum == last else f"{stratum} of {last}"


RARITY = DocumentAxis(
    "rarity_question",
    "rarity",
    "quantile",
    "words of the question",
    "rarity of the question's content words: 10th percentile of their log10 occurrences per billion words",
    "most common",
    "rarest",
)
DOCUMENT_AXES = (
    RARITY,
    DocumentAxis("rarity_answer", "rarity", "quantile", "words of the answer",
         "rarity of the right answer's content words: 10th percentile of their log10 occurrences per billion words",
         "most common", "rarest"),
    DocumentAxis("unread_words", "rarity", "quantile", "words never read in training",
         "share of the content words of question and right answer that the students' training text did not hold", "fewest",
         "most"),
    DocumentAxis("difficulty", "difficulty", "quantile", "the teacher's confidence margin",
         "margin between the teacher's two best choices, nats per character (secondary: the noise that makes it "
         "narrow also makes the teacher err)", "widest", "narrowest"),
    DocumentAxis("surprisal", "difficulty", "quantile", "surprisal of the prompt",
         "bits per byte of the prompt under the teacher", "least surprising", "most surprising"),
    DocumentAxis("gold_gain", "difficulty", "quantile", "log-probability the prompt adds to the answer",
         "log p(right answer | prompt) − log p(right answer) under the teacher, nats (secondary, as the margin is)", "most",
         "least"),
    DocumentAxis("prompt_length", "complexity", "quantile", "prompt length", "characters of the prompt", "shortest",
         "longest"),
    DocumentAxis("answer_length", "complexity", "quantile", "answer length", "characters of the right answer", "shortest",
         "longest"),
    DocumentAxis("choices", "complexity", "quantile", "choices", "number of choices", "fewest", "most"),
    DocumentAxis("digits", "complexity", "binary", "digits", "digits in question or answer", "none", "some"),
    DocumentAxis("negation", "complexity", "binary", "negation", "a negation in the question", "none", "some"),
)  # fmt: skip


def axis_values(results: Results) -> pd.DataFrame:
    """Value of each of DOCUMENT_AXES for every document, indexed like `results.documents`; NaN where there is none."""
    documents = results.documents
    require_columns(documents, ("prompt", "choices", "gold", "n_choices"), "the long tail")
    questions = _questions(results)
    gold = pd.to_numeric(documents["gold"], errors="coerce").astype(float)
    answers = [_gold(c, g) for c, g in zip(documents["choices"], gold, strict=True)]
    question_words, answer_words = ([content_words(text) for text in texts] for texts in (questions, answers))
    zipf = zipf_frequency_function(results)
    frame = pd.DataFrame(
        {
            "rarity_question": -_rare_words(question_words, zipf),
            "rarity_answer": -_rare_words(answer_words, zipf),
            "unread_words": [_unread_share(q + a, results) for q, a in zip(question_words, answer_words, strict=True)],
            "difficulty": -_teacher_margin(results),
            **_surprisal(results),
            "prompt_length": [len(text) for text in questions],
            "answer_length": [len(text) if text else math.nan for text in answers],
            "choices": pd.to_numeric(documents["n_choices"], errors="coerce").where(lambda n: n > 1),
            "digits": [float(any(map(str.isdigit, q + a))) for q, a in zip(questions, answers, strict=True)],
            "negation": [float(bool(NEGATION.search(text))) for text in questions],
        },
        index=documents.index,
    )
    return frame.astype(float)


def _surprisal(results: Results) -> dict[str, pd.Series]:
    """The axes that need the teacher's own pass over a document; NaN where it was not made."""
    index = results.documents.index
    known = results.surprisal
    if known is None:
        return {name: pd.Series(np.nan, index=index) for name in ("surprisal", "gold_gain")}
    known = known.reindex(index)
    return {"surprisal": known["prompt_bits_per_byte"], "gold_gain": -known["gold_gain"]}


def zipf_frequency_function(results: Results) -> Callable[[str], float]:
    """word → log10 occurrences per billion words: in the distillation corpus, or in `wordfreq` where that is too small."""
    if results.uses_corpus_word_counts:
        counts, scale = results.word_counts, 1e9 / results.corpus_words
        return lambda word: math.log10((counts.get(word, 0) + 0.5) * scale)  # 0.5: unseen is rare, not impossible
    from wordfreq import zipf_frequency

    return lambda word: float(zipf_frequency(word, "en"))


def content_words(text: str) -> list[str]:
    """Lower-case words of three letters or more that are not function words, possessives without their ending."""
    words = [POSSESSIVE.sub("", word) for word in CONTENT_WORD_PATTERN.findall(text.lower())]
    return [word for word in words if len(word) > 2 and word not in FUNCTION_WORDS and not APOSTROPHE.search(word)]


def _rare_words(texts: list[list[str]], zipf: Callable[[str], float]) -> FloatArray:
    """RARITY_PERCENTILE of the frequencies of each text's words; NaN without words."""
    frequencies = {word: zipf(word) for word in set(chain.from_iterable(texts))}
    lengths = np.array([len(words) for words in texts], int)
    found = np.full(len(texts), math.nan)
    for length in np.unique(lengths[lengths > 0]):
        rows = np.flatnonzero(lengths == length)
        values = [[frequencies[word] for word in texts[row]] for row in rows]
        found[rows] = np.percentile(values, RARITY_PERCENTILE, axis=1)
    return found


def _unread_share(words: list[str], results: Results) -> float:
    """Share of content words that were never read in training; NaN without words, or where nobody counted."""
    return (
        sum(word not in results.read_word_counts for word in words) / len(words)
        if words and results.read_words
        else math.nan
    )


def _questions(results: Results) -> list[str]:
    """Prompts, without the examples of few-shot prompts."""
    # a benchmark of several tasks may have several numbers, as "5 / 0"
    shots = {task: str(results.settings(task).get("num_fewshot") or 0) != "0" for task in results.tasks}
    prompts = results.documents["prompt"].astype(str)
    tasks = prompts.index.get_level_values("task")
    return [p.split("\n\n")[-1] if shots[t] else p for t, p in zip(tasks, prompts, strict=True)]


def _gold(choices: object, gold: float) -> str:
    texts = list(choices) if isinstance(choices, (list, tuple, np.ndarray)) else []
    return str(texts[int(gold)]) if gold == gold and 0 <= gold < len(texts) else ""


def _teacher_margin(results: Results) -> pd.Series:
    """Length-normalized log-likelihood of the teacher's best choice less its second best; NaN without two."""
    teacher = results.teacher()
    if teacher is None:
        return pd.Series(np.nan, index=results.documents.index)
    rows = results.records[teacher]
    return pd.Series([_margin(a, b) for a, b in zip(rows["ll"], rows["len_chars"], strict=True)], index=rows.index)


def _margin(likelihoods: object, lengths: object) -> float:
    if not isinstance(likelihoods, (list, np.ndarray)) or len(likelihoods) < 2:
        return math.nan
    normed = np.sort(np.asarray(likelihoods, float) / np.maximum(np.asarray(lengths, float), 1))
    return float(normed[-1] - normed[-2])


def quantile_strata(values: pd.Series, num_strata: int) -> pd.Series:
    """Quantile group 1 … `num_strata` within each task; equal values stay together; NaN is MISSING_STRATUM."""
    rank = values.groupby(level="task").rank(pct=True, method="average")
    # the tolerance keeps 0.2 * 5 = 1.0000000000000002 in the first group
    return np.ceil(rank * num_strata - 1e-9).clip(1, num_strata).fillna(MISSING_STRATUM).astype(int)


def stratify(results: Results, values: pd.DataFrame, num_strata: int) -> tuple[list[DocumentAxis], pd.DataFrame]:
    """The axes that tell documents apart, with the stratum of every document: DOCUMENT_AXES, then metadata categories."""
    axes, codes = [], {}
    for axis in DOCUMENT_AXES:
        series = values[axis.name]
        binary = (series + 1).fillna(MISSING_STRATUM).astype(int)
        code = binary if axis.kind == "binary" else quantile_strata(series, num_strata)
        shares = code[code != MISSING_STRATUM].value_counts(normalize=True)
        if len(shares) > 1 and (axis.kind != "quantile" or shares.max() <= MAX_TIED_SHARE):
            axes.append(axis)
            codes[axis.name] = code
    for axis, code in _categories(results):
        axes.append(axis)
        codes[axis.name] = code
    return axes, pd.DataFrame(codes, index=results.documents.index)


def _categories(results: Results) -> list[tuple[DocumentAxis, pd.Series]]:
    """One axis for every metadata key with 2 … MAX_CATEGORIES different values that occur more than once."""
    parsed = pd.DataFrame([_metadata(m) for m in results.documents["metadata"]], index=results.documents.index)
    found = []
    for key in parsed.columns:
        texts = parsed[key].dropna().astype(str)
        if not 2 <= texts.nunique() <= min(MAX_CATEGORIES, len(texts) // 2):
            continue
        labels = tuple(sorted(texts.unique()))
        code = (
            parsed[key]
            .astype(str)
            .map({label: i + 1 for i, label in enumerate(labels)})
            .fillna(MISSING_STRATUM)
            .astype(int)
        )
        about = f"metadata {key!r}"
        found.append(
            (DocumentAxis(f"metadata:{key}", "metadata", "category", key, about, labels[0], labels[-1], labels), code)
        )
    return found


def _metadata(text: object) -> dict[str, str]:
    try:
        value = json.loads(text) if isinstance(text, str) else {}
    except ValueError:
        return {}
    return {k: str(v) for k, v in value.items() if isinstance(v, (str, int))} if isinstance(value, dict) else {}
