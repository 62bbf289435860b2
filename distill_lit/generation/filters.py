"""Rejection sampling, which answers become training text: pure functions of one answer, or of all answers to a prompt."""

import importlib.util
import inspect
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from distill_lit.config import FiltersConfig
from distill_lit.generation.completions import FINISH_PROMPT_TOO_LONG, FINISH_REFUSED, FINISH_STOP, Completion
from distill_lit.generation.dedup import WordNgramIndex, drop_duplicates
from distill_lit.utils.exceptions import UserError, one_line_message, suggest
from distill_lit.utils.files import sha256_of
from distill_lit.utils.registry import Registry

REPETITION_NGRAM = 3
ANSWER_COMPARISON_VERSION = 2  # raise it when other final answers count as equal
CompletionFilter = Callable[[Completion], bool]
CUSTOM_FILTERS: Registry[CompletionFilter] = Registry("register_filter")
LogprobScorer = Callable[[Sequence[Completion]], Sequence[float]]


def register_filter(name: str) -> Callable[[CompletionFilter], CompletionFilter]:
    """Registers a function that says whether a completion may become training text, for `filters.custom`.

    Raises UserError where the name is another's.

    Example:
        >>> @register_filter("ends_in_a_full_stop")
        ... def ends(completion):
        ...     return completion.text.rstrip().endswith(".")
    """

    CUSTOM_FILTERS.check_name(name)

    def register(function: CompletionFilter) -> CompletionFilter:
        CUSTOM_FILTERS.add(name, function)
        return function

    return register


def check_filters(key: str, filters: FiltersConfig, num_samples: int, has_reference_answers: bool) -> None:
    """Raises UserError for filters that contradict each other or what is asked."""
    if filters.max_tokens and filters.max_tokens < filters.min_tokens:
        raise UserError(f"{key}.max_tokens: {filters.max_tokens} is below min_tokens ({filters.min_tokens})")
    if filters.min_agreement and num_samples < 2:
        raise UserError(f"{key}.min_agreement: needs several answers per prompt; set num_samples to 2 or more")
    if filters.require_correct and not has_reference_answers:
        raise UserError(f"{key}.require_correct: the right answer is not known; give prompts.reference_answer")
    if filters.max_duplicate_overlap < 1 and importlib.util.find_spec("datasketch") is None:
        raise UserError(f"{key}.max_duplicate_overlap: needs the datasketch package; pip install datasketch")
    for name in filters.custom:
        if name not in CUSTOM_FILTERS:
            raise UserError(f"{key}.custom: unknown {name!r}{suggest(name, CUSTOM_FILTERS)}; a plugin registers it")
    try:
        groups = re.compile(filters.answer_pattern).groups
    except re.error as error:
        raise UserError(f"{key}.answer_pattern: {error}") from error
    if filters.answer_pattern and not groups:
        raise UserError(f"{key}.answer_pattern: needs a group around the final answer, as in 'Answer: (.*)'")


def answer_comparison_metadata(filters: FiltersConfig) -> dict[str, Any]:
    """What beside the fields decides which answers pass: how final answers are compared, where they are, and the code of
    custom filters."""
    compares = filters.require_correct or filters.min_agreement
    found: dict[str, Any] = {"comparison": ANSWER_COMPARISON_VERSION} if compares else {}
    if filters.custom:
        files = {name: _source_file(CUSTOM_FILTERS[name]) for name in filters.custom}
        found["custom"] = {name: sha256_of(Path(file)) for name, file in files.items() if file}
    return found


def _source_file(custom: CompletionFilter) -> str | None:
    """Of what is called, itself or its class."""
    return inspect.getsourcefile(custom if inspect.isroutine(custom) else type(custom))


def filter_completions(
    completions: Sequence[Completion],
    filters: FiltersConfig,
    logprob_scorer: LogprobScorer | None = None,
    evaluation_texts: Callable[[], Iterable[str]] = tuple,
) -> tuple[list[Completion], dict[str, int]]:
    """(answers kept, {reason: answers left out for it first}), those to one prompt side by side.

    logprob_scorer: gives the mean log-probabilities of answers; it reads only what the other filters have left.
    evaluation_texts: gives the texts that no answer may share words with, called only if asked for.
    """
    dropped: Counter[str] = Counter()
    retained: list[Completion] = []
    groups: dict[tuple[str, str], list[Completion]] = {}
    for answer in completions:
        groups.setdefault((answer.system_prompt, answer.prompt), []).append(answer)
    for siblings in groups.values():
        final_answers = [extract_final_answer(answer.text, filters.answer_pattern) for answer in siblings]
        for number, answer in enumerate(siblings):
            reason = _first_failed_filter(answer, number, final_answers, filters)
            if reason:
                dropped[reason] += 1
            else:
                retained.append(answer)
    if filters.decontamination_ngram:
        evaluation_ngrams = WordNgramIndex(evaluation_texts(), filters.decontamination_ngram)
        uncontaminated = [
            answer for answer in retained if not evaluation_ngrams.overlaps(f"{answer.prompt}\n{answer.text}")
        ]
        dropped["contaminated"], retained = len(retained) - len(uncontaminated), uncontaminated
    if filters.max_duplicate_overlap < 1:
        deduplicated = drop_duplicates(retained, filters.max_duplicate_overlap)
        dropped["duplicate"], retained = len(retained) - len(deduplicated), deduplicated
    if logprob_scorer is not None and retained:
        scores = logprob_scorer(retained)
        above_threshold = [
            answer for answer, score in zip(retained, scores, strict=True) if score >= filters.min_mean_logprob
        ]
        dropped["perplexity"] = len(retained) - len(above_threshold)
        retained = above_threshold
    return retained, {reason: count for reason, count in sorted(dropped.items()) if count}


def _first_failed_filter(answer: Completion, number: int, finals: Sequence[str], filters: FiltersConfig) -> str:
    """The first filter that an answer does not pass; empty when it passes all."""
    length = answer.num_tokens or len(answer.text.split())
    faults: Mapping[str, Callable[[], bool]] = {
        FINISH_PROMPT_TOO_LONG: lambda: answer.finish_reason == FINISH_PROMPT_TOO_LONG,
        FINISH_REFUSED: lambda: answer.finish_reason == FINISH_REFUSED,
        "empty": lambda: not answer.text.strip(),
        "short": lambda: length < filters.min_tokens,
        "long": lambda: 0 < filters.max_tokens < length,
        "unfinished": lambda: filters.require_finished and answer.finish_reason != FINISH_STOP,
        "repetitive": lambda: ngram_repetition(answer.text) > filters.max_repetition,
        "wrong": lambda: filters.require_correct and not _is_right(finals[number], answer.reference_answer),
        "disagreement": lambda: filters.min_agreement > 0 and self_consistency(finals, number) < filters.min_agreement,
    }
    failed = next((name for name, fails in faults.items() if fails()), "")
    return failed or next((name for name in filters.custom if not _passes_custom(name, answer)), "")


def _passes_custom(name: str, answer: Completion) -> bool:
    try:
        return bool(CUSTOM_FILTERS[name](answer))
    except Exception as error:
        reason = f"{type(error).__name__}: {one_line_message(error)}"
        raise UserError(f"filters.custom: {name!r} failed on an answer ({reason}); fix the plugin") from error


def extract_final_answer(text: str, pattern: str) -> str:
    """What the first group of `pattern` holds at its last match; empty where it does not match; all of `text` for no
    pattern."""
    if not pattern:
        return text
    found = list(re.finditer(pattern, text))
    return (found[-1].group(1) or "").strip() if found else ""


def normalize_answer(text: str) -> list[str]:
    """Lower-case words without articles and punctuation, as SQuAD compares answers (Rajpurkar et al. 2016, 1606.05250),
    unless nothing else is left: `A` is an answer, and so is `+`."""
    text = re.sub(r"(?<=\d),(?=\d)", "", text.lower())  # 1,000 is 1000
    words = re.findall(r"-?\d+(?:\.\d+)?|\w+", text)
    return [word for word in words if word not in ("a", "an", "the")] or words or text.split()


def ngram_repetition(text: str) -> float:
    """Share of word 3-grams that occurred before in the text; 0 for fewer than 3 words."""
    words = text.lower().split()
    grams = list(zip(*(words[i:] for i in range(REPETITION_NGRAM)), strict=False))
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def self_consistency(final_answers: Sequence[str], index: int) -> float:
    """Mean word overlap (F1) of one final answer with all others to the same prompt; 0 when there is no other.

    Where `pattern` leaves one word or number this is the share of equal ones: self-consistency, Wang et al. 2022,
    2203.11171.
    """
    others = [word_f1(final_answers[index], final) for i, final in enumerate(final_answers) if i != index]
    return sum(others) / len(others) if others else 0.0


def word_f1(one: str, other: str) -> float:
    """F1 of the words of two texts: 1 when they have the same words equally often. Nothing agrees with nothing: 0."""
    a, b = normalize_answer(one), normalize_answer(other)
    common = sum((Counter(a) & Counter(b)).values())
    return 2 * common / (len(a) + len(b)) if common else 0.0


def _is_right(final: str, right: str) -> bool:
    return bool(right) and normalize_answer(final) == normalize_answer(right)
