"""Packing against rows made by hand, and its laws on random documents."""

import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from helpers.tiny_data import byte_tokenizer, tokens_of
from hypothesis import given, settings
from hypothesis import strategies as st

from distill_lit.data import PackedDataset, PreparedData, read_word_counts
from distill_lit.data.loader import shuffled_row_indices
from distill_lit.data.packing import ChainedRows, pack, place_first_fit, split_long_documents, split_train_validation

sizes_and_lengths = st.tuples(st.lists(st.integers(1, 40), min_size=1, max_size=60), st.integers(2, 17))


def test_first_fit_by_hand():
    rows, columns, numbers = place_first_fit(np.array([3, 5, 2, 4, 1]), 6)
    assert rows.tolist() == [0, 1, 0, 2, 0]
    assert columns.tolist() == [0, 0, 3, 0, 5]
    assert numbers.tolist() == [1, 1, 2, 1, 3]


def test_the_fullest_row_is_closed_first():
    # two open rows at most: after 3 and 4 the third row closes the one with 4, so 2 goes beside the 3 of row 0
    rows, _, _ = place_first_fit(np.array([3, 4, 5, 2]), 6, open_rows=2)
    assert rows.tolist() == [0, 1, 2, 0]


def test_a_long_document_is_cut():
    starts, sizes = split_long_documents(np.array([0, 2, 16, 22]), 6)
    assert starts.tolist() == [0, 2, 8, 14, 16]
    assert sizes.tolist() == [2, 6, 6, 2, 6]


def test_rows_by_hand():
    supervised = [[True] * 3, [False, False, True, True, False], [True, True]]
    packed, split = pack(tokens_of([11, 12, 13], [21, 22, 23, 24, 25], [31, 32], supervised=supervised), 6)
    assert split == 0
    assert packed.input_ids.tolist() == [[11, 12, 13, 31, 32, 0], [21, 22, 23, 24, 25, 0]]
    assert packed.document_ids.tolist() == [[1, 1, 1, 2, 2, 0], [1, 1, 1, 1, 1, 0]]
    assert packed.position_ids.tolist() == [[0, 1, 2, 0, 1, 0], [0, 1, 2, 3, 4, 0]]
    assert packed.labels.tolist() == [[-100, 12, 13, -100, 32, -100], [-100, -100, 23, 24, -100, -100]]
    assert packed.targets_per_row.tolist() == [3, 2]
    assert packed.padding_share == pytest.approx(2 / 12)
    assert (packed.num_tokens, packed.num_documents, len(packed), packed.sequence_length) == (10, 3, 2, 6)


def test_chained_rows_are_those_of_a_copy_and_only_those_asked_for_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = pack(tokens_of([11, 12, 13], [21, 22, 23, 24, 25], [31, 32, 33, 34]), 6)
    second, _ = pack(tokens_of([300, 301, 302, 303, 304], [41, 42, 43]), 6)
    parts = [first, first.take(np.arange(0)), second]
    whole, chained = PackedDataset.concatenate(parts), ChainedRows(parts)
    for rows in (np.arange(len(whole)), np.array([4, 0, 3, 0]), np.array([], dtype=int)):
        for name in ("input_ids", "document_ids", "loss_mask", "position_ids"):
            assert np.array_equal(getattr(chained.take(rows), name), getattr(whole.take(rows), name)), (name, rows)
        assert chained.count_targets(rows).tolist() == whole.count_targets(rows).tolist()
    assert (len(chained), chained.sequence_length, chained.num_tokens) == (5, 6, whole.num_tokens)
    assert np.array_equal(chained.targets_per_row, whole.targets_per_row)
    assert np.array_equal(chained.input_ids, whole.input_ids)
    assert chained.corpus_ids is None
    taken: list[int] = []
    take = PackedDataset.take
    monkeypatch.setattr(PackedDataset, "take", lambda part, rows: (taken.append(len(rows)), take(part, rows))[1])
    chained.take(np.array([4]))
    assert max(taken) == 1


def test_a_split_document_is_counted_and_its_pieces_do_not_predict_each_other():
    packed, split = pack(tokens_of([1, 2, 3, 4, 5, 6, 7]), 4)
    assert split == 1
    assert packed.labels.tolist() == [[-100, 2, 3, 4], [-100, 6, 7, -100]]


@settings(max_examples=150, deadline=None)
@given(sizes_and_lengths)
def test_laws(drawn):
    sizes, length = drawn
    first = np.cumsum([1, *sizes])
    documents = [list(range(a, b)) for a, b in pairwise(first)]  # every token another number
    packed, split = pack(tokens_of(*documents), length)
    real = packed.document_ids > 0
    assert sorted(packed.input_ids[real].tolist()) == list(range(1, first[-1]))
    assert split == sum(size > length for size in sizes)
    assert not packed.input_ids[~real].any()
    assert not packed.position_ids[~real].any()
    for ids, numbers, positions, labels in zip(
        packed.input_ids, packed.document_ids, packed.position_ids, packed.labels, strict=True
    ):
        used = numbers[numbers > 0]
        assert (np.diff(used.astype(int)) >= 0).all()
        assert (numbers[len(used) :] == 0).all()
        for number in range(1, used.max() + 1):
            piece = ids[numbers == number].tolist()
            whole = next(d for d in documents if piece[0] in d)
            at = whole.index(piece[0])
            assert piece == whole[at : at + length]  # in order, and cut only where a row is full
            assert positions[numbers == number].tolist() == list(range(len(piece)))
            assert labels[numbers == number].tolist() == [-100, *piece[1:]]


def test_validation_and_training_come_from_different_documents():
    documents = [[i] * 10 for i in range(1, 21)]
    held, pool = split_train_validation(tokens_of(*documents), sequence_length=16, validation_sequences=2, max_tokens=0)
    assert set(held.tokens.tolist()) == {1, 2, 3, 4}  # the first that hold 2 × 16 tokens
    assert set(pool.tokens.tolist()) == set(range(5, 21))
    assert pool.offsets.tolist() == list(range(0, 161, 10))


@pytest.mark.parametrize(("cap", "documents"), [(0, 16), (1, 1), (10, 1), (19, 1), (20, 2), (10**6, 16)])
def test_the_pool_stays_within_its_tokens(cap, documents):
    _, pool = split_train_validation(
        tokens_of(*[[i] * 10 for i in range(1, 21)]), sequence_length=16, validation_sequences=2, max_tokens=cap
    )
    assert len(pool.offsets) - 1 == documents


def test_words_are_counted_in_the_rows_that_a_student_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four rows, of which three are read, one of them in the second pass again."""
    monkeypatch.setenv("DISTILL_LIT_CACHE", str(tmp_path))
    tokenizer = byte_tokenizer()
    texts = ["one two", "red red", "sun, it's", "sea two"]
    packed, _ = pack(tokens_of(*(tokenizer(text)["input_ids"] for text in texts)), 9)
    prepared = PreparedData(packed, packed, "f", {})
    order = shuffled_row_indices(len(packed), 5, 5)
    rows = [tokenizer.decode(packed.input_ids[n][packed.document_ids[n] > 0].tolist()) for n in order]
    expected = Counter(word for row in rows for word in re.findall(r"[a-z']+", row))
    assert len(packed) == 4
    assert read_word_counts(prepared, tokenizer, 5, seed=5) == expected
    assert sum(read_word_counts(prepared, tokenizer, 3, seed=5).values()) == 6  # two words a row, and not the fourth
    assert read_word_counts(prepared, None, 5, seed=5) == expected  # from the cache
