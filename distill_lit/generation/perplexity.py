"""A judge: how probable a model of your choice finds each answer, read in whole, not written."""

from collections.abc import Sequence
from typing import Any

import torch

from distill_lit.data.chat import encode_chat
from distill_lit.generation.completions import Answer
from distill_lit.losses.lm_head import head_of
from distill_lit.models.packing_check import read_texts
from distill_lit.models.vocabulary import check_ids, count_tokens

BATCH = 8


def judge_answers(model: Any, tokenizer: Any, answers: Sequence[Answer], chat: bool, batch: int = BATCH) -> list[float]:
    """Mean log-probability per token of every answer after its prompt, nats, −inf for one that the context cannot hold.

    The judge may have another tokenizer than the writer: it gets text.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    vocabulary = count_tokens(tokenizer, rows)
    room = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 1 << 30
    encoded = [_encode(tokenizer, answer, chat) for answer in answers]
    for ids, _ in encoded:
        check_ids(ids, tokenizer, rows)
    order = sorted(range(len(answers)), key=lambda i: len(encoded[i][0]))
    scores = [float("-inf")] * len(answers)
    fitting = [i for i in order if len(encoded[i][0]) <= room]
    for start in range(0, len(fitting), batch):
        numbers = fitting[start : start + batch]
        for i, score in zip(numbers, _read(model, vocabulary, [encoded[i] for i in numbers]), strict=True):
            scores[i] = score
    return scores


def _encode(tokenizer: Any, answer: Answer, chat: bool) -> tuple[list[int], list[bool]]:
    """(token ids, which of them belong to the answer)."""
    if chat and tokenizer.chat_template:
        return encode_chat(tokenizer, answer.messages)
    gap = " " if chat else ""
    encoded = tokenizer(answer.prompt + gap + answer.text, return_offsets_mapping=True)
    start = len(answer.prompt)
    return list(encoded["input_ids"]), [end > start for _, end in encoded["offset_mapping"]]


@torch.inference_mode()
def _read(model: Any, vocabulary: int, rows: list[tuple[list[int], list[bool]]]) -> list[float]:
    head, scores = head_of(model, vocabulary), []
    for (ids, marks), hidden in zip(rows, read_texts(model, [ids for ids, _ in rows]), strict=True):
        targets = torch.tensor(marks[1:], device=hidden.device)
        logits = head.finish(head.project(hidden[:-1][targets]))  # the answer's positions only: vocabularies are big
        labels = torch.tensor(ids[1:], device=hidden.device)[targets]
        taken = torch.log_softmax(logits, -1).gather(-1, labels[:, None])
        scores.append(float(taken.mean()) if len(taken) else float("-inf"))
    return scores
