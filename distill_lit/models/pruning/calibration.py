"""Calibration text for pruning: what decides which layers, channels and heads are kept."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from distill_lit.utils.exceptions import UserError, check_not_one_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ModelInputs = dict[str, Tensor]


def calibration_inputs(
    tokenizer: "PreTrainedTokenizerBase", texts: Iterable[str], sequence_length: int = 256, batch_size: int = 8
) -> list[ModelInputs]:
    """Batches of texts as a model takes them: input_ids and attention_mask (B, T) int64, and `valid` (B, T) bool, the
    tokens that count. Texts are cut at `sequence_length` tokens. Raises UserError where there is no text.

    Example:
        >>> batches = calibration_inputs(tokenizer, texts)
        >>> student = prune_depth(teacher, choose_layers(teacher, 12, "block_influence", batches))
    """
    check_not_one_text("texts", texts)
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


def with_valid_tokens(batches: Iterable[Mapping[str, Tensor]]) -> list[ModelInputs]:
    """The batches with `valid` (B, T) bool in each. Where there is none, the tokens of the attention mask count, as in
    batches of transformers, and without a mask all. Batches in which none counts are left out. Raises UserError where none
    is left: nothing could be measured.
    """
    if isinstance(batches, Mapping):
        raise UserError("batches: one batch; give a list of batches, as calibration_inputs makes it")
    kept = [{**batch, "valid": valid} for batch in batches if (valid := _valid_tokens(batch)).any()]
    if not kept:
        raise UserError("batches: they hold no token to measure on; calibration_inputs makes batches of texts")
    return kept


def _valid_tokens(batch: Mapping[str, Tensor]) -> Tensor:
    if not isinstance(batch, Mapping) or "input_ids" not in batch:
        given = ", ".join(map(str, batch)) if isinstance(batch, Mapping) else type(batch).__name__
        raise UserError(f"batches: a batch is a dictionary with input_ids (B, T), not {given or 'an empty one'}")
    ids = batch["input_ids"]
    valid = batch.get("valid", batch.get("attention_mask"))
    if valid is None:
        return torch.ones_like(ids, dtype=torch.bool)
    if valid.shape != ids.shape:
        raise UserError(
            f"batches: the tokens that count have shape {tuple(valid.shape)}, and input_ids {tuple(ids.shape)}; "
            "give `valid` (B, T)"
        )
    return valid.bool()
