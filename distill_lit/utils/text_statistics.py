"""How long, how varied and how finished the texts are that a model has written."""

from collections.abc import Hashable, Iterable, Sequence
from typing import NamedTuple

REPETITION_NGRAM = 4  # tokens, as in seq-rep-4


class TextSums(NamedTuple):
    """Sums over texts, which add up over batches, steps and ranks. finished: texts that ended by themselves; distinct_1,
    distinct_2: of each batch, times its texts; ngrams, repeated_ngrams: all of the texts, and those that had occurred
    before in the same text."""

    texts: float = 0.0
    tokens: float = 0.0
    finished: float = 0.0
    distinct_1: float = 0.0
    distinct_2: float = 0.0
    ngrams: float = 0.0
    repeated_ngrams: float = 0.0

    def means(self) -> dict[str, float]:
        """{length: mean tokens; finished: share that ended by itself; distinct_1, distinct_2: different tokens and pairs of
        a batch as a share of all (Li et al. 2016, 1510.03055); repetition: share of the 4-grams that had occurred before in
        their text (seq-rep-4, Welleck et al. 2020, 1908.04319 §6.1)}."""
        texts = max(self.texts, 1.0)
        return {
            "length": self.tokens / texts,
            "finished": self.finished / texts,
            "distinct_1": self.distinct_1 / texts,
            "distinct_2": self.distinct_2 / texts,
            "repetition": self.repeated_ngrams / max(self.ngrams, 1.0),
        }


def sum_texts(token_sequences: Sequence[Sequence[Hashable]], num_finished: int) -> TextSums:
    """The sums of one batch of texts, given as token ids or words. num_finished: texts that ended by themselves."""
    tokens = [token for text in token_sequences for token in text]
    pairs = [pair for text in token_sequences for pair in _ngrams(text, 2)]
    ngrams = [list(_ngrams(text, REPETITION_NGRAM)) for text in token_sequences]
    texts = len(token_sequences)
    return TextSums(
        texts,
        len(tokens),
        num_finished,
        texts * len(set(tokens)) / max(1, len(tokens)),
        texts * len(set(pairs)) / max(1, len(pairs)),
        sum(map(len, ngrams)),
        sum(len(each) - len(set(each)) for each in ngrams),
    )


def add_sums(sums: Iterable[TextSums]) -> TextSums:
    """All of them together."""
    return TextSums(*map(sum, zip(TextSums(), *sums, strict=True)))


def _ngrams(text: Sequence[Hashable], n: int) -> Iterable[tuple[Hashable, ...]]:
    return zip(*(text[i:] for i in range(n)), strict=False)
