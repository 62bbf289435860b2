"""Deduplication and decontamination, by words that texts share: near-duplicates among answers, and runs of words that also
stand in evaluation documents."""

import re
from collections.abc import Iterable, Iterator, Sequence

from distill_lit.generation.completions import Completion

SHINGLE_WORDS = 5  # words of a shingle for near-duplicates
MINHASH_PERMUTATIONS = 128


def words_of(text: str) -> list[str]:
    """Lower-case words and numbers, without punctuation."""
    return re.findall(r"\w+", text.lower())


def drop_duplicates(completions: Sequence[Completion], threshold: float) -> list[Completion]:
    """The answers whose word 5-grams overlap by at most `threshold` (Jaccard) with those of every one kept before.

    Candidates are found by MinHash with locality-sensitive hashing (Broder 1997) and compared exactly: an estimate alone
    would lose answers that are no duplicates.
    """
    from datasketch import MinHash, MinHashLSH

    # candidates are asked for generously: those that overlap less are told apart below, those not found are lost
    index = MinHashLSH(threshold=max(0.05, 0.75 * threshold), num_perm=MINHASH_PERMUTATIONS, weights=(0.1, 0.9))
    retained: list[Completion] = []
    shingles: list[set[str]] = []
    for answer in completions:
        candidate = set(word_ngrams(words_of(answer.text), SHINGLE_WORDS))
        sketch = MinHash(num_perm=MINHASH_PERMUTATIONS, seed=1)
        sketch.update_batch([shingle.encode() for shingle in sorted(candidate)])
        if any(jaccard(candidate, shingles[int(other)]) > threshold for other in index.query(sketch)):
            continue
        index.insert(str(len(retained)), sketch)
        retained.append(answer)
        shingles.append(candidate)
    return retained


def jaccard(one: set[str], other: set[str]) -> float:
    """Share of common elements among all of two sets; 1 for two empty ones."""
    return len(one & other) / len(one | other) if one or other else 1.0


def word_ngrams(words: Sequence[str], n: int) -> Iterator[str]:
    """All runs of `n` words; the whole of a shorter text."""
    yield from (" ".join(words[i : i + n]) for i in range(max(1, len(words) - n + 1)))


class WordNgramIndex:
    """Decontamination: runs of `count` words of some texts, as contamination is looked for since Brown et al. 2020,
    2005.14165 App. C.

    A text shorter than that counts as one run, if it has at least half as many words: shorter ones say nothing of their
    own.
    """

    def __init__(self, texts: Iterable[str], n: int) -> None:
        self._hashes_by_length: dict[int, set[int]] = {}
        for text in texts:
            words = words_of(text)
            size = min(n, len(words))
            if size >= max(1, n // 2):
                # hashes of this process: a set of strings would take ten times the memory
                self._hashes_by_length.setdefault(size, set()).update(map(hash, word_ngrams(words, size)))

    def overlaps(self, text: str) -> bool:
        """Whether a text holds any of the runs."""
        words = words_of(text)
        return any(
            hash(run) in known
            for size, known in self._hashes_by_length.items()
            if len(words) >= size
            for run in word_ngrams(words, size)
        )
