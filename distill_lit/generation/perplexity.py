"""A perplexity filter: how probable a model of your choice finds each answer, read in whole, not written."""

from collections.abc import Sequence
from typing import Any

import torch

from distill_lit.data.chat import encode_chat
from distill_lit.generation.completions import Completion
from distill_lit.losses.lm_head import get_lm_head
from distill_lit.models.packing_check import hidden_states_of_texts
from distill_lit.models.position_limits import max_context
from distill_lit.models.vocabulary import check_ids, unpadded_vocab_size

PERPLEXITY_BATCH_SIZE = 8


def mean_completion_logprobs(
    model: Any, tokenizer: Any, completions: Sequence[Completion], chat: bool, batch_size: int = PERPLEXITY_BATCH_SIZE
) -> list[float]:
    """Mean log-probability per token of every answer after its prompt, nats, −inf for one that the context cannot hold.

    The perplexity filter may have another tokenizer than the writer: it gets text.
    """
    embedding_rows = model.get_input_embeddings().weight.shape[0]
    vocabulary = unpadded_vocab_size(tokenizer, embedding_rows)
    max_positions = max_context(model.config)
    encoded = [_encode(tokenizer, answer, chat) for answer in completions]
    for ids, _ in encoded:
        check_ids(ids, tokenizer, embedding_rows)
    order = sorted(range(len(completions)), key=lambda i: len(encoded[i][0]))
    scores = [float("-inf")] * len(completions)
    fitting = [i for i in order if len(encoded[i][0]) <= max_positions]
    for start in range(0, len(fitting), batch_size):
        numbers = fitting[start : start + batch_size]
        for i, score in zip(numbers, _score_batch(model, vocabulary, [encoded[i] for i in numbers]), strict=True):
            scores[i] = score
    return scores


def _encode(tokenizer: Any, answer: Completion, chat: bool) -> tuple[list[int], list[bool]]:
    """(token ids, which of them belong to the answer)."""
    if chat and tokenizer.chat_template:
        return encode_chat(tokenizer, answer.messages)
    separator = " " if chat else ""
    encoded = tokenizer(answer.prompt + separator + answer.text, return_offsets_mapping=True)
    start = len(answer.prompt)
    return list(encoded["input_ids"]), [end > start for _, end in encoded["offset_mapping"]]


@torch.inference_mode()
def _score_batch(model: Any, vocabulary: int, rows: list[tuple[list[int], list[bool]]]) -> list[float]:
    head, scores = get_lm_head(model, vocabulary), []
    for (ids, completion_mask), hidden in zip(rows, hidden_states_of_texts(model, [ids for ids, _ in rows]), strict=True):
        targets = torch.tensor(completion_mask[1:], device=hidden.device)
        logits = head.scale_and_cap(head.project(hidden[:-1][targets]))  # the answer's positions only: vocabularies are big
        labels = torch.tensor(ids[1:], device=hidden.device)[targets]
        token_logprobs = torch.log_softmax(logits, -1).gather(-1, labels[:, None])
        scores.append(float(token_logprobs.mean()) if len(token_logprobs) else float("-inf"))
    return scores
