"""Calibration text for pruning: what decides which layers, channels and heads are kept."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from distill_lit.utils.exceptions import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def calibration_inputs(
    tokenizer: "PreTrainedTokenizerBase", texts: Iterable[str], sequence_length: int = 256, batch_size: int = 8
) -> list[dict[str, Tensor]]:
    """Batches of texts as a model takes them: input_ids and attention_mask (B, T) int64, and `valid` (B, T) bool, the
    tokens that count. Texts are cut at `sequence_length` tokens. Raises UserError where there is no text.

    Example:
        >>> batches = calibration_inputs(tokenizer, texts)
        >>> student = prune_depth(teacher, choose_layers(teacher, 12, "block_influence", batches))
    """
    rows = [tokenizer(text)["input_ids"][:sequence_length] for text in texts]
    rows = [row for row in rows if row]
    if not rows:
        raise UserError("calibration_inputs: no text has a token")
    batches = []
    for start in range(0, len(rows), batch_size):
        part = [torch.tensor(row) for row in rows[start : start + batch_size]]
        ids = torch.nn.utils.rnn.pad_sequence(part, batch_first=True)
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in part], batch_first=True)
        batches.append({"input_ids": ids, "attention_mask": mask, "valid": mask.bool()})
    return batches
