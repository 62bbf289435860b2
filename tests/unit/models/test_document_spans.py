"""Where documents lie in rows, by hand."""

import numpy as np
import pytest
import torch

from distill_lit.models.document_spans import document_ids_of, document_spans, group_spans, is_document_start

ROWS = [[1, 1, 2, 2, 2, 0], [1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0], [0, 1, 1, 2, 0, 0]]


@pytest.mark.parametrize("make", [torch.tensor, lambda rows: np.array(rows, dtype=np.uint8)], ids=["tensor", "array"])
def test_spans_by_hand(make):
    ids = make(ROWS)
    spans = document_spans(ids)
    assert spans == [(0, 0, 2), (0, 2, 3), (1, 0, 6), (3, 1, 2), (3, 3, 1)]
    assert spans[1].columns.tolist() == [2, 3, 4]
    assert is_document_start(ids).tolist()[3] == [True, True, False, True, True, False]
    assert document_spans(ids[:0]) == []


def test_groups_by_hand():
    groups = list(group_spans(document_spans(torch.tensor(ROWS)), 1.25))
    assert [[span.size for span in group] for group in groups] == [[6], [3, 2], [2], [1]]  # 3 + 3 ≤ 1.25 · (3 + 2)


def test_a_plain_batch_has_a_document_a_row():
    ids, whole = torch.zeros(2, 3, dtype=torch.int64), torch.tensor([[1, 1, 0], [0, 1, 1]])
    assert document_ids_of({"input_ids": ids}).tolist() == [[1] * 3] * 2
    assert document_ids_of({"input_ids": ids, "attention_mask": whole}).tolist() == whole.tolist()
    assert document_ids_of({"input_ids": ids, "attention_mask": whole, "document_ids": ids}) is ids
