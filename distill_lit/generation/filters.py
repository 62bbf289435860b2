"""Which answers become training text: pure functions of one answer, or of all answers to one prompt."""

import importlib.util
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from distill_lit.config import FiltersConfig
from distill_lit.generation.completions import FINISHED, REFUSED, TOO_LONG, Answer
from distill_lit.generation.dedup import WordRuns, drop_duplicates
from distill_lit.utils.exceptions import UserError

NGRAM = 3
COMPARISON = 2  # raise it when other final answers count as equal
Judge = Callable[[Sequence[Answer]], Sequence[float]]


def check_filters(key: str, filters: FiltersConfig, samples: int, has_right_answers: bool) -> None:
    """Raises UserError for filters that contradict each other or what is asked."""
    if filters.max_tokens and filters.max_tokens < filters.min_tokens:
        raise UserError(f"{key}.max_tokens: {filters.max_tokens} is below min_tokens ({filters.min_tokens})")
    if filters.agreement and samples < 2:
        raise UserError(f"{key}.agreement: needs several answers per prompt; set samples to 2 or more")
    if filters.correct and not has_right_answers:
        raise UserError(f"{key}.correct: the right answer is not known; give prompts.answer")
    if filters.duplicates < 1 and importlib.util.find_spec("datasketch") is None:
        raise UserError(f"{key}.duplicates: needs the datasketch package; pip install 'distill-lit[synthetic]'")
    try:
        groups = re.compile(filters.pattern).groups
    except re.error as error:
        raise UserError(f"{key}.pattern: {error}") from error
    if filters.pattern and not groups:
        raise UserError(f"{key}.pattern: needs a group around the final answer, as in 'Answer: (.*)'")


def comparison_facts(filters: FiltersConfig) -> dict[str, int]:
    """What beside the knobs decides which answers pass: how final answers are compared, where they are."""
    return {"comparison": COMPARISON} if filters.correct or filters.agreement else {}


def filter_answers(
    answers: Sequence[Answer],
    filters: FiltersConfig,
    judge: Judge | None = None,
    evaluation: Callable[[], Iterable[str]] = tuple,
) -> tuple[list[Answer], dict[str, int]]:
    """(answers kept, {reason: answers left out for it first}), those to one prompt side by side.

    judge: mean log-probabilities of answers; it reads only what the other filters have left. evaluation: gives the texts
    that no answer may share words with, called only if asked for.
    """
    dropped: Counter[str] = Counter()
    kept: list[Answer] = []
    groups: dict[tuple[str, str], list[Answer]] = {}
    for answer in answers:
        groups.setdefault((answer.system, answer.prompt), []).append(answer)
    for same in groups.values():
        finals = [final_answer(answer.text, filters.pattern) for answer in same]
        for number, answer in enumerate(same):
            reason = _first_fault(answer, number, finals, filters)
            if reason:
                dropped[reason] += 1
            else:
                kept.append(answer)
    if filters.contamination:
        shared = WordRuns(evaluation(), filters.contamination)
        clean = [answer for answer in kept if not shared.occur_in(f"{answer.prompt}\n{answer.text}")]
        dropped["contaminated"], kept = len(kept) - len(clean), clean
    if filters.duplicates < 1:
        fresh = drop_duplicates(kept, filters.duplicates)
        dropped["duplicate"], kept = len(kept) - len(fresh), fresh
    if judge is not None and kept:
        scores = judge(kept)
        good = [answer for answer, score in zip(kept, scores, strict=True) if score >= filters.judge_log_probability]
        dropped["judge"] = len(kept) - len(good)
        kept = good
    return kept, {reason: count for reason, count in sorted(dropped.items()) if count}


def _first_fault(answer: Answer, number: int, finals: Sequence[str], filters: FiltersConfig) -> str:
    """The first filter that an answer does not pass; empty when it passes all."""
    length = answer.length or len(answer.text.split())
    faults: Mapping[str, Callable[[], bool]] = {
        TOO_LONG: lambda: answer.finish == TOO_LONG,
        REFUSED: lambda: answer.finish == REFUSED,
        "empty": lambda: not answer.text.strip(),
        "short": lambda: length < filters.min_tokens,
        "long": lambda: 0 < filters.max_tokens < length,
        "unfinished": lambda: filters.finished and answer.finish != FINISHED,
        "repetitive": lambda: repetition(answer.text) > filters.repetition,
        "wrong": lambda: filters.correct and not _is_right(finals[number], answer.right),
        "disagreement": lambda: filters.agreement > 0 and agreement(finals, number) < filters.agreement,
    }
    return next((name for name, fails in faults.items() if fails()), "")


def final_answer(text: str, pattern: str) -> str:
    """What the first group of `pattern` holds at its last match; empty where it does not match; all of `text` for no
    pattern."""
    if not pattern:
        return text
    found = list(re.finditer(pattern, text))
    return (found[-1].group(1) or "").strip() if found else ""


def normalise(text: str) -> list[str]:
    """Lower-case words without articles and punctuation, as SQuAD compares answers (Rajpurkar et al. 2016, 1606.05250),
    unless nothing else is left: `A` is an answer, and so is `+`."""
    text = re.sub(r"(?<=\d),(?=\d)", "", text.lower())  # 1,000 is 1000
    words = re.findall(r"-?\d+(?:\.\d+)?|\w+", text)
    return [word for word in words if word not in ("a", "an", "the")] or words or text.split()


def repetition(text: str) -> float:
    """Share of word 3-grams that occurred before in the text; 0 for fewer than 3 words."""
    words = text.lower().split()
    grams = list(zip(*(words[i:] for i in range(NGRAM)), strict=False))
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def agreement(finals: Sequence[str], number: int) -> float:
    """Mean word overlap (F1) of one final answer with all others to the same prompt; 0 when there is no other.

    Where `pattern` leaves one word or number this is the share of equal ones: self-consistency, Wang et al. 2022,
    2203.11171.
    """
    others = [overlap(finals[number], final) for i, final in enumerate(finals) if i != number]
    return sum(others) / len(others) if others else 0.0


def overlap(one: str, other: str) -> float:
    """F1 of the words of two texts: 1 when they have the same words equally often. Nothing agrees with nothing: 0."""
    a, b = normalise(one), normalise(other)
    common = sum((Counter(a) & Counter(b)).values())
    return 2 * common / (len(a) + len(b)) if common else 0.0


def _is_right(final: str, right: str) -> bool:
    return bool(right) and normalise(final) == normalise(right)
