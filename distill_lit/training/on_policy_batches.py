"""Batches of student text: prompts from batches of the corpora, and rows of prompt and text in their places."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from distill_lit.config import OnPolicyConfig
from distill_lit.generation.sampling import GeneratedSequence
from distill_lit.losses.targets import IGNORE_INDEX
from distill_lit.models.document_spans import document_ids_of
from distill_lit.models.packed_forward import PackedBatch

ENGINE_LOGPROBS = "engine_logprobs"  # (B, T) of a batch: what wrote it said of its tokens; NaN where nobody has said it


class TokenizedPrompt(NamedTuple):
    """The beginning of a document. corpus_id: which corpus it is of, 0 where the batch does not say; last_column: where it
    ends in its packed row."""

    token_ids: list[int]
    corpus_id: int
    last_column: int


def as_packed(batch: PackedBatch, max_new_tokens: int) -> PackedBatch:
    """A batch of transformers as packed rows, one document each, with room for a text; packed rows as they are."""
    if "document_ids" in batch:
        return batch
    documents = document_ids_of(batch)
    parts = {
        "input_ids": (batch["input_ids"], 0),
        "labels": (batch["labels"], IGNORE_INDEX),
        "document_ids": (documents, 0),
        "position_ids": ((documents.cumsum(1) - 1).clamp(min=0), 0),
    }
    return {name: pad(part, (0, max_new_tokens), value=filling) for name, (part, filling) in parts.items()}


def sample_prompts(batch: PackedBatch, config: OnPolicyConfig, rng: np.random.Generator) -> dict[int, TokenizedPrompt]:
    """{row: its prompt, the beginning of one of its documents}, without rows whose document has no response, or one that
    begins too late to leave room for a text."""
    ids, documents, labels = (batch[name].cpu().numpy() for name in ("input_ids", "document_ids", "labels"))
    max_prompt_length = ids.shape[1] - config.max_new_tokens
    prompts = {}
    for row in range(len(ids)):
        number = int(rng.integers(1, max(1, int(documents[row].max())) + 1))
        columns = np.flatnonzero(documents[row] == number)
        response_positions = np.flatnonzero(labels[row, columns] != IGNORE_INDEX)
        if (
            len(response_positions) and response_positions[0] <= 1
        ):  # plain text: only the first token of a document is never supervised
            count = max(1, min(round(config.prompt_fraction * len(columns)), max_prompt_length))
        elif len(response_positions) and response_positions[0] <= max_prompt_length:
            count = int(response_positions[0])
        else:
            continue
        corpus_id = int(batch["corpus_ids"][row, columns[0]]) if "corpus_ids" in batch else 0
        prompts[row] = TokenizedPrompt(ids[row, columns][:count].tolist(), corpus_id, int(columns[count - 1]))
    return prompts


def build_batch(
    prompts: dict[int, TokenizedPrompt], sequences: list[GeneratedSequence], template_batch: PackedBatch
) -> PackedBatch:
    """The batch with rows of prompt and text in the place of those that had a prompt. `prompt_rows`, `prompt_ends`, (B,)
    int64, say which packed row a prompt is of and in which column it ends; -1 in rows that stay as they are."""
    rows, device = list(prompts), template_batch["input_ids"].device
    generated_batch = {name: value.to("cpu", copy=True) for name, value in template_batch.items()}
    on_policy_mask = torch.zeros_like(generated_batch["input_ids"], dtype=torch.bool)
    is_numbered = "rows" in template_batch
    for name, empty in (("input_ids", 0), ("document_ids", 0), ("position_ids", 0), ("labels", IGNORE_INDEX), ("rows", -1)):
        if name in generated_batch:
            generated_batch[name][rows] = empty
    if is_numbered:
        no_prompt = torch.full_like(generated_batch["rows"], -1)
        generated_batch |= {"prompt_rows": no_prompt, "prompt_ends": no_prompt.clone()}
    logprobs = unknown_logprobs(generated_batch)
    for row, text in zip(rows, sequences, strict=True):
        prompt = prompts[row].token_ids
        if is_numbered:
            generated_batch["prompt_rows"][row] = template_batch["rows"][row]
            generated_batch["prompt_ends"][row] = prompts[row].last_column
        token_ids = torch.tensor([*prompt, *text.token_ids][: on_policy_mask.shape[1]])
        generated_batch["input_ids"][row, : len(token_ids)] = token_ids
        generated_batch["document_ids"][row, : len(token_ids)] = 1
        generated_batch["position_ids"][row, : len(token_ids)] = torch.arange(len(token_ids))
        on_policy_mask[row, len(prompt) : len(token_ids)] = True
        logprobs[row, len(prompt) : len(token_ids)] = torch.tensor(
            text.logprobs[: len(token_ids) - len(prompt)], dtype=torch.float32
        )
        if "corpus_ids" in generated_batch:
            generated_batch["corpus_ids"][row] = prompts[row].corpus_id
    generated_batch["labels"][on_policy_mask] = generated_batch["input_ids"][on_policy_mask]
    generated_batch |= {
        "on_policy_mask": on_policy_mask,
        ENGINE_LOGPROBS: logprobs,
        "step_tokens": (generated_batch["labels"][:, 1:] != IGNORE_INDEX).sum(),
    }
    return {name: value.to(device) for name, value in generated_batch.items()}


def unknown_logprobs(batch: Mapping[str, Tensor]) -> Tensor:
    """`engine_logprobs` of a batch that no engine wrote."""
    return torch.full_like(batch["input_ids"], torch.nan, dtype=torch.float32)
