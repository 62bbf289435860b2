"""A teacher that reads another prompt than the student: its forward pass over documents of its own, put in the student's
places.

The documents of a batch are read under the teacher's prompt, packed into rows of their own, and the hidden state that
predicts a token of a response is put where the student predicts the same token. What comes back has the shape of the
student's batch, so losses and caches see no difference. Where the prompt holds privileged information, such as the
solution, and the student writes the text, this is OPSD (2601.18734) and SDFT (2601.19897).
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from distill_lit.data import TeacherDocuments
from distill_lit.data.loader import make_batch
from distill_lit.data.packing import pack, place_first_fit
from distill_lit.data.teacher_prompts import TeacherDocument
from distill_lit.data.tokenization import join_documents
from distill_lit.losses.targets import IGNORE_INDEX
from distill_lit.models.packing_check import last_hidden_state


def hidden_states_with_prompt(model: Any, batch: dict[str, Tensor], documents: TeacherDocuments) -> Tensor:
    """The model's last hidden states (B, T, D), on its device: at each place before a supervised token of the batch those
    that it has there under the teacher's prompt, 0 elsewhere.

    batch: packed rows with `rows`, `labels`; of text that the student wrote (row -1) also `on_policy_mask`, `prompt_rows`
    and `prompt_ends`.
    """
    found, lm_head = documents_of_batch(batch, documents), model.get_output_embeddings().weight
    placed = torch.zeros(*batch["labels"].shape, lm_head.shape[1], dtype=lm_head.dtype, device=lm_head.device)
    if found:
        longest = max([documents.sequence_length, *(len(document.input_ids) for document in found)])
        rows = np.repeat([document.row for document in found], [len(document.columns) for document in found])
        columns = np.concatenate([document.columns for document in found]) - 1
        rows_per_pass = max(1, batch["labels"].numel() // longest)  # as much at a time as the student reads
        states = _last_hidden_states(model, found, longest, rows_per_pass)
        placed[_index(rows, placed), _index(columns, placed)] = states
    return placed


def documents_of_batch(batch: dict[str, Tensor], documents: TeacherDocuments) -> list[TeacherDocument]:
    """What the teacher reads for a batch: documents of the corpora, and texts that the student wrote to prompts of them."""
    loss_mask = (batch["labels"] != IGNORE_INDEX).cpu().numpy()
    rows = batch["rows"].tolist()
    found = documents.of_rows(rows, loss_mask)
    for i, row in enumerate(rows):
        if row < 0:
            prompt = documents.prompt_of(int(batch["prompt_rows"][i]), int(batch["prompt_ends"][i]))
            columns = np.flatnonzero(loss_mask[i])
            written = batch["input_ids"][i].cpu().numpy()[columns]
            found.append(
                TeacherDocument(np.concatenate([prompt, written]), i, columns, len(prompt) + np.arange(len(written)))
            )
    return found


def _last_hidden_states(model: Any, found: list[TeacherDocument], length: int, rows_per_pass: int) -> Tensor:
    """Hidden states (K, D) before each place of the documents, which are packed into rows of `length` tokens."""
    ids = [document.input_ids for document in found]
    packed, _ = pack(join_documents(ids, [np.ones(len(each), dtype=bool) for each in ids]), length)
    rows, columns, _ = place_first_fit(np.array([*map(len, ids)]), length)
    places = np.concatenate(
        [row * length + column + document.places - 1 for row, column, document in zip(rows, columns, found, strict=True)]
    )
    device = next(model.parameters()).device
    chosen, states = [], []
    for start in range(0, len(packed), rows_per_pass):
        part = np.arange(start, min(start + rows_per_pass, len(packed)))
        inputs = {name: value.to(device) for name, value in make_batch(packed, part, 1).items()}
        chosen.append(np.flatnonzero((places >= start * length) & (places < (start + len(part)) * length)))
        hidden = last_hidden_state(model, inputs).flatten(0, 1)
        states.append(hidden[_index(places[chosen[-1]] - start * length, hidden)])
    read = torch.cat(states)
    return read[_index(np.argsort(np.concatenate(chosen)), read)]


def _index(numbers: np.ndarray, values: Tensor) -> Tensor:
    """Numbers to index `values` with, on its device."""
    return torch.from_numpy(numbers).to(values.device)
