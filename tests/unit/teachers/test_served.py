"""What a served teacher is asked about."""

import pytest
import torch

from distill_lit.teachers.served import _documents
from distill_lit.utils.exceptions import UserError


def test_a_first_token_of_which_a_server_says_nothing_is_refused() -> None:
    """Padded on the left as transformers' collator does it: the first real token has a label, and padding before it."""
    batch = {"input_ids": torch.tensor([[0, 0, 5, 6, 7]]), "attention_mask": torch.tensor([[0, 0, 1, 1, 1]])}
    labels = torch.tensor([[-100, -100, 5, 6, 7]])
    with pytest.raises(UserError, match="the first token of a document is to be predicted, as in rows padded on the left"):
        _documents(batch, labels[:, 1:] >= 0)
    labels[0, 2] = -100
    (document,) = _documents(batch, labels[:, 1:] >= 0)
    assert (document.start, document.ids, document.first) == (2, [5, 6, 7], 1)
