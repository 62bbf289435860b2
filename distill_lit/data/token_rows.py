"""Files of tokens → rows: cut where they lie, and read when a batch asks for them."""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from distill_lit.data.packing import PackedDataset, UnreadRows
from distill_lit.data.token_files import TokenFile, check_in_vocabulary
from distill_lit.utils.exceptions import UserError


@dataclass(frozen=True)
class TokenPool:
    """The rows of `sequence_length` tokens that some corpora's files hold, numbered corpus by corpus, file by file. The
    tokens of a file after its last whole row are left out. corpora: {name: files}; end: the token that ends a document."""

    corpora: Mapping[str, Sequence[TokenFile]]
    sequence_length: int
    end: int
    vocab_size: int

    @property
    def files(self) -> list[TokenFile]:
        """Of all corpora."""
        return [file for files in self.corpora.values() for file in files]

    @property
    def first_rows(self) -> np.ndarray:
        """(files + 1,) int64: the number of each file's first row."""
        return np.cumsum([0, *(file.tokens // self.sequence_length for file in self.files)], dtype=np.int64)

    @property
    def rows_per_corpus(self) -> dict[str, int]:
        """{corpus: its rows}."""
        return {name: sum(f.tokens // self.sequence_length for f in files) for name, files in self.corpora.items()}

    def rows_of(self, name: str) -> range:
        """The numbers of a corpus's rows."""
        counts = self.rows_per_corpus
        start = sum(counts[other] for other in list(counts)[: list(counts).index(name)])
        return range(start, start + counts[name])


class TokenRows(UnreadRows):
    """Some rows of a pool, by number, none of them in memory: `take` reads what it gives. A document is what an end of
    sequence follows, or a piece of one where a row begins or ends; padding there is none."""

    def __init__(self, pool: TokenPool, numbers: np.ndarray, corpora: Sequence[str] | None = None) -> None:
        """numbers: (rows,) whole numbers; corpora: names by which `corpus_ids` are numbered, None: nobody asks."""
        for name, value in {
            "pool": pool,
            "numbers": numbers,
            "files": pool.files,
            "first_rows": pool.first_rows,
            "corpora": corpora,
        }.items():
            object.__setattr__(self, name, value)

    pool: TokenPool
    numbers: np.ndarray
    files: list[TokenFile]
    first_rows: np.ndarray
    corpora: Sequence[str] | None

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def sequence_length(self) -> int:
        return self.pool.sequence_length

    def take(self, rows: np.ndarray) -> PackedDataset:
        tokens = np.zeros((len(rows), self.sequence_length), dtype=np.uint32)
        for place, number in enumerate(self.numbers[rows].tolist()):
            tokens[place] = self._read(number)
        documents = np.ones(tokens.shape, dtype=np.min_scalar_type(self.sequence_length))
        documents[:, 1:] += np.cumsum(tokens[:, :-1] == self.pool.end, axis=1, dtype=documents.dtype)
        is_target = np.zeros(tokens.shape, dtype=bool)
        is_target[:, 1:] = documents[:, 1:] == documents[:, :-1]
        return PackedDataset(tokens, documents, is_target, self._corpus_ids(rows))

    def begins_with_document(self, row: int) -> bool:
        """Whether a document begins where a row does."""
        file, start = self._place(int(self.numbers[row]))
        return start == 0 or int(file.read(start - 1, 1)[0]) == self.pool.end

    def _place(self, number: int) -> tuple[TokenFile, int]:
        """The file of a row of the pool, and its first token there."""
        index = int(np.searchsorted(self.first_rows, number, side="right")) - 1
        return self.files[index], (number - int(self.first_rows[index])) * self.sequence_length

    def _read(self, number: int) -> np.ndarray:
        file, start = self._place(number)
        tokens = file.read(start, self.sequence_length)
        check_in_vocabulary(file, tokens, self.pool.vocab_size)
        return tokens

    def _corpus_ids(self, rows: np.ndarray) -> np.ndarray | None:
        if self.corpora is None:
            return None
        numbers = self.numbers[rows]
        ends = np.cumsum(list(self.pool.rows_per_corpus.values()))
        names = np.array([self.corpora.index(name) for name in self.pool.corpora], dtype=np.uint16)
        return np.repeat(names[np.searchsorted(ends, numbers, side="right")][:, None], self.sequence_length, axis=1)

    @property
    def corpus_ids(self) -> np.ndarray | None:  # type: ignore[override]
        return self._corpus_ids(np.arange(len(self)))

    @property
    def num_tokens(self) -> int:
        return len(self) * self.sequence_length

    @property
    def padding_share(self) -> float:
        return 0.0

    def share_of_rows(self, corpora: Sequence[int]) -> float:
        """Of the rows of these corpora, all of which count as supervised."""
        if self.corpora is None or not len(self):
            return 1.0
        ranges = [self.pool.rows_of(self.corpora[n]) for n in corpora if self.corpora[n] in self.pool.corpora]
        return sum(float(((self.numbers >= r.start) & (self.numbers < r.stop)).mean()) for r in ranges)


def hold_out(pool: TokenPool, count: int) -> dict[str, int]:
    """{corpus: how many of its last rows are held out}: `count` in all, in proportion to its rows. Raises UserError where
    none would be left to train on."""
    rows = pool.rows_per_corpus
    total = sum(rows.values())
    if count >= total:
        raise UserError(
            f"data.validation_sequences: {count} of the {total} rows of {pool.sequence_length} tokens that the files hold "
            "leave none to train on"
        )
    exact = {name: count * own / total for name, own in rows.items()}
    found = {name: int(share) for name, share in exact.items()}
    for name in sorted(rows, key=lambda name: found[name] - exact[name])[: count - sum(found.values())]:
        found[name] += 1
    return found


def choose_rows(
    pool: TokenPool, held_out: Mapping[str, int], shares: Mapping[str, float], max_tokens: int, seed: int
) -> np.ndarray:
    """(rows,) int64: numbers of the rows to train on, those not held out. shares: {corpus: share of the rows}, repeated
    where it has too few; empty: of every corpus all. max_tokens: draws as many rows, at least one; 0: all."""
    most = max_tokens // pool.sequence_length
    own = {name: pool.rows_of(name)[: count - held_out.get(name, 0)] for name, count in pool.rows_per_corpus.items()}
    if not shares:
        numbers = np.concatenate([np.arange(rows.start, rows.stop) for rows in own.values()])
        return np.sort(np.random.default_rng(seed).permutation(numbers)[: max(1, most)]) if max_tokens else numbers
    for name, share in shares.items():
        if share and not own[name]:
            raise UserError(f"data.corpora.{name}.weight: no row of it is left to train on; set it to 0")
    total = max(1, most) if max_tokens else min(len(own[name]) / share for name, share in shares.items() if share)
    return np.concatenate(
        [_drawn(own[name], max(1, round(share * total)), name, seed) for name, share in shares.items() if share]
    )


def _drawn(rows: range, count: int, name: str, seed: int) -> np.ndarray:
    """`count` of the rows, each as often as another or once more."""
    passes, rest = divmod(count, len(rows))
    every = np.arange(rows.start, rows.stop)
    drawn = np.random.default_rng([seed, zlib.crc32(name.encode())]).permutation(every)[:rest]
    return np.sort(np.concatenate([np.tile(every, passes), drawn]))
